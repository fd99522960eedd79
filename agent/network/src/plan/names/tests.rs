//! What a book comes to step by step is what a plain look at everything gives.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use skep_proto::model::network::Subnet;
use skep_proto::model::service::{EndpointMode, VirtualIp};
use skep_proto::model::view::{EndpointAddress, OverlayNetwork};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};

use super::*;

/// Few names, so that many give the same one.
const NAMES: [&str; 6] = ["a", "b", "Web", "web", "tasks.a", ""];

/// One change of what names follow from, from numbers.
#[derive(Debug, Clone)]
struct Step {
    what: u8,
    who: u8,
    network: u8,
    names: [usize; 3],
    address: u8,
    bits: u8,
}

fn rounds() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let names = prop::array::uniform3(0..NAMES.len());
    let step = (0u8..16, 0u8..6, 0u8..3, names, 0u8..6, any::<u8>());
    let step =
        step.prop_map(|(what, who, network, names, address, bits)| Step { what, who, network, names, address, bits });
    prop::collection::vec(prop::collection::vec(step, 1..10), 1..10)
}

fn network(number: u8) -> NetworkId {
    NetworkId(u128::from(number))
}

fn bridge(number: u8) -> String {
    format!("bridge{number}")
}

fn addresses(last: u8, bits: u8) -> Vec<IpNet> {
    let v4 = IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), 24).unwrap();
    let v6 = IpNet::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(), 64).unwrap();
    [Some(v4).filter(|_| bits & 1 == 0), Some(v6).filter(|_| bits & 2 == 0)].into_iter().flatten().collect()
}

fn own(step: &Step, which: usize) -> String {
    NAMES[step.names[which]].to_owned()
}

fn task(step: &Step) -> EndpointView {
    let on = |network: u8| {
        addresses(step.address, step.bits >> 4).into_iter().map(move |address| EndpointAddress {
            network: self::network(network),
            address,
            aliases: vec![own(step, 1)],
            names: vec![own(step, 2)],
        })
    };
    let second = (step.bits & 8 == 0).then(|| on((step.network + 1) % 3)).into_iter().flatten();
    EndpointView {
        task: TaskId(step.who.into()),
        service: (step.bits & 2 == 0).then_some(ServiceId((step.address % 3).into())),
        node: NodeId(1),
        name: own(step, 0),
        addresses: on(step.network).chain(second).collect(),
        mesh: None,
        serving: step.bits & 1 == 0,
    }
}

fn service(step: &Step) -> ServiceView {
    let vip = |address| VirtualIp { network: network(step.network), address };
    let aliases = vec![own(step, 1), own(step, 2)];
    ServiceView {
        id: ServiceId((step.who % 3).into()),
        name: own(step, 0),
        mode: if step.bits & 1 == 0 { EndpointMode::Vip } else { EndpointMode::DnsRoundRobin },
        virtual_ips: addresses(step.address, step.bits >> 4).into_iter().map(vip).collect(),
        aliases: (step.bits & 2 == 0).then_some((network((step.network + 1) % 3), aliases)).into_iter().collect(),
        ports: Vec::new(),
        redirects: Vec::new(),
    }
}

fn overlay(step: &Step) -> OverlayNetwork {
    OverlayNetwork {
        id: network(step.network),
        name: if step.bits & 1 == 0 { format!("Net{}", step.network) } else { "other".into() },
        vni: 4096,
        subnets: Vec::<Subnet>::new(),
        internal: false,
        encrypted: true,
        mtu: None,
        port: 0,
    }
}

fn local(step: &Step) -> Vec<LocalName> {
    let zone = |on_bridge: bool| match on_bridge {
        true => ZoneKey::Bridge(bridge(step.network)),
        false => ZoneKey::Overlay(network(step.network)),
    };
    let addresses: Vec<IpAddr> = addresses(step.address, step.bits >> 4).iter().map(IpNet::addr).collect();
    let name = |zone| LocalName { zone, names: vec![own(step, 0), own(step, 1)], addresses: addresses.clone() };
    vec![name(zone(step.bits & 1 == 0)), name(zone(step.bits & 2 == 0))]
}

