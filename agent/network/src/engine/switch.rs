//! The switch of one overlay network on this node: a namespace with a bridge, a VXLAN link to the other nodes and one
//! port per attachment.
//!
//! The VXLAN link is made in the node's namespace, where its UDP socket and its route lookups stay, and then moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use netlink_packet_route::link::InfoBridgePort;
use skep_proto::model::view::{NetworkView, OverlayNetwork};
use skep_proto::model::{NetworkId, NodeId};

use super::sysctl;
use crate::config::{Config, VXLAN_OVERHEAD};
use crate::error::{NetworkError, Step};
use crate::mac::Mac;
use crate::netlink::{Neighbour, Requests, Rtnl, Veth, VethPeer, Vxlan};
use crate::nft::Tables;
use crate::plan::overlay::{BRIDGE, VXLAN, remote_entries, switch_table};
use crate::spec::SandboxId;
use crate::sys::netns::{self, Netns};

/// A switch.
#[derive(Debug)]
pub struct Switch {
    network: NetworkId,
    path: PathBuf,
    netns: Netns,
    bridge: u32,
    vxlan: u32,
    /// MTU of its links in bytes.
    mtu: u32,
    tables: Tables,
    entries: BTreeSet<Neighbour>,
    ports: BTreeMap<SandboxId, (u32, Ipv4Addr)>,
}

/// An attachment to make.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The sandbox.
    pub id: &'a SandboxId,
    /// Name of the port here.
    pub port: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Name of the link in the sandbox.
    pub link: &'a str,
    /// The sandbox.
    pub netns: &'a Netns,
}

fn path(config: &Config, network: NetworkId) -> PathBuf {
    config.switch_dir().join(network.to_string())
}

impl Switch {
    /// Makes the switch of a network. `node` is the node's namespace, `local` its address on the underlay, `underlay_mtu`
    /// in bytes.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]; then nothing is left of it.
    pub fn create(
        config: &Config,
        node: &Netns,
        network: &OverlayNetwork,
        local: Ipv4Addr,
        underlay_mtu: u32,
    ) -> Result<Self, NetworkError> {
        let path = path(config, network.id);
        let netns = Netns::create(&path).step("make a switch namespace")?;
        let made = Self::build(config, node, network, local, underlay_mtu, (netns, path.clone()));
        if made.is_err() {
            let _ = netns::remove(&path);
        }
        made
    }

    fn build(
        config: &Config,
        node: &Netns,
        network: &OverlayNetwork,
        local: Ipv4Addr,
        underlay_mtu: u32,
        (netns, path): (Netns, PathBuf),
    ) -> Result<Self, NetworkError> {
        sysctl::write(&netns, &sysctl::SWITCH).step("set up a switch namespace")?;
        let most = underlay_mtu.saturating_sub(VXLAN_OVERHEAD);
        let mtu = network.mtu.map_or(most, |asked| asked.min(most));
        let mut tables = Tables::default();
        tables.set(&netns, vec![switch_table(&[])]).step("load the rules of a switch")?;

        let name = config.names().passing(network.vni);
        let mut outside = Rtnl::open(node).step("open rtnetlink")?;
        let vxlan =
            Vxlan { name: &name, vni: network.vni, local, port: config.vxlan_port, mtu, proxy: true, mac: None };
        outside.send(Requests::new().delete_link(&name).add_vxlan(&vxlan)).step("make a VXLAN link")?;
        let link = outside.link(&name).step("read a link")?.ok_or_else(gone)?;
        let moved = outside.send(Requests::new().move_link(link.index, netns.raw_fd(), VXLAN));
        if moved.is_err() {
            let _ = outside.send(Requests::new().delete_link(&name));
        }
        moved.step("move a VXLAN link to its switch")?;

        let mut inside = Rtnl::open(&netns).step("open rtnetlink")?;
        inside.send(Requests::new().add_bridge(BRIDGE, None, mtu, 0)).step("make a bridge")?;
        let bridge = inside.link(BRIDGE).step("read a link")?.ok_or_else(gone)?.index;
        let vxlan = inside.link(VXLAN).step("read a link")?.ok_or_else(gone)?.index;
        let mut requests = Requests::new();
        requests.set_mtu(vxlan, mtu).set_bridge(vxlan, bridge).set_port(vxlan, closed_port()).set_up(vxlan);
        inside.send(&requests).step("attach a VXLAN link to its bridge")?;
        let (entries, ports) = (BTreeSet::new(), BTreeMap::new());
        Ok(Self { network: network.id, path, netns, bridge, vxlan, mtu, tables, entries, ports })
    }

