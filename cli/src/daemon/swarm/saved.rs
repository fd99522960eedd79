//! What a node remembers of its cluster besides its certificate.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::addresses::Local;
use crate::daemon::config::Config;

/// The newest form of the file.
const FORMAT: u8 = 1;

/// What a node remembers of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    format: u8,
    /// Where a manager listens.
    pub listen: SocketAddr,
    /// What others are told.
    pub advertise: SocketAddr,
    /// Where the data path is.
    pub data_path: IpAddr,
    /// Its number in the Raft group, when it is a manager.
    pub raft_id: Option<u64>,
    /// Managers that it knew when it joined.
    pub managers: Vec<SocketAddr>,
    /// Interface that had the advertised address last.
    #[serde(default)]
    pub advertise_link: Option<String>,
    /// Interface that had the data path's address last.
    #[serde(default)]
    pub data_path_link: Option<String>,
    /// Addresses that the daemon is started with, and that the node had to give up.
    #[serde(default)]
    pub left: Vec<IpAddr>,
}

impl Saved {
    /// A new record.
    pub fn new(
        listen: SocketAddr,
        advertise: SocketAddr,
        data_path: IpAddr,
        raft_id: Option<u64>,
        managers: Vec<SocketAddr>,
    ) -> Self {
        let (advertise_link, data_path_link, left) = (None, None, Vec::new());
        Self { format: FORMAT, listen, advertise, data_path, raft_id, managers, advertise_link, data_path_link, left }
    }

    /// The file below the daemon's root.
    fn path(root: &Path) -> PathBuf {
        root.join("state").join("swarm.json")
    }

    /// Reads it; `None` when this node is in no cluster.
    pub fn load(root: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(root);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let damaged = || {
            format!("{} is damaged: restore it from a backup, or remove it and join the cluster again", path.display())
        };
        let saved: Self = serde_json::from_slice(&bytes).with_context(damaged)?;
        anyhow::ensure!(
            saved.format == FORMAT,
            "{} has format {}, this release reads {FORMAT}",
            path.display(),
            saved.format
        );
        Ok(Some(saved))
    }

    /// The same with the address that the daemon is told to advertise, where that is another: the host was given a new one.
    /// Ports stay. One that the node gave up is no new one, unless the host, whose addresses are `locals`, has it again.
    #[must_use]
    pub fn moved(mut self, config: &Config, locals: &[Local]) -> Self {
        let is_current = |ip: &IpAddr| !self.left.contains(ip) || locals.iter().any(|(_, have)| have == ip);
        let told = config.advertise.filter(|ip| *ip != self.advertise.ip() && is_current(ip));
        let Some(new) = told else { return self };
        tracing::info!(old = %self.advertise.ip(), %new, "this node has another address now");
        let listen = Some(config.listen.ip()).filter(|_| !self.listen.ip().is_unspecified());
        let data_path = match config.data_path {
            Some(data_path) => data_path,
            None if self.data_path == self.advertise.ip() => new,
            None => self.data_path,
        };
        self.speak_from(new, data_path);
        if let Some(listen) = listen {
            self.listen.set_ip(listen);
        }
        self
    }

    /// Puts other addresses in the place of the node's. Ports stay.
    pub fn speak_from(&mut self, advertise: IpAddr, data_path: IpAddr) {
        let old = self.advertise;
        if self.listen.ip() == old.ip() {
            self.listen.set_ip(advertise);
        }
        self.advertise.set_ip(advertise);
        self.data_path = data_path;
        for manager in self.managers.iter_mut().filter(|address| **address == old) {
            *manager = self.advertise;
        }
    }

    /// Writes it, whole or not at all, and to the disk.
    pub fn save(&self, root: &Path) -> anyhow::Result<()> {
        let path = Self::path(root);
        let partial = path.with_extension("json.partial");
        let mut file = std::fs::File::create(&partial).with_context(|| format!("writing {}", partial.display()))?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        std::fs::File::open(path.parent().context("the file has a directory")?)?.sync_all()?;
        Ok(())
    }

    /// Forgets it.
    pub fn remove(root: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(Self::path(root)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_read_back_and_damage_is_told() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("state")).unwrap();
        let address: SocketAddr = "10.0.0.1:2377".parse().unwrap();
        let saved = Saved::new(address, address, address.ip(), Some(1), vec![address]);
        assert_eq!(Saved::load(root.path()).unwrap(), None);
        saved.save(root.path()).unwrap();
        assert_eq!(Saved::load(root.path()).unwrap(), Some(saved));
        std::fs::write(Saved::path(root.path()), b"{").unwrap();
        assert!(Saved::load(root.path()).unwrap_err().to_string().contains("damaged"));
        Saved::remove(root.path()).unwrap();
        Saved::remove(root.path()).unwrap();
    }
}