fn apply(sources: &mut Sources, step: &Step) {
    let sandbox = SandboxId::new(format!("s{}", step.who)).unwrap();
    let mut view = NetworkView::clone(&sources.view);
    match step.what {
        0..=4 => drop(view.endpoints.insert(TaskId(step.who.into()), task(step))),
        5 => drop(view.endpoints.remove(&TaskId(step.who.into()))),
        6..=7 => drop(view.services.insert(ServiceId((step.who % 3).into()), service(step))),
        8 => drop(view.services.remove(&ServiceId((step.who % 3).into()))),
        9..=10 => drop(view.networks.insert(network(step.network), overlay(step))),
        11 => drop(view.networks.remove(&network(step.network))),
        12 => drop(sources.bridges.insert(bridge(step.network))),
        13 => drop(sources.bridges.remove(&bridge(step.network))),
        14 => drop(sources.local.insert(sandbox, local(step))),
        _ => drop(sources.local.remove(&sandbox)),
    }
    sources.backends = Backends::of(&view);
    sources.view = Arc::new(view);
}

/// Names of a zone with their addresses, and the first name of each address.
type Plain = (BTreeMap<String, BTreeSet<IpAddr>>, BTreeMap<IpAddr, String>);

/// A name with one of its addresses, and which of that address's names it is.
type Found = (String, Option<IpAddr>, (u8, usize));

/// All zones, looked up without any shortcut.
fn plain(from: &Sources) -> BTreeMap<ZoneKey, Plain> {
    let overlays = from.view.networks.keys().map(|id| (ZoneKey::Overlay(*id), look(from, Some(*id))));
    let bridges = from.bridges.iter().map(|name| (ZoneKey::Bridge(name.clone()), look(from, None)));
    let mut zones: BTreeMap<ZoneKey, Vec<Found>> = overlays.chain(bridges).collect();
    for local in from.local.values().flatten() {
        let Some(zone) = zones.get_mut(&local.zone) else { continue };
        for (at, name) in local.names.iter().enumerate() {
            zone.extend(local.addresses.iter().map(|address| (name.clone(), Some(*address), (2, at))));
        }
    }
    zones.into_iter().map(|(key, all)| (key, sorted(all))).collect()
}

fn look(from: &Sources, network: Option<NetworkId>) -> Vec<Found> {
    let mut all = Vec::new();
    let Some(network) = network else { return all };
    let tasks_on = |service: Option<ServiceId>, serving: bool| -> Vec<IpAddr> {
        let tasks = from.view.endpoints.values();
        let tasks = tasks.filter(|task| (service.is_none() || task.service == service) && (task.serving || !serving));
        let attached = tasks.flat_map(|task| &task.addresses).filter(|attached| attached.network == network);
        attached.map(|attached| attached.address.addr()).collect()
    };
    for task in from.view.endpoints.values() {
        let of_service = task.service.and_then(|id| from.view.services.get(&id)?.aliases.get(&network));
        for attached in task.addresses.iter().filter(|attached| attached.network == network) {
            let mut names = vec![task.name.clone()];
            names.extend(attached.names.clone());
            if task.serving {
                let more = attached.aliases.iter().filter(|alias| !of_service.is_some_and(|all| all.contains(alias)));
                names.extend(more.cloned());
            }
            let address = Some(attached.address.addr());
            all.extend(names.into_iter().enumerate().map(|(at, name)| (name, address, (0, at))));
        }
    }
    for service in from.view.services.values() {
        let vips = service.virtual_ips.iter().filter(|vip| vip.network == network);
        let vips: Vec<IpAddr> = vips.map(|vip| vip.address.addr()).collect();
        let aliases = service.aliases.get(&network);
        if vips.is_empty() && aliases.is_none() && tasks_on(Some(service.id), false).is_empty() {
            continue;
        }
        let tasks = tasks_on(Some(service.id), true);
        let by_vip = service.mode == EndpointMode::Vip && !vips.is_empty();
        let is_served = |vip: &IpAddr| vip.is_ipv4() || tasks.iter().any(IpAddr::is_ipv6);
        let vips: Vec<IpAddr> = vips.into_iter().filter(is_served).collect();
        let answers = if by_vip { &vips } else { &tasks };
        let names = std::iter::once(&service.name).chain(aliases.into_iter().flatten());
        for (at, name) in names.filter(|name| !name.is_empty()).enumerate() {
            for (at, name, answers) in [(2 * at, name.clone(), answers), (2 * at + 1, format!("tasks.{name}"), &tasks)]
            {
                all.push((name.clone(), None, (1, at)));
                all.extend(answers.iter().map(|address| (name.clone(), Some(*address), (1, at))));
            }
        }
    }
    all
}

