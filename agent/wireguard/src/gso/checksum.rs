//! The Internet checksum (RFC 1071), in the machine's byte order until it is written.

/// Sum over bytes, not yet folded. Adding sums is summing their bytes one after another if all but the last are even.
pub fn sum(bytes: &[u8]) -> u64 {
    // Four bytes at a time into 64 bits: no carry is lost below 16 GB. The compiler makes vector code of it.
    let words = bytes.chunks_exact(4);
    let mut tail = [0; 4];
    tail[..words.remainder().len()].copy_from_slice(words.remainder());
    let mut lanes = [0u64; 8];
    let mut eights = bytes.chunks_exact(32);
    for eight in &mut eights {
        for (lane, word) in lanes.iter_mut().zip(eight.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let rest = eights.remainder().chunks_exact(4);
    let rest: u64 = rest.map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    lanes.iter().sum::<u64>() + rest + u64::from(u32::from_ne_bytes(tail))
}

/// The sum in 16 bits, carries added.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Writes a checksum or a sum as it lies in memory.
pub fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// Sum over the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1) of the packet whose IP header begins at
/// `net`; `len`: bytes from the transport header on, below 64 KB.
pub fn pseudo(bytes: &[u8], net: usize, protocol: u8, len: usize) -> u64 {
    let addresses = if bytes[net] >> 4 == 4 { net + 12..net + 20 } else { net + 8..net + 40 };
    sum(&bytes[addresses]) + u64::from(u16::from(protocol).to_be()) + u64::from((len as u16).to_be())
}

/// A UDP checksum: zero would mean that there is none (RFC 768).
pub fn never_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Writes the checksum of the IPv4 header at `net`.
pub fn put_ipv4(bytes: &mut [u8], net: usize) {
    let len = usize::from(bytes[net] & 15) * 4;
    put(bytes, net + 10, 0);
    let checksum = !fold(sum(&bytes[net..net + len]));
    put(bytes, net + 10, checksum);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_16_bit_words(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let simple: u64 = bytes
                .chunks(2)
                .map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
                .sum();
            // 0 and 0xffff are one number in ones' complement.
            prop_assert_eq!(fold(sum(&bytes)) % 0xffff, fold(simple) % 0xffff);
        }
    }

    #[test]
    fn an_ipv4_header_sums_to_nothing() {
        let mut header = [0x45, 0, 0, 84, 1, 2, 0x40, 0, 64, 1, 9, 9, 10, 0, 0, 1, 10, 0, 0, 2];
        put_ipv4(&mut header, 0);
        assert_eq!(fold(sum(&header)), 0xffff);
    }
}
