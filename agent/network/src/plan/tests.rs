use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::{EndpointMode, PortConfig, Protocol, PublishMode, VirtualIp};
use skep_proto::model::view::{EndpointAddress, EndpointView, NetworkView, OverlayNetwork, Peer, ServiceView};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};

use super::change::{Backends, Change};
use super::ingress::{self, Ingress, Published};
use super::leaving::{self, Places};
use super::names::{Book, LocalName, Sources};
use super::vip::{Behind, Vips};
use super::{overlay, vip};
use crate::config::twin;
use crate::dns::zone::{Known, ZoneKey, Zones};
use crate::mac::Mac;
use crate::names::DnsPorts;
use crate::netlink::Neighbour;
use crate::nft::table::{Family, Ip, Table};
use crate::spec::SandboxId;

const LED: PortRedirect = PortRedirect { protocol: Protocol::Tcp, port: 80, target: 8080 };
const NET: NetworkId = NetworkId(1);
const WEB: ServiceId = ServiceId(1);
const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn any(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An address of a task link, and its twin.
fn twins(text: &str) -> BTreeSet<IpAddr> {
    [any(text), IpAddr::V6(twin(ip(text)))].into()
}

fn v4(addresses: &[Ipv4Addr]) -> Option<Known<'_>> {
    Some(Known { v4: addresses, v6: &[] })
}

fn endpoint(task: u128, node: NodeId, address: &str) -> EndpointView {
    EndpointView {
        task: TaskId(task),
        service: Some(WEB),
        node,
        name: format!("web.{task}"),
        addresses: vec![EndpointAddress {
            network: NET,
            address: format!("{address}/24").parse().unwrap(),
            aliases: vec!["alias".into()],
            names: vec!["web-0".into()],
        }],
        mesh: Some(IpAddr::V4(Ipv4Addr::new(100, 64, 64, u8::try_from(task).unwrap()))),
        serving: true,
    }
}

/// A service `web` at 10.0.1.200 and port 8080, with task 1 here and task 2 there.
fn world() -> NetworkView {
    let mut view = NetworkView::default();
    for (node, index) in [(HERE, 1), (THERE, 2)] {
        let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(index).unwrap()));
        view.peers.insert(node, Peer { node, index, data_path: vec![address], wireguard: None, ipv4_only: false });
    }
    let network = OverlayNetwork {
        id: NET,
        name: "back".into(),
        vni: 4097,
        subnets: Vec::new(),
        internal: false,
        encrypted: false,
        mtu: None,
        port: 0,
    };
    view.networks.insert(NET, network);
    let port = |published, mode| PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(published),
        mode,
    };
    let service = ServiceView {
        id: WEB,
        name: "web".into(),
        mode: EndpointMode::Vip,
        virtual_ips: vec![VirtualIp { network: NET, address: "10.0.1.200/24".parse().unwrap() }],
        aliases: BTreeMap::new(),
        ports: vec![port(8080, PublishMode::Ingress), port(8081, PublishMode::Host)],
        redirects: vec![LED],
    };
    view.services.insert(WEB, service);
    for task in [endpoint(1, HERE, "10.0.1.10"), endpoint(2, THERE, "10.0.1.20")] {
        view.endpoints.insert(task.task, task);
    }
    view
}

/// The other end of a network that is not encrypted.
fn plain(peer: &Peer) -> Option<IpAddr> {
    peer.data_path.first().copied()
}

fn drain(view: &mut NetworkView, task: u128) {
    view.endpoints.get_mut(&TaskId(task)).unwrap().serving = false;
}

#[test]
fn only_addresses_on_other_nodes_are_sent_into_the_tunnel_and_draining_ones_stay() {
    let mut view = world();
    drain(&mut view, 2);
    let mac = Mac::of(ip("10.0.1.20"));
    let wanted =
        [Neighbour::Tunnel(mac, any("192.0.2.2")), Neighbour::Port(mac), Neighbour::Address(any("10.0.1.20"), mac)];
    assert_eq!(overlay::remote_entries(&view, NET, Some(HERE), &BTreeSet::new(), true, plain), BTreeSet::from(wanted));
    let local = BTreeSet::from([any("10.0.1.20")]);
    assert_eq!(overlay::remote_entries(&view, NET, Some(HERE), &local, true, plain), BTreeSet::new());
    assert_eq!(
        overlay::remote_entries(&view, NetworkId(9), Some(HERE), &BTreeSet::new(), true, plain),
        BTreeSet::new()
    );
}

