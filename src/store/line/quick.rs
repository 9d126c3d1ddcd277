//! Parses a record as linewarden's writer writes it: every field in its place, no blanks, no escapes in texts. Whatever is
//! otherwise is left to `serde_json`, and so is everything that nests: what this accepts, `serde_json` accepts, and finds
//! the same in it.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{ApprovalName, Line};
use crate::record::Kind;

pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    record(Rest(line)).ok()
}

/// Something is otherwise than linewarden's writer writes it.
struct Otherwise;

type Quick<T> = Result<T, Otherwise>;

fn record(mut rest: Rest<'_>) -> Quick<Line<'_>> {
    rest.number(b"{\"version\":")?;
    rest.number(b",\"seq\":")?;
    let kind = match &*rest.text(b",\"kind\":")? {
        "start" => Kind::Start,
        "update" => Kind::Update,
        "end" => Kind::End,
        _ => return Err(Otherwise),
    };
    let time = rest.text(b",\"time\":")?;
    let sensor = rest.text(b",\"sensor\":")?;
    let interface = rest.text(b",\"interface\":")?;
    let vlan = rest.list(b",\"vlan\":")?.unwrap_or_default();
    rest.list::<Ignored>(b",\"mpls_labels\":")?;
    let flow_id = rest.text(b",\"flow_id\":")?;
    let continues = rest.text_or_null(b",\"continues\":")?;
    let outer_flow_id = rest.text_or_null(b",\"outer_flow_id\":")?;
    rest.list::<Ignored>(b",\"related_flow_ids\":")?;
    let community_id = rest.text(b",\"community_id\":")?;
    let src_ip = rest.text(b",\"src_ip\":")?;
    let src_port = rest.port(b",\"src_port\":")?;
    let dst_ip = rest.text(b",\"dst_ip\":")?;
    let dst_port = rest.port(b",\"dst_port\":")?;
    let proto = rest.number(b",\"proto\":")?.try_into().map_err(|_| Otherwise)?;
    let direction = rest.text(b",\"direction\":")?;
    rest.truth(b",\"originator_known\":")?;
    let [fwd_packets, fwd_octets] = [rest.number(b",\"fwd_packets\":")?, rest.number(b",\"fwd_octets\":")?];
    let [rev_packets, rev_octets] = [rest.number(b",\"rev_packets\":")?, rest.number(b",\"rev_octets\":")?];
    let start = rest.text(b",\"start\":")?;
    let end = rest.text(b",\"end\":")?;
    let end_reason = rest.text_or_null(b",\"end_reason\":")?;
    let verdict = rest.text(b",\"verdict\":")?;
    let reason = rest.text(b",\"reason\":")?;
    let tunnel = rest.text_or_null(b",\"tunnel\":")?;
    let confidence = rest.text_or_null(b",\"confidence\":")?;
    rest.truth(b",\"midstream\":")?;
    rest.number(b",\"inspections\":")?;
    for key in [&b",\"evidence\":"[..], b",\"spi\":", b",\"gre_key\":"] {
        rest.list::<Ignored>(key)?;
    }
    rest.expect(b",\"approval\":")?;
    let approval: Option<ApprovalName<'_>> = if rest.takes(b"null") { None } else { rest.value()? };
    rest.text(b",\"policy_revision\":")?;
    rest.expect(b"}")?;
    if !matches!(rest.0, b"" | b"\n") {
        return Err(Otherwise);
    }
    Ok(Line {
        kind,
        time,
        sensor,
        interface,
        vlan,
        flow_id,
        continues,
        outer_flow_id,
        community_id,
        src_ip,
        src_port,
        dst_ip,
        dst_port,
        proto,
        direction,
        fwd_packets,
        fwd_octets,
        rev_packets,
        rev_octets,
        start,
        end,
        end_reason,
        verdict,
        reason,
        tunnel,
        confidence,
        approval,
    })
}

/// What nobody asks for.
type Ignored = Vec<IgnoredAny>;

/// What is not parsed yet. Each field begins with its key.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    #[inline]
    fn takes(&mut self, octets: &[u8]) -> bool {
        self.expect(octets).is_ok()
    }

    #[inline]
    fn expect(&mut self, octets: &[u8]) -> Quick<()> {
        self.0 = self.0.strip_prefix(octets).ok_or(Otherwise)?;
        Ok(())
    }

    #[inline]
    fn text(&mut self, key: &[u8]) -> Quick<Cow<'a, str>> {
        self.expect(key)?;
        self.quoted()
    }

    fn text_or_null(&mut self, key: &[u8]) -> Quick<Option<Cow<'a, str>>> {
        self.expect(key)?;
        if self.takes(b"null") { Ok(None) } else { self.quoted().map(Some) }
    }

    #[inline]
    fn quoted(&mut self) -> Quick<Cow<'a, str>> {
        self.expect(b"\"")?;
        let end = self.0.iter().position(|&octet| octet == b'"' || octet == b'\\' || octet < b' ');
        let (text, rest) = end.and_then(|end| self.0.split_at_checked(end)).ok_or(Otherwise)?;
        self.0 = rest;
        // Else an escape, or what no text may hold.
        self.expect(b"\"")?;
        str::from_utf8(text).map(Cow::Borrowed).map_err(|_| Otherwise)
    }

    fn number(&mut self, key: &[u8]) -> Quick<u64> {
        self.expect(key)?;
        self.digits()
    }

    fn port(&mut self, key: &[u8]) -> Quick<Option<u16>> {
        self.expect(key)?;
        if self.takes(b"null") { Ok(None) } else { self.digits()?.try_into().map(Some).map_err(|_| Otherwise) }
    }

    /// A whole number without a sign, a fraction or needless zeros.
    #[inline]
    fn digits(&mut self) -> Quick<u64> {
        let digits = self.0.iter().take_while(|octet| octet.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at_checked(digits).ok_or(Otherwise)?;
        if number.is_empty() || (digits > 1 && number.first() == Some(&b'0')) {
            return Err(Otherwise);
        }
        self.0 = rest;
        let add = |number: u64, digit: &u8| number.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
        number.iter().try_fold(0, add).ok_or(Otherwise)
    }

    fn truth(&mut self, key: &[u8]) -> Quick<()> {
        self.expect(key)?;
        if self.takes(b"true") { Ok(()) } else { self.expect(b"false") }
    }

    /// A list; `None` for an empty one.
    #[inline]
    fn list<T: Deserialize<'a>>(&mut self, key: &[u8]) -> Quick<Option<T>> {
        self.expect(key)?;
        if self.takes(b"[]") { Ok(None) } else { self.value().map(Some) }
    }

    fn value<T: Deserialize<'a>>(&mut self) -> Quick<T> {
        let mut values = serde_json::Deserializer::from_slice(self.0).into_iter();
        let value = values.next().and_then(Result::ok).ok_or(Otherwise)?;
        self.0 = self.0.get(values.byte_offset()..).ok_or(Otherwise)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::detect::{Confidence, Protocol};
    use crate::flow::{Direction, FlowId};
    use crate::record::{ApprovalRecord, EvidenceRecord, Record};
    use crate::sink::ndjson::encode;
    use crate::time::Timestamp;

    fn written(record: &Record) -> Vec<u8> {
        let mut line = BytesMut::new();
        encode(record, &mut line);
        line.to_vec()
    }

    fn plain() -> Record {
        crate::record::tests_support::record(1)
    }

    /// Every optional field is there.
    fn full() -> Record {
        Record {
            vlan: vec![100, 200],
            mpls_labels: vec![16],
            continues: Some(FlowId::Number(1)),
            outer_flow_id: Some(FlowId::Number(2)),
            related_flow_ids: vec![FlowId::Number(3)],
            tunnel: Some(Protocol::Esp),
            confidence: Some(Confidence::Certain),
            evidence: vec![EvidenceRecord {
                code: "esp.sequence".into(),
                protocol: Protocol::Esp,
                confidence: Confidence::Certain,
                packet: 1,
                time: Timestamp::ZERO,
                direction: Direction::Forward,
                value: 1,
                count: 1,
            }],
            spi: vec![7, 8],
            src_port: None,
            dst_port: None,
            approval: Some(ApprovalRecord {
                id: "vpn-1".into(),
                owner: "network team".into(),
                reference: "CHG-1".into(),
                valid_until: Timestamp::ZERO,
                identity: Some("verified".into()),
                key: None,
            }),
            ..plain()
        }
    }

    #[test]
    fn what_the_writer_writes_takes_the_quick_way() {
        for record in [plain(), full()] {
            let line = written(&record);
            assert_eq!(parse(&line), Some(serde_json::from_slice(&line).unwrap()));
            assert_eq!(parse(line.trim_ascii_end()), parse(&line));
        }
    }

    #[test]
    fn escapes_take_the_other_way() {
        let record = Record { sensor: "a \"sensor\"".into(), ..plain() };
        let line = written(&record);
        assert_eq!(parse(&line), None);
        assert_eq!(Line::parse(&line).unwrap().sensor, "a \"sensor\"");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn what_it_accepts_is_what_serde_json_accepts(
            is_full: bool,
            at: Index,
            octet in prop_oneof![any::<u8>(), prop::sample::select(&b"\"\\{}[],:0129-.eE \n\0ntf"[..])],
            how in 0..3_u8,
        ) {
            let mut line = written(&if is_full { full() } else { plain() });
            let at = at.index(line.len());
            match how {
                0 => line[at] = octet,
                1 => line.insert(at, octet),
                _ => drop(line.remove(at)),
            }
            if let Some(quick) = parse(&line) {
                prop_assert_eq!(Some(quick), serde_json::from_slice(&line).ok());
            }
        }
    }
}
