//! Virtual addresses and published ports while the tasks behind them change, and what an earlier release loaded.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use skep_network::Sandbox;
use skep_proto::model::doctor::Outcome;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::Protocol;
use skep_proto::model::view::{EndpointAddress, EndpointView};
use skep_proto::model::{NetworkId, ServiceId, TaskId};

use crate::world::load::{Clients, serve_slowly};
use crate::world::{World, ask_tcp, ask_udp, eventually, run, serve_tcp, within};

/// How often the tasks behind a service are all replaced; `SKEP_LOAD_ROUNDS` says otherwise.
const SWAPS: u32 = 8;
/// How often a new daemon starts where an old one's rules are.
const STARTS: u32 = 10;

fn rounds(usual: u32) -> u32 {
    std::env::var("SKEP_LOAD_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// A sandbox that answers at every address of 10.1.0.0/16 and fd01::/64, itself alone.
async fn everywhere(w: &mut World, network: NetworkId, addresses: &[&str]) -> Sandbox {
    let one = w.task_at(1, 0, None, network, addresses).await;
    let inside = format!("nsenter --net={}", one.netns.display());
    run(&format!("{inside} ip route add local 10.1.0.0/16 dev lo && {inside} ip -6 route add local fd01::/64 dev lo"));
    one
}

/// Has tasks of these numbers behind a service, and no others.
fn put_behind(w: &mut World, service: ServiceId, network: NetworkId, numbers: std::ops::Range<u32>) {
    let is_other = |task: &EndpointView| task.service != Some(service);
    w.view.endpoints =
        w.view.endpoints.iter().map(|(id, task)| (*id, task.clone())).filter(|(_, t)| is_other(t)).collect();
    for number in numbers {
        let v4 = format!("{}/16", Ipv4Addr::from(0x0a01_0000 + number));
        let v6 = format!("fd01::{number:x}/64");
        let address = |text: &str| {
            let address = text.parse().unwrap();
            EndpointAddress { network, address, aliases: Vec::new(), names: Vec::new() }
        };
        let endpoint = EndpointView {
            task: TaskId(1000 + u128::from(number)),
            service: Some(service),
            node: w.nodes[0].id,
            name: format!("task{number}"),
            addresses: vec![address(&v4), address(&v6)],
            mesh: None,
            serving: true,
        };
        w.view.endpoints.insert(endpoint.task, endpoint);
    }
}

fn serve_udp_at(netns: &Path, at: SocketAddr) {
    let socket = within(netns, move || UdpSocket::bind(at).unwrap()).join().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(b"led", from);
        }
    });
}

fn nothing_was_lost(clients: Vec<(&str, Clients)>) {
    for (way, clients) in clients {
        let (answered, failures) = clients.finish();
        println!("{way}: {answered} answered, {} lost", failures.len());
        let some: Vec<&String> = failures.iter().take(5).collect();
        assert!(failures.is_empty(), "{} of {answered} connections by the {way} were lost: {some:?}", failures.len());
    }
}

/// The kernel holds what follows from the view, as `skep doctor` sees it.
async fn is_as_told(w: &World) {
    let mut checks = w.nodes[0].network.examine_truth().await;
    // There is no name server here to be asked.
    checks.retain(|check| check.name != "answers");
    let wrong: Vec<_> = checks.iter().filter(|check| check.outcome != Outcome::Ok).collect();
    assert!(!checks.is_empty() && wrong.is_empty(), "{wrong:?}");
}