    /// Finds the switch that an earlier process made. `ports` are the attachments that should be there, by the name of
    /// their port.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when it is not there or not whole.
    pub fn recover(
        config: &Config,
        network: NetworkId,
        ports: &BTreeMap<String, (SandboxId, Ipv4Addr)>,
    ) -> Result<Self, NetworkError> {
        let path = path(config, network);
        let netns = Netns::open(&path).step("open a switch namespace")?;
        let mut inside = Rtnl::open(&netns).step("open rtnetlink")?;
        let links = inside.links().step("read links")?;
        let find = |name: &str| links.iter().find(|link| link.name == name).ok_or_else(gone);
        let (bridge, vxlan) = (find(BRIDGE)?, find(VXLAN)?);
        let entries = inside.neighbours(vxlan.index).step("read neighbours")?.into_iter().collect();
        let mut leftovers = Requests::new();
        for link in links.iter().filter(|link| link.kind == "veth" && !ports.contains_key(&link.name)) {
            leftovers.delete_link(&link.name);
        }
        inside.send(&leftovers).step("delete leftover ports of a switch")?;
        let found = links.iter().filter_map(|link| {
            let (id, address) = ports.get(&link.name)?;
            Some((id.clone(), (link.index, *address)))
        });
        Ok(Self {
            network,
            ports: found.collect(),
            path,
            bridge: bridge.index,
            vxlan: vxlan.index,
            mtu: bridge.mtu,
            tables: Tables::default(),
            entries,
            netns,
        })
    }

    /// Removes the switch with all its links.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn remove(self) -> Result<(), NetworkError> {
        // The kernel ends a namespace some time later; until then the network identifier would be taken.
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(Requests::new().delete_link(VXLAN).delete_link(BRIDGE)).step("delete the links of a switch")?;
        netns::remove(&self.path).step("remove a switch namespace")
    }

    /// Has the VXLAN link speak from another address of the node.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn speak_from(&self, local: Ipv4Addr) -> Result<(), NetworkError> {
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(Requests::new().set_vxlan_local(self.vxlan, local)).step("change the address of a VXLAN link")
    }

    /// Whether nothing is attached.
    pub fn is_unused(&self) -> bool {
        self.ports.is_empty()
    }

    /// Makes the link between the switch and a sandbox; its end in the sandbox is left down.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn attach(
        &mut self,
        attachment: &Attachment<'_>,
        view: &NetworkView,
        node: Option<NodeId>,
    ) -> Result<(), NetworkError> {
        let mac = Mac::of(attachment.address);
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let veth = Veth {
            name: &attachment.port,
            mac: None,
            mtu: self.mtu,
            bridge: Some(self.bridge),
            group: 0,
            peer: VethPeer { name: attachment.link, mac, mtu: self.mtu, netns: attachment.netns.raw_fd() },
        };
        inside.send(Requests::new().delete_link(&attachment.port).add_veth(&veth)).step("make a link to a switch")?;
        let port = inside.link(&attachment.port).step("read a link")?.ok_or_else(gone)?.index;
        self.ports.insert(attachment.id.clone(), (port, attachment.address));
        // What was elsewhere until now may no longer be found there.
        self.sync(view, node)?;
        let mut requests = Requests::new();
        requests.set_port(port, closed_port()).replace_neighbour(port, Neighbour::Port(mac));
        inside.send(&requests).step("set up a port of a switch")
    }

    /// Removes a sandbox's port.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn detach(&mut self, id: &SandboxId, port: &str) -> Result<(), NetworkError> {
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(Requests::new().delete_link(port)).step("delete a port of a switch")?;
        self.ports.remove(id);
        self.load_rules()
    }

    /// Brings forwarding entries and rules to what the managers want.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn sync(&mut self, view: &NetworkView, node: Option<NodeId>) -> Result<(), NetworkError> {
        let local = self.ports.values().map(|(_, address)| *address).collect();
        let wanted = remote_entries(view, self.network, node, &local);
        let mut requests = Requests::new();
        for entry in self.entries.difference(&wanted) {
            requests.delete_neighbour(self.vxlan, *entry);
        }
        for entry in wanted.difference(&self.entries) {
            requests.replace_neighbour(self.vxlan, *entry);
        }
        if !requests.is_empty() {
            let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
            inside.send(&requests).step("change the forwarding entries of a switch")?;
            self.entries = wanted;
        }
        self.load_rules()
    }

    fn load_rules(&mut self) -> Result<(), NetworkError> {
        let ports: Vec<_> = self.ports.values().copied().collect();
        self.tables.set(&self.netns, vec![switch_table(&ports)]).step("load the rules of a switch")
    }
}

/// A port that learns nothing: who is behind it is known. Broadcasts pass, for ARP between sandboxes of this node.
fn closed_port() -> Vec<InfoBridgePort> {
    vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(true),
    ]
}

fn gone() -> NetworkError {
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the link is gone");
    NetworkError::Kernel { step: "find a link", source }
}
