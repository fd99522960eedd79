//! Clusters in which not every node has IPv6, and nodes whose data paths have no version of IP in common.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::io::ErrorKind;

use skep_proto::model::TaskId;
use skep_proto::model::doctor::{Check, Outcome};
use skep_proto::model::service::Protocol;

use crate::world::{World, ask_tcp, eventually, node6, pings, run, serve_tcp};

/// What `skep doctor` finds on a node.
fn found(w: &World, node: usize) -> Vec<Check> {
    w.nodes[node].network.examine_families(|id| format!("node{}", id.0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn nothing_that_is_asked_over_ipv6_is_led_to_a_node_without_it() {
    let mut w = World::new(3);
    w.turn_off_ipv6(2);
    let net = w.dual_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.add_vip(service, net, "fd00:1::c8/64");
    w.apply().await;
    let client = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let with = w.task_at(2, 1, Some(service), net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    let without = w.task_at(3, 2, Some(service), net, &["10.0.1.30/24", "fd00:1::1e/64"]).await;
    serve_tcp(&with.netns, 80, "with");
    serve_tcp(&without.netns, 80, "without");
    w.apply().await;
    assert!(without.links.iter().all(|link| link.address6.is_none()), "{:?}", without.links);

    let who = |netns: &std::path::Path, to: &str| -> BTreeSet<String> {
        (0..30).map(|_| ask_tcp(netns, to).unwrap().split(' ').next().unwrap().to_owned()).collect()
    };
    let (all, some) = (BTreeSet::from(["with".into(), "without".into()]), BTreeSet::from(["with".to_owned()]));
    for number in [1, 2] {
        assert_eq!(who(&w.hub(), &format!("[{}]:8080", node6(number))), some, "by node {number}");
        assert_eq!(who(&w.hub(), &format!("10.99.0.1{number}:8080")), all, "by node {number}");
    }
    assert_eq!(who(&client.netns, "[fd00:1::c8]:80"), some);
    assert_eq!(who(&client.netns, "10.0.1.200:80"), all);
    assert_eq!(who(&without.netns, "10.0.1.200:80"), all);

    // After a start, before the managers are heard.
    w.restart(0);
    assert_eq!(who(&w.hub(), &format!("[{}]:8080", node6(1))), some, "after a start");
    w.apply().await;

    // Nobody else is left: refused at once, not after a time-out.
    w.view.endpoints.get_mut(&TaskId(2)).unwrap().serving = false;
    w.apply().await;
    for (netns, to) in [(&w.hub(), format!("[{}]:8080", node6(1))), (&client.netns, "[fd00:1::c8]:80".into())] {
        assert_eq!(ask_tcp(netns, &to).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    assert!(ask_tcp(&client.netns, "10.0.1.200:80").unwrap().starts_with("without"));

    assert_eq!(found(&w, 0), []);
    let [only] = &found(&w, 2)[..] else { panic!("{:?}", found(&w, 2)) };
    assert!(only.outcome == Outcome::Warning && only.seen.contains("no IPv6"), "{only:?}");
    // It comes, and the task is as it was made.
    run(&format!("nsenter --net={} sysctl -qw net.ipv6.conf.all.disable_ipv6=0", w.nodes[2].netns.display()));
    w.restart(2);
    w.apply().await;
    assert!(!w.nodes[2].network.speaks_ipv6());
    assert!(found(&w, 2)[0].seen.contains("were made while"), "{:?}", found(&w, 2));
    w.nodes[2].network.delete_sandbox(&without.id).await.unwrap();
    assert!(w.nodes[2].network.speaks_ipv6());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_plain_network_leads_to_no_node_that_its_packets_do_not_reach() {
    let mut w = World::new(3);
    w.leave_ipv6_alone(2);
    // What the first node and the third have in common is IPv6, which the plain network does not take from the first.
    let both = w.view.peers[&w.nodes[0].id].data_path.clone();
    w.enter_with(0, both).await;
    let (open, sealed) = (w.plain_network(1), w.network(2));
    let near = w.service(1, open, "10.0.1.200/24", &[]);
    let safe = w.service(2, sealed, "10.0.2.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let client = w.task(1, 0, None, open, "10.0.1.10/24").await;
    let reached = w.task(2, 1, Some(near), open, "10.0.1.20/24").await;
    let cut_off = w.task(3, 2, Some(near), open, "10.0.1.30/24").await;
    serve_tcp(&reached.netns, 80, "reached");
    serve_tcp(&cut_off.netns, 80, "cut off");
    let friend = w.task(4, 0, None, sealed, "10.0.2.10/24").await;
    let far = w.task(5, 2, Some(safe), sealed, "10.0.2.30/24").await;
    serve_tcp(&far.netns, 80, "far");
    w.apply().await;
    for _ in 0..20 {
        assert!(ask_tcp(&client.netns, "10.0.1.200:80").unwrap().starts_with("reached"));
    }
    eventually("an answer through WireGuard", || pings(&friend.netns, "10.0.2.30"));
    assert!(ask_tcp(&friend.netns, "10.0.2.200:80").unwrap().starts_with("far"));
    let [only] = &found(&w, 0)[..] else { panic!("{:?}", found(&w, 0)) };
    assert_eq!((only.outcome, only.peer.as_str()), (Outcome::Failed, "node3"));
    assert!(only.seen.contains("the network net1 is not encrypted and goes over IPv4"), "{only:?}");
    // The second node has IPv4 alone: WireGuard reaches the third neither.
    let second = w.nodes[1].id;
    w.view.peers.get_mut(&second).unwrap().data_path.truncate(1);
    w.apply().await;
    let seen: Vec<String> = found(&w, 1).into_iter().map(|check| check.seen).collect();
    assert!(seen.iter().any(|text| text.contains("no version of IP in common")), "{seen:?}");
    assert_eq!(ask_tcp(&w.nodes[1].netns, "10.99.0.12:8080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
