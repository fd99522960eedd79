//! A peer's handshakes, as initiator and as responder (paper, sections 5.4 and 6).

use std::{sync::Arc, time::Duration};

use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{Core, Env, Outbox, timers::HURRIED_ATTEMPTS};
use crate::noise::{
    cookie::{self, open_reply},
    handshake::{Claimed, Initiated, Keys, put_macs},
    message::{COOKIE, RESPONSE, field},
    session::Session,
    tai64n::Tai64n,
};

/// A peer's initiations are accepted at most this often: with a stolen key nobody makes us work harder.
const ACCEPT_EVERY: Duration = Duration::from_millis(20);

/// An initiation that has no response yet.
pub(super) struct Outstanding {
    index: u32,
    initiated: Initiated,
}

/// Why a handshake message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It is not authentic, or not for the handshake under way.
    Invalid,
    /// An initiation that is not newer than the last: recorded and sent again.
    Replayed,
    /// The peer begins handshakes too fast.
    TooFast,
}

impl Core {
    /// Begins a handshake, unless one is under way or was begun just now.
    pub fn want_handshake(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        if self.due.attempt.is_some() {
            return;
        }
        self.due.give_up = Some(env.now + self.setting.timers.rekey_attempt);
        match self.last_initiation.map(|last| last + self.setting.timers.rekey_timeout) {
            Some(earliest) if earliest > env.now => self.due.attempt = Some(earliest),
            _ => self.send_initiation(env, out),
        }
    }

    /// Begins a handshake at once and repeats it quickly: the peer may hold keys that this process does not have.
    pub fn hurry(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        self.hurried = HURRIED_ATTEMPTS;
        self.due.give_up = Some(env.now + self.setting.timers.rekey_attempt);
        self.send_initiation(env, out);
    }

    pub(super) fn send_initiation(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        let time = Tai64n::new(env.wall).max(self.times.sent.next());
        let index = self.new_index();
        let ephemeral = ephemeral(env);
        self.last_initiation = Some(env.now);
        self.due.attempt = Some(self.next_attempt(env));
        let Some((mut message, initiated)) = self.setting.identity.initiate(&self.pair, ephemeral, index, time) else {
            return; // A key of small order, which `Identity::pair` has refused.
        };
        self.times.sent = time;
        self.outstanding = Some(Outstanding { index, initiated });
        self.send_handshake(&mut message, index, env.now, out);
    }

    fn send_handshake(&mut self, message: &mut [u8], index: u32, now: Duration, out: &mut Outbox) {
        let fresh = |made: &Duration| now.saturating_sub(*made) < cookie::LIFE;
        let cookie = self.cookie.as_ref().filter(|(_, made)| fresh(made)).map(|(cookie, _)| cookie);
        let mac1 = put_macs(message, &self.pair.mac1_key, cookie);
        self.last_sent = Some((index, mac1));
        out.push(message.to_vec());
        self.note_passed(now);
    }

    /// Answers an initiation that names this peer's key. A recorded or forged one changes nothing.
    pub fn on_initiation(&mut self, claimed: Claimed<'_>, env: &mut Env<'_>, out: &mut Outbox) -> Result<(), Refused> {
        if self.last_accepted.is_some_and(|last| env.now.saturating_sub(last) < ACCEPT_EVERY) {
            return Err(Refused::TooFast);
        }
        let opened = claimed.open(&self.pair).ok_or(Refused::Invalid)?;
        if opened.timestamp <= self.times.seen {
            return Err(Refused::Replayed);
        }
        let time = opened.timestamp;
        let index = self.new_index();
        let own = ephemeral(env);
        let (mut message, keys) = opened.respond(&self.pair, &own, index).ok_or(Refused::Invalid)?;
        self.times.seen = time;
        self.last_accepted = Some(env.now);
        let next = self.make_session(&keys, index, false, env.now);
        let unconfirmed = self.next.replace(next);
        self.retire(unconfirmed);
        self.note_received(false, env.now);
        self.send_handshake(&mut message, index, env.now, out);
        Ok(())
    }

    /// Takes the response to our initiation; sends what waits, or an empty packet that confirms the session.
    pub fn on_response(
        &mut self,
        message: &[u8; RESPONSE],
        env: &mut Env<'_>,
        out: &mut Outbox,
    ) -> Result<(), Refused> {
        let receiver = u32::from_le_bytes(field(message, 8));
        let outstanding = self.outstanding.as_ref().filter(|sent| sent.index == receiver).ok_or(Refused::Invalid)?;
        let keys = self.setting.identity.finish(&self.pair, &outstanding.initiated, message).ok_or(Refused::Invalid)?;
        self.outstanding = None;
        let session = self.make_session(&keys, receiver, true, env.now);
        let old = self.current.replace(session);
        self.retire(old);
        // A session that waits for the other side's confirmation may be in use there already, but not here: it is older.
        let unconfirmed = self.next.take();
        self.retire(unconfirmed);
        self.handshake_done(env.now);
        self.note_received(false, env.now);
        if self.queue.is_empty() {
            self.send_keepalive(env, out);
        } else {
            self.flush(env, out);
        }
        Ok(())
    }

    /// Takes the cookie for the next handshake message. A stranger cannot make one: it is sealed over our mac1.
    pub fn on_cookie(&mut self, message: &[u8; COOKIE], now: Duration) -> Result<(), Refused> {
        let receiver = u32::from_le_bytes(field(message, 4));
        let (index, mac1) = self.last_sent.ok_or(Refused::Invalid)?;
        if index != receiver {
            return Err(Refused::Invalid);
        }
        let cookie = open_reply(&self.pair.remote, &mac1, message).ok_or(Refused::Invalid)?;
        self.cookie = Some((cookie, now));
        Ok(())
    }

    fn make_session(&mut self, keys: &Keys, index: u32, is_initiator: bool, now: Duration) -> Arc<Session> {
        self.note_keys(now);
        Arc::new(Session::new((index, keys.remote_index), is_initiator, now, &keys.sealing, &keys.opening))
    }
}

fn ephemeral(env: &mut Env<'_>) -> StaticSecret {
    let mut bytes = Zeroizing::new([0; 32]);
    env.entropy.fill(bytes.as_mut());
    StaticSecret::from(*bytes)
}
