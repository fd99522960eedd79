//! What every object carries.

use std::time::Duration;

use super::DecodeError;
use super::error::{At, FieldError};
use super::field::{message, record};
use crate::model::container::Driver;
use crate::model::{Annotations, Meta};
use crate::wire::objects as wire;

record!(Annotations { name, labels });
record!(Meta { version, created_at, updated_at });
record!(Driver { name, options });

impl From<&Duration> for wire::Duration {
    fn from(value: &Duration) -> Self {
        Self { seconds: value.as_secs(), nanos: value.subsec_nanos() }
    }
}

impl TryFrom<wire::Duration> for Duration {
    type Error = DecodeError;
    fn try_from(message: wire::Duration) -> Result<Self, DecodeError> {
        const MAX_NANOS: u32 = 999_999_999;
        if message.nanos > MAX_NANOS {
            let error = FieldError::OutOfRange { value: message.nanos.into(), max: MAX_NANOS.into() };
            return Err(error.into()).at("nanos");
        }
        Ok(Self::new(message.seconds, message.nanos))
    }
}

message!(Duration);
