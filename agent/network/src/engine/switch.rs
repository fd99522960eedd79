//! The switch of one overlay network on this node: a namespace with a bridge, a VXLAN link to the other nodes and one
//! port per attachment.
//!
//! The VXLAN link is made in the node's namespace, where its UDP socket and its route lookups stay, and then moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_route::link::InfoBridgePort;
use skep_proto::model::view::{NetworkView, OverlayNetwork, Peer};
use skep_proto::model::{NetworkId, NodeId};

use super::sysctl;
use crate::config::{Config, IPV6_MIN_MTU};
use crate::error::{NetworkError, Step};
use crate::mac::Mac;
use crate::netlink::{Neighbour, Requests, Rtnl, Veth, VethPeer, Vxlan};
use crate::nft::Tables;
use crate::plan::change::Change;
use crate::plan::encryption::{Path, remote_end};
use crate::plan::overlay::{BRIDGE, Place, VXLAN, changed_entries, remote_entries, switch_table};
use crate::plan::senders::Sender;
use crate::spec::SandboxId;
use crate::sys::netns::{self, Netns};
use crate::sys::notices::Notices;

/// A switch.
#[derive(Debug)]
pub struct Switch {
    network: NetworkId,
    file: PathBuf,
    netns: Netns,
    bridge: u32,
    vxlan: u32,
    /// How it reaches other nodes.
    path: Path,
    infra: IpNet,
    tables: Tables,
    entries: BTreeSet<Neighbour>,
    ports: BTreeMap<SandboxId, (u32, Sender)>,
    /// Whether the network has IPv6, and this node.
    ipv6: bool,
    notices: Notices,
}

/// An attachment to make.
#[derive(Debug)]
pub struct Attachment<'a> {
    /// The sandbox.
    pub id: &'a SandboxId,
    /// Name of the port here.
    pub port: String,
    /// Its addresses.
    pub sender: Sender,
    /// Name of the link in the sandbox.
    pub link: &'a str,
    /// The sandbox.
    pub netns: &'a Netns,
}

fn file(config: &Config, network: NetworkId) -> PathBuf {
    config.switch_dir().join(network.to_string())
}

impl Switch {
    /// Makes the switch of a network. `node` is the node's namespace.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]; then nothing is left of it.
    pub fn create(config: &Config, node: &Netns, network: &OverlayNetwork, path: Path) -> Result<Self, NetworkError> {
        let file = file(config, network.id);
        let netns = Netns::create(&file).step("make a switch namespace")?;
        let made = Self::build(config, node, network, path, netns, file.clone());
        if made.is_err() {
            let _ = netns::remove(&file);
        }
        made
    }

    fn build(
        config: &Config,
        node: &Netns,
        network: &OverlayNetwork,
        path: Path,
        netns: Netns,
        file: PathBuf,
    ) -> Result<Self, NetworkError> {
        sysctl::write(&netns, &sysctl::SWITCH).step("set up a switch namespace")?;
        let mut tables = Tables::default();
        tables.set(&netns, vec![switch_table(&[])]).step("load the rules of a switch")?;
        let mut inside = Rtnl::open(&netns).step("open rtnetlink")?;
        inside.send(Requests::new().add_bridge(BRIDGE, None, path.mtu, 0)).step("make a bridge")?;
        let bridge = inside.link(BRIDGE).step("read a link")?.ok_or_else(gone)?.index;
        let (entries, ports, vxlan) = (BTreeSet::new(), BTreeMap::new(), 0);
        let infra = config.infra;
        let has_ipv6 = network.subnets.iter().any(|subnet| matches!(subnet.subnet, IpNet::V6(_)));
        let ipv6 = has_ipv6 && sysctl::has_ipv6(node);
        let notices = Notices::default();
        let mut made = Self {
            network: network.id,
            file,
            netns,
            bridge,
            vxlan,
            path,
            infra,
            tables,
            entries,
            ports,
            ipv6,
            notices,
        };
        made.make_vxlan(node, &config.names().passing(network.vni), network.vni)?;
        Ok(made)
    }

