//! Nodes that cannot reach each other whatever the network between them does: their data paths have no version of IP in
//! common. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::model::{Node, NodeState};

use crate::store::State;

/// Nodes that are named; the others are counted.
const NAMED: usize = 3;

/// The node with what an operator has to know of its data path as the message of its status, where nothing else is said
/// there.
pub fn explained(node: &Arc<Node>, state: &State) -> Arc<Node> {
    match cut_off(node, state.nodes().values().map(|other| &**other)) {
        Some(message) if node.message.is_empty() => Arc::new(Node { message, ..(**node).clone() }),
        Some(_) | None => node.clone(),
    }
}

/// Says which nodes that are up `node` does not reach.
fn cut_off<'a>(node: &Node, all: impl Iterator<Item = &'a Node>) -> Option<String> {
    let own = &node.description.data_path;
    let is_cut_off = |theirs: &[IpAddr]| {
        let shares = |a: &IpAddr| theirs.iter().any(|b| a.is_ipv4() == b.is_ipv4());
        !own.is_empty() && !theirs.is_empty() && !own.iter().any(shares)
    };
    let others = all.filter(|other| other.state == NodeState::Ready && is_cut_off(&other.description.data_path));
    let mut names: Vec<&str> = others.map(|other| other.description.hostname.as_str()).collect();
    if names.is_empty() || node.state != NodeState::Ready {
        return None;
    }
    names.sort_unstable();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(NAMED);
    Some(format!(
        "its data path has no version of IP in common with that of {}{more}: their tasks do not reach its, nor its tasks \
         theirs; give all nodes one in common (--data-path-addr)",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    fn nodes_without_a_version_of_ip_in_common_are_named() {
        let mut world = World::new();
        let (four, six): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let a = world.add_node("a", |node| node.description.data_path = vec![four]);
        let both = world.add_node("both", |node| node.description.data_path = vec![four, six]);
        let message = |world: &World, id| {
            let state = world.view();
            explained(state.nodes().get(id).unwrap(), &state).message.clone()
        };
        assert_eq!(message(&world, a), "");
        let s = world.add_node("s1", |node| node.description.data_path = vec![six]);
        assert!(message(&world, a).contains("in common with that of s1: "), "{}", message(&world, a));
        assert!(message(&world, s).contains("in common with that of a: "));
        assert_eq!(message(&world, both), "");
        for name in ["s2", "s3", "s4", "s5"] {
            world.add_node(name, |node| node.description.data_path = vec![six]);
        }
        assert!(message(&world, a).contains("that of s1, s2, s3 and 2 more: "));
        world.update_node(a, |node| (node.state, node.message) = (NodeState::Down, "heartbeat failure".into()));
        assert_eq!((message(&world, a).as_str(), message(&world, s).as_str()), ("heartbeat failure", ""));
    }
}
