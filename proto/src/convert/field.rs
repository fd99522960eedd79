//! How one field crosses, in both directions, and the macros that put records together from fields.
//!
//! A record is stated once, as the list of its fields: both sides are taken apart exhaustively, so a field that is new in
//! the model or in the message does not compile until it crosses.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use super::error::{At, DecodeError, FieldError};
use crate::model::{
    ClusterId, ConfigId, ContainerId, NetworkId, NodeId, SecretId, ServiceId, TaskId, Timestamp, Version,
};

/// Bytes of one text at most. Linux takes no argument longer than 128 KiB; certificates and labels are shorter.
pub(super) const MAX_TEXT: usize = 256 * 1024;
/// Elements of one list or map at most. The longest is the list of changes in a part of an assignment.
pub(super) const MAX_ITEMS: usize = 65_536;
/// Bytes of a secret or config at most, as Docker allows.
pub(super) const MAX_DATA: usize = 1000 * 1024;

/// A model value that crosses as a field of type `W`.
pub(super) trait Field<W>: Sized {
    /// The value as it crosses.
    fn to_wire(&self) -> W;
    /// The value, checked.
    fn from_wire(wire: W) -> Result<Self, DecodeError>;
}

macro_rules! same {
    ($($type:ty),+) => {$(
        impl Field<$type> for $type {
            fn to_wire(&self) -> $type {
                *self
            }
            fn from_wire(wire: $type) -> Result<Self, DecodeError> {
                Ok(wire)
            }
        }
    )+};
}
same!(bool, u32, u64, i32, i64);

macro_rules! narrow {
    ($($type:ty),+) => {$(
        impl Field<u32> for $type {
            fn to_wire(&self) -> u32 {
                u32::from(*self)
            }
            fn from_wire(wire: u32) -> Result<Self, DecodeError> {
                Self::try_from(wire).map_err(|_| FieldError::OutOfRange { value: wire.into(), max: Self::MAX.into() }.into())
            }
        }
    )+};
}
narrow!(u8, u16);

macro_rules! wrapped_u64 {
    ($($type:ident),+) => {$(
        impl Field<u64> for $type {
            fn to_wire(&self) -> u64 {
                self.0
            }
            fn from_wire(wire: u64) -> Result<Self, DecodeError> {
                Ok(Self(wire))
            }
        }
    )+};
}
wrapped_u64!(Timestamp, Version);

/// A share between 0 and 1: the only fraction in the model.
impl Field<f32> for f32 {
    fn to_wire(&self) -> f32 {
        *self
    }
    fn from_wire(wire: f32) -> Result<Self, DecodeError> {
        if (0.0..=1.0).contains(&wire) { Ok(wire) } else { Err(FieldError::Share { value: wire }.into()) }
    }
}

impl Field<String> for String {
    fn to_wire(&self) -> String {
        self.clone()
    }
    fn from_wire(wire: String) -> Result<Self, DecodeError> {
        at_most(wire.len(), MAX_TEXT, "bytes")?;
        Ok(wire)
    }
}

impl Field<Bytes> for Bytes {
    fn to_wire(&self) -> Bytes {
        self.clone()
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        at_most(wire.len(), MAX_DATA, "bytes")?;
        // The buffer it came in may be much larger and must not be kept alive by it.
        Ok(Bytes::copy_from_slice(&wire))
    }
}

macro_rules! cluster_id {
    ($($type:ident),+) => {$(
        impl Field<Bytes> for $type {
            fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(&self.0.to_be_bytes())
            }
            fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
                exactly::<16>(&wire, "16").map(u128::from_be_bytes).map(Self)
            }
        }
    )+};
}
cluster_id!(ClusterId, NodeId, ServiceId, TaskId, NetworkId, SecretId, ConfigId);

impl Field<Bytes> for ContainerId {
    fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        exactly(&wire, "32").map(Self)
    }
}

impl Field<Bytes> for [u8; 32] {
    fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        exactly(&wire, "32")
    }
}

impl Field<Bytes> for [u8; 16] {
    fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        exactly(&wire, "16")
    }
}

impl Field<Bytes> for IpAddr {
    fn to_wire(&self) -> Bytes {
        match self {
            IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
            IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
        }
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        address(&wire).ok_or_else(|| FieldError::Length { expected: "4 or 16", found: wire.len() }.into())
    }
}

/// The address as given, host bits included: it also stands for "address with prefix length".
impl Field<Bytes> for IpNet {
    fn to_wire(&self) -> Bytes {
        let mut wire = Field::<Bytes>::to_wire(&self.addr()).to_vec();
        wire.push(self.prefix_len());
        wire.into()
    }
    fn from_wire(wire: Bytes) -> Result<Self, DecodeError> {
        let parts = wire.split_last().and_then(|(&prefix, octets)| Some((address(octets)?, prefix)));
        let (address, prefix) = parts.ok_or(FieldError::Length { expected: "5 or 17", found: wire.len() })?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix).map_err(|_| FieldError::OutOfRange { value: prefix.into(), max }.into())
    }
}

/// As text, which keeps the zone of a link-local address.
impl Field<String> for SocketAddr {
    fn to_wire(&self) -> String {
        self.to_string()
    }
    fn from_wire(wire: String) -> Result<Self, DecodeError> {
        wire.parse().map_err(|_| FieldError::Address { text: wire.chars().take(100).collect() }.into())
    }
}

