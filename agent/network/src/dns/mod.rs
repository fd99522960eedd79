//! The name server of sandboxes: zones, messages, and the loops that answer on 127.0.0.11.
//!
//! ```text
//! datagram or stream -> usual::Question::read -> resolve::find -> reply
//!               else -> message::parse -> resolve::decide -> reply, or forward::Forwarder -> reply
//! ```
//! `zone`, `patch`, `message`, `usual` and `resolve` do no I/O.

pub mod forward;
pub mod message;
pub mod patch;
pub mod resolve;
pub mod server;
pub mod upstream;
pub mod usual;
pub mod zone;
