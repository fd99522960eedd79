//! Whole objects as bytes, for entries and snapshots: protobuf, because they grow with every release.

use bytes::Bytes;
use skep_proto::convert::{self, WireForm};

/// Bytes are not the object they should be.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are not the object they should be: {reason}")]
pub struct CodecError {
    /// What is wrong, with the path of the field.
    pub reason: String,
}

/// An object that can be written to bytes and read back.
pub trait Encode: Sized + 'static {
    /// The object's bytes. The same object always gives the same ones.
    fn encode(&self) -> Bytes;
    /// The object of these bytes.
    ///
    /// # Errors
    /// When they are not one.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError>;
}

impl<T: WireForm + 'static> Encode for T {
    fn encode(&self) -> Bytes {
        convert::encode(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        convert::decode(bytes).map_err(|error| CodecError { reason: error.to_string() })
    }
}