    /// Makes the VXLAN link, without entries; `name` is that on its way here.
    fn make_vxlan(&mut self, node: &Netns, name: &str, vni: u32) -> Result<(), NetworkError> {
        let Path { local, port, mtu } = self.path;
        let mut outside = Rtnl::open(node).step("open rtnetlink")?;
        let vxlan = Vxlan { name, vni, local, port, mtu, proxy: true, mac: None };
        outside.send(Requests::new().delete_link(name).add_vxlan(&vxlan)).step("make a VXLAN link")?;
        let link = outside.link(name).step("read a link")?.ok_or_else(gone)?;
        let moved = outside.send(Requests::new().move_link(link.index, self.netns.raw_fd(), VXLAN));
        if moved.is_err() {
            let _ = outside.send(Requests::new().delete_link(name));
        }
        moved.step("move a VXLAN link to its switch")?;
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        self.vxlan = inside.link(VXLAN).step("read a link")?.ok_or_else(gone)?.index;
        self.entries.clear();
        let mut requests = Requests::new();
        if self.ipv6 {
            // It answers solicitations only where it has IPv6 itself.
            sysctl::write(&self.netns, &sysctl::with_ipv6(VXLAN)).step("set up IPv6 of a switch")?;
        }
        requests.set_mtu(self.vxlan, mtu).set_bridge(self.vxlan, self.bridge);
        requests.set_port(self.vxlan, self.closed_port()).set_up(self.vxlan);
        inside.send(&requests).step("attach a VXLAN link to its bridge")
    }

    /// How it reaches other nodes.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Brings it to another path: the node's address, the network's port or the size of packets changed. Entries follow
    /// with [`Switch::sync`]. `passing` is the VXLAN link's name on its way here.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`]; asking again goes on.
    pub fn set_path(&mut self, node: &Netns, passing: &str, vni: u32, path: Path) -> Result<(), NetworkError> {
        if self.path == path {
            return Ok(());
        }
        self.speak_from(path.local)?;
        let before = std::mem::replace(&mut self.path, path);
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let made = if (before.local, before.port) == (path.local, path.port) {
            Ok(())
        } else {
            // Its network identifier is taken in the node's namespace as long as it is there.
            let deleted = inside.send(Requests::new().delete_link(VXLAN)).step("delete a VXLAN link");
            deleted.and_then(|()| self.make_vxlan(node, passing, vni))
        };
        let mut requests = Requests::new();
        for link in self.ports.values().map(|(link, _)| *link).chain([self.bridge, self.vxlan]) {
            requests.set_mtu(link, path.mtu);
        }
        let made = made.and_then(|()| inside.send(&requests).step("set the size of packets of a switch"));
        if made.is_err() {
            self.path = before;
        }
        made
    }

    /// Finds the switch that an earlier process made. `ports` are the attachments that should be there, by the name of
    /// their port.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when it is not there or not whole.
    pub fn recover(
        config: &Config,
        network: NetworkId,
        ports: &BTreeMap<String, (SandboxId, Sender)>,
    ) -> Result<Self, NetworkError> {
        let file = file(config, network);
        let netns = Netns::open(&file).step("open a switch namespace")?;
        let mut inside = Rtnl::open(&netns).step("open rtnetlink")?;
        let links = inside.links().step("read links")?;
        let find = |name: &str| links.iter().find(|link| link.name == name).ok_or_else(gone);
        let (bridge, vxlan) = (find(BRIDGE)?, find(VXLAN)?);
        let (local, port) = vxlan.vxlan.ok_or_else(gone)?;
        let entries = inside.neighbours(vxlan.index).step("read neighbours")?.into_iter().collect();
        let mut leftovers = Requests::new();
        for link in links.iter().filter(|link| link.kind == "veth" && !ports.contains_key(&link.name)) {
            leftovers.delete_link(&link.name);
        }
        inside.send(&leftovers).step("delete leftover ports of a switch")?;
        let found = links.iter().filter_map(|link| {
            let (id, sender) = ports.get(&link.name)?;
            Some((id.clone(), (link.index, *sender)))
        });
        let ports: BTreeMap<SandboxId, (u32, Sender)> = found.collect();
        Ok(Self {
            network,
            ipv6: ports.values().any(|(_, sender)| sender.v6.is_some()),
            ports,
            file,
            bridge: bridge.index,
            vxlan: vxlan.index,
            path: Path { local, port, mtu: bridge.mtu },
            infra: config.infra,
            tables: Tables::default(),
            entries,
            netns,
            notices: Notices::default(),
        })
    }

