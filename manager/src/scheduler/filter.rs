//! Filters: which nodes can take a task, and what to say of those that cannot.
//!
//! Each filter looks at one node and one spec and keeps no state. A node is counted at the first filter that refuses it,
//! so the counts of an explanation add up to the number of nodes.

use skep_proto::model::task::Placement;
use skep_proto::model::{Availability, Node, NodeState};

use super::constraint::{self, architecture};
use crate::store::{NodeRef, SharedSpec, State};

/// The filters, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// The node is ready and active.
    Ready,
    /// CPU, memory and generic resources are left.
    Resources,
    /// Its drivers are there.
    Plugins,
    /// Every constraint holds.
    Constraints,
    /// The image exists for its platform.
    Platform,
    /// No host-mode port is taken.
    HostPorts,
    /// It does not have as many tasks of the service as one node may.
    MaxReplicas,
}

impl Filter {
    /// All, in order.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Resources,
        Self::Plugins,
        Self::Constraints,
        Self::Platform,
        Self::HostPorts,
        Self::MaxReplicas,
    ];

    /// What it says of the nodes it refused (swarmkit's words).
    pub fn explain(self, nodes: usize) -> String {
        let on = |what: &str| if nodes == 1 { format!("{what} on 1 node") } else { format!("{what} on {nodes} nodes") };
        match self {
            Self::Ready if nodes == 1 => "1 node not available for new tasks".into(),
            Self::Ready => format!("{nodes} nodes not available for new tasks"),
            Self::Resources => on("insufficient resources"),
            Self::Plugins => on("missing plugin"),
            Self::Constraints => on("scheduling constraints not satisfied"),
            Self::Platform => on("unsupported platform"),
            Self::HostPorts => on("host-mode port already in use"),
            Self::MaxReplicas => "max replicas per node limit exceed".into(),
        }
    }
}

/// Whether a node will do as far as it does not change with its tasks: constraints and platform.
pub fn fits_for_ever(node: &Node, placement: &Placement) -> bool {
    // Unreadable constraints are refused when a service is made; one that got in by an older release matches nothing.
    let holds = |text: &String| constraint::parse(text).is_ok_and(|c| c.matches(node));
    placement.constraints.iter().all(holds) && runs_platform(node, placement)
}

fn runs_platform(node: &Node, placement: &Placement) -> bool {
    let own = &node.description.platform;
    let same = |wanted: &str, own: &str| wanted.is_empty() || architecture(wanted) == architecture(own);
    placement.platforms.is_empty()
        || placement.platforms.iter().any(|p| same(&p.architecture, &own.architecture) && same(&p.os, &own.os))
}

/// What a node has to give, counted down while a batch is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// CPU left, nano-CPUs.
    pub nano_cpus: i64,
    /// Memory left, bytes.
    pub memory: i64,
    /// Tasks of every service.
    pub tasks: u32,
    /// Tasks of the service being placed, those of this batch included.
    pub own: u32,
    /// Tasks of this batch.
    pub placed: u32,
}

/// The first filter that refuses a task on a node; `None` when it fits.
pub fn refusal(state: &State, reference: NodeRef, node: &Node, spec: &SharedSpec, room: &Room) -> Option<Filter> {
    let is_ready = node.state == NodeState::Ready && node.spec.availability == Availability::Active;
    let placement = &spec.task.placement;
    let refuses = |filter: Filter| match filter {
        Filter::Ready => !is_ready,
        Filter::Resources => {
            let generic = || {
                spec.generic().any(|(kind, amount)| {
                    let total = node.description.generic.get(kind).copied().unwrap_or_default();
                    state.generic_load(reference, kind).saturating_add(*amount) > total
                })
            };
            (spec.nano_cpus > 0 && spec.nano_cpus > room.nano_cpus)
                || (spec.memory > 0 && spec.memory > room.memory)
                || generic()
        }
        Filter::Plugins => {
            let driver = spec.task.log_driver.as_ref().map(|d| d.name.as_str()).filter(|n| !n.is_empty());
            driver.is_some_and(|name| !node.description.plugins.iter().any(|(kind, has)| kind == "Log" && has == name))
        }
        Filter::Constraints => {
            !placement.constraints.iter().all(|text| constraint::parse(text).is_ok_and(|c| c.matches(node)))
        }
        Filter::Platform => !runs_platform(node, placement),
        Filter::HostPorts => {
            let is_taken = |(protocol, port): &(_, u16)| state.host_port_holder(reference, *protocol, *port).is_some();
            // Tasks placed in this batch are not in the state yet, and take the same ports.
            !spec.host_ports.is_empty() && (room.placed > 0 || spec.host_ports.iter().any(is_taken))
        }
        Filter::MaxReplicas => placement.max_replicas > 0 && u64::from(room.own) >= placement.max_replicas,
    };
    Filter::ALL.into_iter().find(|filter| refuses(*filter))
}
