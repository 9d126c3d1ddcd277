//! Turns a frame into the IP packet inside it: Ethernet II and SNAP, VLAN tags, MPLS, PPPoE, Linux cooked captures,
//! BSD loopback and raw IP.
//!
//! Ethernet II (IEEE 802.3) and an 802.1Q tag:
//!
//! | offset | octets | field |
//! |---|---|---|
//! | 0 | 6 | destination |
//! | 6 | 6 | source |
//! | 12 | 2 | EtherType, or length up to 1500 with LLC behind it |
//! | 14 | 2 | behind a tag: priority, drop eligible, VLAN identifier (12 bits) |
//! | 16 | 2 | behind a tag: EtherType |

use super::cursor::u16_at;
use super::{Frame, LinkType, ParseError, mpls, pppoe};

/// What the link headers said, and the IP packet behind them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link<'a> {
    pub vlan: [u16; 2],
    pub mpls_label: Option<u32>,
    /// From the IP header on, as captured.
    pub payload: &'a [u8],
    /// Octets from the IP header to the frame's end on the wire, padding included.
    pub payload_len: u32,
}

/// Tags, labels and link headers in a row that are followed.
const MAX_HEADERS: usize = 8;

pub(super) mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    pub const VLAN: u16 = 0x8100;
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// Stacked tags before 802.1ad.
    pub const OLD_SERVICE_VLAN: u16 = 0x9100;
    pub const MPLS: u16 = 0x8847;
    pub const MPLS_UPSTREAM: u16 = 0x8848;
    pub const PPPOE_SESSION: u16 = 0x8864;
    /// Up to here the field is a length (IEEE 802.3 3.2.6).
    pub const LENGTH_MAX: u16 = 1500;
}

/// Finds the IP packet of a frame, of which `octets` are looked at.
#[inline]
pub(super) fn parse<'a>(frame: &Frame<'a>, octets: &'a [u8]) -> Result<Link<'a>, ParseError> {
    // Most frames of most links: IP right behind the addresses.
    if frame.link == LinkType::Ethernet
        && frame.stripped_vlan.is_none()
        && let Some((header, payload)) = octets.split_first_chunk::<14>()
        && let [.., a, b] = *header
        && let ethertype::IPV4 | ethertype::IPV6 = u16::from_be_bytes([a, b])
    {
        let payload_len = frame.wire_len.saturating_sub(14).max(payload.len() as u32);
        return Ok(Link { vlan: [0; 2], mpls_label: None, payload, payload_len });
    }
    walk(frame, octets)
}

/// Finds it behind any link headers.
#[cold]
fn walk<'a>(frame: &Frame<'a>, octets: &'a [u8]) -> Result<Link<'a>, ParseError> {
    let mut walk = Walk::new(frame, octets);
    let ethertype = match frame.link {
        LinkType::Ethernet => {
            let ethertype = walk.u16_at(12)?;
            walk.skip(14)?;
            ethertype
        }
        LinkType::RawIp => ethertype::IPV4,
        // LINKTYPE_LINUX_SLL: packet type, ARPHRD type, address length, address (8), protocol.
        LinkType::LinuxSll => {
            let ethertype = walk.u16_at(14)?;
            walk.skip(16)?;
            ethertype
        }
        // LINKTYPE_LINUX_SLL2: protocol, reserved, interface, ARPHRD type, packet type, address length, address (8).
        LinkType::LinuxSll2 => {
            let ethertype = walk.u16_at(0)?;
            walk.skip(20)?;
            ethertype
        }
        LinkType::Loopback => {
            let family = walk.octets.first_chunk::<4>().copied().ok_or(ParseError::TruncatedLink)?;
            walk.skip(4)?;
            // LINKTYPE_NULL keeps the byte order of the host that captured; LINKTYPE_LOOP is in network order.
            match u32::from_le_bytes(family).min(u32::from_be_bytes(family)) {
                2 => ethertype::IPV4,
                // AF_INET6 is 10 in Linux, 24 in NetBSD and OpenBSD, 28 in FreeBSD, 30 in macOS.
                10 | 24 | 28 | 30 => ethertype::IPV6,
                _ => return Err(ParseError::NotIp),
            }
        }
    };
    walk.ethertype(ethertype)
}

/// The way through the headers.
#[derive(Debug)]
struct Walk<'a> {
    octets: &'a [u8],
    len: u32,
    vlan: [u16; 2],
    tags: usize,
    mpls_label: Option<u32>,
}

