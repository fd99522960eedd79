//! Sandboxes: what the agent asks for and what it gets.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use skep_proto::model::container::DnsConfig;
use skep_proto::model::service::{PortConfig, Protocol};
use skep_proto::model::{NetworkId, TaskId};

use crate::config::twins;
use crate::mac::Mac;
use crate::netlink::Neighbour;
use crate::plan::senders::Sender;

/// Name of the default bridge, as Docker calls it.
pub const DEFAULT_BRIDGE: &str = "bridge";

/// Names a sandbox on its node: letters, digits, `-` and `_`, at most 128 of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SandboxId(String);

impl SandboxId {
    /// The id, or `None` when `text` cannot be a file name of the allowed form.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (!text.is_empty() && text.len() <= 128 && text.bytes().all(allowed)).then_some(Self(text))
    }

    /// The sandbox of a task.
    pub fn of_task(task: TaskId) -> Self {
        Self(task.to_string())
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a sandbox should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Networks of the cluster, in the order of their links: `eth0`, `eth1`, …
    pub overlays: Vec<OverlayAttachment>,
    /// Local bridges; their links follow. The first that has a way out is the default route when there is no task link.
    pub bridges: Vec<BridgeAttachment>,
    /// Wants a task link: the way out of tasks on overlays, and where the routing mesh reaches them. Its link is the
    /// last one, and it is the default route.
    pub mesh: bool,
    /// Ports of this node that lead into the sandbox.
    pub host_ports: Vec<HostPort>,
    /// Resolver settings.
    pub dns: Resolver,
    /// The task that owns it.
    pub task: Option<TaskId>,
    /// Last ports of ranges, by position among the ports of the node: one is chosen from there, and `published` is the first.
    /// Kept on disk behind everything else.
    #[serde(skip)]
    pub ranges: BTreeMap<usize, u16>,
}

impl SandboxSpec {
    /// A sandbox with nothing but a loopback link.
    pub fn new(id: SandboxId) -> Self {
        Self {
            id,
            overlays: Vec::new(),
            bridges: Vec::new(),
            mesh: false,
            host_ports: Vec::new(),
            dns: Resolver::default(),
            task: None,
            ranges: BTreeMap::new(),
        }
    }
}

/// A sandbox on a network of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayAttachment {
    /// The network.
    pub network: NetworkId,
    /// Its address there, with the network's prefix length.
    pub address: IpNet,
    /// Names that this node's sandboxes on that network resolve to it. The managers tell the names of tasks to all
    /// nodes; these here are known even before they do.
    pub names: Vec<String>,
    /// Its IPv6 address there, with the length of the network's IPv6 subnet, on a network that has one. Kept on disk behind
    /// everything else ([`Ipv6Part`]), so that older daemons read the record.
    #[serde(skip)]
    pub address6: Option<Ipv6Net>,
}

impl OverlayAttachment {
    /// An attachment with the first address of each family, or `None` without one of IPv4: every network has IPv4.
    pub fn new(network: NetworkId, addresses: &[IpNet], names: Vec<String>) -> Option<Self> {
        let address = *addresses.iter().find(|address| matches!(address, IpNet::V4(_)))?;
        let address6 = addresses.iter().find_map(|address| match address {
            IpNet::V6(net) => Some(*net),
            IpNet::V4(_) => None,
        });
        Some(Self { network, address, names, address6 })
    }
}

/// A sandbox on a local bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeAttachment {
    /// The bridge's name; [`DEFAULT_BRIDGE`] is always there.
    pub bridge: String,
    /// An address asked for; `None` for the next free one.
    pub address: Option<Ipv4Addr>,
    /// Names that other sandboxes on the bridge resolve to it (not on the default bridge, as with Docker).
    pub names: Vec<String>,
    /// An IPv6 address asked for; `None` for the next free one of a bridge that has an IPv6 subnet.
    #[serde(skip)]
    pub address6: Option<Ipv6Addr>,
}

impl BridgeAttachment {
    /// The default bridge, with an address of its choice.
    pub fn default_bridge() -> Self {
        Self { bridge: DEFAULT_BRIDGE.into(), address: None, names: Vec::new(), address6: None }
    }
}

/// A port of the node that leads into a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// Address of the node that it is open on; `None` for all.
    pub bind: Option<IpAddr>,
    /// Port of the node; `None` in a request for a free one.
    pub published: Option<u16>,
    /// Port of the sandbox.
    pub target: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl HostPort {
    /// Whether it is open on addresses of IPv6.
    pub fn is_on_ipv6(&self) -> bool {
        self.bind.is_none_or(|address| address.is_ipv6())
    }

    /// Whether both cannot be open at once. An unspecified address stands for all of its family, none for all of both.
    pub fn clashes(&self, other: &Self) -> bool {
        let same = (self.protocol, self.published) == (other.protocol, other.published);
        let (Some(own), Some(others)) = (self.bind, other.bind) else { return same };
        let alike = own.is_ipv4() == others.is_ipv4();
        same && alike && (own.is_unspecified() || others.is_unspecified() || own == others)
    }
}

impl From<&PortConfig> for HostPort {
    fn from(port: &PortConfig) -> Self {
        Self { bind: None, published: port.published, target: port.target, protocol: port.protocol }
    }
}

/// Resolver settings of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolver {
    /// Servers asked for names that are not the cluster's; empty for the node's.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

impl From<&DnsConfig> for Resolver {
    fn from(dns: &DnsConfig) -> Self {
        Self { servers: dns.nameservers.clone(), search: dns.search.clone(), options: dns.options.clone() }
    }
}

