//! Sandboxes join and leave networks while their processes run.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use skep_network::{
    BridgeAttachment, HostPort, LinkKind, NetworkError, OverlayAttachment, Sandbox, SandboxId, SandboxSpec,
};
use skep_proto::model::service::Protocol;

use crate::world::{self, CLIENT, World, ask_tcp, bridge, pings, reaches, serve_tcp};

fn plain(name: &str) -> SandboxSpec {
    let mut spec = SandboxSpec::new(SandboxId::new(name).unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec
}

fn on_bridge(bridge: &str) -> BridgeAttachment {
    BridgeAttachment { bridge: bridge.into(), address: None, names: vec!["name".into()], address6: None }
}

fn names(sandbox: &Sandbox) -> Vec<(&str, &LinkKind)> {
    sandbox.links.iter().map(|link| (link.name.as_str(), &link.kind)).collect()
}

fn address(sandbox: &Sandbox, kind: &LinkKind) -> String {
    sandbox.links.iter().find(|link| link.kind == *kind).unwrap().address.addr().to_string()
}

/// A connection that stays, from a client outside to a server that echoes.
fn hold(server: &Path, client: &Path, to: &str, port: u16) -> TcpStream {
    let listener = world::within(server, || TcpListener::bind("0.0.0.0:90").unwrap()).join().unwrap();
    let to = format!("{to}:{port}");
    let stream = world::within(client, move || TcpStream::connect(to).unwrap()).join().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    stream.set_read_timeout(Some(std::time::Duration::from_secs(3))).unwrap();
    stream
}

fn echoes(mut stream: &TcpStream) -> bool {
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_container_joins_and_leaves_networks_while_its_connections_go_on() {
    let mut w = World::new(2);
    let net = w.network(1);
    w.apply().await;
    let far = w.task(1, 1, None, net, "10.0.1.10/24").await;
    w.apply().await;
    w.nodes[0].network.create_bridge(bridge("other", None, false)).await.unwrap();
    let neighbour = SandboxSpec { bridges: vec![on_bridge("other")], ..plain("neighbour") };
    let neighbour = w.nodes[0].network.create_sandbox(neighbour).await.unwrap();
    let (bridge, other, overlay) =
        (LinkKind::Bridge("bridge".into()), LinkKind::Bridge("other".into()), LinkKind::Overlay(net));

    let mut spec = plain("moving");
    spec.host_ports = vec![HostPort { bind: None, published: Some(8090), target: 90, protocol: Protocol::Tcp }];
    let made = w.nodes[0].network.create_sandbox(spec.clone()).await.unwrap();
    let node = w.nodes[0].address.to_string();
    let held = hold(&made.netns, &w.hub(), &node, 8090);
    assert!(echoes(&held));
    let neighbours = address(&neighbour, &other);
    assert!(!pings(&made.netns, &neighbours));

    spec.bridges.push(on_bridge("other"));
    spec.overlays.push(OverlayAttachment {
        network: net,
        address: "10.0.1.20/24".parse().unwrap(),
        names: vec!["name".into()],
        address6: None,
    });
    spec.mesh = true;
    let joined = w.nodes[0].network.reshape_sandbox(spec.clone()).await.unwrap();
    assert_eq!(names(&joined), [("eth0", &bridge), ("eth1", &overlay), ("eth2", &other), ("eth3", &LinkKind::Task)]);
    assert!(echoes(&held), "the connection by the published port");
    assert!(reaches(&joined.netns, &neighbours));
    // The other end learns of it from the managers.
    let endpoint = skep_proto::model::view::EndpointView {
        task: skep_proto::model::TaskId(2),
        service: None,
        node: w.nodes[0].id,
        name: "moving".into(),
        addresses: vec![skep_proto::model::view::EndpointAddress {
            network: net,
            address: "10.0.1.20/24".parse().unwrap(),
            aliases: Vec::new(),
            names: Vec::new(),
        }],
        mesh: None,
        serving: true,
    };
    w.view.endpoints.insert(endpoint.task, endpoint);
    w.apply().await;
    assert!(reaches(&far.netns, "10.0.1.20") && reaches(&joined.netns, "10.0.1.10"));
    let zones = w.nodes[0].names.zones();
    assert!(zones.values().filter(|zone| zone.resolve("name").is_some()).count() == 2, "{zones:?}");

    // A new process finds it as it is, and goes on with it.
    w.restart(0);
    w.apply().await;
    assert!(echoes(&held) && reaches(&joined.netns, &neighbours) && reaches(&joined.netns, "10.0.1.10"));
    assert_eq!(w.nodes[0].network.create_sandbox(spec.clone()).await.unwrap().links, joined.links);

    spec.bridges.remove(0);
    let left = w.nodes[0].network.reshape_sandbox(spec.clone()).await.unwrap();
    assert_eq!(names(&left), [("eth1", &overlay), ("eth2", &other), ("eth3", &LinkKind::Task)]);
    assert!(reaches(&left.netns, &neighbours) && reaches(&left.netns, "10.0.1.10") && reaches(&left.netns, CLIENT));
    serve_tcp(&left.netns, 91, "moving");
    let port = HostPort { bind: None, published: Some(8091), target: 91, protocol: Protocol::Tcp };
    let other_ports = SandboxSpec { host_ports: vec![port], ..spec.clone() };
    let refused = w.nodes[0].network.reshape_sandbox(other_ports).await.unwrap_err();
    assert!(matches!(refused, NetworkError::Differs { .. }));
    // The port leads to where the sandbox is now.
    let again = TcpStream::connect_timeout;
    let to = format!("{node}:8090").parse().unwrap();
    world::within(&w.hub(), move || again(&to, std::time::Duration::from_secs(3)).unwrap()).join().unwrap();

    spec.overlays.clear();
    spec.mesh = false;
    spec.bridges = vec![BridgeAttachment::default_bridge()];
    let back = w.nodes[0].network.reshape_sandbox(spec.clone()).await.unwrap();
    assert_eq!(names(&back), [("eth0", &bridge)]);
    assert!(pings(&back.netns, CLIENT) && !pings(&back.netns, &neighbours) && !pings(&back.netns, "10.0.1.10"));
    assert_eq!(
        ask_tcp(&w.nodes[0].netns, &format!("{}:91", address(&back, &bridge))).unwrap().split(' ').next(),
        Some("moving")
    );
    spec.bridges = vec![on_bridge("nosuch")];
    let refused = w.nodes[0].network.reshape_sandbox(spec).await.unwrap_err();
    assert_eq!(refused.to_string(), "network nosuch not found");
}
