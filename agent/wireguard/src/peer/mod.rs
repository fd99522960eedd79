//! One peer as a value: its sessions, its handshake, its timers, its waiting packets.
//!
//! No I/O, no clock, no randomness of its own: each call is given an [`Env`], and pushes the datagrams that are to be
//! sent to the peer onto a list. Opening and sealing of data happen outside, with the [`Session`]s given out here; the
//! peer's lock is held once per run of packets.
//!
//! | session | from | to |
//! |---|---|---|
//! | next | made as responder; opens | current, once the initiator has used it |
//! | current | made as initiator, or confirmed; seals and opens | previous, when there is a newer one |
//! | previous | opens what is still on its way | gone with age, or when there are newer ones |

mod handshake;
mod queue;
mod timers;

use std::{collections::VecDeque, sync::Arc, time::Duration};

pub use self::handshake::Refused;
use self::{handshake::Outstanding, queue::Queue};
use crate::{
    Timers,
    noise::{
        handshake::{Identity, Pair},
        message::padded,
        session::Session,
        tai64n::Tai64n,
    },
};

/// A source of random numbers that an attacker cannot guess.
pub trait Entropy {
    /// Fills all bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// All that a step may depend on besides the peer itself.
pub struct Env<'a> {
    /// Since any fixed moment, never set back.
    pub now: Duration,
    /// Since 1970, for the timestamps of initiations.
    pub wall: Duration,
    /// Keys and jitter.
    pub entropy: &'a mut dyn Entropy,
}

/// Sessions kept for what is still on its way: those of two handshakes that crossed, and the one before.
const MAX_PREVIOUS: usize = 3;

/// Datagrams to send to the peer, in order.
pub type Outbox = Vec<Vec<u8>>;

/// What a peer keeps over a change of process, so that neither side's timestamps go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Times {
    /// Of the newest initiation that we sent.
    pub sent: Tai64n,
    /// Of the newest initiation that we accepted.
    pub seen: Tai64n,
}

/// Constants and facts of the device that a peer needs.
pub struct Setting {
    /// The device's key.
    pub identity: Arc<Identity>,
    /// Constants of the protocol.
    pub timers: Arc<Timers>,
    /// MTU of the interface, for padding.
    pub mtu: usize,
}

/// The peer. See the module's text.
pub struct Core {
    setting: Setting,
    pair: Pair,
    /// Upper 24 bits of the indices of this peer's sessions: tells the peer of an incoming message.
    slot: u32,
    /// Lower 8 bits of the next index.
    serial: u8,
    outstanding: Option<Outstanding>,
    /// Index and mac1 of the last handshake message sent, to which a cookie reply may belong.
    last_sent: Option<(u32, [u8; 16])>,
    cookie: Option<([u8; 16], Duration)>,
    last_initiation: Option<Duration>,
    last_accepted: Option<Duration>,
    /// Initiations that are repeated quickly, after a change of process.
    hurried: u8,
    times: Times,
    /// Newest last. More than one, because both sides may begin a handshake at once.
    previous: VecDeque<Arc<Session>>,
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
    latest_handshake: Option<Duration>,
    /// Asked for by the configuration.
    persistent: Option<Duration>,
    due: Due,
    queue: Queue,
}

/// When what is to happen, if nothing comes between.
#[derive(Debug, Default)]
struct Due {
    /// The initiation is sent (again).
    attempt: Option<Duration>,
    /// The attempts are given up.
    give_up: Option<Duration>,
    /// An empty packet, because data came and nothing went.
    keepalive: Option<Duration>,
    /// After that one another, because more data came.
    keepalive_again: bool,
    /// A handshake, because data went and nothing came.
    silence: Option<Duration>,
    /// An empty packet, because the configuration wants one now and then.
    persistent: Option<Duration>,
    /// All keys are wiped.
    wipe: Option<Duration>,
}

impl Core {
    /// A peer without sessions.
    pub fn new(setting: Setting, pair: Pair, slot: u32, persistent: Option<Duration>, times: Times) -> Core {
        Core {
            setting,
            pair,
            slot,
            serial: 0,
            outstanding: None,
            last_sent: None,
            cookie: None,
            last_initiation: None,
            last_accepted: None,
            hurried: 0,
            times,
            previous: VecDeque::new(),
            current: None,
            next: None,
            latest_handshake: None,
            persistent,
            // The first sign of life is due at once, so that a peer that asks for them is greeted.
            due: Due { persistent: persistent.map(|_| Duration::ZERO), ..Due::default() },
            queue: Queue::default(),
        }
    }

