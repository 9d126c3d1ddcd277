//! Turns what the system says of an interface into whether its frames may be taken away from the host, and how they come.

use std::fs;
use std::net::IpAddr;

use super::rings::Chunks;
use crate::capture::{CaptureError, LiveSettings, interfaces};

/// Refuses an interface that the host talks over, or may: one with an address, that of the default route, and one that others
/// are built on (a bridge, a bond, a VLAN).
///
/// A link-local IPv6 address is no sign: the kernel gives one to every interface that comes up.
pub fn refuse_if_host_needs(name: &str) -> Result<(), CaptureError> {
    let Some(interface) = interfaces().into_iter().find(|interface| interface.name == name) else {
        return Err(CaptureError::NoInterface(name.to_owned()));
    };
    let is_meant = |address: &&IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let reason = if let Some(address) = interface.addresses.iter().find(is_meant) {
        format!("has the address {address}")
    } else if interface.has_default_route {
        "is that of the default route".to_owned()
    } else if let Some(upper) = upper(name) {
        format!("carries `{upper}`")
    } else {
        return Ok(());
    };
    Err(CaptureError::Setting(format!(
        "interface `{name}` {reason}: XDP would take its frames away from this host, and connections over it would stop; \
         capture a mirror port or a tap, take capture.backend = \"ring\", or set capture.xdp_takes_frames = true if that is meant"
    )))
}

/// What is built on an interface (the kernel's `Documentation/ABI/testing/sysfs-class-net`).
fn upper(name: &str) -> Option<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{name}")).ok()?;
    entries.flatten().find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("upper_")?.to_owned()))
}

/// Queues that frames come in by.
pub fn queues(name: &str) -> u32 {
    let entries = fs::read_dir(format!("/sys/class/net/{name}/queues")).into_iter().flatten().flatten();
    let count = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-")).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Headers that the MTU does not count: Ethernet and two VLAN tags.
const LINK_HEADERS: usize = 14 + 2 * 4;
/// The sizes that the kernel takes on every machine.
const CHUNK_OCTETS: [usize; 2] = [2048, 4096];
/// What is read of a frame at most.
pub const LONGEST: usize = Chunks::room(CHUNK_OCTETS[1]);
/// A driver takes some dozens of chunks at once.
const FEWEST_CHUNKS: u32 = 64;

/// Octets of the longest frame on an interface; `None` where the system does not say.
pub fn longest_frame(name: &str) -> Option<usize> {
    let mtu: usize = fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse().ok()?;
    mtu.checked_add(LINK_HEADERS)
}

/// How the memory of one of `sockets` sockets is divided: into chunks that what is read of a frame fits in, and a whole frame
/// if that is possible.
pub fn chunks(settings: &LiveSettings, longest_frame: usize, sockets: u32) -> Result<Chunks, CaptureError> {
    let wanted = longest_frame.max(settings.snap_length as usize);
    let [small, large] = CHUNK_OCTETS;
    let octets = if wanted <= Chunks::room(small) { small } else { large };
    let count = u32::try_from(settings.ring_octets / octets).unwrap_or(u32::MAX) / sockets.max(1);
    if count < FEWEST_CHUNKS {
        return Err(CaptureError::Setting(format!(
            "capture.ring_octets is {}, too few for {sockets} queues of one worker: write {} or more",
            settings.ring_octets,
            FEWEST_CHUNKS as usize * octets * sockets as usize
        )));
    }
    Ok(Chunks { octets, count })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn chunks_hold_what_is_read_and_whole_frames_where_they_can() {
        let settings = |snap_length, ring_octets| LiveSettings {
            interfaces: Vec::new(),
            workers: 1,
            snap_length,
            promiscuous: true,
            ring_octets,
            block_octets: 1 << 20,
            block_timeout: Duration::from_millis(50),
            opener: None,
            filter: Vec::new(),
            fast_path: None,
        };
        let of = |snap, ring, frame, sockets| chunks(&settings(snap, ring), frame, sockets).ok();
        let chunk = |octets, count| Some(Chunks { octets, count });
        assert_eq!(of(256, 64 << 20, 1522, 1), chunk(2048, 32768));
        assert_eq!(of(256, 64 << 20, 1522, 3), chunk(2048, 10922), "shared");
        assert_eq!(of(256, 64 << 20, 1793, 1), chunk(4096, 16384), "a longer frame");
        assert_eq!(of(1793, 64 << 20, 1522, 1), chunk(4096, 16384), "more of it read");
        assert_eq!(of(256, 128 << 10, 1522, 1), chunk(2048, 64));
        assert_eq!(of(256, 128 << 10, 1522, 2), None, "too few for two");
        assert_eq!(of(256, 128 << 10, 9022, 1), None, "too few of the large ones");
    }
}
