//! What happens when.

use proptest::prelude::*;

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_first_packets_wait_for_the_handshake_and_arrive_in_order() {
    let mut wire = Wire::new();
    wire.lossy[1] = true;
    wire.send(0, &[1; 16]);
    wire.send(0, &[2; 16]);
    assert_eq!(wire.count(0, 1), 1, "one initiation, however much is to be sent");
    wire.lossy[1] = false;
    wire.pass(secs(6));
    assert_eq!(wire.sides[1].got, [vec![1; 16], vec![2; 16]]);
    wire.send(1, &[3; 5]);
    assert_eq!(wire.sides[0].got, [vec![3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]);
}

#[test]
fn a_preshared_key_must_be_the_same() {
    let (one, other) = (PresharedKey::from_bytes([5; 32]), PresharedKey::from_bytes([6; 32]));
    let mut wire = Wire::with(Some(&one), Some(&one));
    wire.send(0, &[1; 16]);
    assert_eq!(wire.sides[1].got.len(), 1);
    let mut wire = Wire::with(Some(&one), Some(&other));
    wire.send(0, &[1; 16]);
    wire.pass(secs(20));
    assert!(wire.sides[1].got.is_empty());
}

#[test]
fn both_may_begin_at_once() {
    let mut wire = Wire::new();
    for side in [0, 1] {
        wire.step(side, |core, env, out| core.want_handshake(env, out));
    }
    wire.settle();
    for round in 0..4 {
        wire.send(0, &[round; 16]);
        wire.send(1, &[round; 16]);
    }
    assert_eq!((wire.sides[0].got.len(), wire.sides[1].got.len()), (4, 4));
}

#[test]
fn the_initiator_makes_a_new_session_after_two_minutes_and_nothing_is_lost() {
    let mut wire = Wire::new();
    for second in 0..600u64 {
        wire.send(0, &second.to_le_bytes().repeat(2));
        wire.send(1, &second.to_le_bytes().repeat(2));
        wire.pass(secs(1));
    }
    assert_eq!((wire.sides[0].got.len(), wire.sides[1].got.len()), (600, 600));
    assert_eq!((wire.count(0, 1), wire.count(1, 1)), (5, 0), "one handshake in 120 s, by the initiator");
}

#[test]
fn who_only_receives_as_initiator_makes_a_new_session_in_time() {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    for second in 0..300u64 {
        wire.send(1, &second.to_le_bytes().repeat(2));
        wire.pass(secs(1));
    }
    assert_eq!(wire.sides[0].got.len(), 300);
    assert_eq!(wire.count(1, 1), 0);
}

#[test]
fn what_is_received_is_acknowledged_by_an_empty_packet_once() {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    let before = wire.count(1, 4);
    wire.pass(secs(9));
    assert_eq!(wire.count(1, 4), before);
    wire.pass(secs(2));
    assert_eq!(wire.count(1, 4), before + 1);
    wire.pass(secs(60));
    assert_eq!((wire.count(1, 4), wire.count(0, 1)), (before + 1, 1), "silence is not answered by silence");
}

#[test]
fn a_silent_peer_is_asked_after_fifteen_seconds_then_for_ninety() {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    wire.pass(secs(30));
    wire.lossy[1] = true;
    wire.send(0, &[2; 16]);
    wire.pass(secs(14));
    assert_eq!(wire.count(0, 1), 1);
    wire.pass(secs(200));
    let attempts = wire.count(0, 1) - 1;
    assert!((16..=19).contains(&attempts), "{attempts} attempts in 90 s, 5 s and some jitter apart");
    wire.lossy[1] = false;
    wire.send(0, &[3; 16]);
    assert_eq!(wire.sides[1].got.last(), Some(&vec![3; 16]));
}

#[test]
fn packets_for_a_peer_that_never_answers_are_dropped_and_counted() {
    let mut wire = Wire::new();
    wire.lossy = [true; 2];
    wire.send(0, &[1; 16]);
    wire.pass(secs(100));
    assert_eq!(wire.sides[0].core.take_dropped(), 1);
    assert!(wire.sides[0].core.queue.is_empty());
}

#[test]
fn no_session_is_used_after_three_minutes_and_its_keys_go() {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    let old = wire.last(0, 4);
    wire.lossy = [true; 2];
    wire.pass(secs(181));
    let index = u32::from_le_bytes(old[4..8].try_into().unwrap());
    assert!(wire.sides[1].core.session(index, wire.now).is_none());
    assert!(wire.sides.iter().all(|side| side.core.current.is_none() && side.core.previous.is_empty()));
    wire.lossy = [false; 2];
    wire.send(0, &[2; 16]);
    assert_eq!(wire.sides[1].got.last(), Some(&vec![2; 16]));
}

#[test]
fn a_session_ends_with_its_numbers() {
    let mut wire = Wire::new();
    let timers = Timers { rekey_after_messages: 20, reject_after_messages: 30, ..Timers::default() };
    for side in &mut wire.sides {
        side.core.setting.timers = Arc::new(timers.clone());
    }
    for i in 0..100u8 {
        wire.send(0, &[i; 16]);
        wire.pass(secs(1));
    }
    assert_eq!(wire.sides[1].got.len(), 100);
    assert!(wire.count(0, 1) >= 4);
    assert!(wire.seen.iter().filter(|(_, message)| message[0] == 4).all(|(_, message)| message[8] < 30));
}

#[test]
fn a_persistent_keepalive_speaks_first_and_goes_on() {
    let mut wire = Wire::new();
    let now = wire.now;
    wire.step(0, |core, _, _| core.set_persistent(Some(secs(25)), now));
    wire.pass(secs(101));
    assert_eq!(wire.count(0, 1), 1);
    assert!((4..=6).contains(&wire.count(0, 4)), "{}", wire.count(0, 4));
}

#[test]
fn a_new_process_is_heard_at_once_though_an_answer_is_lost() {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    wire.pass(secs(1));
    // The other process: same keys, the times that were handed over, no sessions.
    let times = wire.sides[0].core.times();
    (wire.sides[0].core, wire.sides[0].identity) = core(&key(1), &key(2), None, times);
    wire.sides[0].core.slot = 0x77;
    wire.lossy[1] = true;
    wire.step(0, |core, env, out| core.hurry(env, out));
    wire.settle();
    wire.pass(Duration::from_millis(300));
    wire.lossy[1] = false;
    wire.pass(Duration::from_millis(300));
    wire.send(1, &[9; 16]);
    assert_eq!(wire.sides[0].got.last(), Some(&vec![9; 16]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever is lost, and however time passes: when the wire is whole again, data arrives both ways.
    #[test]
    fn it_recovers_from_any_loss(
        steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..200, any::<bool>()), 1..25),
    ) {
        let mut wire = Wire::new();
        for (lossy_a, lossy_b, seconds, sender) in steps {
            wire.lossy = [lossy_a, lossy_b];
            wire.send(usize::from(sender), &[7; 16]);
            wire.pass(secs(seconds));
        }
        wire.lossy = [false; 2];
        // A handshake given up needs a packet to begin again, one under way its next attempt.
        wire.send(0, &[8; 16]);
        wire.send(1, &[8; 16]);
        wire.pass(secs(25));
        for side in [0, 1] {
            let before = wire.sides[1 - side].got.len();
            wire.send(side, &[9; 16]);
            wire.pass(secs(6));
            prop_assert!(wire.sides[1 - side].got[before..].contains(&vec![9; 16]));
        }
    }
}
