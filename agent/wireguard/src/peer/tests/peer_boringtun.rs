//! Another implementation as the other side.

use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey as Point, StaticSecret},
};

use super::*;

struct Other {
    tunn: Tunn,
    got: Vec<Vec<u8>>,
    out: Vec<Vec<u8>>,
}

impl Other {
    fn new(psk: Option<[u8; 32]>) -> Other {
        let own = StaticSecret::from(key(2).to_bytes());
        let ours = Point::from(&StaticSecret::from(key(1).to_bytes()));
        Other { tunn: Tunn::new(own, ours, psk, None, 3, None), got: vec![], out: vec![] }
    }

    fn send(&mut self, packet: &[u8]) {
        let mut room = [0; 2048];
        if let TunnResult::WriteToNetwork(message) = self.tunn.encapsulate(packet, &mut room) {
            self.out.push(message.to_vec());
        }
    }

    fn initiate(&mut self) {
        let mut room = [0; 2048];
        if let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(&mut room, true) {
            self.out.push(message.to_vec());
        }
    }

    fn take(&mut self, message: &[u8]) {
        let mut room = [0; 2048];
        let mut next = message.to_vec();
        loop {
            match self.tunn.decapsulate(Some([10, 0, 0, 1].into()), &next, &mut room) {
                TunnResult::WriteToNetwork(message) => self.out.push(message.to_vec()),
                TunnResult::WriteToTunnelV4(packet, _) => {
                    self.got.push(packet.to_vec());
                    return;
                }
                TunnResult::Err(error) => panic!("refused: {error:?}"),
                _ => return,
            }
            next.clear();
        }
    }
}

/// An IPv4 packet, as the other side looks at them.
fn packet(mark: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![mark; len];
    packet[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
    packet[12..20].copy_from_slice(&[10, 1, 0, 1, 10, 1, 0, 2]);
    packet
}

fn settle(wire: &mut Wire, other: &mut Other) {
    for _ in 0..20 {
        for message in std::mem::take(&mut wire.sides[0].out) {
            other.take(&message);
        }
        for mut message in std::mem::take(&mut other.out) {
            wire.deliver(0, &mut message).unwrap();
        }
    }
}

fn exchange(wire: &mut Wire, other: &mut Other, mark: u8) {
    wire.sides[0].got.clear();
    other.got.clear();
    let data = packet(mark, 100);
    wire.step(0, |core, env, out| match core.sending(1, env, out) {
        Some((session, first)) => {
            let mut message = vec![0; padded(data.len(), MTU) + 32];
            message[16..16 + data.len()].copy_from_slice(&data);
            session.seal(first, &mut message);
            out.push(message);
        }
        None => assert!(core.queue(&data)),
    });
    settle(wire, other);
    other.send(&packet(mark + 1, 61));
    settle(wire, other);
    assert_eq!(other.got, [data]);
    let got = &wire.sides[0].got;
    assert_eq!((got.len(), &got[0][..61]), (1, packet(mark + 1, 61).as_slice()));
}

#[test]
fn we_begin_and_data_goes_both_ways() {
    for psk in [None, Some([7; 32])] {
        let mut wire = Wire::with(psk.map(PresharedKey::from_bytes).as_ref(), None);
        exchange(&mut wire, &mut Other::new(psk), 1);
    }
}

#[test]
fn the_other_begins_and_data_goes_both_ways() {
    for psk in [None, Some([7; 32])] {
        let mut wire = Wire::with(psk.map(PresharedKey::from_bytes).as_ref(), None);
        let mut other = Other::new(psk);
        other.send(&packet(1, 40));
        settle(&mut wire, &mut other);
        assert_eq!(wire.sides[0].got.len(), 1);
        exchange(&mut wire, &mut other, 2);
    }
}

#[test]
fn new_sessions_are_made_from_either_side_while_data_flows() {
    let mut wire = Wire::new();
    let mut other = Other::new(None);
    exchange(&mut wire, &mut other, 1);
    for round in 0..6u8 {
        wire.now += Duration::from_secs(130);
        if round % 2 == 0 {
            // Ours is old: sending makes a new one.
            exchange(&mut wire, &mut other, 10 + round);
        } else {
            // It has the machine's clock, in which nothing is due: it is told to.
            other.initiate();
            settle(&mut wire, &mut other);
        }
        exchange(&mut wire, &mut other, 30 + round);
    }
    assert!(wire.sides[0].core.serial >= 4);
}
