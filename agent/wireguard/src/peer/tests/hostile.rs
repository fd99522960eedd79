//! Strangers: replay, injection, truncation, reflection, impersonation, cookies.

use proptest::prelude::*;

use super::*;

fn established() -> Wire {
    let mut wire = Wire::new();
    wire.send(0, &[1; 16]);
    wire.send(1, &[1; 16]);
    wire
}

#[test]
fn nothing_that_was_on_the_wire_is_taken_again() {
    let mut wire = established();
    wire.pass(Duration::from_secs(1));
    let (got, sessions) = (wire.sides[1].got.len(), wire.sides[1].core.current.as_ref().unwrap().local_index);
    let seen = wire.seen.clone();
    for (from, message) in &seen {
        for to in [0, 1] {
            let refused = wire.deliver(to, &mut message.clone());
            assert!(refused.is_err() || message[0] == 3, "type {} from {from} to {to}", message[0]);
            wire.now += Duration::from_millis(50);
        }
    }
    assert_eq!(wire.sides[1].got.len(), got);
    assert_eq!(wire.sides[1].core.current.as_ref().unwrap().local_index, sessions);
    assert!(wire.sides.iter().all(|side| side.out.is_empty()), "nothing is answered");
}

#[test]
fn a_recorded_initiation_is_nothing_to_a_process_that_took_over() {
    let mut wire = established();
    let initiation = wire.last(0, 1);
    let times = wire.sides[1].core.times();
    (wire.sides[1].core, wire.sides[1].identity) = core(&key(2), &key(1), None, times);
    assert_eq!(wire.deliver(1, &mut initiation.clone()), Err(Refused::Replayed));
}

#[test]
fn another_key_is_not_the_peer() {
    let mut wire = established();
    // A stranger that knows our public key, and says that it is the peer: it cannot make the static-static secret.
    let stranger = Identity::new(&key(66));
    let pair = stranger.pair((&key(2)).into(), None).unwrap();
    let ephemeral = x25519_dalek::StaticSecret::from([9; 32]);
    let (mut message, _) = stranger.initiate(&pair, ephemeral, 5, Tai64n::new(Duration::from_secs(1 << 33))).unwrap();
    crate::noise::handshake::put_macs(&mut message, &pair.mac1_key, None);
    let claimed = wire.sides[1].identity.claim(&message).unwrap();
    assert_eq!(claimed.remote, (Identity::new(&key(66))).public().to_bytes(), "it can only claim its own key");
    let identity = wire.sides[1].identity.clone();
    let claimed = identity.claim(&message).unwrap();
    wire.now += Duration::from_secs(1);
    let refused = wire.step(1, |core, env, out| core.on_initiation(claimed, env, out));
    assert_eq!(refused, Err(Refused::Invalid));
}

#[test]
fn a_peer_cannot_begin_handshakes_in_a_row() {
    let mut wire = established();
    wire.pass(Duration::from_secs(10));
    let mut results = vec![];
    for _ in 0..3 {
        wire.step(0, |core, env, out| core.send_initiation(env, out));
        let mut message = wire.sides[0].out.pop().unwrap();
        results.push(wire.deliver(1, &mut message));
        wire.now += Duration::from_millis(15);
    }
    assert_eq!(results, [Ok(()), Err(Refused::TooFast), Ok(())]);
}

#[test]
fn a_cookie_is_for_one_message_and_one_address() {
    let mut wire = Wire::new();
    let from = "10.0.0.1:5".parse().unwrap();
    let now = wire.now;
    let mut baker = Baker::new(&wire.sides[1].identity.public().to_bytes(), [3; 32], now);
    wire.step(0, |core, env, out| core.want_handshake(env, out));
    let first = wire.sides[0].out.pop().unwrap();
    assert!(!baker.has_mac2(&first, from));
    let reply = baker.reply(&first, from, [4; 24]);

    // A reply that a stranger makes, or one to another message, gives no cookie.
    let strange = Baker::new(&wire.sides[0].identity.public().to_bytes(), [3; 32], now).reply(&first, from, [4; 24]);
    assert_eq!(wire.deliver(0, &mut strange.clone()), Err(Refused::Invalid));
    let mut elsewhere = reply;
    elsewhere[4] ^= 1;
    assert_eq!(wire.deliver(0, &mut elsewhere), Err(Refused::Invalid));
    assert_eq!(wire.deliver(0, &mut reply.clone()), Ok(()));

    wire.now += Duration::from_secs(6);
    wire.step(0, |core, env, out| core.tick(env, out));
    let second = wire.sides[0].out.pop().unwrap();
    assert!(baker.has_mac2(&second, from));
    assert!(!baker.has_mac2(&second, "10.0.0.1:6".parse().unwrap()));
    assert!(!baker.has_mac2(&second, "10.0.0.2:5".parse().unwrap()));
    // The secret changes, and the cookie with it.
    baker.renew(wire.now + Duration::from_secs(121), || [8; 32]);
    assert!(!baker.has_mac2(&second, from));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A changed handshake message is refused, or (its macs, which the device checks before) changes nothing.
    #[test]
    fn changed_handshake_messages_make_no_session(response in any::<bool>(), at in 0usize..200, bit in 0u8..8) {
        let mut wire = Wire::new();
        wire.step(0, |core, env, out| core.want_handshake(env, out));
        let mut message = wire.sides[0].out.pop().unwrap();
        if response {
            wire.deliver(1, &mut message).unwrap();
            message = wire.sides[1].out.pop().unwrap();
        }
        let at = 4 + at % (message.len() - 32 - 4);
        message[at] ^= 1 << bit;
        let (mac1_key, to) = match response {
            true => (wire.sides[0].identity.mac1_key, 0),
            false => (wire.sides[1].identity.mac1_key, 1),
        };
        prop_assert!(!has_mac1(&message, &mac1_key));
        // Even by someone who can make mac1, because the public key is public.
        crate::noise::handshake::put_macs(&mut message, &mac1_key, None);
        let result = wire.deliver(to, &mut message);
        let sender_only = !response && (4..8).contains(&at);
        let receiver_only = response && (4..8).contains(&at);
        // The sender's index is not covered by the handshake's hash (paper, 5.4.2): a wrong one only makes the session
        // useless, which whoever can change messages can do anyway.
        prop_assert!(result.is_err() || sender_only || receiver_only);
        prop_assert!(wire.sides[to].got.is_empty());
    }

    #[test]
    fn any_message_is_survived(kind in 1u8..5, tail in proptest::collection::vec(any::<u8>(), 0..200), size in 0usize..5) {
        let mut wire = established();
        let len = [148, 92, 64, 32, 4 + tail.len()][size];
        let mut message = [&[kind, 0, 0, 0], tail.as_slice()].concat();
        message.resize(len, 0x5a);
        let identity = wire.sides[1].identity.clone();
        if message.len() >= 92 && kind <= 2 {
            crate::noise::handshake::put_macs(&mut message, &identity.mac1_key, None);
        }
        if let Some(Message::Initiation(initiation)) = Message::parse(&message) {
            prop_assert!(identity.claim(initiation).is_none());
        } else {
            prop_assert!(wire.deliver(1, &mut message).is_err());
        }
        prop_assert!(wire.sides[1].out.is_empty());
    }
}
