//! Three managers over loopback: elections, writes, reads, failover, changes of the group, snapshots, restarts.

mod support;

use std::time::{Duration, Instant};

use skep_manager::raft::log::SegmentSizes;
use skep_manager::raft::types::Peer;
use skep_manager::raft::{ProposeError, RaftError};
use support::{Group, WITHIN, eventually, eventually_some, leader_of, leads, propose, propose_bytes};

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

#[tokio::test(flavor = "multi_thread")]
async fn whoever_proposes_reads_its_own_write_on_its_own_manager() {
    let group = Group::new(|_| {});
    let nodes = group.form(3).await;
    for i in 0..100 {
        let node = &nodes[i % 3];
        let value = i.to_string();
        propose(node, "key", &value).await.unwrap();
        assert_eq!(node.state().map["key"], value, "through member {}", node.raft.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_is_no_leader_and_confirms_nothing() {
    let group = Group::new(|_| {});
    let mut nodes = group.form(3).await;
    let leader = nodes.remove(leader_of(&nodes).await);
    for node in nodes {
        node.kill().await;
    }
    eventually(|| leader.raft.leader().borrow().is_none() && !leader.raft.is_leader()).await;
    let error = propose(&leader, "lost", "1").await.unwrap_err();
    assert!(matches!(error, ProposeError::NoLeader(_)), "{error}");
    assert_eq!(leader.raft.read_index(Duration::from_millis(300)).await, Err(RaftError::NoLeader));
    assert!(!leader.state().map.contains_key("lost"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_would_lose_quorum_is_refused() {
    let group = Group::new(|_| {});
    let mut nodes = group.form(3).await;
    assert!(nodes[0].raft.is_leader());
    let third = nodes.pop().unwrap();
    third.kill().await;
    eventually(|| nodes[0].raft.members().iter().any(|m| m.reachable == Some(false))).await;

    let refused = nodes[0].raft.remove(2, WITHIN).await;
    assert!(matches!(refused, Err(RaftError::QuorumLoss(_))), "{refused:?}");
    nodes[0].raft.remove(3, WITHIN).await.unwrap();
    propose(&nodes[0], "a", "1").await.unwrap();
    assert_eq!(nodes[0].raft.members().len(), 2);
    // Down to one, which cannot be removed.
    nodes[0].raft.remove(2, WITHIN).await.unwrap();
    assert!(matches!(nodes[0].raft.remove(1, WITHIN).await, Err(RaftError::QuorumLoss(_))));
    propose(&nodes[0], "b", "2").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over_and_no_write_is_lost() {
    let group = Group::new(|_| {});
    let nodes = group.form(3).await;
    let mut written = 0;
    for to in [2, 3, 1] {
        let from = leader_of(&nodes).await;
        nodes[from].raft.transfer_leadership(Some(to), WITHIN).await.unwrap();
        leads(&nodes[to as usize - 1]).await;
        for node in &nodes {
            propose(node, &written.to_string(), "x").await.unwrap();
            written += 1;
        }
    }
    nodes[0].raft.read_index(WITHIN).await.unwrap();
    assert_eq!(nodes[0].state().map.len(), written);
    let follower = &nodes[1];
    assert!(matches!(follower.raft.transfer_leadership(None, WITHIN).await, Err(RaftError::NotLeader(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_was_killed_whole_finds_everything_again() {
    let group = Group::new(|_| {});
    let nodes = group.form(3).await;
    for i in 0..50 {
        propose(&nodes[i % 3], &i.to_string(), "x").await.unwrap();
    }
    for node in nodes {
        node.kill().await;
    }
    let nodes = [group.start(1).await, group.start(2).await, group.start(3).await];
    leader_of(&nodes).await;
    for node in &nodes {
        node.raft.read_index(WITHIN).await.unwrap();
        assert_eq!(node.state().map.len(), 50);
        assert_eq!(node.raft.initialize(node.peer.clone()).await, Err(RaftError::AlreadyInitialized));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_far_behind_is_brought_back_by_a_snapshot_and_the_log_stays_small() {
    let group = Group::new(|config| {
        config.segments = SegmentSizes { first: 64 << 10, largest: 64 << 10 };
        config.snapshot_after_bytes = 256 << 10;
        config.keep_log_bytes = 32 << 10;
    });
    let mut nodes = group.form(3).await;
    let away = nodes.pop().unwrap();
    let (id, address) = (away.raft.id(), away.peer.address.clone());
    away.kill().await;
    for i in 0..400u32 {
        // 4 KiB that do not compress: more than one snapshot's worth in all.
        let noise: Vec<u8> =
            (0..4096u32).map(|j| (i.wrapping_mul(2_654_435_761).wrapping_add(j * j * 31) >> 7) as u8).collect();
        propose_bytes(&nodes[0], &i.to_string(), &noise).await.unwrap();
    }
    let purged = || {
        std::fs::read_dir(group.folder(1))
            .unwrap()
            .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().ends_with(".log"))
            .count()
    };
    // 26 segments were written. A snapshot is due once the log has grown by the size of the one before, which here is
    // all that was written until then: so up to half stays, and what `keep_log_bytes` asks for.
    eventually(|| purged() < 18).await;

    let back = group.start(id).await;
    assert_eq!(back.peer.address, address);
    back.raft.read_index(WITHIN).await.unwrap();
    assert_eq!(back.state().digest, nodes[0].state().digest);
    // It came by snapshot: the entries before it were never applied one by one.
    assert!(!back.trace.lock().unwrap().contains_key(&10), "member {id} replayed the log");

    // And it restarts from the snapshot it was given.
    back.kill().await;
    let again = group.start(id).await;
    again.raft.read_index(WITHIN).await.unwrap();
    assert_eq!(again.state().digest, nodes[0].state().digest);
    let leftovers = std::fs::read_dir(group.folder(id))
        .unwrap()
        .filter(|f| f.as_ref().unwrap().file_name().to_string_lossy().ends_with(".partial"))
        .count();
    assert_eq!(leftovers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_moved_is_reached_at_its_new_address() {
    let group = Group::new(|_| {});
    let mut nodes = group.form(3).await;
    let moved = nodes.pop().unwrap();
    moved.kill().await;
    group.forget_address(3);
    let moved = group.start(3).await;
    let leader = leader_of(&nodes).await;
    nodes[leader].raft.change_address(3, moved.peer.clone(), WITHIN).await.unwrap();
    propose(&nodes[leader], "a", "1").await.unwrap();
    moved.raft.read_index(WITHIN).await.unwrap();
    assert_eq!(moved.state().map["a"], "1");
    assert_eq!(nodes[0].raft.members()[2].peer, moved.peer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_reached_by_a_wrong_address_refuses_to_answer_for_another() {
    let group = Group::new(|_| {});
    let nodes = group.form(1).await;
    let stranger = group.start(7).await;
    // Member 2 is said to be where member 7 is.
    let added = nodes[0].raft.add_learner(2, stranger.peer.clone(), Duration::from_secs(2)).await;
    assert!(matches!(added, Err(RaftError::Timeout(_))), "{added:?}");
    assert!(!stranger.raft.is_initialized().await.unwrap());
    // The group of one goes on.
    propose(&nodes[0], "a", "1").await.unwrap();
    let wrong = Peer { address: "127.0.0.1:1".into(), node_id: String::new() };
    assert!(nodes[0].raft.change_address(9, wrong, Duration::from_secs(1)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_too_large_is_refused_with_the_limit() {
    let group = Group::new(|_| {});
    let nodes = group.form(1).await;
    let error = propose(&nodes[0], "big", &"x".repeat(2 << 20)).await.unwrap_err();
    assert!(matches!(&error, ProposeError::Refused(text) if text.contains("1048576")), "{error}");
    // One below the limit passes, and to followers too: messages are bounded by bytes.
    let second = group.start(2).await;
    nodes[0].raft.add_learner(2, second.peer.clone(), WITHIN).await.unwrap();
    for i in 0..8 {
        propose(&nodes[0], &i.to_string(), &"x".repeat(1_000_000)).await.unwrap();
    }
    second.raft.read_index(WITHIN).await.unwrap();
    assert_eq!(second.state().map.len(), 8);
}
