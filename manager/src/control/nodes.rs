//! Nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_api::ports::control::{ControlError, ManagerStatus, NodeStatus, NodeTls};
use skep_proto::model::{Node, NodeId, NodeRole, NodeSpec, NodeState, Version};

use super::{Control, reach, refusal};
use crate::ca::trust;
use crate::store::{Change, Refusal, State};

impl Control {
    pub(super) async fn list_nodes(&self) -> Result<Vec<NodeStatus>, ControlError> {
        let state = self.read().await?;
        let sorted: BTreeMap<NodeId, &Arc<Node>> = state.nodes().values().map(|n| (n.id, n)).collect();
        let statuses = self.parts.membership.statuses().await;
        Ok(sorted
            .into_values()
            .map(|n| NodeStatus { node: n.clone(), manager: statuses.get(&n.id).copied(), tls: tls(&state, n) })
            .collect())
    }

    pub(super) async fn get_node(&self, reference: &str) -> Result<NodeStatus, ControlError> {
        let state = self.read().await?;
        let node = find(&state, reference)?;
        let statuses: BTreeMap<NodeId, ManagerStatus> = self.parts.membership.statuses().await;
        let (manager, tls) = (statuses.get(&node.id).copied(), tls(&state, &node));
        Ok(NodeStatus { manager, tls, node: reach::explained(&node, &state) })
    }

    pub(super) async fn change_node(&self, id: NodeId, at: Version, spec: NodeSpec) -> Result<(), ControlError> {
        let state = self.read().await?;
        let found = state.nodes().get(id).ok_or_else(|| not_found(&id.to_string()))?;
        if found.spec.role == NodeRole::Manager && spec.role == NodeRole::Worker {
            let managers = state.nodes().values().filter(|n| n.spec.role == NodeRole::Manager).count();
            if managers <= 1 {
                return Err(refusal::to_control_error(Refusal::LastManager));
            }
            self.parts.membership.check_demotion(id).await?;
        }
        let mut node = (**found).clone();
        node.meta.version = at;
        node.spec = spec;
        self.change(Change::update(&node)).await
    }

    pub(super) async fn delete_node(&self, reference: &str, force: bool) -> Result<(), ControlError> {
        let state = self.read().await?;
        let node = find(&state, reference)?;
        if node.spec.role == NodeRole::Manager && node.manager.is_some() {
            // With force too (swarmkit, `RemoveNode`): the Raft group would still count on it.
            return Err(ControlError::FailedPrecondition(format!(
                "node {} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
                node.id
            )));
        }
        check_removal(&node, force)?;
        if node.manager.is_some() {
            // Its demotion is under way; refused where the others could not go on without it.
            self.parts.membership.remove_manager(node.id).await?;
            return self
                .change_latest(|state| Ok(state.nodes().get(node.id).map(|node| Change::delete(&**node))))
                .await;
        }
        self.change_latest(|state| {
            let node = state.nodes().get(node.id).ok_or_else(|| not_found(reference))?;
            check_removal(node, force)?;
            Ok(Some(Change::delete(&**node)))
        })
        .await
    }
}

fn tls(state: &State, node: &Node) -> NodeTls {
    state.cluster().map(|cluster| trust::of_node(cluster, node)).unwrap_or_default()
}

/// A node that may have tasks is only removed by force.
fn check_removal(node: &Node, force: bool) -> Result<(), ControlError> {
    if !force && node.state != NodeState::Down && node.state != NodeState::Disconnected {
        return Err(ControlError::FailedPrecondition(format!("node {} is not down and can't be removed", node.id)));
    }
    Ok(())
}

fn not_found(reference: &str) -> ControlError {
    ControlError::NotFound { kind: "node", reference: reference.to_owned() }
}

/// By id, by a host name that only one node has, by a unique prefix of an id.
fn find(state: &State, reference: &str) -> Result<Arc<Node>, ControlError> {
    if reference.is_empty() {
        return Err(not_found(reference));
    }
    let one_of = |found: Vec<&Arc<Node>>| match found.as_slice() {
        [] => None,
        [one] => Some(Ok(Arc::clone(one))),
        several => {
            Some(Err(ControlError::Ambiguous { kind: "node", reference: reference.to_owned(), matches: several.len() }))
        }
    };
    let exact = reference.parse().ok().and_then(|id| state.nodes().get(id)).cloned();
    exact
        .map(Ok)
        .or_else(|| one_of(state.nodes().values().filter(|n| n.description.hostname == reference).collect()))
        .or_else(|| one_of(state.nodes().by_prefix(reference).collect()))
        .unwrap_or_else(|| Err(not_found(reference)))
}
