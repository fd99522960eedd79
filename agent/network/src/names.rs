//! The border to the name server, which is a process of its own: it keeps the sockets when the daemon restarts.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::dns::zone::{ZoneKey, Zones};
use crate::spec::SandboxId;

/// What the name server must know of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxDns {
    /// The sandbox.
    pub id: SandboxId,
    /// The file that keeps its namespace.
    pub netns: PathBuf,
    /// Zones that it may ask, in order: the first answer counts.
    pub zones: Vec<ZoneKey>,
    /// Servers for all other names; empty for the node's.
    pub servers: Vec<IpAddr>,
}

/// Ports on 127.0.0.11 in the sandbox that port 53 is redirected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsPorts {
    /// Of UDP.
    pub udp: u16,
    /// Of TCP.
    pub tcp: u16,
}

/// Serves names in sandboxes.
#[async_trait::async_trait]
pub trait Names: Send + Sync {
    /// Serves the sandbox from now on. Asked again for the same sandbox, it answers with the ports it has.
    ///
    /// # Errors
    /// When the server is not there or cannot open the sockets.
    async fn put_sandbox(&self, sandbox: SandboxDns) -> io::Result<DnsPorts>;

    /// Closes the sandbox's sockets, if there are any.
    ///
    /// # Errors
    /// When the server is not there.
    async fn remove_sandbox(&self, id: &SandboxId) -> io::Result<()>;

    /// Replaces all zones.
    ///
    /// # Errors
    /// When the server is not there.
    async fn put_zones(&self, zones: Zones) -> io::Result<()>;

    /// The sandboxes that are served.
    ///
    /// # Errors
    /// When the server is not there.
    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>>;
}

/// A name server for tests of those who use [`NodeNetwork`](crate::NodeNetwork): remembers what it was told and
/// serves nothing.
#[derive(Debug, Default)]
pub struct FakeNames {
    sandboxes: Mutex<BTreeMap<SandboxId, SandboxDns>>,
    zones: Mutex<Zones>,
    refusing: AtomicBool,
}

impl FakeNames {
    /// Whether it refuses new sandboxes from now on.
    pub fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::Relaxed);
    }

    /// The zones that it was told last.
    pub fn zones(&self) -> Zones {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<SandboxId, SandboxDns>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait::async_trait]
impl Names for FakeNames {
    async fn put_sandbox(&self, sandbox: SandboxDns) -> io::Result<DnsPorts> {
        if self.refusing.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.served().insert(sandbox.id.clone(), sandbox);
        Ok(DnsPorts { udp: 5353, tcp: 5354 })
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> io::Result<()> {
        self.served().remove(id);
        Ok(())
    }

    async fn put_zones(&self, zones: Zones) -> io::Result<()> {
        *self.zones.lock().unwrap_or_else(PoisonError::into_inner) = zones;
        Ok(())
    }

    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        Ok(self.served().keys().cloned().collect())
    }
}
