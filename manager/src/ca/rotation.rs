//! Ends a rotation of the root: when every node holds a certificate of the new root and trusts it, the old one goes. A node
//! that is down keeps the rotation open until it is back, or removed.

use skep_proto::model::Cluster;

use super::trust;
use crate::reconcile::{Env, Plan, Planner};
use crate::store::{Change, Group, Kind, State, Touched};

/// The planner.
#[derive(Debug, Default)]
pub struct Rotation;

impl Planner for Rotation {
    type Key = ();
    const NAME: &'static str = "root-rotation";

    fn keys(&self, state: &State) -> Vec<()> {
        state.cluster().filter(|cluster| cluster.rotation.is_some()).map(|_| ()).into_iter().collect()
    }

    fn touched(&self, touched: &Touched, state: &State) -> Vec<()> {
        let concerns = touched.objects.iter().any(|object| matches!(object.kind, Kind::Cluster | Kind::Node));
        if concerns { self.keys(state) } else { Vec::new() }
    }

    fn plan(&mut self, state: &State, (): (), _: &mut Env<'_>) -> Plan {
        let groups = finished(state).map(|cluster| Group::of(Change::update(&cluster))).into_iter().collect();
        Plan { groups, recheck_at: None }
    }
}

/// The cluster's record after the rotation, once nobody needs the old root.
fn finished(state: &State) -> Option<Cluster> {
    let cluster = state.cluster()?;
    let rotation = cluster.rotation.clone()?;
    let wanted = Some(trust::wanted(cluster)?);
    if state.nodes().values().any(|node| node.description.trust != wanted) {
        return None;
    }
    let (root_ca, join_tokens) = (rotation.root, rotation.join_tokens);
    Some(Cluster { root_ca, join_tokens, rotation: None, ..(**cluster).clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::root;
    use crate::world::World;
    use skep_proto::model::{ClusterId, NodeId, Timestamp};

    fn rotating(world: &mut World) {
        let mut cluster = (**world.view().cluster().unwrap()).clone();
        cluster.root_ca = root::create_root(ClusterId(1), Timestamp(0)).unwrap();
        let rotation = root::begin_rotation(ClusterId(1), &cluster.root_ca, Timestamp(0), &mut rand::rng());
        cluster.rotation = Some(rotation.unwrap());
        world.apply(Change::update(&cluster));
    }

    fn follow(world: &mut World, node: NodeId) {
        let wanted = trust::wanted(world.view().cluster().unwrap());
        world.update_node(node, |node| node.description.trust = wanted);
    }

    #[test]
    fn the_old_root_goes_when_the_last_node_has_followed() {
        let mut world = World::new();
        let (one, two) = (world.add_node("n1", |_| {}), world.add_node("n2", |_| {}));
        rotating(&mut world);
        let rotation = world.view().cluster().unwrap().rotation.clone().unwrap();
        follow(&mut world, one);
        assert!(finished(&world.view()).is_none(), "n2 has not followed");
        follow(&mut world, two);
        let after = finished(&world.view()).unwrap();
        assert_eq!((after.root_ca, after.join_tokens, after.rotation), (rotation.root, rotation.join_tokens, None));
    }

    #[test]
    fn a_node_that_is_removed_is_not_waited_for() {
        let mut world = World::new();
        let (one, two) = (world.add_node("n1", |_| {}), world.add_node("n2", |_| {}));
        rotating(&mut world);
        follow(&mut world, one);
        let record = world.view().nodes().get(two).unwrap().clone();
        world.apply(Change::delete(&*record));
        assert!(finished(&world.view()).is_some());
    }

    #[test]
    fn both_roots_are_trusted_while_it_lasts_and_the_new_one_signs() {
        let mut world = World::new();
        rotating(&mut world);
        let view = world.view();
        let cluster = view.cluster().unwrap();
        let wanted = trust::wanted(cluster).unwrap();
        assert_eq!(wanted.roots.len(), 2);
        assert_eq!(wanted.issuer, wanted.roots[0]);
        let before = Cluster { rotation: None, ..(**cluster).clone() };
        assert_eq!(trust::wanted(&before).unwrap().issuer, wanted.roots[1]);
    }
}
