//! The routing mesh as the kernel alone can have it: route, DNAT and VXLAN by the shortest commands, no rule of ours.
//! It is the floor that ours is measured against: nobody's connections are told apart, filtered or counted.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::world::run;

/// UDP port that leads to the task.
pub const DATAGRAMS: u16 = 8081;

/// Two nodes on the wire of a world, and a task on the first. The world removes them with its own.
pub struct Bare {
    /// Addresses of the nodes: of the task's, and of the one that leads there.
    pub own: Ipv4Addr,
    pub other: Ipv4Addr,
    /// The task.
    pub task: PathBuf,
    names: [String; 2],
}

impl Bare {
    /// Makes them beside the nodes of the world with that hub.
    pub fn new(hub: &Path) -> Self {
        let hub = hub.file_name().unwrap().to_str().unwrap();
        let tag = hub.strip_suffix("-hub").unwrap();
        let [one, two, task] = ["bare1", "bare2", "bare-task"].map(|name| format!("{tag}-{name}"));
        let (own, other) = (Ipv4Addr::new(10, 99, 0, 21), Ipv4Addr::new(10, 99, 0, 22));
        run(&format!("ip netns add {task} && ip -n {task} link set lo up"));
        for (number, name, address, there) in [(1, &one, own, other), (2, &two, other, own)] {
            let peer = 3 - number;
            run(&format!(
                "ip netns add {name} && ip -n {name} link set lo up && \
                 ip -n {hub} link add b{number} type veth peer name uplink netns {name} && \
                 ip -n {hub} link set b{number} master wire up && \
                 ip -n {name} addr add {address}/24 dev uplink && ip -n {name} link set uplink up && \
                 nsenter --net=/run/netns/{name} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 && \
                 ip -n {name} link add vx address 02:00:00:00:00:0{number} mtu 1450 type vxlan id 9 dstport 4789 \
                 local {address} nolearning udpcsum && \
                 ip -n {name} addr add 100.64.0.{number}/32 dev vx && ip -n {name} link set vx up && \
                 bridge -n {name} fdb append 02:00:00:00:00:0{peer} dev vx dst {there} self permanent && \
                 ip -n {name} neigh replace 100.64.0.{peer} lladdr 02:00:00:00:00:0{peer} dev vx nud permanent && \
                 ip -n {name} route add 100.64.0.{peer} dev vx"
            ));
        }
        // The task has two addresses, so that one rule tells which answers go back by the other node.
        run(&format!(
            "ip -n {one} link add task type veth peer name eth0 netns {task} && ip -n {one} link set task up && \
             ip -n {task} link set eth0 up && ip -n {task} addr add 100.65.0.2/32 dev eth0 && \
             ip -n {task} addr add 100.65.0.3/32 dev eth0 && ip -n {one} addr add 100.65.0.1/32 dev task && \
             ip -n {one} route add 100.65.0.2 dev task && ip -n {one} route add 100.65.0.3 dev task && \
             ip -n {task} route add 100.65.0.1 dev eth0 && ip -n {task} route add default via 100.65.0.1 && \
             ip -n {one} rule add pref 99 from 100.65.0.2 iif task lookup 77 && \
             ip -n {one} route add default via 100.64.0.2 dev vx table 77 && \
             ip -n {two} route add 100.65.0.2 via 100.64.0.1 dev vx"
        ));
        for (name, address, to) in [(&one, own, "100.65.0.3"), (&two, other, "100.65.0.2")] {
            run(&format!(
                "nsenter --net=/run/netns/{name} nft 'table ip bare {{ chain lead {{ type nat hook prerouting priority -100; \
                 ip daddr {address} meta l4proto tcp dnat to {to}; \
                 ip daddr {address} udp dport {DATAGRAMS} dnat to {to}; }}; chain segments {{ type filter hook forward priority -150; \
                 oifname vx tcp flags syn tcp option maxseg size set rt mtu; }}; }}'"
            ));
        }
        Self { own, other, task: format!("/run/netns/{task}").into(), names: [one, two] }
    }

    /// Namespaces of the nodes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}
