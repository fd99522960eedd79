//! Filters: which nodes can take a task, and what to say of those that cannot.
//!
//! [`Filter`] names them and words what they say; [`super::columns`] asks them of all nodes at once. A node is counted at the first filter that refuses it,
//! so the counts of an explanation add up to the number of nodes.

use skep_proto::model::container::MountKind;
use skep_proto::model::node::Allowance;
use skep_proto::model::task::Placement;
use skep_proto::model::{Node, TaskSpec};

use super::constraint::{self, architecture};

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
    /// The operator lets its tasks be privileged.
    Privileged,
    /// The operator lets its tasks have devices.
    Device,
    /// No host-mode port is taken.
    HostPorts,
    /// It does not have as many tasks of the service as one node may.
    MaxReplicas,
}

impl Filter {
    /// All, in order.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::Resources,
        Self::Plugins,
        Self::Constraints,
        Self::Platform,
        Self::Privileged,
        Self::Device,
        Self::HostPorts,
        Self::MaxReplicas,
    ];

    /// What it says of the nodes it refused (swarmkit's words).
    pub fn explain(self, nodes: usize) -> String {
        let on = |what: &str| if nodes == 1 { format!("{what} on 1 node") } else { format!("{what} on {nodes} nodes") };
        let refuse = |what: &str| {
            if nodes == 1 {
                format!("1 node does not allow {what}")
            } else {
                format!("{nodes} nodes do not allow {what}")
            }
        };
        match self {
            Self::Ready if nodes == 1 => "1 node not available for new tasks".into(),
            Self::Ready => format!("{nodes} nodes not available for new tasks"),
            Self::Resources => on("insufficient resources"),
            Self::Plugins => on("missing plugin"),
            Self::Constraints => on("scheduling constraints not satisfied"),
            Self::Platform => on("unsupported platform"),
            Self::Privileged => refuse("privileged containers"),
            Self::Device => refuse("devices in tasks"),
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

pub(super) fn runs_platform(node: &Node, placement: &Placement) -> bool {
    let own = &node.description.platform;
    let same = |wanted: &str, own: &str| wanted.is_empty() || architecture(wanted) == architecture(own);
    placement.platforms.is_empty()
        || placement.platforms.iter().any(|p| same(&p.architecture, &own.architecture) && same(&p.os, &own.os))
}

/// What a task needs its node's operator to allow.
pub(super) fn allowances(spec: &TaskSpec) -> Vec<Allowance> {
    let asked = spec.containers.iter().filter_map(|container| container.privileges.as_ref());
    let (privileged, device) = asked.fold((false, false), |(privileged, device), asked| {
        (privileged || asked.privileged, device || !asked.devices.is_empty())
    });
    let needs = |what: &Allowance| match what {
        Allowance::Privileged => privileged,
        Allowance::Device => device,
    };
    Allowance::ALL.into_iter().filter(needs).collect()
}

/// The plug-ins that a task needs on its node, as (type, name). Built-in ones need nobody.
pub(super) fn plugins(spec: &TaskSpec) -> Vec<(String, String)> {
    let log = spec.log_driver.iter().map(|d| ("Log".to_owned(), d.name.clone()));
    let mounts = spec.containers.iter().flat_map(|c| &c.mounts).filter(|m| m.kind == MountKind::Volume);
    let volumes = mounts.filter_map(|m| m.volume.as_ref()?.driver.as_ref());
    let volumes = volumes.filter(|d| d.name != "local").map(|d| ("Volume".to_owned(), d.name.clone()));
    log.chain(volumes).filter(|(_, name)| !name.is_empty()).collect()
}
