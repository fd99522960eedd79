//! Probes of `skep doctor`: what is seen of this node's network. Nothing is changed by looking.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::doctor::{Check, Known};
use skep_proto::model::view::Peer;
use skep_proto::model::{NetworkId, NodeId};
use tokio::time::{Instant, timeout, timeout_at};

use super::asking::Answers;
use super::{Encryption, Inner, NodeNetwork, SwitchCell, blocking, lock, sysctl};
use crate::config::ENCRYPTED_PORT;
use crate::doctor::{self, Features, Needed, Truth};
use crate::error::{NetworkError, Step};
use crate::netlink::{Requests, Rtnl, Vxlan};
use crate::nft;

/// Nodes that are asked at a time: what is on its way together must fit into buffers.
const AT_A_TIME: usize = 50;
/// Between two looks at what others may have changed: the watch has brought it back by then.
const AGAIN: Duration = Duration::from_millis(1500);
/// How long the process skep net is waited for. It is on this host.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long sandboxes are waited for, all together, while others have them: the watch, and both halves of one look.
/// One that is not free by then is being made or taken away, and its maker's.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// `ERANGE`: what a kernel with VXLAN answers to a network number of more than 24 bits.
const OUT_OF_RANGE: i32 = 34;

/// The port of managers that were given no other.
const CLUSTER_PORT: u16 = 2377;

impl NodeNetwork {
    /// What the network needs of the kernel.
    pub async fn examine_kernel(&self) -> Vec<Check> {
        let encryption = match timeout(PATIENCE, self.encryption()).await {
            Ok(encryption) => encryption,
            Err(_) => Encryption {
                failure: Some(format!("the process skep net does not answer within {} s", PATIENCE.as_secs())),
                ..Encryption::default()
            },
        };
        let inner = self.inner.clone();
        let probed = blocking(move || {
            let in_cluster = inner.state().place.node.is_some();
            Ok(doctor::judge_features(&inner.features(encryption, in_cluster)))
        });
        probed.await.unwrap_or_else(|error| vec![unseen("kernel", &error)])
    }

    /// The ways to the other nodes. `name` gives a node's name.
    pub async fn examine_pairs(&self, name: impl Fn(NodeId) -> String) -> Vec<Check> {
        let tunnel = match timeout(PATIENCE, self.tunnel()).await.unwrap_or_else(|error| Err(error.into())) {
            Ok(tunnel) => tunnel,
            Err(error) => {
                let advice = "the process skep net is not there, or is stopped or hangs: look for it (ps), and in this node's \
                              log for why it does not start; killing it makes the daemon start another";
                return vec![Check::failed("tunnel", format!("skep net does not answer: {error}"), advice)];
            }
        };
        let (view, own) = {
            let state = self.inner.state();
            (state.view.clone(), state.place.node)
        };
        let others: Vec<Peer> = view.peers.values().filter(|peer| Some(peer.node) != own).cloned().collect();
        let mut checks = Vec::new();
        for peers in others.chunks(AT_A_TIME) {
            let (inner, tunnel) = (self.inner.clone(), tunnel.clone());
            let peers: Vec<(Peer, String)> = peers.iter().map(|peer| (peer.clone(), name(peer.node))).collect();
            match blocking(move || inner.examine_ways(&peers, tunnel.as_ref())).await {
                Ok(seen) => checks.extend(seen),
                Err(error) => return vec![unseen("tunnel", &error)],
            }
        }
        checks
    }

    /// Whether rules, links and names are as the managers' last word says, and containers are answered so.
    pub async fn examine_truth(&self) -> Vec<Check> {
        let look = async || tokio::join!(self.inner.truth(), self.inner.ask_in_sandboxes());
        let (mut seen, mut answers) = look().await;
        let is_right = |answers: &Answers| answers.asked.iter().all(doctor::Asked::is_right);
        if !seen.holds() || !answers.as_ref().is_ok_and(is_right) {
            // What just changes, or what the watch is bringing back.
            tokio::time::sleep(AGAIN).await;
            (seen, answers) = look().await;
        }
        let mut checks = doctor::judge_truth(&seen);
        match answers {
            Ok(Answers { asked, containers, of }) => checks.extend(doctor::judge_answers(&asked, containers, of)),
            Err(error) => checks.push(unseen("answers", &error)),
        }
        checks
    }

