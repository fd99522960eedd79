//! The kernel's side of a sandbox: its namespace, its links, its rules.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::InfoBridgePort;

use super::Inner;
use super::links::task_link;
use super::node::{MAIN_TABLE, index_of, lead_to_loopback};
use super::state::{Record, netns_path};
use super::switch::{Attachment, Switch};
use super::sysctl;
use crate::config::{LOOPBACK_TWIN, PORT_GROUP, TASK_GROUP};
use crate::error::{NetworkError, Step};
use crate::mac::Mac;
use crate::names::DnsPorts;
use crate::netlink::{Neighbour, Requests, Rtnl, Veth, VethPeer, Via};
use crate::nft::Tables;
use crate::nft::table::{Family, Table};
use crate::plan::overlay::TABLE;
use crate::plan::senders::Sender;
use crate::plan::vip::{Changed, sandbox_parts, sandbox_tables};
use crate::spec::{LinkKind, SandboxLink};
use crate::sys::netns::{self, Netns};
use crate::sys::notices::Notices;

/// Index of the loopback link in a new namespace.
const LOOPBACK: u32 = 1;
/// How often and at what interval it is looked whether a namespace has ended: 600 ms at most.
const NAMESPACE_END_POLLS: u32 = 30;
const NAMESPACE_END_POLL: std::time::Duration = std::time::Duration::from_millis(20);
/// A sandbox that is there.
#[derive(Debug)]
pub struct Live {
    /// Its namespace.
    pub netns: Netns,
    tables: Tables,
    /// Where its name server listens.
    pub dns: DnsPorts,
    /// Whether the name server said so to this process.
    pub names_confirmed: bool,
    /// Hears of changes of its rules.
    pub notices: Notices,
    /// Number of the view that its rules are of at least.
    pub view: u64,
    /// MTU of its links to networks of the cluster, in their order, as this process knows them.
    pub sizes: Vec<Option<u32>>,
}

impl Live {
    /// A sandbox in an open namespace, whose rules are not known.
    pub fn new(netns: Netns, dns: DnsPorts, names_confirmed: bool) -> Self {
        let (sizes, notices) = (Vec::new(), Notices::default());
        // There is one of IPv6 only with a virtual address of it.
        let tables = if names_confirmed { Tables::default() } else { Tables::taking_over(Family::Ipv6, TABLE) };
        Self { netns, tables, dns, names_confirmed, notices, view: 0, sizes }
    }

    /// Brings its rules to what the managers want.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn load_rules(&mut self, inner: &Inner, record: &Record) -> Result<(), NetworkError> {
        let view = inner.view_number();
        let tables = self.wanted(inner, record);
        self.tables.set(&self.netns, tables).step("load the rules of a sandbox")?;
        self.view = view;
        Ok(())
    }

    /// Whether somebody else changed its rules since the last look.
    pub fn is_changed(&mut self) -> bool {
        self.notices.changed(&self.netns, false).rules && !self.tables.is_last_change_ours(&self.netns)
    }

    fn wanted(&self, inner: &Inner, record: &Record) -> Vec<Table> {
        let vips = inner.state().vips.clone();
        sandbox_tables(&vips, &record.networks(), self.dns)
    }

    /// Brings to its rules what changed of virtual addresses.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn follow(&mut self, inner: &Inner, record: &Record, changed: &Changed) -> Result<(), NetworkError> {
        let networks = record.networks();
        let parts = sandbox_parts(changed, &networks);
        // Without the last one of IPv6 there is no table for it.
        let is_last = changed.iter().any(|((_, vip), (_, after))| vip.is_ipv6() && after.is_none()) && {
            let vips = inner.state().vips.clone();
            !vips.keys().any(|(network, vip)| vip.is_ipv6() && networks.contains(network))
        };
        if !is_last && self.tables.patch(&self.netns, &parts).step("change the rules of a sandbox")? {
            return Ok(());
        }
        self.load_rules(inner, record)
    }

    /// What of its rules differs from what the managers want. Changes nothing.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`].
    pub fn differences(&self, inner: &Inner, record: &Record) -> Result<Vec<String>, NetworkError> {
        let tables = self.wanted(inner, record);
        let mut found = self.tables.differences(&self.netns).step("read the rules of a sandbox")?;
        if !self.tables.is_loaded(&tables) {
            found.push("its virtual addresses are older than the managers' last word".into());
        }
        Ok(found)
    }
}

