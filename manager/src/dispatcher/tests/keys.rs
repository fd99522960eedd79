//! A node that goes over to another WireGuard key while another one is down.

use skep_proto::model::node::WireGuard;

use super::*;

const NEXT: [u8; 32] = [9; 32];

fn key(id: u8, next: Option<[u8; 32]>) -> Option<WireGuard> {
    Some(WireGuard { port: 51820, key: [id; 32], next })
}

/// Node 1 has a session and tells its next key; node 2 has been down since the dispatcher began.
async fn world() -> (World, FakeAgent) {
    let store = FakeStore::new();
    // Nobody has to say for days that it lives.
    store.change_cluster(|cluster| cluster.spec.heartbeat_period = Duration::from_secs(24 * 3600));
    let changing = NodeDescription { wireguard: key(1, Some(NEXT)), ..description(1) };
    store.put_node(Node { description: changing.clone(), ..node(1) });
    let down = NodeDescription { wireguard: key(2, None), ..description(2) };
    let meta = Meta { updated_at: Timestamp(7), ..Meta::default() };
    store.put_node(Node { state: NodeState::Down, description: down, meta, ..node(2) });
    let world = World::with(store).await;
    let agent = world.connect(1, NodeRole::Worker);
    agent.send(AgentMessage::Hello(Hello { description: changing, last_index: 0 })).await;
    (world, agent)
}

/// How long it takes until the node may use its next key.
async fn waited(agent: &mut FakeAgent) -> Duration {
    let begun = Instant::now();
    let known = ManagerMessage::KeyKnown { key: NEXT };
    while agent.from_manager.recv().await.expect("the session goes on") != known {}
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_a_day_for_a_node_that_is_down() {
    let (_world, mut agent) = world().await;
    let limit = crate::dispatcher::keys::DOWN_COUNTS;
    let waited = waited(&mut agent).await;
    assert!(limit <= waited + Duration::from_secs(1) && waited < limit + limit / 50, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_for_no_node_that_was_removed() {
    let (world, mut agent) = world().await;
    agent.set().await;
    assert!(timeout(Duration::from_secs(3600), waited(&mut agent)).await.is_err(), "it waits for node 2");
    world.store.remove_node(NodeId(2));
    assert!(waited(&mut agent).await < Duration::from_secs(1));
}
