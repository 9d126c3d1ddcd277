//! Turns numbers and times into what people read.

use std::path::Path;

use crate::sink::table::to_the_second;
use crate::time::Timestamp;

/// A time without its fraction, UTC.
pub(super) fn time(at: Timestamp) -> String {
    to_the_second(&at.to_string())
}

/// A whole number in groups of three digits, with spaces that no line breaks at.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// So much of a unit, with three digits: 1.23 GB.
#[expect(clippy::cast_precision_loss, reason = "three digits of it are told")]
fn scaled(number: u64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    if number < 1000 {
        return format!("{number}\u{a0}{unit}");
    }
    for next in units {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}\u{a0}{unit}")
}

/// Octets.
pub(super) fn octets(number: u64) -> String {
    scaled(number, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bits a second.
pub(super) fn rate(number: u64) -> String {
    scaled(number, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// A share in percent. What is not all is never told as all.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        100.0 => "100\u{a0}%".to_owned(),
        _ if share < 1.0 && percent > 99.99 => "99.99\u{a0}%".to_owned(),
        _ if share > 0.0 && percent < 0.01 => "<\u{a0}0.01\u{a0}%".to_owned(),
        _ => format!("{percent:.2}\u{a0}%"),
    }
}

/// A length of time.
pub(super) fn length(seconds: f64) -> String {
    #[expect(clippy::cast_sign_loss, reason = "lengths are none below zero")]
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match whole {
        0..60 => format!("{seconds:.1}\u{a0}s"),
        60..3600 => format!("{minutes}\u{a0}min {}\u{a0}s", whole % 60),
        3600..86_400 => format!("{hours}\u{a0}h {minutes}\u{a0}min"),
        _ => format!("{days}\u{a0}d {hours}\u{a0}h {minutes}\u{a0}min"),
    }
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%".contains(character);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text;
    }
    // What begins with a dash would be an option.
    let lead = if text.starts_with('-') { "./" } else { "" };
    format!("'{lead}{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        let octets = |number| octets(number).replace('\u{a0}', " ");
        assert_eq!(
            [0, 999, 1000, 9_994, 9_996, 99_960, 999_499, 999_500, 1 << 60].map(octets),
            ["0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "100 kB", "999 kB", "1.00 MB", "1.15 EB"]
        );
        assert_eq!(octets(u64::MAX), "18.4 EB");
        assert_eq!(rate(u64::MAX).replace('\u{a0}', " "), "18446744 Tbit/s");
        assert_eq!([0, 12, 1234, 1_234_567].map(count), ["0", "12", "1\u{202f}234", "1\u{202f}234\u{202f}567"]);
    }

    #[test]
    fn what_is_not_all_is_not_told_as_all() {
        let percent = |share| percent(share).replace('\u{a0}', " ");
        assert_eq!(
            [0.0, 0.000_001, 0.5, 0.999_999_9, 1.0, 1.3].map(percent),
            ["0.00 %", "< 0.01 %", "50.00 %", "99.99 %", "100 %", "130.00 %"]
        );
    }

    #[test]
    fn lengths_for_people() {
        let length = |seconds| length(seconds).replace('\u{a0}', " ");
        assert_eq!([0.25, 61.0, 3661.0, 90_061.0].map(length), ["0.2 s", "1 min 1 s", "1 h 1 min", "1 d 1 h 1 min"]);
    }

    #[test]
    fn paths_for_a_shell() {
        for (path, expected) in [
            ("/var/log/linewarden", "/var/log/linewarden"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("-rf", "'./-rf'"),
            ("$(x)", "'$(x)'"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