#[test]
fn an_address_vanishes_when_its_task_goes_or_another_one_has_it() {
    let before = world();
    assert_eq!(leaving::vanished(&Change::between(&before, &before)), Places::default());
    let mut draining = before.clone();
    drain(&mut draining, 2);
    let place = Places { overlay: [(NET, any("10.0.1.20"))].into(), node: twins("100.64.64.2") };
    assert_eq!(leaving::vanished(&Change::between(&before, &draining)), Places::default());
    assert_eq!(leaving::drained(&Change::between(&before, &draining)), place);
    let mut after = before.clone();
    after.endpoints.remove(&TaskId(2));
    assert_eq!(leaving::vanished(&Change::between(&before, &after)), place);
    let mut heir = endpoint(3, HERE, "10.0.1.20");
    heir.mesh = None;
    after.endpoints.insert(TaskId(3), heir);
    assert_eq!(leaving::vanished(&Change::between(&before, &after)), place);
    // The heir serves there.
    let rest = place.clone().without(&leaving::serving(&after, &[&place]));
    assert_eq!(rest, Places { overlay: BTreeSet::new(), node: twins("100.64.64.2") });
    assert_eq!(leaving::drained(&Change::between(&before, &after)), rest);
}

#[test]
fn the_mesh_leads_to_serving_tasks_by_ports_in_ingress_mode() {
    let mut view = world();
    let port = |tasks: Vec<Ipv4Addr>| Arc::new(Published { target: 80, twins: tasks.clone(), tasks });
    let published = |view: &NetworkView| ingress::ingress(view, &Backends::of(view), &Ingress::new());
    let both = vec![ip("100.64.64.1"), ip("100.64.64.2")];
    assert_eq!(published(&view), Ingress::unit((Protocol::Tcp, 8080), port(both)));
    drain(&mut view, 1);
    assert_eq!(published(&view), Ingress::unit((Protocol::Tcp, 8080), port(vec![ip("100.64.64.2")])));
    drain(&mut view, 2);
    assert_eq!(published(&view), Ingress::new());
}

#[test]
fn a_virtual_address_leads_to_serving_tasks_and_stays_known_without_any() {
    let mut view = world();
    let vips = |view: &NetworkView| vip::vips(view, &Backends::of(view), &Vips::new());
    let behind = |tasks| Vips::unit((NET, any("10.0.1.200")), Arc::new(Behind { tasks, redirects: vec![LED] }));
    assert_eq!(vips(&view), behind(vec![any("10.0.1.10"), any("10.0.1.20")]));
    let tables = |view: &NetworkView, networks: &BTreeSet<NetworkId>| {
        vip::sandbox_tables(&vips(view), networks, DnsPorts { udp: 1, tcp: 2 })
    };
    assert!(tables(&view, &BTreeSet::new()).iter().all(|table| table.sets.values().all(|set| set.elements.is_empty())));
    drain(&mut view, 1);
    drain(&mut view, 2);
    assert_eq!(vips(&view), behind(Vec::new()));
    let table = &tables(&view, &BTreeSet::from([NET]))[0];
    assert_eq!((table.sets["vip-addresses"].elements.len(), table.sets["vips"].elements.len()), (1, 0));
}

/// A view with that many tasks behind the service.
fn with_tasks(count: u8) -> NetworkView {
    let mut view = world();
    view.endpoints =
        (1..=count).map(|n| (TaskId(n.into()), endpoint(n.into(), THERE, &format!("10.0.1.{n}")))).collect();
    view
}

/// Elements and chains that a step names, in the sandbox and in the node's table.
fn step(before: &NetworkView, after: &NetworkView) -> (Vec<String>, Vec<String>) {
    let backends = Backends::of(before);
    let mut vips = vip::vips(before, &backends, &Vips::new());
    let mut ports = ingress::ingress(before, &backends, &Ingress::new());
    let (change, backends) = (Change::between(before, after), Backends::of(after));
    let networks = BTreeSet::from([NET]);
    let mut sandbox = vip::sandbox_tables(&vips, &networks, DnsPorts { udp: 1, tcp: 2 }).remove(0);
    let mut node = Table::new(Family::Ipv4, "node");
    ingress::add_to(&mut node, Ip::V4, &ports);
    let changed = vip::follow(&mut vips, (before, after), &backends, &change);
    let published = ingress::follow(&mut ports, (before, after), &backends, &change);
    let parts = [vip::sandbox_parts(&changed, &networks).remove(0), ingress::part("node", Ip::V4, &published)];
    let [sandbox, node] = [(&mut sandbox, &parts[0]), (&mut node, &parts[1])].map(|(table, part)| {
        let before = table.clone();
        assert!(part.put_into(table));
        let chains = table.chains.keys().filter(|name| !before.chains.contains_key(*name)).cloned();
        let elements = |name: &str, from: &Table, to: &Table| {
            let (from, to) = (&from.sets[name].elements, &to.sets[name].elements);
            let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(*value)).count();
            changed + from.keys().filter(|key| !to.contains_key(*key)).count()
        };
        let sets = table.sets.keys().map(|name| (name, elements(name, &before, table))).filter(|(_, count)| *count > 0);
        chains.chain(sets.map(|(name, count)| format!("{count} of {name}"))).collect()
    });
    (sandbox, node)
}

