//! Tasks come and go while containers resolve and connect: no answer may name a task long after it was seen dead.
//!
//! ```text
//! driver (scales, updates, kills) ──► lab ──► truth: who had which address, and when it ended
//!                                      ▲                        │
//!                        clients: names, connections ──► last time each address was named ──► verdict
//! ```

pub mod client;
pub mod truth;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970. Clients, daemons and this process share a machine.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
