//! Turns records into ones that show pseudonyms in place of the addresses of one's own networks: by ipcrypt-pfx
//! (draft-denis-ipcrypt), an address for an address, so that every format and every question to the log works as before.
//! Two addresses that share a prefix have pseudonyms that share one as long, and who holds the key can go back.
//!
//! | in a record | what becomes of it |
//! |---|---|
//! | addresses of home networks | their pseudonyms, unless an approval names them |
//! | the Community ID | that of the addresses that the record shows |
//! | identifiers of flows | HMAC-SHA-256 of them: a bare digest of addresses gives these away to whoever tries all |
//! | evidence whose value is an address | the value of the pseudonym; of a `ZeroTier` node behind a hidden address, a keyed number |
//! | everything else | itself |

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use ipcrypt_rs::IpcryptPfx;
use ipnet::IpNet;
use sha2::Sha256;
use zeroize::Zeroizing;

pub use super::secret::KeyError;
use super::secret::{Owner, Secret, random};
use crate::config::Config;
use crate::flow::{CommunityId, Direction, FlowId};
use crate::policy::Policy;
use crate::record::{EvidenceRecord, Record};

/// The key's file in the state folder.
pub const KEY_FILE: &str = "pseudonym.key";

/// What messages call it.
const OWN: Secret =
    Secret { whose: "the key of pseudonyms", does: "tells whom pseudonyms stand for", owner: Owner::Any };

/// Makes pseudonyms, and finds whom they stand for.
pub struct PseudonymKey {
    cipher: IpcryptPfx,
    secret: Zeroizing<[u8; 32]>,
}

impl PseudonymKey {
    /// The key in a file of 64 hexadecimal digits; `None` where there is no file.
    pub fn load(path: &Path) -> Result<Option<Self>, KeyError> {
        let Some(text) = OWN.read(path)? else { return Ok(None) };
        let key = from_hex(text.trim()).and_then(Self::new);
        let what = "holds no key of pseudonyms, which is 64 hexadecimal digits, the halves of which differ: put the right one back, or take it away, and a new key is made";
        key.map(Some).ok_or_else(|| KeyError::Refused { path: path.to_owned(), what: what.into() })
    }

    /// The same of a file that must be there.
    pub fn require(path: &Path) -> Result<Self, KeyError> {
        let what = "is not there: name the file with privacy.key or --key; the daemon makes one in its state folder at its first start, `linewarden pseudonym --new --key FILE` another";
        Self::load(path)?.ok_or_else(|| KeyError::Refused { path: path.to_owned(), what: what.into() })
    }

    /// Draws a key and writes it to a file that is not there yet.
    pub fn make(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| OWN.failed(path, "written", source);
        if path.symlink_metadata().is_ok() {
            return Err(KeyError::Refused {
                path: path.to_owned(),
                what: "is there already: whom its pseudonyms stand for could not be found any more".into(),
            });
        }
        let secret = random().map_err(failed)?;
        let digits = secret.iter().fold(Zeroizing::new(String::with_capacity(65)), |mut digits, octet| {
            let _ = write!(digits, "{octet:02x}");
            digits
        });
        // By chance: once in 2^128 times.
        let key =
            Self::new(secret).ok_or_else(|| failed(std::io::Error::other("the halves of a random key are alike")))?;
        OWN.write(path, format!("{}\n", *digits).as_bytes(), 0o600)?;
        Ok(key)
    }

    fn new(secret: Zeroizing<[u8; 32]>) -> Option<Self> {
        let (one, other) = secret.split_at(16);
        // The two AES keys would cancel each other out.
        (one != other).then(|| Self { cipher: IpcryptPfx::new(*secret), secret })
    }

    /// The pseudonym of an address.
    #[must_use]
    pub fn pseudonym(&self, address: IpAddr) -> IpAddr {
        Self::each(address, |address| self.cipher.encrypt_ipaddr(address))
    }