/// Makes namespace and links.
///
/// # Errors
/// [`NetworkError::Kernel`]; what was made is left for [`remove`].
pub fn build(inner: &Inner, record: &Record) -> Result<Netns, NetworkError> {
    let id = &record.spec.id;
    let netns = Netns::create(&netns_path(&inner.config, id)).step("make a sandbox")?;
    sysctl::write(&netns, &sysctl::SANDBOX).step("set up a sandbox")?;
    let mut inside = Rtnl::open(&netns).step("open rtnetlink")?;
    inside.send(Requests::new().set_up(LOOPBACK)).step("set up the links of a sandbox")?;
    add_links(inner, &netns, record, &record.links)?;
    Ok(netns)
}

/// Makes those links of a sandbox, and has it use its way out.
///
/// # Errors
/// [`NetworkError::Kernel`]; what was made is left for [`remove_links`].
pub fn add_links(inner: &Inner, netns: &Netns, record: &Record, links: &[SandboxLink]) -> Result<(), NetworkError> {
    let mut node = Rtnl::open(&inner.netns).step("open rtnetlink")?;
    for link in links {
        make_link(inner, &mut node, netns, record, link)?;
    }
    set_up_inside(netns, links)?;
    use_way_out(netns, record)
}

/// The sandbox's ends of its links: addresses and gateways.
fn set_up_inside(netns: &Netns, links: &[SandboxLink]) -> Result<(), NetworkError> {
    let mut inside = Rtnl::open(netns).step("open rtnetlink")?;
    let mut requests = Requests::new();
    for link in links {
        let index = index_of(&mut inside, &link.name)?;
        requests.add_address(index, link.address.addr(), link.address.prefix_len());
        if let Some(address) = link.address6 {
            sysctl::write(netns, &sysctl::with_ipv6(&link.name)).step("set up IPv6 of a sandbox")?;
            requests.add_address(index, address.addr(), address.prefix_len());
        }
        requests.set_up(index);
        match (&link.kind, link.gateway, link.gateway6) {
            (LinkKind::Task, _, _) => {
                for gateway in link.gateways() {
                    requests.replace_neighbour(index, Neighbour::Address(gateway, Mac::GATEWAY));
                }
            }
            // A firewall of the host that drops by default would not hear who asks for it.
            (LinkKind::Bridge(_), Some(gateway), Some(gateway6)) => {
                requests.replace_neighbour(index, Neighbour::Address(gateway6.into(), Mac::of(gateway)));
            }
            (LinkKind::Bridge(_) | LinkKind::Overlay(_), _, _) => {}
        }
    }
    inside.send(&requests).step("set up the links of a sandbox")
}

/// Has the default route of a sandbox lead by its way out, if it has one.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn use_way_out(netns: &Netns, record: &Record) -> Result<(), NetworkError> {
    let v4 = record.way_out().and_then(|link| Some((link, IpAddr::V4(link.gateway?), IpNet::V4(Ipv4Net::default()))));
    let v6 = record.way_out6().and_then(|link| Some((link, IpAddr::V6(link.gateway6?), IpNet::V6(Ipv6Net::default()))));
    let mut inside = Rtnl::open(netns).step("open rtnetlink")?;
    let mut requests = Requests::new();
    for (link, gateway, everywhere) in v4.into_iter().chain(v6) {
        let index = index_of(&mut inside, &link.name)?;
        requests.replace_route(everywhere, Via::Gateway(gateway, index), MAIN_TABLE);
    }
    inside.send(&requests).step("set the way out of a sandbox")
}

/// Gives the task link of a sandbox of an earlier release the twins of its addresses. True when it was one.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn complete_task_link(inner: &Inner, netns: &Netns, record: &mut Record) -> Result<bool, NetworkError> {
    let ipv6 = inner.state().ipv6;
    let link = record.links.iter_mut().find(|link| link.kind == LinkKind::Task && link.address6.is_none() && ipv6);
    let Some((link, gateway)) = link.and_then(|link| link.gateway.map(|gateway| (link, gateway))) else {
        return Ok(false);
    };
    *link = task_link(link.name.clone(), link.address.addr(), gateway, true);
    let link = link.clone();
    let mut node = Rtnl::open(&inner.netns).step("open rtnetlink")?;
    set_up_task_link(inner, &mut node, &inner.config.names().task_link(record.slot), &link)?;
    set_up_inside(netns, std::slice::from_ref(&link))?;
    use_way_out(netns, record)?;
    Ok(true)
}

