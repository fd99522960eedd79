//! Why bytes are not the object they should be.

/// Bytes, or a message, are not a valid object.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than any valid object of the kind has.
    #[error("a {kind} of {bytes} bytes is refused, the limit is {limit}")]
    TooLarge {
        /// Kind of the object.
        kind: &'static str,
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are no message of the kind.
    #[error("the bytes are not a {kind}")]
    Malformed {
        /// Kind of the object.
        kind: &'static str,
        /// What the parser found.
        source: prost::DecodeError,
    },
    /// A field holds what it must not.
    #[error("{path}: {reason}")]
    Field {
        /// Where: `spec.task.containers[0].mounts[2].kind`.
        path: String,
        /// What is wrong there.
        reason: FieldError,
    },
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FieldError {
    /// It must be there.
    #[error("is missing")]
    Missing,
    /// An enum's value that this release does not know.
    #[error("{value} is no value of {kind} that this release knows")]
    UnknownValue {
        /// The enum.
        kind: &'static str,
        /// The value given.
        value: i32,
    },
    /// A number outside its type.
    #[error("{value} is not between 0 and {max}")]
    OutOfRange {
        /// The number given.
        value: u64,
        /// The largest one allowed.
        max: u64,
    },
    /// Bytes of a wrong length.
    #[error("has {found} bytes instead of {expected}")]
    Length {
        /// Lengths allowed, in words.
        expected: &'static str,
        /// Bytes given.
        found: usize,
    },
    /// More than any valid object holds.
    #[error("has {found} {unit}, the limit is {limit}")]
    TooMany {
        /// Count given.
        found: usize,
        /// Count allowed.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// Text that is no address with port.
    #[error("{text:?} is not an address with a port")]
    Address {
        /// The text given.
        text: String,
    },
    /// A share that is not a number between 0 and 1.
    #[error("{value} is not a share between 0 and 1")]
    Share {
        /// The number given.
        value: f32,
    },
    /// A set that comes in parts was interrupted by another message.
    #[error("the parts of one set do not follow each other")]
    Interrupted,
    /// The same key twice.
    #[error("names the same key twice")]
    Duplicate,
}

impl From<FieldError> for DecodeError {
    fn from(reason: FieldError) -> Self {
        Self::Field { path: String::new(), reason }
    }
}

/// Puts a step in front of the path of an error.
pub(super) trait At {
    /// The error happened in the field `name` of what the caller decodes.
    fn at(self, name: &str) -> Self;
    /// The error happened in the element `index` of what the caller decodes.
    fn at_index(self, index: usize) -> Self;
}

impl<T> At for Result<T, DecodeError> {
    fn at(self, name: &str) -> Self {
        self.map_err(|error| match error {
            DecodeError::Field { path, reason } => {
                let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
                DecodeError::Field { path: format!("{name}{dot}{path}"), reason }
            }
            other => other,
        })
    }

    fn at_index(self, index: usize) -> Self {
        self.at(&format!("[{index}]"))
    }
}
