//! Identifiers: 25 characters of base36 for cluster objects, 64 hexadecimal digits for containers.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Length of the text form of a cluster object's id. 36^25 > 2^128, so 25 digits hold every 128-bit value.
pub const ID_LEN: usize = 25;

/// A text is not an id of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text has another length than the form asks for.
    #[error("an id has {expected} characters, this text has {found}")]
    Length {
        /// Characters that the form has.
        expected: usize,
        /// Characters that the text has.
        found: usize,
    },
    /// A character that is no digit of the form.
    #[error("{found:?} is not a digit of an id")]
    Digit {
        /// The offending character.
        found: char,
    },
    /// 25 digits that stand for more than 128 bits.
    #[error("the id is larger than 128 bits")]
    Overflow,
}

fn format_base36(mut value: u128) -> [u8; ID_LEN] {
    let mut out = [b'0'; ID_LEN];
    for digit in out.iter_mut().rev() {
        let d = u8::try_from(value % 36).expect("a remainder of 36 fits a byte");
        *digit = if d < 10 { b'0' + d } else { b'a' + d - 10 };
        value /= 36;
    }
    out
}

fn parse_base36(text: &str) -> Result<u128, ParseIdError> {
    if text.len() != ID_LEN {
        return Err(ParseIdError::Length { expected: ID_LEN, found: text.chars().count() });
    }
    text.chars().try_fold(0u128, |value, c| {
        let digit = match c {
            '0'..='9' => c as u128 - '0' as u128,
            'a'..='z' => c as u128 - 'a' as u128 + 10,
            _ => return Err(ParseIdError::Digit { found: c }),
        };
        value.checked_mul(36).and_then(|v| v.checked_add(digit)).ok_or(ParseIdError::Overflow)
    })
}

/// The range of 128-bit ids whose text form starts with `prefix`, inclusive on both ends, or `None` when none can.
/// Text order is number order, so a prefix is a range.
pub fn prefix_range(prefix: &str) -> Option<(u128, u128)> {
    if prefix.len() > ID_LEN || !prefix.is_ascii() {
        return None;
    }
    let low = format!("{prefix:0<ID_LEN$}");
    let high = format!("{prefix:z<ID_LEN$}");
    let low = parse_base36(&low).ok()?;
    let high = match parse_base36(&high) {
        Ok(value) => value,
        Err(ParseIdError::Overflow) => u128::MAX,
        Err(_) => return None,
    };
    Some((low, high))
}

macro_rules! cluster_id {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        ///
        /// 128 random bits; the text form is 25 zero-padded characters of base36.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl $name {
            /// A new id drawn from `rng`.
            pub fn random(rng: &mut (impl Rng + ?Sized)) -> Self {
                Self(rng.random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let digits = format_base36(self.0);
                f.pad(std::str::from_utf8(&digits).expect("base36 digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_base36(text).map(Self)
            }
        }
    )+};
}

cluster_id!(
    /// Names the cluster.
    ClusterId,
    /// Names a node; Raft's node id is derived from the node's record, not from this value.
    NodeId,
    /// Names a service.
    ServiceId,
    /// Names a task: one attempt, never restarted.
    TaskId,
    /// Names a network of the cluster.
    NetworkId,
    /// Names a secret.
    SecretId,
    /// Names a config.
    ConfigId,
);

/// Names a container: 32 bytes shown as 64 hexadecimal digits, as Docker's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerId(pub [u8; 32]);

impl ContainerId {
    /// The id of a task's container. It needs no storage: every manager computes it from the task.
    pub fn of_task(task: TaskId, container: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(task.to_string());
        hash.update([u8::try_from(container).unwrap_or(u8::MAX)]);
        Self(hash.finalize().into())
    }

    /// A new id for a container that belongs to no task.
    pub fn random(rng: &mut (impl Rng + ?Sized)) -> Self {
        Self(rng.random())
    }

    /// The 12 digits that Docker prints, and gives as the host name of a container that names none.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }

    /// The id of a process to run in it (`docker exec`): 16 random bytes, then the first 16 of the container, so that
    /// every manager finds the node of it by the id alone.
    pub fn exec(&self, random: [u8; 16]) -> String {
        hex::encode(random) + &hex::encode(&self.0[..16])
    }

    /// The start of the id of the container that an exec id names; `None` when it is no exec id.
    pub fn prefix_of_exec(exec: &str) -> Option<&str> {
        let is_hex = exec.len() == 64 && exec.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
        is_hex.then(|| &exec[32..])
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for ContainerId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 64 {
            return Err(ParseIdError::Length { expected: 64, found: text.chars().count() });
        }
        let mut bytes = [0; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(hex::FromHexError::InvalidHexCharacter { c, .. }) => Err(ParseIdError::Digit { found: c }),
            Err(_) => Err(ParseIdError::Length { expected: 64, found: text.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_returns_the_same_id_and_keeps_the_order(a: u128, b: u128) {
            let (a, b) = (TaskId(a), TaskId(b));
            prop_assert_eq!(a.to_string().parse::<TaskId>().unwrap(), a);
            prop_assert_eq!(a.to_string().cmp(&b.to_string()), a.cmp(&b));
        }

        #[test]
        fn a_prefix_is_a_range_that_holds_exactly_its_ids(id: u128, len in 0usize..=ID_LEN, other: u128) {
            let text = TaskId(id).to_string();
            let (low, high) = prefix_range(&text[..len]).unwrap();
            prop_assert!((low..=high).contains(&id));
            let matches = TaskId(other).to_string().starts_with(&text[..len]);
            prop_assert_eq!((low..=high).contains(&other), matches);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,70}") {
            let _ = text.parse::<TaskId>();
            let _ = text.parse::<ContainerId>();
            let _ = ContainerId::prefix_of_exec(&text);
            let _ = prefix_range(&text);
        }
    }

    #[test]
    fn an_exec_id_tells_its_container() {
        let container = ContainerId::of_task(TaskId(7), 0);
        let exec = container.exec([0xab; 16]);
        assert!(container.to_string().starts_with(ContainerId::prefix_of_exec(&exec).unwrap()));
        assert!(exec.parse::<ContainerId>().is_ok(), "64 digits, as Docker's");
        assert_eq!(ContainerId::prefix_of_exec(&exec.to_uppercase()), None);
    }

    #[test]
    fn the_largest_value_fits_and_the_next_one_overflows() {
        assert_eq!(TaskId(u128::MAX).to_string().parse(), Ok(TaskId(u128::MAX)));
        assert_eq!("z".repeat(ID_LEN).parse::<TaskId>(), Err(ParseIdError::Overflow));
    }
}