    /// Whom a pseudonym stands for.
    #[must_use]
    pub fn address(&self, pseudonym: IpAddr) -> IpAddr {
        Self::each(pseudonym, |pseudonym| self.cipher.decrypt_ipaddr(pseudonym))
    }

    /// An IPv4-mapped address (RFC 4291 2.5.5.2) is the IPv4 address in it.
    fn each(address: IpAddr, map: impl Fn(IpAddr) -> IpAddr) -> IpAddr {
        match (address, map(address.to_canonical())) {
            (IpAddr::V6(_), IpAddr::V4(mapped)) => mapped.to_ipv6_mapped().into(),
            (_, mapped) => mapped,
        }
    }

    /// A number that stands for octets, by the key.
    fn keyed<const N: usize>(&self, purpose: &str, octets: &[u8]) -> [u8; N] {
        let mut keyed = [0; N];
        // A key of HMAC may have any length.
        if let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(self.secret.as_slice()) {
            hmac.update(purpose.as_bytes());
            hmac.update(&[0]);
            hmac.update(octets);
            keyed.iter_mut().zip(hmac.finalize().into_bytes()).for_each(|(to, octet)| *to = octet);
        }
        keyed
    }

    fn flow_id(&self, id: FlowId) -> FlowId {
        FlowId::Number(u64::from_be_bytes(self.keyed("linewarden flow_id", &id.number().to_be_bytes())))
    }
}

impl std::fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PseudonymKey")
    }
}

fn from_hex(digits: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (place, octet) in key.iter_mut().enumerate() {
        *octet = u8::from_str_radix(digits.get(2 * place..2 * place + 2)?, 16).ok()?;
    }
    Some(key)
}

/// Where the settings have the key.
#[must_use]
pub fn key_file(config: &Config) -> PathBuf {
    let own = || config.state_folder(&config.log_folder()).join(KEY_FILE);
    config.privacy.key.clone().unwrap_or_else(own)
}

/// What to do where there is no key yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Make it, unless the settings name its file.
    Make,
    /// Say so.
    Refuse,
}

/// What is hidden of records.
#[derive(Debug)]
pub struct Pseudonyms {
    key: PseudonymKey,
    home: Vec<IpNet>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Arc<Policy>,
    /// Pseudonyms that were made: each takes a cipher's block or two for every bit.
    made: HashMap<IpAddr, IpAddr>,
}

/// Pseudonyms that are remembered.
const MOST_MADE: usize = 65_536;

impl Pseudonyms {
    /// What the settings ask for; `None`: nothing is hidden.
    pub fn open(config: &Config, policy: &Arc<Policy>, missing: Missing) -> Result<Option<Self>, KeyError> {
        if !config.privacy.pseudonyms {
            return Ok(None);
        }
        let path = key_file(config);
        let is_given = config.privacy.key.is_some() || missing == Missing::Refuse;
        let key = match PseudonymKey::load(&path)? {
            Some(key) => key,
            None if is_given => PseudonymKey::require(&path)?,
            None => PseudonymKey::make(&path)?,
        };
        let home = [&*config.flow.home_nets, &config.privacy.home_nets].concat();
        Ok(Some(Self::new(key, home, Arc::clone(policy))))
    }

    /// Hides addresses of home networks that no approval names.
    #[must_use]
    pub fn new(key: PseudonymKey, home: Vec<IpNet>, policy: Arc<Policy>) -> Self {
        Self { key, home, state: Mutex::new(State { policy, made: HashMap::new() }) }
    }

    /// Takes new approvals.
    pub fn set_policy(&self, policy: &Arc<Policy>) {
        self.state().policy = Arc::clone(policy);
    }

