//! Turns a line of the log into the fields that are asked for, borrowed from it, and finds its flow without parsing it.

mod quick;

use std::borrow::Cow;
use std::cmp::Ordering;

use memchr::memmem::Finder;
use serde::Deserialize;

use crate::flow::FlowId;
use crate::record::Kind;
use crate::time::Timestamp;

/// A record without what no question is about; see [`crate::record::Record`] for the meaning of each field.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "they are the record's")]
pub struct Line<'a> {
    pub kind: Kind,
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    #[serde(borrow)]
    pub sensor: Cow<'a, str>,
    #[serde(borrow)]
    pub interface: Cow<'a, str>,
    pub vlan: Vec<u16>,
    #[serde(borrow)]
    pub flow_id: Cow<'a, str>,
    #[serde(borrow)]
    pub continues: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub outer_flow_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub community_id: Cow<'a, str>,
    #[serde(borrow)]
    pub src_ip: Cow<'a, str>,
    pub src_port: Option<u16>,
    #[serde(borrow)]
    pub dst_ip: Cow<'a, str>,
    pub dst_port: Option<u16>,
    pub proto: u8,
    #[serde(borrow)]
    pub direction: Cow<'a, str>,
    pub fwd_packets: u64,
    pub fwd_octets: u64,
    pub rev_packets: u64,
    pub rev_octets: u64,
    #[serde(borrow)]
    pub start: Cow<'a, str>,
    #[serde(borrow)]
    pub end: Cow<'a, str>,
    #[serde(borrow)]
    pub end_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub verdict: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    #[serde(borrow)]
    pub tunnel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub confidence: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub approval: Option<ApprovalName<'a>>,
}

/// Which approval a record names.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "they are the record's")]
pub struct ApprovalName<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub owner: Cow<'a, str>,
    #[serde(borrow)]
    pub reference: Cow<'a, str>,
}

impl<'a> Line<'a> {
    /// Parses a line; one that linewarden's writer wrote and nobody rewrote in less than half the time.
    pub fn parse(line: &'a [u8]) -> serde_json::Result<Self> {
        quick::parse(line).map_or_else(|| serde_json::from_slice(line), Ok)
    }
}

/// A time to compare texts with: those of the log sort as time does.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub at: Timestamp,
    text: String,
}

impl Bound {
    pub(super) fn new(at: Timestamp) -> Self {
        Self { at, text: at.to_string() }
    }

    /// How a time of a line stands to the bound; `None` where it is no time.
    pub(super) fn order_of(&self, text: &str) -> Option<Ordering> {
        if text.len() == self.text.len() && text.ends_with('Z') {
            return Some(text.cmp(&self.text));
        }
        text.parse::<Timestamp>().ok().map(|at| at.cmp(&self.at))
    }
}

/// What tells whether a line may be a flow's last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Glance {
    pub kind: Kind,
    pub flow: u64,
}

/// Finds a line's kind and flow where linewarden's writer puts them; parses lines that somebody rewrote.
#[derive(Debug)]
pub(super) struct Glancer {
    kind: Finder<'static>,
    flow: Finder<'static>,
}

impl Default for Glancer {
    fn default() -> Self {
        Self { kind: Finder::new("\"kind\":\""), flow: Finder::new("\"flow_id\":\"") }
    }
}

/// Within these octets `kind` stands: behind the version and a number.
const HEAD: usize = 64;

impl Glancer {
    pub(super) fn look(&self, line: &[u8]) -> Option<Glance> {
        self.find(line).or_else(|| {
            #[derive(Deserialize)]
            struct Fields {
                kind: Kind,
                flow_id: FlowId,
            }
            let fields: Fields = serde_json::from_slice(line).ok()?;
            Some(Glance { kind: fields.kind, flow: fields.flow_id.number() })
        })
    }

    fn find(&self, line: &[u8]) -> Option<Glance> {
        let head = line.get(..HEAD).unwrap_or(line);
        let at = self.kind.find(head)? + self.kind.needle().len();
        let kind = match line.get(at..)? {
            [b'e', b'n', b'd', b'"', ..] => Kind::End,
            [b's', b't', b'a', b'r', b't', b'"', ..] => Kind::Start,
            [b'u', b'p', b'd', b'a', b't', b'e', b'"', ..] => Kind::Update,
            _ => return None,
        };
        let rest = line.get(at..)?;
        let at = self.flow.find(rest)? + self.flow.needle().len();
        let flow = rest.get(at..at + 16)?.iter().try_fold(0, |number: u64, digit| {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            Some(number << 4 | u64::from(value))
        })?;
        (rest.get(at + 16) == Some(&b'"')).then_some(Glance { kind, flow })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewritten_line_is_found_all_the_same() {
        let cases: [(&str, Option<Kind>); 7] = [
            (r#"{"version":1,"seq":7,"kind":"end","time":"t","flow_id":"0123456789abcdef","x":1}"#, Some(Kind::End)),
            (r#"{"kind": "update", "flow_id": "0123456789abcdef"}"#, Some(Kind::Update)),
            (r#"{"flow_id":"0123456789abcdef","kind":"start"}"#, Some(Kind::Start)),
            (r#"{"kind":"end","flow_id":"0123456789abcde"}"#, None),
            (r#"{"kind":"coverage","flow_id":"0123456789abcdef"}"#, None),
            (r#"{"kind":"end"}"#, None),
            ("", None),
        ];
        for (line, kind) in cases {
            let found = kind.map(|kind| Glance { kind, flow: 0x0123_4567_89ab_cdef });
            assert_eq!(Glancer::default().look(line.as_bytes()), found, "{line}");
        }
    }

    #[test]
    fn times_compare_as_text_and_as_time() {
        let bound = Bound::new("2026-11-28T10:00:00Z".parse().unwrap());
        for (text, order) in [
            ("2026-11-28T10:00:00.000000000Z", Some(Ordering::Equal)),
            ("2026-11-28T09:59:59.999999999Z", Some(Ordering::Less)),
            ("2026-11-28T10:00:00.1Z", Some(Ordering::Greater)),
            ("2026-11-28T12:00:00+02:00", Some(Ordering::Equal)),
            ("yesterday", None),
        ] {
            assert_eq!(bound.order_of(text), order, "{text}");
        }
    }
}
