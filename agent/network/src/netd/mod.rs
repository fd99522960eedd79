//! The process that serves names to all sandboxes of a host and owns its WireGuard link (`skep net`), and the daemon's
//! side of it.
//!
//! It outlives the daemon: it is in no session or process tree of it, and answers from what it was told last. It keeps
//! three records in its folder, so that after a crash it opens the same ports again; a new version takes over the open
//! sockets from the running one, so that an upgrade loses no question.
//!
//! ```text
//! daemon: Client --netd.sock--> process::run: Keeper -- one dns::server::Server per sandbox
//!                                   |                      (sockets in the sandbox's namespace)
//!                                   |       `--- wireguard::Owner (in the node's namespace)
//!                                records: sandboxes, zones and their journal, tunnel
//! ```

use std::io;

use crate::error::NetworkError;

mod client;
mod handover;
mod journal;
mod keeper;
mod kernel;
mod process;
mod protocol;
mod records;
mod socket;
mod told;
mod wireguard;

pub use client::{Client, ClientConfig};
pub use process::{NetdConfig, run};
pub use wireguard::Owner as TunnelOwner;

/// Something about the name server's process did not work.
#[derive(Debug, thiserror::Error)]
pub enum NetdError {
    /// A call to the kernel failed.
    #[error("name server: cannot {step} {path}")]
    Io {
        /// What was to be done.
        step: &'static str,
        /// To what.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A record could not be written.
    #[error("name server: its record is lost")]
    Record {
        /// Which and why.
        source: NetworkError,
    },
    /// The process refused what was asked.
    #[error("name server: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// The other side does not speak as it should.
    #[error("name server: the process at {path} speaks another protocol ({detail}); restart it with this version")]
    Protocol {
        /// Its socket.
        path: String,
        /// What was wrong.
        detail: String,
    },
    /// No process answered in time.
    #[error("name server: no process answered at {path} within {seconds} s; see netd.log beside it")]
    NoAnswer {
        /// The socket.
        path: String,
        /// How long was tried.
        seconds: u64,
        /// What the last attempt met.
        source: io::Error,
    },
}

impl NetdError {
    /// Whether trying again later may succeed without a change of the request.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Record { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { .. } | Self::Protocol { .. } => false,
        }
    }
}
