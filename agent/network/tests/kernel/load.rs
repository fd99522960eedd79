//! Constant load while tasks come and go: nobody's connection but theirs is touched.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use skep_proto::model::TaskId;
use skep_proto::model::service::Protocol;

use crate::world::load::{Clients, LIFE, serve_slowly};
use crate::world::{self, World, run, within};

/// Ports that clients connect from. So few that each is used again within a fraction of a second, while the node still
/// remembers its last connection.
const PORTS: (u16, u16) = (40_000, 41_499);
/// How many tasks come and go; `SKEP_LOAD_ROUNDS` says otherwise.
const ROUNDS: u128 = 5;
/// How often the tasks behind a service change.
const SWAPS: u128 = 200;
/// Connections that have nothing to do with it: looking through them takes time.
const OTHERS: u16 = 30_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_task_that_goes_takes_no_connection_of_another_with_it() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    for (number, node) in [(1, 0), (2, 1)] {
        let task = w.task(number, node, Some(service), net, &format!("10.0.1.{}/24", 10 + number)).await;
        serve_slowly(&task.netns);
    }
    w.apply().await;
    let hub = w.hub();
    run(&format!(
        "nsenter --net={} busybox sysctl -w net.ipv4.ip_local_port_range='{} {}'",
        hub.display(),
        PORTS.0,
        PORTS.1
    ));
    let node = w.nodes[0].address;
    let noise = within(&hub, move || {
        let socket = UdpSocket::bind("0.0.0.0:9").unwrap();
        for port in 10_000..10_000 + OTHERS {
            let _ = socket.send_to(b"x", (node, port));
        }
    });
    noise.join().unwrap();
    let clients = Clients::start(&hub, &format!("{node}:8080"), 8);
    let rounds = std::env::var("SKEP_LOAD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    for number in 3..3 + rounds {
        let task = w.task(number, 0, Some(service), net, &format!("10.0.1.{}/24", 10 + number)).await;
        serve_slowly(&task.netns);
        w.apply().await;
        let answered = clients.answered.load(Ordering::Relaxed);
        world::eventually("more answers", || clients.answered.load(Ordering::Relaxed) > answered + 200);
        w.view.endpoints.get_mut(&TaskId(number)).unwrap().serving = false;
        w.apply().await;
        // Longer than any connection lives: it has none when it goes.
        thread::sleep(LIFE * 5);
        w.view.endpoints.remove(&TaskId(number));
        w.apply().await;
        w.nodes[0].network.delete_sandbox(&task.id).await.unwrap();
    }
    let (answered, failures) = clients.finish();
    println!("{answered} answered, {} lost", failures.len());
    assert!(failures.is_empty(), "{} of {answered} connections were lost: {failures:?}", failures.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_connection_that_was_lost_on_its_way_to_a_task_is_led_to_another_once_that_one_drains() {
    let mut w = World::new(1);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let deaf = w.task_at(1, 0, Some(service), net, &["10.0.1.11/24", "fd00:1::b/64"]).await;
    let inside = format!("nsenter --net={}", deaf.netns.display());
    run(&format!(
        "{inside} nft 'add table inet deaf; add chain inet deaf in {{ type filter hook input priority 0; policy accept; }}; \
         add rule inet deaf in tcp dport 80 counter drop'"
    ));
    let client = w.task_at(2, 0, None, net, &["10.0.1.12/24", "fd00:1::c/64"]).await;
    w.apply().await;
    // Both ways to a service, its published port and its virtual address, over either version of IP.
    let asked = [
        (w.hub(), format!("{}:8080", w.nodes[0].address)),
        (w.hub(), format!("[{}]:8080", world::node6(1))),
        (client.netns.clone(), "10.0.1.200:80".to_owned()),
        (client.netns.clone(), "[fd00:1::c8]:80".to_owned()),
    ]
    .map(|(netns, to)| {
        within(&netns, move || TcpStream::connect_timeout(&to.parse().unwrap(), Duration::from_secs(20)))
    });
    // All were led to it.
    world::eventually("packets of all at the deaf task", || {
        let text = run(&format!("{inside} nft list chain inet deaf in"));
        let count = text.split_once("counter packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        count.unwrap_or(0u32) >= 4
    });
    let other = w.task_at(3, 0, Some(service), net, &["10.0.1.13/24", "fd00:1::d/64"]).await;
    serve_slowly(&other.netns);
    w.view.endpoints.get_mut(&TaskId(1)).unwrap().serving = false;
    w.apply().await;
    for asked in asked {
        asked.join().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_port_whose_tasks_change_all_the_time_never_refuses() {
    let mut w = World::new(1);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    for number in 1..=3 {
        let task = w.task(number, 0, Some(service), net, &format!("10.0.1.{}/24", 10 + number)).await;
        serve_slowly(&task.netns);
    }
    let client = w.task(9, 0, None, net, "10.0.1.19/24").await;
    w.apply().await;
    let outside = Clients::start(&w.hub(), &format!("{}:8080", w.nodes[0].address), 8);
    let inside = Clients::start(&client.netns, "10.0.1.200:80", 8);
    let swaps = std::env::var("SKEP_LOAD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SWAPS);
    for swap in 0..swaps {
        // Others than before, each time.
        for number in 1..=3 {
            w.view.endpoints.get_mut(&TaskId(number)).unwrap().serving = number != 1 + swap % 3;
        }
        w.apply().await;
    }
    for (way, clients) in [("port", outside), ("virtual address", inside)] {
        let (answered, failures) = clients.finish();
        println!("{way}: {answered} answered, {} lost", failures.len());
        assert!(
            failures.is_empty(),
            "{} of {answered} connections by the {way} were lost: {failures:?}",
            failures.len()
        );
    }
}