    /// Whether the node's ports are its own. `managing` is the port at which it manages, if it does.
    pub async fn examine_ports(&self, managing: Option<u16>) -> Vec<Check> {
        let inner = self.inner.clone();
        let probed = blocking(move || {
            let (in_cluster, plain) = {
                let state = inner.state();
                let plain =
                    crate::plan::encryption::plain_ports(&state.view, inner.config.vxlan_port).into_iter().next();
                (state.place.node.is_some(), plain)
            };
            let (wireguard, vxlan) = (inner.config.wireguard_port, plain.unwrap_or(inner.config.vxlan_port));
            let needed = [
                ("tcp", managing.unwrap_or(CLUSTER_PORT), "managers", managing.is_some()),
                ("udp", wireguard, "WireGuard", in_cluster),
                ("udp", ENCRYPTED_PORT, "VXLAN in WireGuard", in_cluster),
                ("udp", vxlan, "VXLAN of plain networks", false),
            ];
            let mut sockets = Vec::new();
            for (protocol, table) in [("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6")] {
                let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
                sockets.extend(doctor::sockets(protocol, &text));
            }
            sockets.retain(|s| needed.iter().any(|(protocol, port, ..)| s.protocol == *protocol && s.port == *port));
            let owners = doctor::owners(&sockets);
            let judge = |(protocol, port, purpose, now)| {
                doctor::judge_port(&Needed { protocol, port, purpose, now }, &sockets, &owners)
            };
            Ok(needed.into_iter().map(judge).collect())
        });
        probed.await.unwrap_or_else(|error| vec![unseen("ports", &error)])
    }

    /// This node, in a cluster.
    pub fn node(&self) -> Option<NodeId> {
        self.inner.state().place.node
    }

    /// What this node was told of the cluster, as it is in force; `None` in no cluster.
    pub fn known(&self) -> Option<Known> {
        let state = self.inner.state();
        state.place.node?;
        let view = &state.view;
        // The managers list tasks of services; plain containers on the cluster's networks are none.
        let serving = view.endpoints.values().filter(|endpoint| endpoint.serving && endpoint.service.is_some());
        Some(Known {
            nodes: view.peers.keys().map(ToString::to_string).collect(),
            networks: view.networks.keys().map(ToString::to_string).collect(),
            services: view.services.keys().map(ToString::to_string).collect(),
            serving: serving.map(|endpoint| endpoint.task.to_string()).collect(),
        })
    }
}

fn unseen(name: &str, error: &NetworkError) -> Check {
    let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
    Check::warning(name, format!("could not be looked at: {error}{cause}"), "look in this node's log")
}

impl Inner {
    fn features(&self, encryption: Encryption, in_cluster: bool) -> Features {
        let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let read = |name: &str| number(&format!("/proc/sys/net/netfilter/{name}"));
        let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        Features {
            nf_tables: nft::probe(&self.netns).map_err(|error| error.to_string()),
            vxlan: self.probe_vxlan().map_err(|error| error.to_string()),
            tun: open().map(drop).map_err(|error| error.to_string()),
            tracked: read("nf_conntrack_count").zip(read("nf_conntrack_max")),
            forwards: number("/proc/sys/net/ipv4/ip_forward") == Some(1),
            forwards6: sysctl::has_ipv6(&self.netns)
                .then(|| number("/proc/sys/net/ipv6/conf/all/forwarding").is_some_and(|value| value != 0)),
            wants6: in_cluster || self.has_ipv6_on_a_bridge(),
            encryption,
            in_cluster,
        }
    }

    fn has_ipv6_on_a_bridge(&self) -> bool {
        let state = self.state();
        state.bridges.values().any(|bridge| state.with_twin(bridge).ipv6.is_some())
    }

