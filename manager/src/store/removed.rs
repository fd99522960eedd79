//! Nodes that were removed, remembered for as long as a certificate of theirs could still be valid: a manager that was
//! down at the time learns of them from the log or a snapshot, and refuses them.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::model::{Cluster, NodeId, Timestamp};

use super::digest::{self, Domain};
use super::state::State;

/// A certificate may have been signed while its node was being removed, by a clock that is ahead of this one: it is
/// refused for this much longer.
const MARGIN: Duration = Duration::from_secs(3600);

impl State {
    /// Nodes that were removed and may still hold a valid certificate.
    pub fn removed_nodes(&self) -> BTreeSet<NodeId> {
        self.removed.keys().map(|id| NodeId(*id)).collect()
    }

    /// Whether both states remember the same removed nodes. Cheap; may be false for equal ones.
    pub fn same_removed_nodes(&self, other: &Self) -> bool {
        self.removed.ptr_eq(&other.removed)
    }

    /// Remembers a node that goes.
    pub(super) fn remember_removed(&mut self, node: NodeId, now: Timestamp) {
        let life = self.cluster().map_or(Duration::ZERO, |cluster| cluster.spec.cert_expiry);
        let until = now.after(life).max(self.certificates_until).after(MARGIN);
        self.restore_removed(node.0, until.0);
    }

    /// The cluster changes: certificates made so far live as long as it said before.
    pub(super) fn note_certificate_life(&mut self, old: &Cluster, now: Timestamp) {
        self.certificates_until = self.certificates_until.max(now.after(old.spec.cert_expiry));
    }

    pub(super) fn restore_removed(&mut self, node: u128, until_ms: u64) {
        self.digest ^= digest::of(Domain::Removed, node, until_ms);
        self.removed.insert(node, until_ms);
        self.removed_until.insert((until_ms, node));
    }

    /// Forgets those whose certificates have ended.
    pub(super) fn forget_removed(&mut self) {
        let now = self.now.0;
        while let Some((until_ms, node)) = self.removed_until.get_min().copied().filter(|(until, _)| *until < now) {
            self.removed_until.remove(&(until_ms, node));
            self.removed.remove(&node);
            self.digest ^= digest::of(Domain::Removed, node, until_ms);
        }
    }

    pub(super) fn removed_digest(&self) -> u64 {
        self.removed.iter().fold(0, |sum, (node, until_ms)| sum ^ digest::of(Domain::Removed, *node, *until_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, Group, Kind, Outcome, Refusal};
    use crate::world::World;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn remove(world: &mut World, node: NodeId) {
        let record = world.view().nodes().get(node).unwrap().clone();
        world.apply(Change::delete(&*record));
    }

    fn set_life(world: &mut World, life: Duration) {
        let mut cluster = (**world.view().cluster().unwrap()).clone();
        cluster.spec.cert_expiry = life;
        world.apply(Change::update(&cluster));
    }

    #[test]
    fn a_removed_node_is_remembered_until_its_certificate_has_ended() {
        let mut world = World::new().nodes(1);
        let node = world.add_node("gone", |_| {});
        let record = world.view().nodes().get(node).unwrap().clone();
        remove(&mut world, node);
        assert_eq!(world.view().removed_nodes(), BTreeSet::from([node]));
        let again = world.propose(vec![Group::of(Change::create(&*record))]);
        assert_eq!(again, [Outcome::Refused(Refusal::NotFound { kind: Kind::Node, id: node.0 })]);
        world.pass(90 * DAY);
        world.add_node("n2", |_| {});
        assert_eq!(world.view().removed_nodes(), BTreeSet::from([node]), "a clock may be behind");
        world.pass(DAY);
        world.add_node("n3", |_| {});
        assert_eq!(world.view().removed_nodes(), BTreeSet::new());
        world.view().check().unwrap();
    }

    #[test]
    fn a_shorter_life_does_not_shorten_that_of_certificates_made_before() {
        let mut world = World::new().nodes(1);
        let node = world.add_node("gone", |_| {});
        set_life(&mut world, DAY);
        remove(&mut world, node);
        world.pass(2 * DAY);
        world.add_node("n2", |_| {});
        assert_eq!(world.view().removed_nodes(), BTreeSet::from([node]));
    }

    #[test]
    fn a_manager_that_was_down_learns_of_removed_nodes_from_a_snapshot() {
        let mut world = World::new().nodes(1);
        let node = world.add_node("gone", |_| {});
        remove(&mut world, node);
        set_life(&mut world, DAY);
        let reopened = world.reopened();
        assert_eq!(reopened.removed_nodes(), BTreeSet::from([node]));
        assert_eq!(reopened.certificates_until, world.view().certificates_until);
    }
}