    /// The session that seals now and the first of `count` numbers of it, and notes that data is sent. None if there is
    /// no session: then a handshake has begun, and packets go to [`Core::queue`].
    pub fn sending(&mut self, count: u64, env: &mut Env<'_>, out: &mut Outbox) -> Option<(Arc<Session>, u64)> {
        let reserved = self.reserve(count, env.now);
        match &reserved {
            Some((session, _)) => {
                let old = session.is_initiator && self.age(session, env.now) >= self.setting.timers.rekey_after;
                let worn = session.sent() > self.setting.timers.rekey_after_messages;
                self.note_sent(true, env.now);
                if old || worn {
                    self.want_handshake(env, out);
                }
            }
            None => self.want_handshake(env, out),
        }
        reserved
    }

    fn reserve(&self, count: u64, now: Duration) -> Option<(Arc<Session>, u64)> {
        let session = self.current.as_ref().filter(|session| self.is_usable(session, now))?;
        let first = session.reserve(count, self.setting.timers.reject_after_messages)?;
        Some((session.clone(), first))
    }

    /// Keeps a packet until there is a session. False if an older one had to go for it.
    pub fn queue(&mut self, packet: &[u8]) -> bool {
        self.queue.push(packet)
    }

    /// The session that opens messages with this index of ours.
    pub fn session(&self, index: u32, now: Duration) -> Option<Arc<Session>> {
        let recent = [&self.current, &self.next].into_iter().flatten();
        recent
            .chain(&self.previous)
            .find(|session| session.local_index == index && self.is_usable(session, now))
            .cloned()
    }

    /// Authentic messages came by the session with this index; `data`: not all of them were empty.
    pub fn received(&mut self, index: u32, data: bool, env: &mut Env<'_>, out: &mut Outbox) {
        if self.next.as_ref().is_some_and(|next| next.local_index == index) {
            let old = self.current.take();
            self.retire(old);
            self.current = self.next.take();
            self.handshake_done(env.now);
            self.flush(env, out);
        }
        self.note_received(data, env.now);
        // The last moment at which the initiator can make a new session before this one must not be used.
        let timers = &self.setting.timers;
        let last_moment = timers.reject_after.saturating_sub(timers.keepalive + timers.rekey_timeout);
        let aging = |session: &Arc<Session>| session.is_initiator && self.age(session, env.now) >= last_moment;
        if self.current.as_ref().is_some_and(aging) {
            self.want_handshake(env, out);
        }
    }

    /// Keeps a session for what is still on its way.
    fn retire(&mut self, session: Option<Arc<Session>>) {
        self.previous.extend(session);
        if self.previous.len() > MAX_PREVIOUS {
            self.previous.pop_front();
        }
    }

    /// Sends what waits.
    fn flush(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        while let Some(packet) = self.queue.pop() {
            if !self.seal(&packet, env.now, out) {
                break;
            }
        }
    }

    /// Sends an empty packet: it confirms a session and shows that we are there.
    fn send_keepalive(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        if !self.seal(&[], env.now, out) {
            self.want_handshake(env, out);
        }
    }

    fn seal(&mut self, packet: &[u8], now: Duration, out: &mut Outbox) -> bool {
        let Some(session) = self.current.clone().filter(|session| self.is_usable(session, now)) else { return false };
        let size = padded(packet.len(), self.setting.mtu);
        let Some(message) = session.seal_one(packet, size, self.setting.timers.reject_after_messages) else {
            return false;
        };
        out.push(message);
        self.note_sent(!packet.is_empty(), now);
        true
    }

    fn is_usable(&self, session: &Session, now: Duration) -> bool {
        self.age(session, now) < self.setting.timers.reject_after
    }

    fn age(&self, session: &Session, now: Duration) -> Duration {
        now.saturating_sub(session.made_at)
    }

    /// Upper 24 bits of the indices of this peer's sessions.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// When the last handshake was done, on the clock of [`Env::now`].
    pub fn latest_handshake(&self) -> Option<Duration> {
        self.latest_handshake
    }

    /// What to keep over a change of process.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Packets dropped because no session came up.
    pub fn take_dropped(&mut self) -> u64 {
        self.queue.take_dropped()
    }

    /// A key for a new handshake, and a new index for its session.
    fn new_index(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.slot << 8 | u32::from(self.serial)
    }
}

#[cfg(test)]
mod tests;