#[test]
fn a_task_that_goes_or_comes_changes_elements_alone_unless_it_makes_another_size() {
    let both = |sandbox: &[&str], node: &[&str]| {
        let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        (own(sandbox), own(node))
    };
    let mut moved = with_tasks(30);
    moved.endpoints.remove(&TaskId(7));
    // From 30 to 29: the last one takes the place.
    assert_eq!(step(&with_tasks(30), &moved), both(&["2 of backends"], &["2 of ingress-tasks"]));
    let new = endpoint(31, THERE, "10.0.1.31");
    moved.endpoints.insert(new.task, new);
    assert_eq!(step(&with_tasks(30), &moved), both(&["1 of backends"], &["1 of ingress-tasks"]));
    assert_eq!(step(&with_tasks(30), &with_tasks(32)), both(&["2 of backends"], &["2 of ingress-tasks"]));
    let larger = both(
        &["redirect-40", "1 of backends", "1 of vips"],
        &["ingress-40", "1 of ingress-ports", "1 of ingress-tasks"],
    );
    assert_eq!(step(&with_tasks(32), &with_tasks(33)), larger);
    let last = both(&["1 of backends", "1 of vips"], &["1 of ingress-ports", "1 of ingress-tasks"]);
    assert_eq!(step(&with_tasks(1), &with_tasks(0)), last);
}

fn zones(view: &NetworkView, bridges: &[&str], local: &[LocalName]) -> Zones {
    let local = BTreeMap::from([(SandboxId::new("one").unwrap(), local.to_vec())]);
    let bridges = bridges.iter().map(|name| (*name).to_owned()).collect();
    let sources = Sources { view: Arc::new(view.clone()), backends: Backends::of(view), bridges, local };
    Book::of(sources).zones().clone()
}

#[test]
fn an_alias_of_a_service_leads_where_its_name_does_and_an_empty_service_is_known() {
    let mut view = world();
    view.services.get_mut(&WEB).unwrap().aliases.insert(NET, vec!["alias".into()]);
    let resolve = |view: &NetworkView, name: &str| {
        zones(view, &[], &[])[&ZoneKey::Overlay(NET)].resolve(name).map(|known| known.v4.to_vec())
    };
    assert_eq!(resolve(&view, "alias"), Some(vec![ip("10.0.1.200")]));
    assert_eq!(resolve(&view, "tasks.alias"), Some(vec![ip("10.0.1.10"), ip("10.0.1.20")]));
    view.endpoints.clear();
    assert_eq!(resolve(&view, "tasks.web"), Some(Vec::new()));
    view.services.get_mut(&WEB).unwrap().virtual_ips.clear();
    assert_eq!(resolve(&view, "web"), Some(Vec::new()), "it has an alias here, so it is here");
    view.services.get_mut(&WEB).unwrap().aliases.clear();
    assert_eq!(resolve(&view, "web"), None);
}

#[test]
fn a_service_resolves_to_its_virtual_address_and_a_task_by_its_own_name_while_it_drains() {
    let mut view = world();
    drain(&mut view, 2);
    let all = zones(&view, &[], &[]);
    let zone = &all[&ZoneKey::Overlay(NET)];
    assert_eq!(zone.resolve("web"), v4(&[ip("10.0.1.200")]));
    assert_eq!(zone.resolve("tasks.web.back"), v4(&[ip("10.0.1.10")]));
    assert_eq!(zone.resolve("alias"), v4(&[ip("10.0.1.10")]));
    assert_eq!(zone.resolve("web.2"), v4(&[ip("10.0.1.20")]));
    // Whether it is serving or not.
    assert_eq!(zone.resolve("web-0").unwrap().v4, [ip("10.0.1.10"), ip("10.0.1.20")]);
    view.services.get_mut(&WEB).unwrap().mode = EndpointMode::DnsRoundRobin;
    view.services.get_mut(&WEB).unwrap().virtual_ips.clear();
    let all = zones(&view, &[], &[]);
    assert_eq!(all[&ZoneKey::Overlay(NET)].resolve("web"), v4(&[ip("10.0.1.10")]));
}

#[test]
fn a_virtual_address_of_ipv6_that_only_tasks_with_ipv4_are_behind_is_not_answered() {
    let mut view = world();
    let vip6 = VirtualIp { network: NET, address: "fd00::200/64".parse().unwrap() };
    view.services.get_mut(&WEB).unwrap().virtual_ips.push(vip6);
    let answers = |view: &NetworkView| zones(view, &[], &[])[&ZoneKey::Overlay(NET)].resolve("web").unwrap().v6.len();
    assert_eq!(answers(&view), 0);
    let task = view.endpoints.get_mut(&TaskId(2)).unwrap();
    task.addresses.push(EndpointAddress { address: "fd00::20/64".parse().unwrap(), ..task.addresses[0].clone() });
    assert_eq!(answers(&view), 1);
    view.endpoints.clear();
    assert_eq!(answers(&view), 0);
}

#[test]
fn names_of_local_sandboxes_are_known_on_their_bridge_alone() {
    let zone = ZoneKey::Bridge("mine".into());
    let local = LocalName { zone: zone.clone(), names: vec!["db".into()], addresses: vec![any("172.18.0.2")] };
    let all = zones(&NetworkView::default(), &["mine", "other"], &[local]);
    assert_eq!(all[&zone].resolve("db"), v4(&[ip("172.18.0.2")]));
    assert_eq!(all[&ZoneKey::Bridge("other".into())].resolve("db"), None);
}