fn make_link(
    inner: &Inner,
    node: &mut Rtnl,
    netns: &Netns,
    record: &Record,
    link: &SandboxLink,
) -> Result<(), NetworkError> {
    let names = inner.config.names();
    let peer = |mtu| VethPeer { name: &link.name, mac: link.mac, mtu, netns: netns.raw_fd() };
    match &link.kind {
        LinkKind::Overlay(network) => {
            let port = port_name(link.number(), record.slot);
            let (id, sender) = (&record.spec.id, link.sender());
            inner.attach(*network, &Attachment { id, port, sender, link: &link.name, netns })
        }
        LinkKind::Bridge(network) => {
            let bridge = inner.bridge(network)?;
            if link.has_twin() {
                inner.open_twins(&bridge)?;
            }
            // The bridge's own address: what is led to the loopback link as it arrives here was meant for this host.
            let mac = Some(Mac::of(bridge.gateway()));
            let bridge = index_of(node, &names.bridge(bridge.number))?;
            let name = names.bridge_port(record.slot, link.number());
            let mtu = inner.mtu();
            let veth = Veth { name: &name, mac, mtu, bridge: Some(bridge), group: PORT_GROUP, peer: peer(mtu) };
            let made = node.send(Requests::new().delete_link(&name).add_veth(&veth));
            made.map_err(|source| NetworkError::of_port(source, network))?;
            let quiet = [(format!("ipv6/conf/{name}/disable_ipv6"), "1")];
            sysctl::write(&inner.netns, &quiet).step("set up a link to a bridge")?;
            // A sandbox that asks for its own published port gets the frame back where it came from.
            let port = index_of(node, &name)?;
            let mut requests = Requests::new();
            requests.set_port(port, vec![InfoBridgePort::HairpinMode(true)]);
            if let Some(neighbour) = link.neighbour6() {
                requests.replace_neighbour(bridge, neighbour);
            }
            node.send(&requests).step("set up a link to a bridge")?;
            if let Some(address) = link.address6 {
                lead_to_loopback(node, port, Some(address.addr()), LOOPBACK_TWIN);
            }
            Ok(())
        }
        LinkKind::Task => {
            let name = names.task_link(record.slot);
            let mtu = inner.mtu();
            let mac = Some(Mac::GATEWAY);
            let veth = Veth { name: &name, mac, mtu, bridge: None, group: TASK_GROUP, peer: peer(mtu) };
            node.send(Requests::new().delete_link(&name).add_veth(&veth)).step("make a task link")?;
            set_up_task_link(inner, node, &name, link)
        }
    }
}

/// The node's end: the gateway's address on every task link, and a route to the one address behind it.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn set_up_task_link(inner: &Inner, node: &mut Rtnl, name: &str, link: &SandboxLink) -> Result<(), NetworkError> {
    // 127.0.0.1:PORT of the node leads here as well; who may send from here is checked by our own rules.
    let mut parameters = sysctl::of_link(name, &[("route_localnet", "1"), ("rp_filter", "0")]);
    match link.address6 {
        Some(_) => parameters.extend(sysctl::with_ipv6(name)),
        None => parameters.push((format!("ipv6/conf/{name}/disable_ipv6"), "1")),
    }
    sysctl::write(&inner.netns, &parameters).step("set up a task link")?;
    let index = index_of(node, name)?;
    let mut requests = Requests::new();
    for gateway in link.gateways() {
        requests.add_address(index, gateway, if gateway.is_ipv4() { 32 } else { 128 });
    }
    for address in link.addresses() {
        requests.replace_neighbour(index, Neighbour::Address(address, link.mac));
        requests.replace_route(IpNet::from(address), Via::Link(index), MAIN_TABLE);
    }
    node.send(&requests).step("set up a task link")?;
    if let Some(address) = link.address6 {
        lead_to_loopback(node, index, Some(address.addr()), LOOPBACK_TWIN);
    }
    Ok(())
}

/// Removes links and namespace. Goes on after an error and returns the first one.
///
/// # Errors
/// [`NetworkError::Kernel`].
pub fn remove(inner: &Inner, record: &Record) -> Result<(), NetworkError> {
    let first = netns::remove(&netns_path(&inner.config, &record.spec.id)).step("remove a sandbox");
    let removed = take_links(inner, record, &record.links, true);
    first.and(removed)
}

