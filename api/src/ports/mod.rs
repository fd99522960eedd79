//! What faces call, in model types. [`control`] is the cluster, [`engine`] this node's containers,
//! [`events`] what happens to them.

pub mod control;
pub mod engine;
pub mod events;
pub mod usage;

pub use control::{ControlError, ControlPlane, Swarm};
pub use engine::{Engine, EngineError};

use tokio::io::{AsyncRead, AsyncWrite};

/// A connection as bytes, both ways, each way closed on its own.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A [`Duplex`] of any kind.
pub type BoxDuplex = Box<dyn Duplex>;
