//! Turns records into lines of other tools' formats: each line a pure function of its record.
//!
//! | format | a line for | keeps |
//! |---|---|---|
//! | `ndjson` | every record | everything |
//! | `eve-strict` | `end` records, as `flow`; other records of findings, as `alert` | what Suricata's schema has a place for |
//! | `eve` | every record, others as `linewarden` | everything, in the object `linewarden` |
//! | `ecs` | every record | everything, in the object `linewarden` |
//! | `zeek` | every record | everything but the single packets of evidence |

mod ecs;
mod eve;
mod zeek;

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::ndjson;
use crate::config::Format;
use crate::policy::Label;
use crate::record::Record;
use crate::time::Timestamp;

/// Appends a record's line, where the format has one for it.
pub fn encode(format: Format, record: &Record, to: &mut BytesMut) {
    match format {
        Format::Ndjson => ndjson::encode(record, to),
        Format::EveStrict => eve::encode(record, eve::Extent::Strict, to),
        Format::Eve => eve::encode(record, eve::Extent::Whole, to),
        Format::Ecs => ecs::encode(record, to),
        Format::Zeek => zeek::encode(record, to),
    }
}

/// Appends what stands at a file's beginning.
pub fn begin(format: Format, at: Timestamp, to: &mut BytesMut) {
    if format == Format::Zeek {
        to.put_slice(zeek::header(at).as_bytes());
    }
}

/// Appends what stands at its end.
pub fn end(format: Format, at: Timestamp, to: &mut BytesMut) {
    if format == Format::Zeek {
        to.put_slice(zeek::footer(at).as_bytes());
    }
}

/// Whether the record calls its flow an unapproved tunnel.
#[must_use]
pub fn is_finding(record: &Record) -> bool {
    record.verdict == Label::UnapprovedVpnTunnel
}

/// An IP protocol's keyword as IANA registers it, else its number.
fn keyword(number: u8) -> Cow<'static, str> {
    let known = KEYWORDS.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| number.to_string().into(), |(_, keyword)| (*keyword).into())
}

/// Of the IANA registry "Assigned Internet Protocol Numbers".
const KEYWORDS: [(u8, &str); 16] = [
    (1, "ICMP"),
    (2, "IGMP"),
    (4, "IPv4"),
    (6, "TCP"),
    (17, "UDP"),
    (41, "IPv6"),
    (47, "GRE"),
    (50, "ESP"),
    (51, "AH"),
    (58, "IPv6-ICMP"),
    (89, "OSPFIGP"),
    (97, "ETHERIP"),
    (108, "IPComp"),
    (115, "L2TP"),
    (132, "SCTP"),
    (137, "MPLS-in-IP"),
];