    /// Removes the switch with all its links.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn remove(self) -> Result<(), NetworkError> {
        // The kernel ends a namespace some time later, with all that is in it; until then the network identifier would be
        // taken. Each deletion by itself waits until every processor has forgotten the link.
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(Requests::new().delete_link(VXLAN)).step("delete the VXLAN link of a switch")?;
        netns::remove(&self.file).step("remove a switch namespace")
    }

    /// Has the VXLAN link of a network that is not encrypted speak from another address of the node.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn speak_from(&mut self, local: IpAddr) -> Result<(), NetworkError> {
        // A link of one version of IP speaks no other: it is made again with its path.
        if self.path.is_encrypted() || self.path.local == local || self.path.local.is_ipv4() != local.is_ipv4() {
            return Ok(());
        }
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(Requests::new().set_vxlan_local(self.vxlan, local)).step("change the address of a VXLAN link")?;
        self.path.local = local;
        Ok(())
    }

    /// Whether nothing is attached.
    pub fn is_unused(&self) -> bool {
        self.ports.is_empty()
    }

    /// Looks at what the kernel holds after somebody else changed it. Ports that are gone are forgotten; what remains is
    /// brought back by [`Self::sync`].
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when bridge or VXLAN link are gone: then only another switch helps.
    pub fn look(&mut self) -> Result<(), NetworkError> {
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let links = inside.links().step("read links")?;
        let find = |index: u32| links.iter().find(|link| link.index == index);
        let (bridge, vxlan) = (find(self.bridge).ok_or_else(gone)?, find(self.vxlan).ok_or_else(gone)?);
        let mut requests = Requests::new();
        for link in [bridge, vxlan].into_iter().filter(|link| !link.up) {
            requests.set_up(link.index);
        }
        self.ports.retain(|_, (port, _)| find(*port).is_some());
        let ports = self.ports.values().filter_map(|(port, sender)| Some((find(*port)?, Some(*sender))));
        for (link, sender) in ports.chain([(vxlan, None)]) {
            if link.bridge != Some(self.bridge) || !link.up {
                requests
                    .set_bridge(link.index, self.bridge)
                    .set_port(link.index, self.closed_port())
                    .set_up(link.index);
                if let Some(sender) = sender {
                    requests.replace_neighbour(link.index, Neighbour::Port(Mac::of(sender.v4)));
                }
            }
        }
        inside.send(&requests).step("attach the links of a switch again")?;
        self.entries = inside.neighbours(self.vxlan).step("read neighbours")?.into_iter().collect();
        Ok(())
    }

    /// Whether a sandbox has its port here.
    pub fn has(&self, id: &SandboxId) -> bool {
        self.ports.contains_key(id)
    }

    /// What of its rules and links differs from what the kernel was told. Changes nothing.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn differences(&self) -> Result<Vec<String>, NetworkError> {
        let mut found = self.tables.differences(&self.netns).step("read the rules of a switch")?;
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let links = inside.links().step("read links")?;
        for (index, what) in [(self.bridge, "its bridge"), (self.vxlan, "its VXLAN link")] {
            match links.iter().find(|link| link.index == index) {
                Some(link) if link.up => {}
                Some(_) => found.push(format!("{what} is down")),
                None => found.push(format!("{what} is gone")),
            }
        }
        Ok(found)
    }

    /// Whether anything here changed since the last look.
    pub fn is_changed(&mut self) -> bool {
        let heard = self.notices.changed(&self.netns, true);
        heard.rules || heard.links
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
        let mac = Mac::of(attachment.sender.v4);
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        let veth = Veth {
            name: &attachment.port,
            mac: None,
            mtu: self.path.mtu,
            bridge: Some(self.bridge),
            group: 0,
            peer: VethPeer { name: attachment.link, mac, mtu: self.path.mtu, netns: attachment.netns.raw_fd() },
        };
        let made = inside.send(Requests::new().delete_link(&attachment.port).add_veth(&veth));
        let name = || view.networks.get(&self.network).map_or_else(|| self.network.to_string(), |own| own.name.clone());
        made.map_err(|source| NetworkError::of_port(source, &name()))?;
        let port = inside.link(&attachment.port).step("read a link")?.ok_or_else(gone)?.index;
        self.ports.insert(attachment.id.clone(), (port, attachment.sender));
        // What was elsewhere until now may no longer be found there.
        self.sync(view, node)?;
        let mut requests = Requests::new();
        requests.set_port(port, self.closed_port()).replace_neighbour(port, Neighbour::Port(mac));
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
        let local = self.local();
        let end = |peer: &Peer| remote_end(peer, &self.path, self.infra);
        let wanted = remote_entries(view, self.network, node, &local, self.carries_ipv6(), end);
        let gone = self.entries.difference(&wanted).copied().collect();
        let new = wanted.difference(&self.entries).copied().collect();
        self.change_entries(&gone, &new)?;
        self.load_rules()
    }

    /// Brings forwarding entries to what changed of tasks in `view`; nothing else did.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn follow(
        &mut self,
        change: &Change<'_>,
        view: &NetworkView,
        node: Option<NodeId>,
    ) -> Result<(), NetworkError> {
        let local = self.local();
        let place = Place { network: self.network, node, local: &local, ipv6: self.carries_ipv6() };
        let end = |peer: &Peer| remote_end(peer, &self.path, self.infra);
        let (gone, new) = changed_entries(change, view, &place, end);
        let gone = gone.into_iter().filter(|entry| self.entries.contains(entry)).collect();
        let new = new.into_iter().filter(|entry| !self.entries.contains(entry)).collect();
        self.change_entries(&gone, &new)
    }

    fn local(&self) -> BTreeSet<IpAddr> {
        self.ports.values().flat_map(|(_, sender)| sender.addresses()).collect()
    }

    /// Below a size of packets the kernel takes IPv6 from the link.
    fn carries_ipv6(&self) -> bool {
        self.ipv6 && self.path.mtu >= IPV6_MIN_MTU
    }

    fn change_entries(&mut self, gone: &BTreeSet<Neighbour>, new: &BTreeSet<Neighbour>) -> Result<(), NetworkError> {
        if gone.is_empty() && new.is_empty() {
            return Ok(());
        }
        let mut requests = Requests::new();
        for entry in gone {
            requests.delete_neighbour(self.vxlan, *entry);
        }
        for entry in new {
            requests.replace_neighbour(self.vxlan, *entry);
        }
        let mut inside = Rtnl::open(&self.netns).step("open rtnetlink")?;
        inside.send(&requests).step("change the forwarding entries of a switch")?;
        for entry in gone {
            self.entries.remove(entry);
        }
        self.entries.extend(new);
        Ok(())
    }

    /// A port that learns nothing: who is behind it is known. Broadcasts pass, for ARP between sandboxes of this node, and
    /// with IPv6 what goes to groups, for solicitations: the rules let nothing else of that kind pass.
    fn closed_port(&self) -> Vec<InfoBridgePort> {
        vec![
            InfoBridgePort::Learning(false),
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(self.ipv6),
            InfoBridgePort::BroadcastFlood(true),
        ]
    }

    fn load_rules(&mut self) -> Result<(), NetworkError> {
        let ports: Vec<_> = self.ports.values().copied().collect();
        self.tables.set(&self.netns, vec![switch_table(&ports)]).step("load the rules of a switch")
    }
}

fn gone() -> NetworkError {
    let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the link is gone");
    NetworkError::Kernel { step: "find a link", source }
}