    /// Asks for a link that cannot be: a kernel without VXLAN says so before it looks at the number of the network.
    fn probe_vxlan(&self) -> io::Result<()> {
        let name = self.config.names().passing(1 << 24);
        let (local, mac) = (IpAddr::V4(Ipv4Addr::LOCALHOST), None);
        let vxlan = Vxlan { name: &name, vni: 1 << 24, local, port: 4789, mtu: 1400, proxy: false, mac };
        let mut rtnl = Rtnl::open(&self.netns)?;
        match rtnl.send(Requests::new().add_vxlan(&vxlan)) {
            Err(error) if error.raw_os_error() == Some(OUT_OF_RANGE) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                rtnl.send(Requests::new().delete_link(&name))?;
                Ok(())
            }
        }
    }

    async fn truth(self: &Arc<Self>) -> Truth {
        // A view that is being brought is half there.
        let _one = self.applying.lock().await;
        let mut seen = Truth::default();
        let inner = self.clone();
        match blocking(move || inner.node_truth()).await {
            Ok((rules, links)) => {
                (seen.rules, seen.links) = (rules, links);
                seen.namespaces = 1;
            }
            Err(error) => seen.unseen.push(unseen("node", &error).seen),
        }
        let switches: Vec<(NetworkId, SwitchCell)> =
            lock(&self.switches).iter().map(|(id, cell)| (*id, cell.clone())).collect();
        for (network, cell) in switches {
            let looked = blocking(move || lock(&cell).as_ref().map(|switch| switch.differences()).transpose());
            seen.add(&format!("network {network}"), looked.await);
        }
        let mut served = Vec::new();
        let until = Instant::now() + SOON;
        for (id, cell) in self.live_cells() {
            let Ok(live) = timeout_at(until, cell.lock_owned()).await else { continue };
            let Some(record) = self.state().records.get(&id).cloned() else { continue };
            served.extend(live.is_some().then(|| id.clone()));
            let inner = self.clone();
            let looked = blocking(move || live.as_ref().map(|live| live.differences(&inner, &record)).transpose());
            seen.add(&format!("sandbox {id}"), looked.await);
        }
        match timeout(PATIENCE, self.names.sandboxes()).await {
            Ok(Ok(known)) => {
                let unknown = served.iter().filter(|id| !known.contains(id));
                seen.names.extend(unknown.map(|id| format!("the name server does not serve sandbox {id}")));
            }
            Ok(Err(error)) => seen.names.push(format!("the name server does not answer: {error}")),
            Err(_) => seen.names.push(format!("the name server does not answer within {} s", PATIENCE.as_secs())),
        }
        if !self.told_all_names().await {
            seen.names.push("the name server was not told the managers' last word".into());
        }
        seen
    }

    /// Differences of rules, and of links, in the node's namespace.
    fn node_truth(&self) -> Result<(Vec<String>, Vec<String>), NetworkError> {
        let node = lock(&self.node);
        let (facts, bridges, index, failure) = {
            let state = self.state();
            let bridges: Vec<u32> = state.bridges.values().map(|bridge| bridge.number).collect();
            (state.facts(&self.config), bridges, state.remembered.index, state.tunnel_failure.clone())
        };
        let rules = node.differences(&self.netns, &facts)?;
        let links = Rtnl::open(&self.netns).step("open rtnetlink")?.links().step("read links")?;
        let links: BTreeMap<&str, bool> = links.iter().map(|link| (link.name.as_str(), link.up)).collect();
        let names = self.config.names();
        let mut wanted: Vec<String> = bridges.into_iter().map(|number| names.bridge(number)).collect();
        wanted.extend(index.map(|_| names.mesh()));
        wanted.extend(index.filter(|_| failure.is_none()).map(|_| names.wireguard()));
        let differs = |name: String| match links.get(name.as_str()) {
            Some(true) => None,
            Some(false) => Some(format!("link {name} is down")),
            None => Some(format!("link {name} is gone")),
        };
        Ok((rules, wanted.into_iter().filter_map(differs).collect()))
    }
}

impl Truth {
    fn add(&mut self, place: &str, looked: Result<Option<Vec<String>>, NetworkError>) {
        match looked {
            Ok(Some(found)) => {
                self.rules.extend(found.into_iter().map(|difference| format!("{place}: {difference}")));
                self.namespaces += 1;
            }
            Ok(None) => {}
            Err(error) => self.unseen.push(format!("{place}: {}", unseen(place, &error).seen)),
        }
    }
}
