//! The four messages on the wire (WireGuard paper, sections 5.4.2 to 5.4.7), all fields little endian.

use super::crypto::TAG;

/// Bytes of an initiation.
pub const INITIATION: usize = 148;
/// Bytes of a response.
pub const RESPONSE: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE: usize = 64;
/// Bytes before the data of a transport message.
pub const TRANSPORT_HEADER: usize = 16;
/// Bytes that a transport message adds to its data.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER + TAG;

/// A message told by its type and size. Its content is not yet authentic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    Initiation(&'a [u8; INITIATION]),
    Response(&'a [u8; RESPONSE]),
    Cookie(&'a [u8; COOKIE]),
    Transport { receiver: u32, counter: u64 },
}

impl Message<'_> {
    /// None for what is no message of WireGuard.
    pub fn parse(bytes: &[u8]) -> Option<Message<'_>> {
        match bytes.get(..4)? {
            [1, 0, 0, 0] => bytes.try_into().ok().map(Message::Initiation),
            [2, 0, 0, 0] => bytes.try_into().ok().map(Message::Response),
            [3, 0, 0, 0] => bytes.try_into().ok().map(Message::Cookie),
            [4, 0, 0, 0] if bytes.len() >= TRANSPORT_OVERHEAD => Some(Message::Transport {
                receiver: u32::from_le_bytes(field(bytes, 4)),
                counter: u64::from_le_bytes(field(bytes, 8)),
            }),
            _ => None,
        }
    }
}

/// The field of `N` bytes at `at`.
///
/// # Panics
/// If it is not inside: callers have checked the size.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the range has N bytes")
}

/// Writes the header of a transport message.
pub fn put_transport_header(bytes: &mut [u8], receiver: u32, counter: u64) {
    bytes[..4].copy_from_slice(&[4, 0, 0, 0]);
    bytes[4..8].copy_from_slice(&receiver.to_le_bytes());
    bytes[8..16].copy_from_slice(&counter.to_le_bytes());
}

/// Bytes to which `plain` bytes are padded: the next multiple of 16, but no more than `mtu` (paper, section 5.4.6), or
/// full packets would not be of one size.
pub fn padded(plain: usize, mtu: usize) -> usize {
    plain.next_multiple_of(16).min(mtu.max(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_told_by_type_and_size() {
        let mut bytes = [0; INITIATION];
        bytes[0] = 1;
        assert!(matches!(Message::parse(&bytes), Some(Message::Initiation(_))));
        assert_eq!(Message::parse(&bytes[..INITIATION - 1]), None);
        bytes[1] = 1; // reserved
        assert_eq!(Message::parse(&bytes), None);
        let mut bytes = [0; TRANSPORT_OVERHEAD];
        put_transport_header(&mut bytes, 7, 9);
        assert_eq!(Message::parse(&bytes), Some(Message::Transport { receiver: 7, counter: 9 }));
        assert_eq!(Message::parse(&bytes[..TRANSPORT_OVERHEAD - 1]), None);
    }

    #[test]
    fn padding_stays_below_the_mtu() {
        assert_eq!(padded(0, 1420), 0);
        assert_eq!(padded(1, 1420), 16);
        assert_eq!(padded(1419, 1420), 1420);
        assert_eq!(padded(1420, 1420), 1420);
        assert_eq!(padded(1500, 1420), 1500);
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_without_panic(kind in 0u8..6, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = bytes;
            if bytes.len() > 4 {
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            let told = Message::parse(&bytes);
            prop_assert!(told.is_none() || (1..=4).contains(&bytes[0]));
        }
    }
}
