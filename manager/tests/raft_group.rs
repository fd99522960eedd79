//! Three managers over loopback: elections, writes, reads, failover, changes of the group, snapshots, restarts.

mod support;

use std::time::Instant;

use support::{Group, WITHIN, eventually_some, leader_of, propose};

#[tokio::test(flavor = "multi_thread")]
async fn three_managers_elect_commit_and_fail_over() {
    let group = Group::new(|_| {});
    let mut nodes = group.form(3).await;
    propose(&nodes[0], "a", "1").await.unwrap();
    propose(&nodes[1], "b", "2").await.unwrap();
    for node in &nodes {
        node.raft.read_index(WITHIN).await.unwrap();
        assert_eq!(node.state().map.len(), 2, "member {}", node.raft.id());
    }

    let lost = nodes.remove(leader_of(&nodes).await);
    let killed = Instant::now();
    lost.kill().await;
    let index = eventually_some(|| nodes.iter().position(|n| n.raft.is_leader())).await;
    let elected = killed.elapsed();
    propose(&nodes[index], "c", "3").await.unwrap();
    println!("leader killed: next leader after {elected:?}, next write after {:?}", killed.elapsed());
    for node in &nodes {
        node.raft.read_index(WITHIN).await.unwrap();
        assert_eq!(node.state().map["c"], "3");
    }
}
