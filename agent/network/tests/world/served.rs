//! A node of the tests whose names a process serves, as `skep net` does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use skep_network::dns::patch::ZonesPatch;
use skep_network::dns::zone::Zones;
use skep_network::netd::{Client, ClientConfig};
use skep_network::tunnel::{Tunnel, TunnelStatus, Tunnels};
use skep_network::{DnsPorts, FakeNames, Names, NodeNetwork, Place, SandboxDns, SandboxId};

use super::{World, within};

/// The process, but for its WireGuard link: that belongs into the node's namespace. It ends with this.
pub struct Served {
    client: Option<Client>,
    tunnels: Arc<FakeNames>,
    dir: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Who keeps it alive goes first.
        drop(self.client.take());
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Served {
    pub fn client(&self) -> &Client {
        self.client.as_ref().unwrap()
    }

    /// Processes that serve this folder.
    fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let serves = |pid: &i32| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.split(|byte| *byte == 0).any(|word| word == self.dir.as_os_str().as_encoded_bytes())
        };
        pids.filter(serves).filter_map(Pid::from_raw).collect()
    }

    /// Has the names of a node's sandboxes served from now on by the program `exe`, whose folder is `dir`.
    pub async fn start(world: &mut World, node: usize, dir: &Path, exe: &Path) -> Arc<Self> {
        let client = Client::start(ClientConfig::new(dir, exe)).await.unwrap();
        let at = &mut world.nodes[node];
        let served = Arc::new(Self { client: Some(client), tunnels: at.names.clone(), dir: dir.to_owned() });
        let place = Place { node: Some(at.id), data_path: vec![at.address.into()] };
        let (config, names) = (at.config.clone(), served.clone());
        at.network = within(&at.netns, move || NodeNetwork::start(config, place, names)).join().unwrap().unwrap();
        served
    }
}

#[async_trait::async_trait]
impl Names for Served {
    async fn put_sandbox(&self, sandbox: SandboxDns) -> io::Result<DnsPorts> {
        Names::put_sandbox(self.client(), sandbox).await
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> io::Result<()> {
        Names::remove_sandbox(self.client(), id).await
    }

    async fn put_zones(&self, zones: Zones) -> io::Result<()> {
        Names::put_zones(self.client(), zones).await
    }

    async fn patch_zones(&self, patch: ZonesPatch) -> io::Result<bool> {
        Names::patch_zones(self.client(), patch).await
    }

    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        self.client().sandboxes().await
    }
}

#[async_trait::async_trait]
impl Tunnels for Served {
    async fn put_tunnel(&self, tunnel: Tunnel) -> io::Result<TunnelStatus> {
        self.tunnels.put_tunnel(tunnel).await
    }

    async fn remove_tunnel(&self) -> io::Result<()> {
        self.tunnels.remove_tunnel().await
    }

    async fn tunnel(&self) -> io::Result<Option<TunnelStatus>> {
        self.tunnels.tunnel().await
    }
}
