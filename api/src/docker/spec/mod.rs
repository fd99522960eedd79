//! JSON shapes to the domain model and back. Pure: no clock, no port, no I/O.
//!
//! Reading checks what only the shape can tell (numbers that do not fit, words that mean nothing, keys that are not
//! supported); [`validate`] checks the spec as a whole, in Swarm's words.

pub(crate) mod cluster;
pub(crate) mod container_config;
pub(crate) mod container_spec;
pub(crate) mod container_view;
pub(crate) mod isolation;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod service;
pub(crate) mod task;
pub(crate) mod validate;

use std::time::Duration;

use serde_json::Value;

use super::error::ApiError;
use super::types::service::Rest;

/// Nothing but zeros: what Go would have as the zero value of any type.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.iter().all(is_zero),
        Value::Object(map) => map.values().all(is_zero),
    }
}

/// Refuses the first key of `rest` that says something.
///
/// # Errors
/// 501 naming the key.
pub(crate) fn refuse(context: &str, rest: &Rest) -> Result<(), ApiError> {
    match rest.iter().find(|(_, value)| !is_zero(value)) {
        Some((key, _)) => Err(ApiError::not_supported(format!("{context}.{key}"))),
        None => Ok(()),
    }
}

/// Go's nanoseconds as a duration.
///
/// # Errors
/// 400 naming `what` when it is negative.
pub(crate) fn duration(what: &str, nanos: i64) -> Result<Duration, ApiError> {
    u64::try_from(nanos)
        .map(Duration::from_nanos)
        .map_err(|_| ApiError::invalid_argument(format!("{what} cannot be negative")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_key_without_a_field_is_refused_by_name_unless_it_says_nothing() {
        let quiet = json!({"CredentialSpec": null, "Flags": {"NoNewPrivileges": false}, "ConsoleSize": [0, 0]});
        assert_eq!(refuse("X", quiet.as_object().unwrap()), Ok(()));
        let loud = json!({"Privileges": {"NoNewPrivileges": true}});
        let error = refuse("ContainerSpec", loud.as_object().unwrap()).unwrap_err();
        assert_eq!(error.message(), "ContainerSpec.Privileges is not supported by skep yet");
    }
}
