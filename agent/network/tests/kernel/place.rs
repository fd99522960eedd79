//! A node enters and leaves a cluster, and moves to another address, without a new network layer.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use skep_network::{BridgeAttachment, HostPort, Place, SandboxId, SandboxSpec};
use skep_proto::model::service::Protocol;

use crate::world::{self, CLIENT, World, ask_tcp, reaches, run, serve_tcp};

fn mesh_link(netns: &Path) -> Option<String> {
    let name = netns.file_name().unwrap().to_string_lossy().into_owned();
    let list = run(&format!("ip -n {name} -o link"));
    list.lines().find(|line| line.contains("skep-mesh")).map(|line| line.split(':').next().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_keeps_its_traffic_until_it_knows_its_place_and_takes_it_elsewhere_with_another_address() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let here = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let there = w.task(2, 1, Some(service), net, "10.0.1.20/24").await;
    serve_tcp(&there.netns, 80, "b");
    w.apply().await;
    let works = |w: &World, node: Ipv4Addr| {
        assert!(reaches(&here.netns, "10.0.1.20"));
        assert_eq!(ask_tcp(&w.hub(), &format!("{node}:8080")).unwrap(), format!("b {CLIENT}"));
    };
    works(&w, w.nodes[0].address);
    let mesh = mesh_link(&w.nodes[0].netns);
    assert!(mesh.is_some());

    // A new process that guesses another address first.
    let (id, other) = (w.nodes[0].id, Ipv4Addr::new(10, 99, 0, 31));
    let guess = Place { node: None, data_path: vec![IpAddr::V4(other)] };
    let network = world::start(&w.nodes[0].netns, &w.nodes[0].config, guess, &w.nodes[0].names);
    works(&w, w.nodes[0].address);
    network.enter(id, vec![IpAddr::V4(w.nodes[0].address)]).await.unwrap();
    works(&w, w.nodes[0].address);
    assert_eq!(mesh_link(&w.nodes[0].netns), mesh);
    w.nodes[0].network = network;

    let ns = w.nodes[0].netns.file_name().unwrap().to_string_lossy().into_owned();
    let uplink = format!("addr del {}/24 dev uplink && ip -n {ns} addr add {other}/24 dev uplink", w.nodes[0].address);
    run(&format!("ip -n {ns} {uplink} && ip -n {ns} route add default via {CLIENT}"));
    w.nodes[0].network.enter(id, vec![IpAddr::V4(other)]).await.unwrap();
    w.view.peers.get_mut(&id).unwrap().data_path = vec![IpAddr::V4(other)];
    w.nodes[0].address = other;
    w.apply().await;
    works(&w, other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_that_leaves_forgets_the_cluster_and_keeps_its_bridges() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let task = w.task(1, 1, Some(service), net, "10.0.1.10/24").await;
    serve_tcp(&task.netns, 80, "b");
    let mut spec = SandboxSpec::new(SandboxId::new("plain").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec.host_ports = vec![HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp }];
    let plain = w.nodes[0].network.create_sandbox(spec).await.unwrap();
    serve_tcp(&plain.netns, 80, "plain");
    w.apply().await;
    let asked = |w: &World, port: u16| ask_tcp(&w.hub(), &format!("{}:{port}", w.nodes[0].address));
    assert_eq!(asked(&w, 8080).unwrap(), format!("b {CLIENT}"));
    w.nodes[0].network.leave().await.unwrap();
    assert_eq!(mesh_link(&w.nodes[0].netns), None);
    assert_eq!(asked(&w, 8080).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(asked(&w, 8081).unwrap(), format!("plain {CLIENT}"));
    // Nothing of the cluster comes back with the next process.
    let data_path = vec![IpAddr::V4(w.nodes[0].address)];
    let place = Place { node: None, data_path };
    w.nodes[0].network = world::start(&w.nodes[0].netns, &w.nodes[0].config, place, &w.nodes[0].names);
    assert_eq!(mesh_link(&w.nodes[0].netns), None);
    assert_eq!(asked(&w, 8081).unwrap(), format!("plain {CLIENT}"));
}
