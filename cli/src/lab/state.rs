//! What a lab remembers of itself.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::UpOptions;

/// A lab, as `lab.json` holds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabState {
    /// Six hexadecimal digits derived from the directory: part of every name that the kernel knows.
    pub id: String,
    /// The subnet, a /24.
    pub subnet: Ipv4Addr,
    /// The value of `net.ipv4.ip_forward` before the lab changed it.
    pub forwarding_before: Option<bool>,
    /// Registries without TLS.
    pub insecure_registries: Vec<String>,
    /// Further arguments of every daemon.
    #[serde(default)]
    pub daemon_args: Vec<String>,
    /// The nodes, managers first.
    pub nodes: Vec<NodeState>,
}

/// A node of a lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeState {
    /// `m1`, `w1`, …
    pub name: String,
    /// It is made a manager.
    pub manager: bool,
    /// Its address on the lab's bridge.
    pub address: Ipv4Addr,
    /// Its IPv6 address there; a host without IPv6 gives it none.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// The socket of its daemon.
    pub socket: PathBuf,
    /// The daemon's process, when one was started.
    pub process: Option<ProcessId>,
}

/// A process: a pid alone could be another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// Its start time in clock ticks since boot (proc(5), stat field 22).
    pub started: u64,
}

impl NodeState {
    /// `manager` or `worker`.
    pub fn role(&self) -> &'static str {
        if self.manager { "manager" } else { "worker" }
    }

    /// The daemon's pid; 0 when none was started.
    pub fn pid(&self) -> i32 {
        self.process.map_or(0, |p| p.pid)
    }

    /// The value of `DOCKER_HOST` for this node.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The name of its port on the bridge.
    pub fn bridge_port(&self) -> String {
        format!("p-{}", self.name)
    }
}

impl LabState {
    /// The file that holds it.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("lab.json")
    }

    /// A new lab: names, addresses, nothing made yet.
    pub fn plan(dir: &Path, options: &UpOptions) -> anyhow::Result<Self> {
        let id = lab_id(dir);
        let taken = routed_subnets().context("reading the host's routes")?;
        let start = u8::from_str_radix(&id[..2], 16).unwrap_or(0);
        let subnet = (0..=255u8)
            .map(|step| Ipv4Addr::new(172, 31, start.wrapping_add(step), 0))
            .find(|subnet| !taken.contains(subnet))
            .context("every subnet of 172.31.0.0/16 is in use on this host")?;
        let [a, b, c, _] = subnet.octets();
        let prefix = super::network::has_ipv6().then(|| prefix6(&id));
        let node = |name: String, manager: bool, last: u16| {
            let last = u8::try_from(last).expect("the number of nodes was checked");
            let socket = dir.join(&name).join("docker.sock");
            let address6 = prefix.map(|prefix| address6(prefix, last));
            NodeState { name, manager, address: Ipv4Addr::new(a, b, c, last), address6, socket, process: None }
        };
        let managers = (1..=options.managers).map(|n| node(format!("m{n}"), true, 10 + n));
        let workers = (1..=options.workers).map(|n| node(format!("w{n}"), false, 110 + n));
        let nodes: Vec<NodeState> = managers.chain(workers).collect();
        if let Some(long) = nodes.iter().find(|n| n.socket.as_os_str().len() > 100) {
            bail!("{} is too long for a unix socket (107 bytes): choose a shorter --dir", long.socket.display());
        }
        Ok(Self {
            id,
            subnet,
            forwarding_before: None,
            insecure_registries: options.insecure_registries.clone(),
            daemon_args: options.daemon_args.clone(),
            nodes,
        })
    }

    /// Reads it.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = Self::path(dir);
        let bytes = std::fs::read(&path).with_context(|| format!("{} holds no lab", dir.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let path = Self::path(dir);
        let temporary = path.with_extension("json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", temporary.display()))?;
        std::fs::rename(&temporary, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// One node.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeState> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| self.no_such_node(name))
    }

    /// One node, to change it.
    pub fn node_mut(&mut self, name: &str) -> anyhow::Result<&mut NodeState> {
        let message = self.no_such_node(name);
        self.nodes.iter_mut().find(|n| n.name == name).context(message)
    }

    fn no_such_node(&self, name: &str) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
        format!("no node {name} in this lab: it has {}", names.join(", "))
    }

    /// The cgroup of the lab, below the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        format!("skep-lab-{}", self.id)
    }
}

/// Derived from the directory, so that what an interrupted lab left behind is found again.
fn lab_id(dir: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    dir.hash(&mut hasher);
    format!("{:06x}", hasher.finish() & 0xff_ffff)
}

/// The lab's /64 of unique local addresses (RFC 4193): of a fixed prefix, `lab` in ASCII, and its id.
pub fn prefix6(id: &str) -> Ipv6Addr {
    let number = u32::from_str_radix(id, 16).unwrap_or(0);
    let [_, a, b, c] = number.to_be_bytes();
    Ipv6Addr::from([0xfd, 0x6c, 0x61, 0x62, a, b, c, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// An address of a /64 that reads as the last number of the IPv4 one: `::111` beside `.111`.
pub fn address6(prefix: Ipv6Addr, last: u8) -> Ipv6Addr {
    let digits = u128::from_str_radix(&last.to_string(), 16).expect("decimal digits are hexadecimal ones");
    Ipv6Addr::from_bits(prefix.to_bits() | digits)
}

/// The /24s of 172.31.0.0/16 that the host has a route into (proc(5), `/proc/net/route`: destinations in network order
/// as a little-endian hexadecimal number).
fn routed_subnets() -> std::io::Result<Vec<Ipv4Addr>> {
    let table = std::fs::read_to_string("/proc/net/route")?;
    let destinations = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    Ok(destinations
        .filter_map(|hex| u32::from_str_radix(hex, 16).ok())
        .map(|n| Ipv4Addr::from(n.to_le_bytes()))
        .map(|a| Ipv4Addr::new(a.octets()[0], a.octets()[1], a.octets()[2], 0))
        .collect())
}