impl<'a> Walk<'a> {
    #[inline]
    fn new(frame: &Frame<'a>, octets: &'a [u8]) -> Self {
        // A tag that the kernel took out is counted in `wire_len`, but not in the octets behind the link header.
        let stripped = if frame.stripped_vlan.is_some() { 4 } else { 0 };
        let captured = u32::try_from(octets.len()).unwrap_or(u32::MAX);
        let len = frame.wire_len.saturating_sub(stripped).max(captured);
        let mut walk = Self { octets, len, vlan: [0; 2], tags: 0, mpls_label: None };
        if let Some(tag) = frame.stripped_vlan {
            walk.tag(tag.tci);
        }
        walk
    }

    #[inline]
    fn u16_at(&self, offset: usize) -> Result<u16, ParseError> {
        u16_at(self.octets, offset).ok_or(ParseError::TruncatedLink)
    }

    #[inline]
    fn skip(&mut self, octets: usize) -> Result<(), ParseError> {
        self.octets = self.octets.get(octets..).ok_or(ParseError::TruncatedLink)?;
        self.len = self.len.saturating_sub(octets as u32);
        Ok(())
    }

    fn tag(&mut self, tci: u16) {
        if let Some(vlan) = self.vlan.get_mut(self.tags) {
            *vlan = tci & 0x0fff;
        }
        self.tags += 1;
    }