fn sorted(all: Vec<Found>) -> Plain {
    let mut names: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    let mut firsts: BTreeMap<IpAddr, ((u8, usize), String)> = BTreeMap::new();
    for (name, address, rank) in all.into_iter().filter(|(name, ..)| !name.is_empty()) {
        let name = name.to_lowercase();
        let known = names.entry(name.clone()).or_default();
        if let Some(address) = address {
            known.insert(address);
            let first = firsts.entry(address).or_insert_with(|| (rank, name.clone()));
            *first = first.clone().min((rank, name));
        }
    }
    (names, firsts.into_iter().map(|(address, (_, name))| (address, name)).collect())
}

fn held(zones: &Zones) -> BTreeMap<ZoneKey, Plain> {
    let one = |zone: &crate::dns::zone::Zone| {
        let names = zone.names().map(|(name, known)| {
            let v4 = known.v4.iter().copied().map(IpAddr::V4);
            (name.to_owned(), v4.chain(known.v6.iter().copied().map(IpAddr::V6)).collect())
        });
        (names.collect(), zone.pointers().map(|(address, name)| (address, name.to_owned())).collect())
    };
    zones.iter().map(|(key, zone)| (key.clone(), one(zone))).collect()
}

proptest! {
    #[test]
    fn step_by_step_the_zones_are_what_a_look_at_everything_gives(rounds in rounds()) {
        let mut sources = Sources::default();
        let mut book = Book::default();
        let mut server = Zones::new();
        for round in rounds {
            for step in &round {
                apply(&mut sources, step);
            }
            let patch = book.follow(sources.clone());
            prop_assert_eq!(held(book.zones()), plain(&sources));
            // As a server comes there that gets the patches alone.
            let sent = postcard::to_stdvec(&patch).unwrap();
            postcard::from_bytes::<ZonesPatch>(&sent).unwrap().apply(&mut server);
            prop_assert_eq!(&server, book.zones());
            let whole = Book::of(sources.clone());
            prop_assert_eq!(whole.zones(), book.zones());
            prop_assert!(book.follow(sources.clone()).is_empty());
        }
    }
}

/// A network of ten tasks each of many services.
fn large(services: u128) -> Sources {
    let mut view = NetworkView::default();
    let step = Step { what: 0, who: 0, network: 1, names: [0; 3], address: 0, bits: 0b1111_1000 };
    view.networks.insert(network(1), overlay(&step));
    for number in 0..services {
        let id = ServiceId(number);
        let vip = IpNet::new(Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()).into(), 8).unwrap();
        let virtual_ips = vec![VirtualIp { network: network(1), address: vip }];
        let service =
            ServiceView { id, name: format!("web{number}"), mode: EndpointMode::Vip, virtual_ips, ..service(&step) };
        view.services.insert(id, ServiceView { aliases: BTreeMap::new(), ..service });
        for slot in 0..10 {
            let task = numbered(number * 10 + slot, Some(id));
            view.endpoints.insert(task.task, task);
        }
    }
    Sources { backends: Backends::of(&view), view: Arc::new(view), ..Sources::default() }
}

fn numbered(number: u128, service: Option<ServiceId>) -> EndpointView {
    let address = IpNet::new(Ipv4Addr::from(0x0b00_0000 + u32::try_from(number).unwrap()).into(), 8).unwrap();
    let attached = EndpointAddress { network: network(1), address, aliases: Vec::new(), names: Vec::new() };
    let (task, name) = (TaskId(number), format!("task{number}"));
    EndpointView { task, service, node: NodeId(1), name, addresses: vec![attached], mesh: None, serving: true }
}

#[test]
fn a_moved_task_is_told_in_three_names_however_many_there_are() {
    let mut sources = large(300);
    let mut book = Book::of(sources.clone());
    let mut view = NetworkView::clone(&sources.view);
    view.endpoints.remove(&TaskId(17));
    let moved = numbered(5000, Some(ServiceId(1)));
    view.endpoints.insert(moved.task, moved);
    sources.backends = Backends::of(&view);
    sources.view = Arc::new(view);
    let patch = book.follow(sources);
    let Some(ZonePatch::There { names, pointers, .. }) = patch.0.get(&ZoneKey::Overlay(network(1))) else { panic!() };
    assert_eq!(names.keys().collect::<Vec<_>>(), ["task17", "task5000", "tasks.web1"]);
    assert_eq!((names["tasks.web1"].gone.len(), names["tasks.web1"].new.len(), pointers.len()), (1, 1, 2));
}
