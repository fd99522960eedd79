//! The border to the name server, which is a process of its own: it keeps the sockets when the daemon restarts.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::dns::patch::ZonesPatch;
use crate::dns::zone::{ZoneKey, Zones};
use crate::netd::TunnelOwner;
use crate::spec::SandboxId;
use crate::sys::netns::Netns;
use crate::tunnel::{Tunnel, TunnelStatus, Tunnels};

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

/// Serves names in sandboxes. Who does that keeps the node's WireGuard link too: both must outlive the daemon.
#[async_trait::async_trait]
pub trait Names: Tunnels {
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

    /// Changes the zones that were put or changed last, or makes sure that it has them, when nothing differs. `false` when it
    /// has others: it was put other zones since, lost them or is of a version that puts all or nothing. Then all are to be put.
    ///
    /// # Errors
    /// When the server is not there.
    async fn patch_zones(&self, patch: ZonesPatch) -> io::Result<bool>;

    /// The sandboxes that are served.
    ///
    /// # Errors
    /// When the server is not there.
    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>>;
}

/// A name server for tests of those who use [`NodeNetwork`](crate::NodeNetwork): remembers what it was told and
/// serves nothing. WireGuard links are real: nothing encrypted would pass without.
#[derive(Default)]
pub struct FakeNames {
    tunnels: Mutex<(Option<Netns>, TunnelOwner)>,
    sandboxes: Mutex<BTreeMap<SandboxId, SandboxDns>>,
    zones: Mutex<Option<Zones>>,
    /// How often zones were put and patched.
    told: (AtomicU32, AtomicU32),
    refusing: AtomicBool,
    /// Whether new sandboxes wait, and how many do.
    holding: watch::Sender<(bool, u32)>,
}

impl FakeNames {
    /// Whether new sandboxes wait from now on, as with a server that does not answer.
    pub fn hold(&self, hold: bool) {
        self.holding.send_modify(|(held, _)| *held = hold);
    }

    /// How many wait.
    pub fn held(&self) -> u32 {
        self.holding.borrow().1
    }

    /// Whether it refuses new sandboxes from now on.
    pub fn refuse(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::Relaxed);
    }

    /// One that makes WireGuard links in the calling thread's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    pub fn with_tunnels() -> io::Result<Self> {
        let fake = Self::default();
        fake.locked_tunnels().0 = Some(Netns::current()?);
        Ok(fake)
    }

    /// Does something with the owner of the link, in its namespace; `None` without one.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn in_tunnels<T>(&self, act: impl FnOnce(&mut TunnelOwner) -> T) -> io::Result<Option<T>> {
        let mut tunnels = self.locked_tunnels();
        let (netns, owner) = &mut *tunnels;
        netns.as_ref().map(|netns| netns.enter(|| act(owner))).transpose()
    }

    fn locked_tunnels(&self) -> MutexGuard<'_, (Option<Netns>, TunnelOwner)> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The zones that it was told last.
    pub fn zones(&self) -> Zones {
        self.locked_zones().clone().unwrap_or_default()
    }

    /// Forgets them, as a server that lost what it kept.
    pub fn forget_zones(&self) {
        *self.locked_zones() = None;
    }

    /// How often all zones were put, and how often they were patched.
    pub fn told(&self) -> (u32, u32) {
        (self.told.0.load(Ordering::Relaxed), self.told.1.load(Ordering::Relaxed))
    }

    fn locked_zones(&self) -> MutexGuard<'_, Option<Zones>> {
        self.zones.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.holding.send_modify(|(_, waiting)| *waiting += 1);
        let _ = self.holding.subscribe().wait_for(|(held, _)| !held).await;
        self.holding.send_modify(|(_, waiting)| *waiting -= 1);
        self.served().insert(sandbox.id.clone(), sandbox);
        Ok(DnsPorts { udp: 5353, tcp: 5354 })
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> io::Result<()> {
        self.served().remove(id);
        Ok(())
    }

    async fn put_zones(&self, zones: Zones) -> io::Result<()> {
        *self.locked_zones() = Some(zones);
        self.told.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn patch_zones(&self, patch: ZonesPatch) -> io::Result<bool> {
        let mut zones = self.locked_zones();
        let Some(zones) = zones.as_mut() else { return Ok(false) };
        patch.apply(zones);
        self.told.1.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        Ok(self.served().keys().cloned().collect())
    }
}

#[async_trait::async_trait]
impl Tunnels for FakeNames {
    async fn put_tunnel(&self, tunnel: Tunnel) -> io::Result<TunnelStatus> {
        let none = TunnelStatus { path: crate::tunnel::TunnelPath::Userspace, key: tunnel.key, peers: Vec::new() };
        self.in_tunnels(|owner| owner.put(tunnel))?.unwrap_or(Ok(none))
    }

    async fn remove_tunnel(&self) -> io::Result<()> {
        self.in_tunnels(TunnelOwner::remove).map(drop)
    }

    async fn tunnel(&self) -> io::Result<Option<TunnelStatus>> {
        Ok(self.in_tunnels(|owner| owner.status())?.transpose()?.flatten())
    }
}
