//! The ports in memory, for tests of the face.

pub mod cluster;
pub mod engine;

pub use cluster::World;
pub use engine::eventually;

use skep_proto::model::Timestamp;

/// The current time.
pub fn now() -> Timestamp {
    Timestamp(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap())
}
