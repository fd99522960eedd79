//! What a change leads to, step by step, is what the whole view leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use skep_proto::model::service::{EndpointMode, PortConfig, Protocol, PublishMode, VirtualIp};
use skep_proto::model::view::{EndpointAddress, EndpointView, NetworkView, Peer, ServiceView};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};

use super::change::{Backends, Change};
use super::ingress::{self, Ingress};
use super::leaving::{self, Places};
use super::overlay::{self, Place};
use super::vip::{self, Vips};
use crate::names::DnsPorts;
use crate::nft::table::{Family, Ip, Table, Value};

const HERE: NodeId = NodeId(1);
const PORTS: DnsPorts = DnsPorts { udp: 1, tcp: 2 };

/// One change of a view, from numbers.
#[derive(Debug, Clone)]
struct Step {
    task: u8,
    service: u8,
    network: u8,
    what: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..12, 0u8..4, 0u8..2, 0u8..8);
    prop::collection::vec(step.prop_map(|(task, service, network, what)| Step { task, service, network, what }), 1..12)
}

fn network(number: u8) -> NetworkId {
    NetworkId(u128::from(number) + 1)
}

/// Addresses of a task or service on a network; those of the second one have IPv6 too.
fn addresses(on: u8, last: u8) -> Vec<IpNet> {
    let v4 = IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, on, last)), 24).unwrap();
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, u16::from(on), 0, 0, 0, u16::from(last));
    let v6 = (on == 1).then(|| IpNet::new(IpAddr::V6(v6), 64).unwrap());
    std::iter::once(v4).chain(v6).collect()
}

fn service(number: u8, on: u8, mode: EndpointMode, published: bool) -> ServiceView {
    let port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(8000 + u16::from(number)),
        mode: PublishMode::Ingress,
    };
    let vips = addresses(on, 200 + number);
    ServiceView {
        id: ServiceId(u128::from(number)),
        name: format!("service{number}"),
        mode,
        virtual_ips: vips.into_iter().map(|address| VirtualIp { network: network(on), address }).collect(),
        aliases: std::collections::BTreeMap::new(),
        ports: published.then_some(port).into_iter().collect(),
        redirects: Vec::new(),
    }
}

fn endpoint(step: &Step, place: u8) -> EndpointView {
    let address =
        |address| EndpointAddress { network: network(step.network), address, aliases: Vec::new(), names: Vec::new() };
    EndpointView {
        task: TaskId(u128::from(step.task)),
        service: (step.service != 3).then_some(ServiceId(u128::from(step.service))),
        node: NodeId(u128::from(step.task % 3) + 1),
        name: format!("task{}", step.task),
        addresses: addresses(step.network, 10 + place).into_iter().map(address).collect(),
        mesh: Some(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 10 + place))),
        serving: step.what != 0,
    }
}

fn apply(view: &mut NetworkView, step: &Step) {
    let id = TaskId(u128::from(step.task));
    match step.what {
        // An address is nobody else's: that of another task comes only with that task's end.
        0..=3 => drop(view.endpoints.insert(id, endpoint(step, step.task))),
        4 => drop(view.endpoints.remove(&id)),
        5 => {
            view.endpoints.remove(&id);
            let heir = Step { task: step.task + 12, ..step.clone() };
            view.endpoints.insert(TaskId(u128::from(heir.task)), endpoint(&heir, step.task));
        }
        6 => drop(view.services.remove(&ServiceId(u128::from(step.service)))),
        _ => {
            let mode = if step.task < 8 { EndpointMode::Vip } else { EndpointMode::DnsRoundRobin };
            let service = service(step.service, step.network, mode, step.task.is_multiple_of(2));
            view.services.insert(service.id, service);
        }
    }
    let heir = TaskId(u128::from(step.task) + 12);
    if step.what != 5 && view.endpoints.contains_key(&id) {
        view.endpoints.remove(&heir);
    }
}

fn ground() -> NetworkView {
    let mut view = NetworkView::default();
    for number in 1..=3 {
        let data_path = vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))];
        let peer =
            Peer { node: NodeId(number.into()), index: number.into(), data_path, wireguard: None, ipv4_only: false };
        view.peers.insert(peer.node, peer);
    }
    view
}

fn tables(view: &NetworkView, networks: &BTreeSet<NetworkId>) -> Vec<Table> {
    vip::sandbox_tables(&vip::vips(view, &Backends::of(view), &Vips::new()), networks, PORTS)
}

/// Of each address or port, the numbers that it has and where they lead.
type Ordered = BTreeMap<Vec<u8>, (BTreeSet<u32>, Vec<Vec<u8>>)>;

/// A table without the order of tasks, and that order.
fn unordered(mut table: Table, ordered: &str) -> (Table, Ordered) {
    let mut all = Ordered::new();
    for (key, value) in std::mem::take(&mut table.sets.get_mut(ordered).unwrap().elements) {
        let (of, number) = key.split_last_chunk().unwrap();
        let Value::Bytes(bytes) = value else { panic!("{ordered} maps to {value:?}") };
        let (numbers, ends) = all.entry(of.to_vec()).or_default();
        numbers.insert(u32::from_ne_bytes(*number));
        ends.push(bytes);
        ends.sort_unstable();
    }
    (table, all)
}

