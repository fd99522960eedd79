//! Two peers on a virtual wire, in virtual time.

use super::*;
use crate::{
    PresharedKey, PrivateKey,
    noise::{
        cookie::{Baker, has_mac1},
        message::Message,
        session::Refused as Unopened,
    },
};

mod hostile;
mod peer_boringtun;
mod time;

const MTU: usize = 1420;

/// Repeatable numbers (SplitMix64).
struct Numbers(u64);

impl Entropy for Numbers {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            *byte = (mixed >> 32) as u8;
        }
    }
}

struct Side {
    core: Core,
    identity: Arc<Identity>,
    out: Outbox,
    /// Data that was opened here, without padding it would be cut from.
    got: Vec<Vec<u8>>,
}

struct Wire {
    now: Duration,
    numbers: Numbers,
    sides: [Side; 2],
    /// Messages from this side are lost.
    lossy: [bool; 2],
    /// All that was on the wire.
    seen: Vec<(usize, Vec<u8>)>,
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_bytes([seed; 32])
}

fn core(own: &PrivateKey, other: &PrivateKey, psk: Option<&PresharedKey>, times: Times) -> (Core, Arc<Identity>) {
    let identity = Arc::new(Identity::new(own));
    let pair = identity.pair(other.into(), psk.map(PresharedKey::to_bytes).as_ref()).unwrap();
    let setting = Setting { identity: identity.clone(), timers: Arc::new(Timers::default()), mtu: MTU };
    (Core::new(setting, pair, u32::from(own.to_bytes()[1]), None, times), identity)
}

impl Wire {
    fn new() -> Wire {
        Wire::with(None, None)
    }

    fn with(psk_a: Option<&PresharedKey>, psk_b: Option<&PresharedKey>) -> Wire {
        let side = |own: u8, other: u8, psk| {
            let (core, identity) = core(&key(own), &key(other), psk, Times::default());
            Side { core, identity, out: vec![], got: vec![] }
        };
        let sides = [side(1, 2, psk_a), side(2, 1, psk_b)];
        Wire { now: Duration::from_secs(1000), numbers: Numbers(7), sides, lossy: [false; 2], seen: vec![] }
    }

    fn step<T>(&mut self, side: usize, f: impl FnOnce(&mut Core, &mut Env<'_>, &mut Outbox) -> T) -> T {
        let side = &mut self.sides[side];
        let wall = self.now + Duration::from_secs(1_700_000_000);
        f(&mut side.core, &mut Env { now: self.now, wall, entropy: &mut self.numbers }, &mut side.out)
    }

    /// Sends data, as the device does.
    fn send(&mut self, side: usize, data: &[u8]) {
        self.step(side, |core, env, out| {
            let Some((session, first)) = core.sending(1, env, out) else {
                core.queue(data);
                return;
            };
            let mut message = vec![0; padded(data.len(), MTU) + 32];
            message[16..16 + data.len()].copy_from_slice(data);
            session.seal(first, &mut message);
            out.push(message);
        });
        self.settle();
    }

    /// Delivers until nothing is left.
    fn settle(&mut self) {
        for _ in 0..20 {
            for from in [0, 1] {
                for mut message in std::mem::take(&mut self.sides[from].out) {
                    self.seen.push((from, message.clone()));
                    if !self.lossy[from] {
                        let _ = self.deliver(1 - from, &mut message);
                    }
                }
            }
        }
        assert!(self.sides.iter().all(|side| side.out.is_empty()), "both talk without end");
    }

    /// What a device does with a message.
    fn deliver(&mut self, to: usize, message: &mut [u8]) -> Result<(), Refused> {
        let bytes = message.to_vec();
        let identity = self.sides[to].identity.clone();
        match Message::parse(&bytes).ok_or(Refused::Invalid)? {
            Message::Initiation(initiation) => {
                if !has_mac1(initiation, &identity.mac1_key) {
                    return Err(Refused::Invalid);
                }
                let claimed = identity.claim(initiation).ok_or(Refused::Invalid)?;
                if claimed.remote != self.sides[1 - to].identity.public().to_bytes() {
                    return Err(Refused::Invalid);
                }
                self.step(to, |core, env, out| core.on_initiation(claimed, env, out))
            }
            Message::Response(response) => {
                if !has_mac1(response, &identity.mac1_key) {
                    return Err(Refused::Invalid);
                }
                self.step(to, |core, env, out| core.on_response(response, env, out))
            }
            Message::Cookie(cookie) => {
                let now = self.now;
                self.step(to, |core, _, _| core.on_cookie(cookie, now))
            }
            Message::Transport { receiver, counter } => {
                let session = self.sides[to].core.session(receiver, self.now).ok_or(Refused::Invalid)?;
                let range = session.open(message, counter, u64::MAX).map_err(|error| match error {
                    Unopened::Replayed => Refused::Replayed,
                    Unopened::Forged => Refused::Invalid,
                })?;
                if !range.is_empty() {
                    self.sides[to].got.push(message[range.clone()].to_vec());
                }
                self.step(to, |core, env, out| core.received(receiver, !range.is_empty(), env, out));
                Ok(())
            }
        }
    }

    /// Lets time pass as the timers' thread does.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(250).min(end - self.now);
            for side in [0, 1] {
                self.step(side, |core, env, out| core.tick(env, out));
            }
            self.settle();
        }
    }

    /// How many messages of a type a side has sent.
    fn count(&self, side: usize, kind: u8) -> usize {
        self.seen.iter().filter(|(from, message)| *from == side && message[0] == kind).count()
    }

    fn last(&self, side: usize, kind: u8) -> Vec<u8> {
        let found = self.seen.iter().rev().find(|(from, message)| *from == side && message[0] == kind);
        found.unwrap().1.clone()
    }
}
