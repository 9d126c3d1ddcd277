//! Turns the file `sensor.key` into the key that signs a log, and `sensor.pub` into the one that verifies it: Ed25519
//! (RFC 8032) in the PEM files of RFC 8410, as `openssl` reads them.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::seal::Hash;

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
/// Files larger than this hold no key.
const MAX_FILE: u64 = 4096;

/// Signs.
pub struct SensorKey(SigningKey);

/// Verifies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system refused.
    #[error("{path}: the sensor's key cannot be {what}: {source}")]
    System {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// It is there, and must not be used.
    #[error("{path} {what}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
}

impl SensorKey {
    /// A new one, from the system's random numbers.
    pub fn generate() -> io::Result<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut_slice()).map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self(SigningKey::from_bytes(&secret)))
    }

    /// The key in a folder, made there where none is; `sensor.pub` beside it is made to match.
    pub fn load_or_make(folder: &Path) -> Result<Self, KeyError> {
        let path = folder.join(SECRET_FILE);
        let key = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) => Self::read(&path, file)?,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate().map_err(|source| written(&path, source))?;
                let text = pem(SECRET_LABEL, &SECRET_PREFIX, key.0.as_bytes());
                write(&path, text.as_bytes(), 0o600).map_err(|source| written(&path, source))?;
                key
            }
            Err(source) => return Err(KeyError::System { path, what: "read", source }),
        };
        let (path, text) = (folder.join(PUBLIC_FILE), key.public().to_string());
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            write(&path, text.as_bytes(), 0o644).map_err(|source| written(&path, source))?;
        }
        Ok(key)
    }

    fn read(path: &Path, file: File) -> Result<Self, KeyError> {
        let refused = |what| KeyError::Refused { path: path.to_owned(), what };
        let system = |source| KeyError::System { path: path.to_owned(), what: "read", source };
        let metadata = file.metadata().map_err(system)?;
        let mode = metadata.mode() & 0o7777;
        if !metadata.is_file() {
            return Err(refused("is not a file: take it away, and a new key is made".into()));
        }
        // Whoever can read it can sign another log in the sensor's name.
        if mode & 0o077 != 0 {
            return Err(refused(format!(
                "is open to other users (mode {mode:04o}), and signs the log: if nobody has read it run `chmod 600 {}`, else take it away, and a new key is made",
                path.display()
            )));
        }
        let own = rustix::process::geteuid().as_raw();
        if ![0, own].contains(&metadata.uid()) {
            return Err(refused(format!(
                "belongs to user {}, who is neither root nor the user that runs this ({own}): chown it",
                metadata.uid()
            )));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE).read_to_string(&mut text).map_err(system)?;
        let secret = from_pem(&text, SECRET_LABEL, &SECRET_PREFIX).map(Zeroizing::new);
        let secret = secret.ok_or_else(|| {
            refused("holds no Ed25519 key: put the right one back, or take it away, and a new key is made".into())
        })?;
        Ok(Self(SigningKey::from_bytes(&secret)))
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
                return Err(KeyError::System { path: path.to_owned(), what: "read", source });
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

fn written(path: &Path, source: io::Error) -> KeyError {
    KeyError::System { path: path.to_owned(), what: "written", source }
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

/// Whole or not at all, and on the disk.
fn write(path: &Path, octets: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(octets)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
