//! Nodes that reach each other over IPv6 alone, or some of them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use skep_proto::model::service::Protocol;

use crate::world::wire::Capture;
use crate::world::{CLIENT6, World, ask_tcp, eventually, node6, pings, reaches, run, serve_tcp, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn networks_span_nodes_that_have_ipv6_alone_between_them() {
    let mut w = World::new(2);
    for node in [0, 1] {
        w.leave_ipv6_alone(node);
    }
    let (sealed, open) = (w.dual_network(1), w.plain_network(2));
    let service = w.service(1, sealed, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let a = w.task_at(1, 0, None, sealed, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    let b = w.task_at(2, 1, Some(service), sealed, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    let c = w.task(3, 0, None, open, "10.0.2.10/24").await;
    let d = w.task(4, 1, None, open, "10.0.2.20/24").await;
    w.apply().await;
    serve_tcp(&b.netns, 80, "b");
    eventually("an answer through WireGuard", || pings(&a.netns, "10.0.1.20") && pings(&a.netns, "fd00:1::14"));
    eventually("an answer of the other node", || pings(&c.netns, "10.0.2.20") && pings(&d.netns, "10.0.2.10"));
    assert_eq!(ask_tcp(&w.hub(), &format!("[{}]:8080", node6(1))).unwrap(), format!("b {CLIENT6}"));
    // Packets of the size that the network promises are not cut on their way.
    let largest = |netns: &std::path::Path, to: &str| {
        let link = run(&format!("nsenter --net={} ip -o link show eth0", netns.display()));
        let mtu: usize = link.split("mtu ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let capture = Capture::start(&w.hub());
        run(&format!("nsenter --net={} busybox ping -c1 -W2 -s {} {to}", netns.display(), mtu - 28));
        assert_eq!(capture.stop().fragments6(), 0, "at {mtu}");
        mtu
    };
    // 1500 less WireGuard over IPv6 (80) and VXLAN (50), and less VXLAN over IPv6 (70).
    assert_eq!((largest(&a.netns, "10.0.1.20"), largest(&c.netns, "10.0.2.20")), (1370, 1430));

    // Nobody else may send into the network that is not encrypted, over IPv6 neither.
    let frame = [[0x02, 0x42, 10, 0, 2, 20], [0x02, 0x42, 10, 0, 2, 99]].concat();
    let vxlan = [&[8, 0, 0, 0, 0, 0x10, 2, 0][..], &frame, &[8, 0], &b"intruder"[..], &[0; 40]].concat();
    let arrives_from = |netns: &std::path::Path| {
        let (to, vxlan) = (format!("[{}]:4789", node6(2)), vxlan.clone());
        let capture = Capture::start(&d.netns);
        let sent = within(netns, move || std::net::UdpSocket::bind("[::]:0").unwrap().send_to(&vxlan, to).unwrap());
        sent.join().unwrap();
        assert!(reaches(&d.netns, "10.0.2.10"));
        capture.stop().with(b"intruder")
    };
    assert_eq!(arrives_from(&w.nodes[0].netns), 1, "or this test proves nothing");
    assert_eq!(arrives_from(&w.hub()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_with_both_reaches_nodes_of_either() {
    let mut w = World::new(3);
    let both = skep_proto::model::NodeId(1);
    // The first has both, the second IPv4, the third IPv6.
    let second = w.nodes[1].id;
    w.view.peers.get_mut(&second).unwrap().data_path.truncate(1);
    w.leave_ipv6_alone(2);
    w.enter_with(0, w.view.peers[&both].data_path.clone()).await;
    let net = w.dual_network(1);
    w.apply().await;
    let a = w.task_at(1, 0, None, net, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    w.task_at(2, 1, None, net, &["10.0.1.20/24", "fd00:1::14/64"]).await;
    w.task_at(3, 2, None, net, &["10.0.1.30/24", "fd00:1::1e/64"]).await;
    w.apply().await;
    eventually("answers of both", || {
        ["10.0.1.20", "fd00:1::14", "10.0.1.30", "fd00:1::1e"].iter().all(|to| pings(&a.netns, to))
    });
}