/// Numbers are from 0, without gaps.
fn is_dense(numbers: &BTreeSet<u32>) -> bool {
    numbers.iter().copied().eq(0..u32::try_from(numbers.len()).unwrap())
}

fn mesh_table(ingress: &Ingress) -> Table {
    let mut table = Table::new(Family::Ipv4, "node");
    ingress::add_to(&mut table, Ip::V4, ingress);
    table
}

/// All places at which tasks serve.
fn serving(view: &NetworkView) -> Places {
    let all: Vec<_> = view.endpoints.values().collect();
    let overlay = all.iter().flat_map(|e| e.addresses.iter().map(|a| (a.network, a.address.addr()))).collect();
    let node = all.iter().filter_map(|e| e.mesh).collect();
    let everywhere = Places { overlay, node };
    leaving::serving(view, &[&everywhere])
}

proptest! {
    #[test]
    fn what_changed_leads_where_all_leads(rounds in prop::collection::vec(steps(), 1..8), on_both in any::<bool>()) {
        let mut networks = BTreeSet::from([network(1)]);
        networks.extend(on_both.then(|| network(0)));
        let local = BTreeSet::from([IpAddr::V4(Ipv4Addr::new(10, 0, 0, 13))]);
        let end = |peer: &Peer| peer.data_path.first().copied();
        let place = |on| Place { network: network(on), node: Some(HERE), local: &local, ipv6: true };
        let all_entries = |view: &NetworkView, on| overlay::remote_entries(view, network(on), Some(HERE), &local, true, end);
        let mut before = ground();
        let mut backends = Backends::default();
        let mut vips = Vips::new();
        let mut loaded = tables(&before, &networks);
        let mut entries = [all_entries(&before, 0), all_entries(&before, 1)];
        let mut ingress = Ingress::new();
        let mut mesh = mesh_table(&ingress);
        for round in rounds {
            let mut after = before.clone();
            for step in &round {
                apply(&mut after, step);
            }
            let change = Change::between(&before, &after);
            backends.follow(&change);
            prop_assert_eq!(&backends, &Backends::of(&after));
            prop_assert_eq!(change.is_empty(), before == after);

            let changed = vip::follow(&mut vips, (&before, &after), &backends, &change);
            for part in vip::sandbox_parts(&changed, &networks) {
                if let Some(table) = loaded.iter_mut().find(|table| table.family == part.family) {
                    prop_assert!(part.with_left_chains(table).put_into(table));
                }
            }
            // The same, but for which task has which number; and exactly what is planned with these numbers.
            let wanted = tables(&after, &networks);
            let same = vip::sandbox_tables(&vips, &networks, PORTS);
            prop_assert_eq!(&vip::vips(&after, &backends, &vips), &vips);
            for table in &loaded {
                let of = |tables: &[Table]| tables.iter().find(|wanted| wanted.family == table.family).cloned();
                let Some((wanted, same)) = of(&wanted).zip(of(&same)) else { continue };
                prop_assert_eq!(table, &same);
                let (table, tasks) = unordered(table.clone(), "backends");
                prop_assert!(tasks.values().all(|(numbers, _)| is_dense(numbers)));
                prop_assert_eq!((table, tasks), unordered(wanted, "backends"));
            }
            // One comes with the first address of its family, and goes with the last: then all is loaded anew.
            if loaded.len() != wanted.len() {
                loaded = same;
            }

            for on in 0..2u8 {
                let (gone, new) = overlay::changed_entries(&change, &after, &place(on), end);
                let held = &mut entries[usize::from(on)];
                held.retain(|entry| !gone.contains(entry));
                held.extend(new);
                prop_assert_eq!(&*held, &all_entries(&after, on));
            }

            let published = ingress::follow(&mut ingress, (&before, &after), &backends, &change);
            prop_assert!(ingress::part("node", Ip::V4, &published).with_left_chains(&mesh).put_into(&mut mesh));
            prop_assert_eq!(&ingress::ingress(&after, &backends, &ingress), &ingress);
            prop_assert_eq!(&mesh, &mesh_table(&ingress));
            let (stepped, tasks) = unordered(mesh.clone(), "ingress-tasks");
            prop_assert!(tasks.values().all(|(numbers, _)| is_dense(numbers)));
            let whole = mesh_table(&ingress::ingress(&after, &backends, &Ingress::new()));
            prop_assert_eq!((stepped, tasks), unordered(whole, "ingress-tasks"));

            let touched = change.networks(&before, &after);
            let elsewhere = networks.difference(&touched).copied().collect();
            prop_assert_eq!(tables(&before, &elsewhere), tables(&after, &elsewhere));

            // Only serving tasks get what was left: nobody drains who serves.
            let drained = leaving::drained(&change);
            prop_assert_eq!(drained.clone().among(&serving(&after)), Places::default());
            before = after;
        }
    }
}