impl<T: Field<W>, W> Field<Option<W>> for Option<T> {
    fn to_wire(&self) -> Option<W> {
        self.as_ref().map(T::to_wire)
    }
    fn from_wire(wire: Option<W>) -> Result<Self, DecodeError> {
        wire.map(T::from_wire).transpose()
    }
}

impl<T: Field<W>, W> Field<W> for Box<T> {
    fn to_wire(&self) -> W {
        T::to_wire(self)
    }
    fn from_wire(wire: W) -> Result<Self, DecodeError> {
        T::from_wire(wire).map(Self::new)
    }
}

impl<T: Field<W>, W> Field<W> for Arc<T> {
    fn to_wire(&self) -> W {
        T::to_wire(self)
    }
    fn from_wire(wire: W) -> Result<Self, DecodeError> {
        T::from_wire(wire).map(Self::new)
    }
}

impl<T: Field<W>, W> Field<Vec<W>> for Vec<T> {
    fn to_wire(&self) -> Vec<W> {
        self.iter().map(T::to_wire).collect()
    }
    fn from_wire(wire: Vec<W>) -> Result<Self, DecodeError> {
        at_most(wire.len(), MAX_ITEMS, "elements")?;
        wire.into_iter().enumerate().map(|(index, item)| T::from_wire(item).at_index(index)).collect()
    }
}

impl<T: Field<W>, W> Field<BTreeMap<String, W>> for BTreeMap<String, T> {
    fn to_wire(&self) -> BTreeMap<String, W> {
        self.iter().map(|(key, value)| (key.clone(), value.to_wire())).collect()
    }
    fn from_wire(wire: BTreeMap<String, W>) -> Result<Self, DecodeError> {
        at_most(wire.len(), MAX_ITEMS, "entries")?;
        wire.into_iter()
            .map(|(key, value)| {
                at_most(key.len(), MAX_TEXT, "bytes in a key")?;
                let value = T::from_wire(value).at(&format!("[{key:?}]"))?;
                Ok((key, value))
            })
            .collect()
    }
}

/// Fails when `found` is above `limit`.
pub(super) fn at_most(found: usize, limit: usize, unit: &'static str) -> Result<(), DecodeError> {
    if found <= limit { Ok(()) } else { Err(FieldError::TooMany { found, limit, unit }.into()) }
}

/// A field that must be there.
pub(super) fn required<W>(wire: Option<W>) -> Result<W, DecodeError> {
    wire.ok_or_else(|| FieldError::Missing.into())
}

fn exactly<const N: usize>(wire: &[u8], expected: &'static str) -> Result<[u8; N], DecodeError> {
    wire.try_into().map_err(|_| FieldError::Length { expected, found: wire.len() }.into())
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// A struct whose message has the same name and fields. As a field without `Option` it must be there.
macro_rules! record {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        impl From<&$name> for wire::$name {
            fn from(value: &$name) -> Self {
                let $name { $($field),+ } = value;
                Self { $($field: $crate::convert::field::Field::to_wire($field)),+ }
            }
        }

        impl TryFrom<wire::$name> for $name {
            type Error = $crate::convert::DecodeError;
            fn try_from(message: wire::$name) -> Result<Self, Self::Error> {
                use $crate::convert::error::At as _;
                let wire::$name { $($field),+ } = message;
                Ok(Self { $($field: $crate::convert::field::Field::from_wire($field).at(stringify!($field))?),+ })
            }
        }

        $crate::convert::field::message!($name);
    };
}

/// A value whose `From` and `TryFrom` are written by hand, as a field.
macro_rules! message {
    ($name:ident) => {
        impl $crate::convert::field::Field<wire::$name> for $name {
            fn to_wire(&self) -> wire::$name {
                self.into()
            }
            fn from_wire(wire: wire::$name) -> Result<Self, $crate::convert::DecodeError> {
                wire.try_into()
            }
        }

        impl $crate::convert::field::Field<Option<wire::$name>> for $name {
            fn to_wire(&self) -> Option<wire::$name> {
                Some(self.into())
            }
            fn from_wire(wire: Option<wire::$name>) -> Result<Self, $crate::convert::DecodeError> {
                $crate::convert::field::required(wire)?.try_into()
            }
        }
    };
}

/// An enum without content, whose message enum has the same name and variants, and `Unspecified` as 0.
macro_rules! choice {
    ($name:ident { $($variant:ident),+ $(,)? }) => {
        impl $crate::convert::field::Field<i32> for $name {
            fn to_wire(&self) -> i32 {
                match self {
                    $(Self::$variant => wire::$name::$variant as i32,)+
                }
            }
            fn from_wire(value: i32) -> Result<Self, $crate::convert::DecodeError> {
                match wire::$name::try_from(value) {
                    $(Ok(wire::$name::$variant) => Ok(Self::$variant),)+
                    Ok(wire::$name::Unspecified) | Err(_) => {
                        Err($crate::convert::FieldError::UnknownValue { kind: stringify!($name), value }.into())
                    }
                }
            }
        }
    };
}

pub(super) use {choice, message, record};
