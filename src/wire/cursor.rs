//! Bounded reads of network-order numbers: `None` behind the end, never a panic.

/// The 16-bit number at `offset`.
#[inline]
#[must_use]
pub fn u16_at(octets: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*octets.get(offset..)?.first_chunk()?))
}

/// The 32-bit number at `offset`.
#[inline]
#[must_use]
pub fn u32_at(octets: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*octets.get(offset..)?.first_chunk()?))
}

/// The 64-bit number at `offset`.
#[inline]
#[must_use]
pub fn u64_at(octets: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*octets.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_the_end_only() {
        let octets = [1, 2, 3, 4, 5];
        assert_eq!(u16_at(&octets, 3), Some(0x0405));
        assert_eq!(u16_at(&octets, 4), None);
        assert_eq!(u32_at(&octets, 1), Some(0x0203_0405));
        assert_eq!(u32_at(&octets, 2), None);
        assert_eq!(u32_at(&octets, usize::MAX), None);
        assert_eq!(u16_at(&[], 0), None);
    }
}