    #[inline]
    fn ethertype(mut self, ethertype: u16) -> Result<Link<'a>, ParseError> {
        let mut ethertype = ethertype;
        for _ in 0..MAX_HEADERS {
            match ethertype {
                ethertype::IPV4 | ethertype::IPV6 => return Ok(self.ip()),
                ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_SERVICE_VLAN => {
                    let tci = self.u16_at(0)?;
                    ethertype = self.u16_at(2)?;
                    self.skip(4)?;
                    self.tag(tci);
                }
                ethertype::MPLS | ethertype::MPLS_UPSTREAM => {
                    let stack = mpls::parse(self.octets)?;
                    self.mpls_label = Some(stack.bottom_label);
                    self.skip(stack.octets)?;
                    match stack.inside {
                        mpls::Inside::Ip => return Ok(self.ip()),
                        mpls::Inside::Ethernet { control_word } => {
                            self.skip(control_word)?;
                            ethertype = self.u16_at(12)?;
                            self.skip(14)?;
                        }
                    }
                }
                ethertype::PPPOE_SESSION => {
                    let session = pppoe::parse(self.octets)?;
                    self.skip(session.octets)?;
                    self.len = self.len.min(session.payload_len);
                    return Ok(self.ip());
                }
                length if length <= ethertype::LENGTH_MAX => {
                    // RFC 1042: LLC AA-AA-03, organisation 00-00-00, then the EtherType.
                    if self.octets.get(..6) != Some(&[0xaa, 0xaa, 3, 0, 0, 0]) {
                        return Err(ParseError::NotIp);
                    }
                    ethertype = self.u16_at(6)?;
                    self.skip(8)?;
                }
                _ => return Err(ParseError::NotIp),
            }
        }
        Err(ParseError::TooManyHeaders)
    }

    #[inline]
    fn ip(self) -> Link<'a> {
        Link { vlan: self.vlan, mpls_label: self.mpls_label, payload: self.octets, payload_len: self.len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use crate::wire::{InterfaceId, VlanTag};

    fn frame(link: LinkType, data: &[u8]) -> Frame<'_> {
        Frame {
            at: Timestamp::ZERO,
            number: 1,
            wire_len: data.len() as u32,
            interface: InterfaceId(0),
            link,
            stripped_vlan: None,
            data,
        }
    }

    struct Case {
        name: &'static str,
        link: LinkType,
        /// Behind twelve octets of addresses for Ethernet.
        header: &'static [u8],
        /// VLANs, MPLS label, octets left.
        expected: Result<([u16; 2], Option<u32>, usize), ParseError>,
    }

    #[rustfmt::skip]
    const CASES: &[Case] = &[
        Case { name: "empty", link: LinkType::Ethernet, header: &[], expected: Err(ParseError::TruncatedLink) },
        Case { name: "one octet short", link: LinkType::Ethernet, header: &[0x08], expected: Err(ParseError::TruncatedLink) },
        Case { name: "IPv4", link: LinkType::Ethernet, header: &[0x08, 0x00, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "IPv6", link: LinkType::Ethernet, header: &[0x86, 0xdd, 0x60], expected: Ok(([0, 0], None, 1)) },
        Case { name: "ARP", link: LinkType::Ethernet, header: &[0x08, 0x06, 0, 1], expected: Err(ParseError::NotIp) },
        Case { name: "802.1Q", link: LinkType::Ethernet, header: &[0x81, 0, 0x20, 0x64, 8, 0, 0x45], expected: Ok(([100, 0], None, 1)) },
        Case { name: "802.1Q cut", link: LinkType::Ethernet, header: &[0x81, 0, 0x20, 0x64, 8], expected: Err(ParseError::TruncatedLink) },
        Case { name: "QinQ", link: LinkType::Ethernet, header: &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 100, 0x86, 0xdd, 0x60], expected: Ok(([7, 100], None, 1)) },
        Case { name: "three tags", link: LinkType::Ethernet, header: &[0x91, 0, 0, 7, 0x88, 0xa8, 0, 8, 0x81, 0, 0, 9, 8, 0, 0x45], expected: Ok(([7, 8], None, 1)) },
        Case { name: "priority tag", link: LinkType::Ethernet, header: &[0x81, 0, 0xe0, 0, 8, 0, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "nine tags", link: LinkType::Ethernet, header: &[0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 0x81, 0, 0, 1, 8, 0], expected: Err(ParseError::TooManyHeaders) },
        Case { name: "MPLS, one label", link: LinkType::Ethernet, header: &[0x88, 0x47, 0x03, 0xe8, 0x11, 0x40, 0x45], expected: Ok(([0, 0], Some(16001), 1)) },
        Case { name: "MPLS, two labels", link: LinkType::Ethernet, header: &[0x88, 0x47, 0, 1, 0x10, 0x40, 0, 1, 0x31, 0x40, 0x60], expected: Ok(([0, 0], Some(19), 1)) },
        Case { name: "VLAN, MPLS", link: LinkType::Ethernet, header: &[0x81, 0, 0, 5, 0x88, 0x47, 0, 1, 0x31, 0x40, 0x45], expected: Ok(([5, 0], Some(19), 1)) },
        Case { name: "MPLS, control word, Ethernet", link: LinkType::Ethernet, header: &[0x88, 0x47, 0, 1, 0x31, 0x40, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 8, 0, 0x45], expected: Ok(([0, 0], Some(19), 1)) },
        Case { name: "PPPoE, IPv4", link: LinkType::Ethernet, header: &[0x88, 0x64, 0x11, 0, 0, 1, 0, 3, 0, 0x21, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "PPPoE, LCP", link: LinkType::Ethernet, header: &[0x88, 0x64, 0x11, 0, 0, 1, 0, 3, 0xc0, 0x21, 1], expected: Err(ParseError::NotIp) },
        Case { name: "SNAP", link: LinkType::Ethernet, header: &[0, 9, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "spanning tree", link: LinkType::Ethernet, header: &[0, 38, 0x42, 0x42, 3, 0, 0, 0, 0, 0, 0], expected: Err(ParseError::NotIp) },
        Case { name: "raw IP", link: LinkType::RawIp, header: &[0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "SLL", link: LinkType::LinuxSll, header: &[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x86, 0xdd, 0x60], expected: Ok(([0, 0], None, 1)) },
        Case { name: "SLL, one octet short", link: LinkType::LinuxSll, header: &[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x86], expected: Err(ParseError::TruncatedLink) },
        Case { name: "SLL2", link: LinkType::LinuxSll2, header: &[8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "SLL2, tagged", link: LinkType::LinuxSll2, header: &[0x81, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 0, 0, 0, 9, 8, 0, 0x45], expected: Ok(([9, 0], None, 1)) },
        Case { name: "loopback, little endian", link: LinkType::Loopback, header: &[2, 0, 0, 0, 0x45], expected: Ok(([0, 0], None, 1)) },
        Case { name: "loopback, network order", link: LinkType::Loopback, header: &[0, 0, 0, 30, 0x60], expected: Ok(([0, 0], None, 1)) },
        Case { name: "loopback, another family", link: LinkType::Loopback, header: &[7, 0, 0, 0, 0x60], expected: Err(ParseError::NotIp) },
    ];

    #[test]
    fn cases() {
        for case in CASES {
            let mut data = if case.link == LinkType::Ethernet { vec![0; 12] } else { Vec::new() };
            data.extend(case.header);
            let found =
                parse(&frame(case.link, &data), &data).map(|link| (link.vlan, link.mpls_label, link.payload.len()));
            assert_eq!(found, case.expected, "{}", case.name);
        }
    }

    #[test]
    fn a_tag_that_the_kernel_took_out_is_the_outer_one() {
        let mut data = vec![0; 12];
        data.extend([0x81, 0, 0, 9, 8, 0, 0x45]);
        let mut frame = frame(LinkType::Ethernet, &data);
        frame.stripped_vlan = Some(VlanTag { tpid: 0x88a8, tci: 0x2007 });
        frame.wire_len = 60;
        let link = parse(&frame, &data).unwrap();
        assert_eq!(link.vlan, [7, 9]);
        assert_eq!(link.payload_len, 60 - 4 - 18);
    }
}
