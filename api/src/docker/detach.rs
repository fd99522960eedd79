//! The keys with which a client leaves a process without ending it (moby `pkg/pools`, `term.EscapeProxy`).

/// Words that name no keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid detach keys ({keys}) provided: Unknown character: '{key}'")]
pub struct InvalidKeys {
    keys: String,
    key: String,
}

/// Watches a client's input for the keys.
#[derive(Debug, Clone)]
pub struct Detach {
    keys: Vec<u8>,
    /// How many of them have come.
    matched: usize,
}

impl Detach {
    /// Docker's default: ctrl-p, ctrl-q.
    const DEFAULT: [u8; 2] = [16, 17];

    /// Reads `ctrl-a,b,ctrl-[`; the default when empty.
    ///
    /// # Errors
    /// What is no key.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        if text.is_empty() {
            return Ok(Self { keys: Self::DEFAULT.to_vec(), matched: 0 });
        }
        let invalid = |key: &str| InvalidKeys { keys: text.to_owned(), key: key.to_owned() };
        let keys = text
            .split(',')
            .map(|key| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
                (None, [byte]) => Ok(*byte),
                (Some(rest), _) => match rest.as_bytes() {
                    [letter @ b'a'..=b'z'] => Ok(letter - b'a' + 1),
                    b"@" => Ok(0),
                    b"[" => Ok(27),
                    b"\\" => Ok(28),
                    b"]" => Ok(29),
                    b"^" => Ok(30),
                    b"_" => Ok(31),
                    _ => Err(invalid(key)),
                },
                (None, _) => Err(invalid(key)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { keys, matched: 0 })
    }

    /// No keys: nothing detaches.
    pub fn never() -> Self {
        Self { keys: Vec::new(), matched: 0 }
    }

    /// What of `bytes` goes on to the process, and whether the keys came. A part of the keys is held back until it is
    /// clear whether the rest follows.
    pub fn feed(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        if self.keys.is_empty() {
            out.extend_from_slice(bytes);
            return (out, false);
        }
        for &byte in bytes {
            if byte != self.keys[self.matched] {
                out.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (out, true);
                }
            } else {
                out.push(byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_keys_detach_also_when_they_come_apart() {
        let mut detach = Detach::parse("").unwrap();
        assert_eq!(detach.feed(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(detach.feed(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn a_part_of_the_keys_is_passed_on_when_the_rest_does_not_follow() {
        let mut detach = Detach::parse("").unwrap();
        assert_eq!(detach.feed(b"\x10\x10x"), (b"\x10\x10x".to_vec(), false));
    }

    #[test]
    fn keys_are_letters_and_control_characters() {
        assert_eq!(Detach::parse("ctrl-a,b,ctrl-[").unwrap().keys, [1, b'b', 27]);
        assert!(Detach::parse("ctrl-A").is_err() && Detach::parse("xy").is_err());
    }

    proptest! {
        #[test]
        fn input_without_the_keys_arrives_whole_but_for_what_may_begin_them(
            pieces in prop::collection::vec(prop::collection::vec(0u8..16, 0..8), 0..8),
        ) {
            let mut detach = Detach::parse("").unwrap();
            let out: Vec<u8> = pieces.iter().flat_map(|p| detach.feed(p).0).collect();
            prop_assert_eq!(out, pieces.concat());
        }
    }
}
