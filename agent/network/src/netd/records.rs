//! What the process keeps on disk: zones with the journal of their changes, sandboxes, and the WireGuard link.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;
use crate::netd::journal::{self, Journal};
use crate::netd::protocol::Served;
use crate::netd::told::Told;
use crate::netd::wireguard::Owner;
use crate::record;
use crate::spec::SandboxId;
use crate::tunnel::Tunnel;

/// What a process starts from.
#[derive(Default)]
pub struct Start {
    /// All zones.
    pub zones: Told,
    /// All sandboxes.
    pub sandboxes: Vec<Served>,
    /// Open sockets of a predecessor.
    pub sockets: BTreeMap<SandboxId, (OwnedFd, OwnedFd)>,
    /// The WireGuard link of a predecessor, or none yet.
    pub tunnel: Owner,
}

/// The records of a folder.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn zones(&self) -> PathBuf {
        self.dir.join("zones")
    }

    fn journal(&self) -> PathBuf {
        self.dir.join("zones.journal")
    }

    fn sandboxes(&self) -> PathBuf {
        self.dir.join("sandboxes")
    }

    /// What was written last. A damaged record is set aside: the daemon tells all again.
    pub fn load(&self) -> Start {
        Start {
            zones: self.load_zones(),
            sandboxes: read_or_set_aside(&self.sandboxes()),
            sockets: BTreeMap::new(),
            tunnel: Owner::default(),
        }
    }

    fn tunnel(&self) -> PathBuf {
        self.dir.join("tunnel")
    }

    /// The WireGuard link of before, unless the host was started anew: then the daemon's rules come first.
    pub fn load_tunnel(&self) -> Option<Tunnel> {
        let kept: Option<KeptTunnel> = read_or_set_aside(&self.tunnel());
        kept.filter(|kept| kept.boot == boot()).map(|kept| kept.tunnel)
    }

    /// Writes the WireGuard link; `None` for none.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn write_tunnel(&self, tunnel: Option<Tunnel>) -> Result<(), NetworkError> {
        match tunnel {
            Some(tunnel) => record::write(&self.tunnel(), &Some(KeptTunnel { boot: boot(), tunnel })),
            None => record::delete(&self.tunnel()),
        }
    }

    fn load_zones(&self) -> Told {
        let mut told = or_set_aside(&self.zones(), record::read_as(&self.zones(), Told::parse));
        match journal::replay(&self.journal(), &mut told) {
            Ok((taken, false)) => tracing::debug!(taken, "changes of zones were read from the journal"),
            Ok((taken, true)) => tracing::warn!(taken, "the last change of zones was not whole and is left out"),
            Err(error) => tracing::error!(%error, path = %self.journal().display(),
                "the journal of zones cannot be read: names may be old until the daemon tells them"),
        }
        told
    }

    /// Writes the zones whole, and begins a journal of what changes from then on.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn write_zones(&self, zones: &Told) -> Result<Journal, NetworkError> {
        let path = self.journal();
        let failed =
            |path: &Path, source| NetworkError::Record { step: "write", path: path.display().to_string(), source };
        let behind = zones.behind().map_err(|error| failed(&self.zones(), io::Error::other(error)))?;
        let size = record::write_with(&self.zones(), zones, &behind)?;
        Journal::begin(&path, size).map_err(|source| failed(&path, source))
    }

    /// Writes the sandboxes.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn write_sandboxes(&self, sandboxes: &[Served]) -> Result<(), NetworkError> {
        record::write(&self.sandboxes(), &sandboxes)
    }
}

/// The WireGuard link on disk; its private key is elsewhere.
#[derive(Debug, Serialize, Deserialize)]
struct KeptTunnel {
    boot: String,
    tunnel: Tunnel,
}

/// Names the time since the host was started (proc_sys_kernel(5), `random`).
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn read_or_set_aside<T: DeserializeOwned + Default>(path: &Path) -> T {
    or_set_aside(path, record::read(path))
}

fn or_set_aside<T: Default>(path: &Path, read: Result<Option<T>, NetworkError>) -> T {
    read.map(Option::unwrap_or_default).unwrap_or_else(|error| {
        let aside = path.with_extension("damaged");
        tracing::error!(%error, source = ?std::error::Error::source(&error), aside = %aside.display(),
            "a record of the name server cannot be read and is set aside");
        if let Err(error) = fs::rename(path, &aside) {
            tracing::warn!(%error, "cannot set the record aside");
        }
        T::default()
    })
}
