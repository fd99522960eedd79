//! Netlink attributes: the encoding that nf_tables and conntrack share (include/uapi/linux/netlink.h).
//!
//! Pure: bytes in, bytes out. Attributes are `{len: u16, type: u16, payload}` in host order, padded to four bytes.

/// The attribute's payload is a list of attributes.
const NESTED: u16 = 0x8000;
/// Bits of the type that are flags.
const TYPE_MASK: u16 = 0x3fff;

/// A list of attributes under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attrs(Vec<u8>);

impl Attrs {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `payload` as attribute `kind`. A payload that does not fit the 16-bit length is a mistake of the caller:
    /// lists are cut into messages before they come here.
    pub fn bytes(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let len = u16::try_from(payload.len() + 4).expect("lists are cut so that an attribute stays below 64 KiB");
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in network order, as netfilter wants them.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A text with its terminating NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// A list inside the list.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attrs)) -> &mut Self {
        let mut inner = Attrs::new();
        fill(&mut inner);
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The bytes so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes of a received list as `(type, payload)`. Ends at the first malformed one; never panics.
pub fn iter(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let payload = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, payload))
    })
}

/// The payload of the first attribute of type `kind`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    iter(bytes).find(|(k, _)| *k == kind).map(|(_, payload)| payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(list in proptest::collection::vec((1u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let mut attrs = Attrs::new();
            for (kind, payload) in &list {
                attrs.bytes(*kind, payload);
            }
            let read: Vec<_> = iter(attrs.as_slice()).map(|(k, p)| (k, p.to_vec())).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = iter(&bytes).count();
        }
    }

    #[test]
    fn nested_lists_carry_the_nested_flag() {
        let mut attrs = Attrs::new();
        attrs.nest(2, |inner| {
            inner.u32(1, 5);
        });
        assert_eq!(attrs.as_slice(), [12, 0, 2, 0x80, 8, 0, 1, 0, 0, 0, 0, 5]);
    }
}
