//! What crosses a socket or rests on a disk, generated from `wire/*.proto`: one module per file.
//!
//! Only the edges see these types; everything else speaks [`crate::model`], and [`crate::convert`] turns one into the other.

use std::fmt;

// Documented in the .proto files; the generator's style is its own.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}

pub use generated::skep::*;

/// Descriptors of every file, an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! print_nothing_of {
    ($($module:ident::$name:ident),+ $(,)?) => {$(
        impl fmt::Debug for $module::$name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    )+};
}

print_nothing_of!(
    objects::RootCa,
    objects::JoinTokens,
    objects::SecretData,
    objects::RegistryAuth,
    ca::IssueCertificateRequest,
);
