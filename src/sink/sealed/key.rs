//! Turns the file `sensor.key` into the key that signs a log, and `sensor.pub` into the one that verifies it: Ed25519
//! (RFC 8032) in the PEM files of RFC 8410, as `openssl` reads them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::seal::Hash;
pub use crate::sink::secret::KeyError;
use crate::sink::secret::{MAX_FILE, Owner, Secret, random};

/// The secret key's file in the state folder.
pub const SECRET_FILE: &str = "sensor.key";
/// The public key's, beside it.
pub const PUBLIC_FILE: &str = "sensor.pub";

/// RFC 8410 section 7: version 0, algorithm 1.3.101.112, an octet string in an octet string; then the 32 octets.
const SECRET_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// RFC 8410 section 4: algorithm 1.3.101.112, a bit string without unused bits; then the 32 octets.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SECRET_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";

/// Signs.
pub struct SensorKey(SigningKey);

/// Verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// What messages call it.
const OWN: Secret = Secret { whose: "the sensor's key", does: "signs the log", owner: Owner::Own };

impl SensorKey {
    /// A new one, from the system's random numbers.
    pub fn generate() -> io::Result<Self> {
        Ok(Self(SigningKey::from_bytes(&*random()?)))
    }

    /// The key in a folder, made there where none is; `sensor.pub` beside it is made to match.
    pub fn load_or_make(folder: &Path) -> Result<Self, KeyError> {
        let path = folder.join(SECRET_FILE);
        // Whoever can read it can sign another log in the sensor's name.
        let key = if let Some(text) = OWN.read(&path)? {
            let secret = from_pem(&text, SECRET_LABEL, &SECRET_PREFIX).map(Zeroizing::new);
            let what = "holds no Ed25519 key: put the right one back, or take it away, and a new key is made";
            let secret = secret.ok_or_else(|| KeyError::Refused { path, what: what.into() })?;
            Self(SigningKey::from_bytes(&secret))
        } else {
            let key = Self::generate().map_err(|source| OWN.failed(&path, "written", source))?;
            let text = pem(SECRET_LABEL, &SECRET_PREFIX, key.0.as_bytes());
            OWN.write(&path, text.as_bytes(), 0o600)?;
            key
        };
        let (path, text) = (folder.join(PUBLIC_FILE), key.public().to_string());
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            OWN.write(&path, text.as_bytes(), 0o644)?;
        }
        Ok(key)
    }

    /// Signs a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// The half that anybody may have.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
}

impl fmt::Debug for SensorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SensorKey({})", self.public().base64())
    }
}

impl PublicKey {
    /// From a file such as `sensor.pub`.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        match read {
            Err(source) if source.kind() != io::ErrorKind::InvalidData => {
                return Err(OWN.failed(path, "read", source));
            }
            _ => {}
        }
        let octets = from_pem(&text, PUBLIC_LABEL, &PUBLIC_PREFIX);
        let key = octets.and_then(|octets| VerifyingKey::from_bytes(&octets).ok());
        let what = if text.contains(SECRET_LABEL) {
            "holds a secret key: name sensor.pub, which lies beside it"
        } else {
            "holds no Ed25519 public key: name the sensor.pub of the sensor that wrote the log"
        };
        key.map(Self).ok_or_else(|| KeyError::Refused { path: path.to_owned(), what: what.into() })
    }

    /// Whether this key's owner signed the message. Strictly (RFC 8032 5.1.7, and no keys or points of small order), so
    /// that nobody else can have.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }

    /// SHA-256 of it as `openssl pkey -pubin -outform DER` writes it, in hexadecimal digits: to compare by eye.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::new_with_prefix(PUBLIC_PREFIX).chain_update(self.0.as_bytes()).finalize();
        Hash(digest.into()).to_string()
    }

    /// Its 32 octets in base64.
    #[must_use]
    pub fn base64(&self) -> String {
        STANDARD.encode(self.0.as_bytes())
    }
}

impl fmt::Display for PublicKey {
    /// As a PEM file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&pem(PUBLIC_LABEL, &PUBLIC_PREFIX, self.0.as_bytes()))
    }
}

fn pem(label: &str, prefix: &[u8], key: &[u8; 32]) -> Zeroizing<String> {
    let octets = Zeroizing::new([prefix, key.as_slice()].concat());
    let text = Zeroizing::new(STANDARD.encode(&*octets));
    Zeroizing::new(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", &*text))
}

fn from_pem(text: &str, label: &str, prefix: &[u8]) -> Option<[u8; 32]> {
    let text = text.trim().strip_prefix(&format!("-----BEGIN {label}-----"))?;
    let text = text.strip_suffix(&format!("-----END {label}-----"))?;
    let octets = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
    octets.strip_prefix(prefix)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_key_is_made_once_and_closed_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let key = SensorKey::load_or_make(folder.path()).unwrap();
        let path = folder.path().join(SECRET_FILE);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let again = SensorKey::load_or_make(folder.path()).unwrap();
        assert_eq!(key.public(), again.public());
        let public = PublicKey::load(&folder.path().join(PUBLIC_FILE)).unwrap();
        assert!(public.verifies(b"text", &key.sign(b"text")));
        assert!(!public.verifies(b"texts", &key.sign(b"text")));
        // A public half that was changed or lost is made again.
        std::fs::write(folder.path().join(PUBLIC_FILE), "").unwrap();
        SensorKey::load_or_make(folder.path()).unwrap();
        assert_eq!(PublicKey::load(&folder.path().join(PUBLIC_FILE)).unwrap(), public);

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = SensorKey::load_or_make(folder.path()).unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            let error = SensorKey::load_or_make(folder.path()).unwrap_err().to_string();
            assert!(error.contains("holds no Ed25519 key"), "{error}");
        }
        let error = PublicKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("no Ed25519 public key"), "{error}");
        std::fs::write(&path, &*pem(SECRET_LABEL, &SECRET_PREFIX, &[7; 32])).unwrap();
        let error = PublicKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("name sensor.pub"), "{error}");
    }
}