    /// Puts pseudonyms into a record.
    pub fn apply(&self, record: &mut Record) {
        let mut state = self.state();
        let mut shown = |address| self.shown(&mut state, address);
        record.community_id = match record.community_id {
            CommunityId::Of(key, first) => {
                let (key, is_turned) = key.between(&mut shown);
                CommunityId::Of(key, if is_turned { first.opposite() } else { first })
            }
            // Of which addresses is not known any more.
            CommunityId::Digest(digest) => CommunityId::Digest(self.key.keyed("linewarden community_id", &digest)),
        };
        let others = record.continues.iter_mut().chain(&mut record.outer_flow_id).chain(&mut record.related_flow_ids);
        for id in std::iter::once(&mut record.flow_id).chain(others) {
            *id = self.key.flow_id(*id);
        }
        let [src, dst] = [record.src_ip, record.dst_ip].map(&mut shown);
        let is_hidden = [src != record.src_ip, dst != record.dst_ip];
        for found in &mut record.evidence {
            self.hide_value(found, &mut shown, is_hidden);
        }
        (record.src_ip, record.dst_ip) = (src, dst);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self, state: &mut State, address: IpAddr) -> IpAddr {
        if !self.is_home(address) || state.policy.names(address) {
            return address;
        }
        if state.made.len() >= MOST_MADE && !state.made.contains_key(&address) {
            state.made.clear();
        }
        *state.made.entry(address).or_insert_with(|| self.key.pseudonym(address))
    }

    fn is_home(&self, address: IpAddr) -> bool {
        let holds = |address: IpAddr| self.home.iter().any(|net| net.contains(&address));
        holds(address)
            || matches!(address, IpAddr::V6(address) if embedded(address).any(|address| holds(address.into())))
    }

    fn hide_value(&self, found: &mut EvidenceRecord, mut shown: impl FnMut(IpAddr) -> IpAddr, is_hidden: [bool; 2]) {
        if ADDRESSES.contains(&&*found.code) {
            let address = u32::try_from(found.value).map(Ipv4Addr::from_bits);
            if let Ok(IpAddr::V4(shown)) = address.map(|address| shown(address.into())) {
                found.value = shown.to_bits().into();
            }
        }
        let [src, dst] = is_hidden;
        if NODES.contains(&&*found.code) && if found.direction == Direction::Forward { src } else { dst } {
            let number = u64::from_be_bytes(self.key.keyed("linewarden zerotier", &found.value.to_be_bytes()));
            found.value = number >> (u64::BITS - NODE_BITS);
        }
    }
}

/// Evidence whose value is an IPv4 address.
const ADDRESSES: [&str; 3] = ["6to4.inner", "isatap.inner", "teredo.inner"];
/// Evidence whose value is the address of a `ZeroTier` node.
const NODES: [&str; 3] = ["zerotier.hello", "zerotier.answer", "zerotier.addresses"];

const NODE_BITS: u32 = 40;

/// The IPv4 addresses that an IPv6 address tells.
fn embedded(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let octets = address.octets();
    let at = |place: usize| octets.get(place..place + 4)?.try_into().ok().map(u32::from_be_bytes);
    // RFC 4380 4: a Teredo client's, every bit of it the other way.
    let client = at(12).map(|bits| !bits);
    let by_prefix = match octets {
        // RFC 3056 2: 6to4.
        [0x20, 0x02, ..] => [at(2), None],
        // RFC 4380 4: Teredo; the server's stands first.
        [0x20, 0x01, 0, 0, ..] => [at(4), client],
        // RFC 4213 3.7: the link-local address of an end of 6in4 or 6to4. Any may be one of Teredo's, too.
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..] => [at(12), client],
        // RFC 4380 5.2.1: a Teredo client asks its server from a link-local address of the same interface identifier.
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, ..] => [None, client],
        // RFC 6052 2.1: the well-known prefix of translators.
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, ..] => [at(12), None],
        // RFC 4291 2.5.5: IPv4-compatible and IPv4-mapped.
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => [at(12), None],
        _ => [None, None],
    };
    // RFC 5214 6.1: ISATAP, behind any prefix.
    let is_isatap = matches!(octets, [_, _, _, _, _, _, _, _, 0 | 2, 0, 0x5e, 0xfe, ..]);
    by_prefix.into_iter().chain([at(12).filter(|_| is_isatap)]).flatten().map(Ipv4Addr::from_bits)
}