/// A sandbox as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The file that keeps its namespace.
    pub netns: PathBuf,
    /// Its links, in order.
    pub links: Vec<SandboxLink>,
    /// Address on the task link, which is reported to the managers for the routing mesh.
    pub mesh: Option<IpAddr>,
    /// Its open ports, with their numbers.
    pub host_ports: Vec<HostPort>,
    /// The task that owns it.
    pub task: Option<TaskId>,
    /// Content for `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// Where a link of a sandbox leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// To a network of the cluster.
    Overlay(NetworkId),
    /// To the local bridge of that name.
    Bridge(String),
    /// To the node itself.
    Task,
}

/// A link of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLink {
    /// Its name in the sandbox.
    pub name: String,
    /// Where it leads.
    pub kind: LinkKind,
    /// Its address.
    pub address: Ipv4Net,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The gateway, if it has one.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6 address, if it has one.
    #[serde(skip)]
    pub address6: Option<Ipv6Net>,
    /// The IPv6 gateway, if it has one.
    #[serde(skip)]
    pub gateway6: Option<Ipv6Addr>,
}

/// A local bridge to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgeSpec {
    /// Its name.
    pub name: String,
    /// Its subnet; `None` for one that is chosen.
    pub subnet: Option<Ipv4Net>,
    /// Where in the subnet addresses are.
    pub addressing: Addressing,
    /// No way out.
    pub internal: bool,
    /// IPv6 beside IPv4.
    pub ipv6: Option<BridgeSpec6>,
}

/// The IPv6 half of a local bridge to make. All `None` stands for a subnet that is chosen: a /64 of unique local addresses
/// (RFC 4193).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgeSpec6 {
    /// Its subnet; `None` for one that is chosen.
    pub subnet: Option<Ipv6Net>,
    /// The node's address; `None` for the first one.
    pub gateway: Option<Ipv6Addr>,
    /// Addresses that nobody named are chosen from here; `None` for the whole subnet.
    pub range: Option<Ipv6Net>,
}

/// Which addresses of a bridge's subnet are given, where somebody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Addressing {
    /// The node's address; `None` for the first one.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses that nobody named are chosen from here; `None` for the whole subnet.
    pub range: Option<Ipv4Net>,
}

impl SandboxLink {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(IpAddr::V4(self.address.addr())).chain(self.address6.map(|net| IpAddr::V6(net.addr())))
    }

    /// Its gateways.
    pub(crate) fn gateways(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.gateway.map(IpAddr::V4).into_iter().chain(self.gateway6.map(IpAddr::V6))
    }

    /// Its IPv6 address with its Ethernet address.
    pub(crate) fn neighbour6(&self) -> Option<Neighbour> {
        self.address6.map(|net| Neighbour::Address(IpAddr::V6(net.addr()), self.mac))
    }

    /// Its IPv6 address is the twin of its IPv4 one: published ports lead there, and nobody is told of it.
    pub fn has_twin(&self) -> bool {
        self.address6.is_some_and(|net| twins().contains(&net.addr()))
    }

    /// What may send by it.
    pub(crate) fn sender(&self) -> Sender {
        Sender { v4: self.address.addr(), v6: self.address6.map(|net| net.addr()) }
    }

    /// Number of the link in its sandbox, which its port outside is named by as well.
    pub fn number(&self) -> usize {
        self.name.strip_prefix("eth").and_then(|digits| digits.parse().ok()).unwrap_or(usize::MAX)
    }
}

/// Content of `/etc/resolv.conf` for a sandbox. What was not asked for is as in `node`, the node's own file, as with
/// Docker; the search domain `.` stands for none.
pub fn resolv_conf(dns: &Resolver, node: &str) -> String {
    let of_node = |word: &str| -> Vec<&str> {
        let mut lines = node.lines().filter_map(|line| line.trim().strip_prefix(word)?.strip_prefix([' ', '\t']));
        // The last one counts (resolv.conf(5)).
        lines.next_back().into_iter().flat_map(str::split_whitespace).collect()
    };
    let asked = |words: &'_ [String]| words.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let search = if dns.search.is_empty() { of_node("search").join(" ") } else { asked(&dns.search) };
    let mut options = if dns.options.is_empty() { of_node("options").join(" ") } else { asked(&dns.options) };
    // Without dots a name is tried as it is first, as Docker's embedded server wants it.
    if !options.split(' ').any(|option| option.starts_with("ndots:")) {
        options = format!("{options} ndots:0").trim_start().to_owned();
    }
    let mut text = String::from("nameserver 127.0.0.11\n");
    if !search.is_empty() && search != "." {
        text.push_str(&format!("search {search}\n"));
    }
    text.push_str(&format!("options {options}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_the_nodes() {
        let node = "nameserver 9.9.9.9\nsearch old\nsearch a.example b.example\noptions timeout:1 rotate\n";
        let ask = |search: &[&str], options: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
            let dns = Resolver { servers: Vec::new(), search: owned(search), options: owned(options) };
            resolv_conf(&dns, node)
        };
        let first = "nameserver 127.0.0.11\n";
        assert_eq!(ask(&[], &[]), format!("{first}search a.example b.example\noptions timeout:1 rotate ndots:0\n"));
        assert_eq!(ask(&["own"], &["ndots:2"]), format!("{first}search own\noptions ndots:2\n"));
        assert_eq!(ask(&["."], &["debug"]), format!("{first}options debug ndots:0\n"));
        assert_eq!(resolv_conf(&Resolver::default(), ""), format!("{first}options ndots:0\n"));
    }
}