fn chains(netns: &Path, table: &str) -> BTreeSet<String> {
    let text = run(&format!("nsenter --net={} nft --terse list table {table}", netns.display()));
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
    names.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn all_tasks_are_replaced_under_load_without_an_error() {
    let mut w = World::new(1);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.add_vip(service, net, "fd00:1::200/64");
    w.apply().await;
    let client = everywhere(&mut w, net, &["10.0.1.10/24", "fd00:1::10/64"]).await;
    serve_slowly(&client.netns);
    put_behind(&mut w, service, net, 1..1101);
    // Nobody leaves who has connections: tasks only begin and cease to serve.
    let serve = |w: &mut World, numbers: std::ops::Range<u128>| {
        let tasks: Vec<TaskId> = w.view.endpoints.keys().copied().filter(|task| task.0 > 1000).collect();
        for task in tasks {
            w.view.endpoints.get_mut(&task).unwrap().serving = numbers.contains(&(task.0 - 1000));
        }
    };
    serve(&mut w, 1..101);
    w.apply().await;
    let clients = [("IPv4", "10.0.1.200:80"), ("IPv6", "[fd00:1::200]:80")];
    let clients: Vec<_> = clients.iter().map(|(way, to)| (*way, Clients::start(&client.netns, to, 4))).collect();
    let go_on = || {
        let before: Vec<u64> = clients.iter().map(|(_, c)| c.answered.load(Ordering::Relaxed)).collect();
        eventually("more answers", || {
            clients.iter().zip(&before).all(|((_, c), before)| c.answered.load(Ordering::Relaxed) > before + 20)
        });
    };
    for round in 0..rounds(SWAPS) {
        // Others than before, and of another number.
        serve(&mut w, if round % 2 == 0 { 101..1101 } else { 1..101 });
        w.apply().await;
        go_on();
    }
    // Each number of tasks leads by other rules.
    for count in (1..20).rev().chain(2..20).cycle().take(10 * rounds(SWAPS) as usize) {
        serve(&mut w, 1..count + 1);
        w.apply().await;
    }
    go_on();
    nothing_was_lost(clients);
}

/// Sends packets of new connections while it may: each to another port. Counts them, and those that were refused.
fn flood(netns: &Path, to: Ipv4Addr, may: Arc<AtomicBool>, stop: Arc<AtomicBool>) -> thread::JoinHandle<(u32, u32)> {
    within(netns, move || {
        let (mut sent, mut refused) = (0, 0);
        let mut socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        for port in (1..=u16::MAX).cycle() {
            if port == u16::MAX {
                socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            }
            while !may.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    return (sent, refused);
                }
                thread::yield_now();
            }
            sent += 1;
            refused += u32::from(socket.send_to(b"x", (to, port)).is_err());
        }
        (sent, refused)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn no_packet_of_many_is_refused_while_the_number_of_tasks_changes() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.apply().await;
    let client = everywhere(&mut w, net, &["10.0.1.10/24"]).await;
    // What is remembered of them must not fill the kernel's table.
    run(&format!("nsenter --net={} sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1", client.netns.display()));
    put_behind(&mut w, service, net, 1..4);
    w.apply().await;
    let [may, stop] = [(); 2].map(|()| Arc::new(AtomicBool::default()));
    let vip = Ipv4Addr::new(10, 0, 1, 200);
    let floods: Vec<_> = (0..3).map(|_| flood(&client.netns, vip, may.clone(), stop.clone())).collect();
    for round in 0..25 * rounds(SWAPS) {
        put_behind(&mut w, service, net, if round % 2 == 0 { 1..2 } else { 1..4 });
        may.store(true, Ordering::Relaxed);
        w.apply().await;
        may.store(false, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<(u32, u32)> = floods.into_iter().map(|flood| flood.join().unwrap()).collect();
    println!("sent and refused: {seen:?}");
    let all = seen.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(all.0 > 100 && all.1 == 0, "sent and refused: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn ports_lead_to_other_ports_in_both_families_however_many_tasks_there_are() {
    let mut w = World::new(1);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.add_vip(service, net, "fd00:1::200/64");
    let led = |protocol, port, target| PortRedirect { protocol, port, target };
    let redirects = vec![led(Protocol::Tcp, 80, 8080), led(Protocol::Udp, 53, 5353)];
    w.view.services.get_mut(&service).unwrap().redirects = redirects;
    w.apply().await;
    let client = everywhere(&mut w, net, &["10.0.1.10/24", "fd00:1::10/64"]).await;
    serve_tcp(&client.netns, 8080, "led");
    serve_tcp(&client.netns, 81, "itself");
    // Each at its own address: one that answered for all would answer from another one.
    let v6 = (1..=30).map(|number| format!("ip addr add fd01::{number:x}/128 dev lo nodad"));
    let inside = format!("nsenter --net={}", client.netns.display());
    run(&format!("{inside} sh -c 'sysctl -qw net.ipv6.conf.lo.disable_ipv6=0; {}'", v6.collect::<Vec<_>>().join("; ")));
    for number in 1..=30 {
        serve_udp_at(&client.netns, SocketAddr::new(Ipv4Addr::from(0x0a01_0000 + number).into(), 5353));
        serve_udp_at(&client.netns, format!("[fd01::{number:x}]:5353").parse().unwrap());
    }
    for count in [1, 2, 9, 30] {
        put_behind(&mut w, service, net, 1..1 + count);
        w.apply().await;
        for (vip, own) in [("10.0.1.200", "10.0.1.10"), ("[fd00:1::200]", "fd00:1::10")] {
            // Often enough that some draws find nobody.
            for _ in 0..30 {
                assert_eq!(ask_tcp(&client.netns, &format!("{vip}:80")).unwrap(), format!("led {own}"), "of {count}");
                assert_eq!(ask_tcp(&client.netns, &format!("{vip}:81")).unwrap(), format!("itself {own}"));
            }
            assert_eq!(ask_udp(&client.netns, &format!("{vip}:53")).unwrap(), "led");
        }
    }
    w.view.services.get_mut(&service).unwrap().redirects.clear();
    w.apply().await;
    let refused = ask_tcp(&client.netns, "10.0.1.200:80").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(ask_tcp(&client.netns, "[fd00:1::200]:81").unwrap().starts_with("itself "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn connections_spread_over_all_tasks_and_unused_rules_go() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let client = everywhere(&mut w, net, &["10.0.1.10/24"]).await;
    serve_slowly(&client.netns);
    put_behind(&mut w, service, net, 1..12);
    w.apply().await;
    let clients = Clients::start(&client.netns, "10.0.1.200:80", 4);
    // Who was led where is in the sandbox's connections.
    let led = || {
        let inside = format!("nsenter --net={}", client.netns.display());
        let table = run(&format!("{inside} cat /proc/net/nf_conntrack"));
        let ends = table.split_whitespace().filter_map(|word| word.strip_prefix("src=10.1.0.")?.parse::<u32>().ok());
        ends.collect::<BTreeSet<u32>>()
    };
    eventually("connections to every task", || led() == (1..12).collect());
    nothing_was_lost(vec![("virtual address", clients)]);

    put_behind(&mut w, service, net, 1..3);
    for (_, task) in w.view.endpoints.clone().iter().filter(|(_, task)| task.service.is_some()) {
        let last = u8::try_from(task.task.0 % 100).unwrap();
        w.view.endpoints.get_mut(&task.task).unwrap().mesh = Some(IpAddr::V4(Ipv4Addr::new(100, 64, 0, last)));
    }
    w.apply().await;
    let mesh = w.nodes[0].netns.clone();
    is_as_told(&w).await;
    assert!(!chains(&client.netns, "ip skep").contains("balance-12"));
    assert!(chains(&client.netns, "ip skep").contains("balance-2"));
    assert!(chains(&mesh, "ip skep-skep").contains("ingress-2"));
    put_behind(&mut w, service, net, 0..0);
    w.apply().await;
    let left = [chains(&client.netns, "ip skep"), chains(&mesh, "ip skep-skep"), chains(&mesh, "ip6 skep-skep")];
    is_as_told(&w).await;
    let of_tasks = |name: &&String| name.starts_with("balance-") || name.starts_with("ingress-");
    assert_eq!(left.iter().flatten().find(of_tasks), None);
}

/// What a release before had in a sandbox with two tasks behind a virtual address: a chain for each of those, with a map of
/// its own.
const OLD_SANDBOX: &str = "
delete table ip skep
table ip skep {
  map vips { type ipv4_addr : verdict; elements = { 10.0.1.200 : goto vip-10.0.1.200 } }
  set vip-addresses { type ipv4_addr; elements = { 10.0.1.200 } }
  chain vip-10.0.1.200 {
    dnat to numgen random mod 2 map { 0 : 10.0.1.11, 1 : 10.0.1.12 }
    dnat to 10.0.1.11
  }
  chain vip-output { type nat hook output priority -100; ip daddr vmap @vips
  }
  chain vip-prerouting { type nat hook prerouting priority -100; ip daddr vmap @vips
  }
  chain vip-refuse { type filter hook output priority 0
    ip daddr @vip-addresses meta l4proto tcp reject with tcp reset
    ip daddr @vip-addresses reject
  }
}
";

/// The same of a node, made from what is there: a chain for each published port.
fn old_node(tasks: &[IpAddr]) -> String {
    let [first, second] = tasks else { panic!("two tasks: {tasks:?}") };
    format!(
        "
add chain ip skep-skep ingress-tcp-8080
add rule ip skep-skep ingress-tcp-8080 ct mark set ct mark or 0x10000
add rule ip skep-skep ingress-tcp-8080 meta l4proto tcp dnat to numgen random mod 2 map {{ 0 : {first}, 1 : {second} }}:80
add rule ip skep-skep ingress-tcp-8080 meta l4proto tcp dnat to {first}:80
delete element ip skep-skep ingress-ports {{ tcp . 8080 }}
add element ip skep-skep ingress-ports {{ tcp . 8080 : goto ingress-tcp-8080 }}
delete chain ip skep-skep ingress-2
delete map ip skep-skep ingress-tasks
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_new_daemon_replaces_the_rules_of_an_older_one_and_no_connection_fails() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let mut ends = Vec::new();
    for number in 1..=2 {
        let task = w.task(number, 0, Some(service), net, &format!("10.0.1.{}/24", 10 + number)).await;
        serve_slowly(&task.netns);
        ends.extend(task.mesh);
    }
    let client = w.task(9, 0, None, net, "10.0.1.19/24").await;
    w.apply().await;
    for _ in 0..rounds(STARTS) {
        for (netns, text) in [(&client.netns, OLD_SANDBOX), (&w.nodes[0].netns, old_node(&ends).as_str())] {
            let file = w.nodes[0].config.run_dir.with_extension("nft");
            std::fs::write(&file, text).unwrap();
            run(&format!("nsenter --net={} nft -f {}", netns.display(), file.display()));
        }
        let clients = vec![
            ("port", Clients::start(&w.hub(), &format!("{}:8080", w.nodes[0].address), 4)),
            ("virtual address", Clients::start(&client.netns, "10.0.1.200:80", 4)),
        ];
        let all_answered = |more: u64| {
            eventually("answers", || clients.iter().all(|(_, c)| c.answered.load(Ordering::Relaxed) > more));
        };
        all_answered(20);
        w.restart(0);
        w.apply().await;
        let so_far = clients.iter().map(|(_, c)| c.answered.load(Ordering::Relaxed)).max().unwrap();
        all_answered(so_far + 20);
        nothing_was_lost(clients);
        let (inside, node) = (chains(&client.netns, "ip skep"), chains(&w.nodes[0].netns, "ip skep-skep"));
        assert!(inside.contains("balance-2") && !inside.contains("vip-10.0.1.200"), "{inside:?}");
        is_as_told(&w).await;
        assert!(node.contains("ingress-2") && !node.contains("ingress-tcp-8080"), "{node:?}");
    }
}