/// Removes those links of a sandbox that stays.
///
/// # Errors
/// [`NetworkError::Kernel`], the first one.
pub fn remove_links(inner: &Inner, record: &Record, links: &[SandboxLink]) -> Result<(), NetworkError> {
    take_links(inner, record, links, false)
}

fn take_links(inner: &Inner, record: &Record, links: &[SandboxLink], with_netns: bool) -> Result<(), NetworkError> {
    let names = inner.config.names();
    let of_node: Vec<String> = links
        .iter()
        .filter_map(|link| match &link.kind {
            LinkKind::Overlay(_) => None,
            LinkKind::Bridge(_) => Some(names.bridge_port(record.slot, link.number())),
            LinkKind::Task => Some(names.task_link(record.slot)),
        })
        .collect();
    let node = Rtnl::open(&inner.netns).step("open rtnetlink");
    let mut result = node.and_then(|mut node| {
        let mut requests = Requests::new();
        for link in &of_node {
            requests.delete_link(link);
        }
        for link in links {
            if let (LinkKind::Bridge(bridge), Some(neighbour)) = (&link.kind, link.neighbour6())
                && let Ok(bridge) = inner.bridge(bridge)
                && let Some(bridge) = node.link(&names.bridge(bridge.number)).step("read a link")?
            {
                requests.delete_neighbour(bridge.index, neighbour);
            }
        }
        if with_netns {
            wait_until_gone(&mut node, &of_node)?;
        }
        node.send(&requests).step("delete the links of a sandbox")
    });
    for link in links {
        if let LinkKind::Overlay(network) = &link.kind {
            let detached = inner.detach(*network, record, &port_name(link.number(), record.slot));
            result = result.and(detached);
        }
    }
    result
}

/// Gives the kernel time to end the namespace with its links. It ends all that are due at once; deleting each link by
/// itself waits for each time that every processor has forgotten it, some 20 ms on a busy host, under the one lock of
/// rtnetlink. A process that is still in the namespace keeps it alive; then the links are deleted under it.
fn wait_until_gone(node: &mut Rtnl, links: &[String]) -> Result<(), NetworkError> {
    for _ in 0..NAMESPACE_END_POLLS {
        let mut left = false;
        for link in links {
            left |= node.link(link).step("read a link")?.is_some();
        }
        if !left {
            break;
        }
        std::thread::sleep(NAMESPACE_END_POLL);
    }
    Ok(())
}

/// Name of a sandbox's port in a switch.
pub fn port_name(number: usize, slot: u32) -> String {
    format!("p{slot}.{number}")
}

impl Inner {
    fn attach(&self, network: skep_proto::model::NetworkId, attachment: &Attachment<'_>) -> Result<(), NetworkError> {
        let cell = self.switch(network);
        let mut switch = cell.lock().unwrap_or_else(PoisonError::into_inner);
        if switch.is_none() {
            let view = self.state().view.clone();
            let wanted = view.networks.get(&network).ok_or(NetworkError::UnknownNetwork { network })?;
            *switch = Some(Switch::create(&self.config, &self.netns, wanted, self.open_path(wanted)?)?);
        }
        let (view, node) = {
            let state = self.state();
            (state.view.clone(), state.place.node)
        };
        let result = match switch.as_mut() {
            Some(switch) => switch.attach(attachment, &view, node),
            None => Ok(()),
        };
        if result.is_err()
            && switch.as_ref().is_some_and(Switch::is_unused)
            && let Some(Err(error)) = switch.take().map(Switch::remove)
        {
            tracing::warn!(%error, network.id = %network, "cannot remove an unused switch");
        }
        result
    }

    fn detach(&self, network: skep_proto::model::NetworkId, record: &Record, port: &str) -> Result<(), NetworkError> {
        let cell = self.switch(network);
        let mut switch = cell.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(there) = switch.as_mut() else { return Ok(()) };
        let result = there.detach(&record.spec.id, port);
        if there.is_unused()
            && let Some(unused) = switch.take()
        {
            return result.and(unused.remove());
        }
        result
    }
}

/// Ports that a switch should have, by name.
pub fn ports_of(
    records: &BTreeMap<crate::spec::SandboxId, Record>,
    network: skep_proto::model::NetworkId,
) -> BTreeMap<String, (crate::spec::SandboxId, Sender)> {
    let mut ports = BTreeMap::new();
    for record in records.values() {
        for link in &record.links {
            if link.kind == LinkKind::Overlay(network) {
                ports.insert(port_name(link.number(), record.slot), (record.spec.id.clone(), link.sender()));
            }
        }
    }
    ports
}
