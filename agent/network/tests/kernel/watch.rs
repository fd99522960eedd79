//! What somebody takes away by hand comes back by itself.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use skep_network::{BridgeAttachment, HostPort, SandboxId, SandboxSpec};
use skep_proto::model::service::Protocol;
use tokio_util::sync::CancellationToken;

use crate::world::{CLIENT, World, ask_tcp, eventually, pings, run, serve_tcp};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs root"]
async fn rules_links_and_entries_that_somebody_removes_come_back_by_themselves() {
    let mut w = World::new(2);
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    let b = w.task(2, 1, Some(service), net, "10.0.1.20/24").await;
    let own = w.task(3, 0, Some(service), net, "10.0.1.21/24").await;
    w.apply().await;
    serve_tcp(&b.netns, 80, "b");
    serve_tcp(&own.netns, 80, "b");
    let mut spec = SandboxSpec::new(SandboxId::new("plain").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec.host_ports = vec![HostPort { bind: None, published: Some(8081), target: 80, protocol: Protocol::Tcp }];
    let plain = w.nodes[0].network.create_sandbox(spec).await.unwrap();
    serve_tcp(&plain.netns, 80, "plain");
    let stop = CancellationToken::new();
    let watching: Vec<_> = w
        .nodes
        .iter()
        .map(|node| {
            let (network, stop) = (node.network.clone(), stop.clone());
            tokio::spawn(async move { network.watch(stop).await })
        })
        .collect();

    let node = format!("nsenter --net={}", w.nodes[0].netns.display());
    let switch = format!("nsenter --net={}", w.nodes[0].config.switch_dir().join(net.to_string()).display());
    let inside = format!("nsenter --net={}", a.netns.display());
    let works = || {
        let by_port = |port: u16| ask_tcp(&w.hub(), &format!("10.99.0.11:{port}")).ok();
        ask_tcp(&a.netns, "10.0.1.200:80").is_ok_and(|text| text == "b 10.0.1.10")
            && (0..6).all(|_| by_port(8080) == Some(format!("b {CLIENT}")))
            && by_port(8081) == Some(format!("plain {CLIENT}"))
            && pings(&a.netns, "10.0.1.20")
            && pings(&own.netns, "10.0.1.20")
            && pings(&a.netns, CLIENT)
    };
    assert!(works());
    let links = run(&format!("{node} ip -o link"));
    let named = |start: &str| {
        let names = links.lines().filter_map(|line| line.split([' ', ':', '@']).nth(2));
        names.filter(|name| name.starts_with(start)).map(str::to_owned).collect::<Vec<_>>()
    };
    let (task_links, bridge_ports) = (named("skep-t"), named("skep-p"));
    assert!(!task_links.is_empty() && !bridge_ports.is_empty(), "{links}");
    let ports = run(&format!("{switch} ip -o link show type veth"));
    let port = ports.split([' ', ':', '@']).nth(2).unwrap().to_owned();
    for harm in [
        format!("{node} nft flush ruleset"),
        format!("{inside} nft flush ruleset"),
        format!(
            "{switch} nft 'flush ruleset; add table bridge skep {{ chain c {{ type filter hook prerouting priority 0; policy drop; }}; }}'"
        ),
        format!("{node} ip link del skep-mesh"),
        format!("{node} ip rule del priority 5100"),
        format!("{node} ip link del {}", task_links.join(&format!(" && {node} ip link del "))),
        format!("{node} ip link del {}", bridge_ports[0]),
        format!("{node} ip link del skep-br0"),
        format!("{node} ip link set {} nomaster", bridge_ports[0]),
        format!("{switch} ip link del {port}"),
        format!("{switch} ip link set vx0 nomaster"),
        format!("{switch} bridge fdb flush dev vx0"),
        format!("{switch} ip link del vx0"),
        format!("{switch} ip link del br0"),
    ] {
        run(&harm);
        eventually(&harm, works);
    }
    stop.cancel();
    for watching in watching {
        watching.await.unwrap();
    }
}
