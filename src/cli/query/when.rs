//! Turns times as people write them into timestamps.

use std::time::Duration;

use crate::time::Timestamp;

/// How times may be written.
pub(in crate::cli) const TIMES: &str = "a date (2026-11-28), a time (2026-11-28T10:00, UTC, or RFC 3339 with an offset), `now`, or how long ago (-90m; s, m, h, d, w)";

/// Which end of a range a date stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Side {
    /// A date is its first moment.
    From,
    /// A date is its whole day.
    To,
}

/// A time on the command line.
pub(in crate::cli) fn time(text: &str, side: Side, now: Timestamp) -> Result<Timestamp, String> {
    let wrong = || format!("is no time; write {TIMES}");
    if text == "now" {
        return Ok(now);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let ago = duration(ago).ok_or_else(wrong)?;
        return Ok(before(now, ago));
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>().map_err(drop).and_then(|date| {
        // jiff reads the date of a time, too.
        if text.len() > 10 { Err(()) } else { Ok(date) }
    }) {
        let date = if side == Side::To { date.tomorrow().map_err(|_| wrong())? } else { date };
        return civil(date.at(0, 0, 0, 0)).ok_or_else(wrong);
    }
    let clock = text.get(10..).unwrap_or_default();
    // RFC 3339, 5.6: an offset is less than a day.
    if clock.split_once(['+', '-']).is_some_and(|(_, offset)| offset.get(..2).is_none_or(|hours| hours > "23")) {
        return Err(wrong());
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_nanos(u64::try_from(time.as_nanosecond()).map_err(|_| wrong())?));
    }
    // An offset that is none would be passed over.
    let time = text.parse::<jiff::civil::DateTime>().ok().filter(|_| !clock.contains(['+', '-', 'Z', 'z', '[']));
    time.and_then(civil).ok_or_else(wrong)
}

/// A time so long before another.
pub(in crate::cli) fn before(now: Timestamp, ago: Duration) -> Timestamp {
    let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(now.as_nanos().saturating_sub(ago))
}

/// A whole number and its unit.
pub(in crate::cli) fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
}

fn civil(time: jiff::civil::DateTime) -> Option<Timestamp> {
    let time = jiff::tz::TimeZone::UTC.to_timestamp(time).ok()?;
    u64::try_from(time.as_nanosecond()).ok().map(Timestamp::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        for (text, side, expected) in [
            ("2026-11-28", Side::From, "2026-11-28T00:00:00Z"),
            ("2026-11-28", Side::To, "2026-11-29T00:00:00Z"),
            ("2026-11-28T10:00", Side::To, "2026-11-28T10:00:00Z"),
            ("2026-11-28 10:00:01", Side::From, "2026-11-28T10:00:01Z"),
            ("2026-11-28T10:00:00.5Z", Side::From, "2026-11-28T10:00:00.5Z"),
            ("2026-11-28T10:00:00+02:00", Side::From, "2026-11-28T08:00:00Z"),
            ("now", Side::To, "2026-11-28T12:00:00Z"),
            ("-90m", Side::From, "2026-11-28T10:30:00Z"),
            ("-7d", Side::From, "2026-11-21T12:00:00Z"),
            ("-90000000000w", Side::From, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(text, side, now), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "-",
            "yesterday",
            "24h",
            "-24",
            "-24x",
            "2026-13-01",
            "2026-11-28T25:00",
            "2026-11-28T10:00+25:00",
            "2026-11-28T10:00-99:00",
            "1969-12-31",
            "-99999999999999999999w",
            "é",
        ] {
            assert!(time(text, Side::From, now).is_err(), "{text}");
        }
    }
}
