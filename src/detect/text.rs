//! Names that protocols send in clear: whether octets are one, and a number by which two of them, or two packets, are
//! compared.

/// FNV-1a (Fowler, Noll, Vo), 64 bits: tells octets apart, keeps none of them.
pub(super) fn number_of(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3))
}

/// Decimal digits at the beginning of `octets`, at most `most` of them, and what follows.
pub(super) fn digits(octets: &[u8], most: usize) -> Option<&[u8]> {
    let end = octets.iter().take(most + 1).take_while(|octet| octet.is_ascii_digit()).count();
    (1..=most).contains(&end).then(|| octets.get(end..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_digits() {
        assert_ne!(number_of(b"nodea"), number_of(b"nodeb"));
        assert_eq!(digits(b"429 672", 5), Some(&b" 672"[..]));
        assert_eq!(digits(b"17", 2), Some(&b""[..]));
        assert_eq!(digits(b"", 2), None);
        assert_eq!(digits(b"x", 2), None);
        assert_eq!(digits(b"123", 2), None, "too many");
    }
}
