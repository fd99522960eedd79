//! What happens by itself (paper, section 6; the events are those of the Linux implementation's documentation).

use std::time::Duration;

use super::{Core, Env, Outbox};
use crate::noise::session::Session;

/// Wiping follows the last session by this many times its life (paper, section 6.3).
const WIPE_AFTER: u32 = 3;
/// After a change of process an initiation is repeated this quickly, this often: the process before may still read
/// the socket and take the answer away. A responder takes one every 20 ms.
const HURRY: Duration = Duration::from_millis(250);
pub const HURRIED_ATTEMPTS: u8 = 8;

impl Core {
    /// Does what is due. To be called some times a second.
    pub fn tick(&mut self, env: &mut Env<'_>, out: &mut Outbox) {
        let now = env.now;
        let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        if is_due(self.due.wipe) {
            self.due.wipe = None;
            (self.current, self.next) = (None, None);
            self.previous.clear();
            (self.cookie, self.outstanding) = (None, None);
        }
        let is_over = |session: &Session| now.saturating_sub(session.made_at) >= self.setting.timers.reject_after;
        self.previous.retain(|session| !is_over(session));
        for session in [&mut self.current, &mut self.next] {
            session.take_if(|session| is_over(session));
        }
        if is_due(self.due.attempt) {
            if is_due(self.due.give_up) {
                self.give_up(now);
            } else {
                self.send_initiation(env, out);
            }
        }
        if is_due(self.due.silence) {
            self.due.silence = None;
            self.want_handshake(env, out);
        }
        if is_due(self.due.keepalive) {
            self.due.keepalive = None;
            let again = std::mem::take(&mut self.due.keepalive_again);
            self.send_keepalive(env, out);
            if again {
                self.due.keepalive = Some(now + self.setting.timers.keepalive);
            }
        }
        if is_due(self.due.persistent) {
            self.due.persistent = self.persistent.map(|every| now + every);
            self.send_keepalive(env, out);
        }
    }

    fn give_up(&mut self, now: Duration) {
        (self.due.attempt, self.due.give_up) = (None, None);
        self.outstanding = None;
        self.queue.clear();
        if self.due.wipe.is_none() {
            self.due.wipe = Some(now + self.setting.timers.reject_after * WIPE_AFTER);
        }
    }

    /// Changes how often something is sent at least; a new one is sent at once.
    pub fn set_persistent(&mut self, every: Option<Duration>, now: Duration) {
        if self.persistent != every {
            self.persistent = every;
            self.due.persistent = every.map(|_| now);
        }
    }

    /// An authentic message was sent; `data`: it was not empty.
    pub(super) fn note_sent(&mut self, data: bool, now: Duration) {
        self.due.keepalive = None;
        self.due.keepalive_again = false;
        if data && self.due.silence.is_none() {
            let timers = &self.setting.timers;
            self.due.silence = Some(now + timers.keepalive + timers.rekey_timeout);
        }
        self.note_passed(now);
    }

    /// An authentic message was received; `data`: it was not empty.
    pub(super) fn note_received(&mut self, data: bool, now: Duration) {
        self.due.silence = None;
        if data {
            match self.due.keepalive {
                None => self.due.keepalive = Some(now + self.setting.timers.keepalive),
                Some(_) => self.due.keepalive_again = true,
            }
        }
        self.note_passed(now);
    }

    /// A message passed in either direction.
    pub(super) fn note_passed(&mut self, now: Duration) {
        self.due.persistent = self.persistent.map(|every| now + every);
    }

    /// A handshake is done and its session is current.
    pub(super) fn handshake_done(&mut self, now: Duration) {
        (self.due.attempt, self.due.give_up) = (None, None);
        self.hurried = 0;
        self.latest_handshake = Some(now);
    }

    /// New keys were made.
    pub(super) fn note_keys(&mut self, now: Duration) {
        self.due.wipe = Some(now + self.setting.timers.reject_after * WIPE_AFTER);
    }

    /// When an initiation that was sent now is sent again.
    pub(super) fn next_attempt(&mut self, env: &mut Env<'_>) -> Duration {
        let timers = &self.setting.timers;
        if self.hurried > 0 {
            self.hurried -= 1;
            return env.now + HURRY.min(timers.rekey_timeout);
        }
        let mut random = [0; 4];
        env.entropy.fill(&mut random);
        env.now
            + timers.rekey_timeout
            + timers.rekey_jitter.mul_f64(f64::from(u32::from_le_bytes(random)) / 2f64.powi(32))
    }
}
