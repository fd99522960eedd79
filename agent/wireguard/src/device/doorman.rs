//! Handshake messages as they come in: first cheap checks, then the peer they are for.

use std::{net::SocketAddr, sync::Arc};

use super::{
    send::{send_messages, send_to},
    shared::{Os, Remote, Shared, Table, count, lock},
};
use crate::{
    PublicKey,
    noise::{
        cookie::{Baker, has_mac1},
        gate::{Gate, Verdict},
        handshake::Identity,
        message::{INITIATION, Message, RESPONSE, field},
    },
    peer::{Entropy as _, Outbox, Refused},
};

/// What the receiving thread keeps to judge handshake messages.
pub struct Doorman<'a> {
    shared: &'a Shared,
    gate: Gate,
    baker: Option<(Arc<Identity>, Baker)>,
}

impl<'a> Doorman<'a> {
    pub fn new(shared: &'a Shared) -> Doorman<'a> {
        Doorman { shared, gate: Gate::new(shared.tuning.limits.clone()), baker: None }
    }

    /// Takes one message that is no transport message.
    pub fn handshake(&mut self, table: &Table, bytes: &[u8], from: SocketAddr) {
        let tally = &self.shared.tally;
        let Some(identity) = &table.identity else { return count(&tally.unknown, 1) };
        let message = Message::parse(bytes);
        if let Some(Message::Cookie(cookie)) = message {
            let remote = table.by_slot.get(&(u32::from_le_bytes(field(bytes, 4)) >> 8));
            let now = self.shared.now();
            if remote.is_none_or(|remote| lock(&remote.core).on_cookie(cookie, now).is_err()) {
                count(&tally.unknown, 1);
            }
            return;
        }
        if !has_mac1(bytes, &identity.mac1_key) {
            return count(&tally.handshakes_alien, 1);
        }
        match self.judge(identity, bytes, from) {
            Verdict::Work => {}
            Verdict::Cookie => return self.send_cookie(bytes, from),
            Verdict::Drop => return count(&tally.handshakes_limited, 1),
        }
        count(&tally.handshakes_tried, 1);
        let done = match message {
            Some(Message::Initiation(message)) => self.initiation(table, identity, message, from),
            Some(Message::Response(message)) => self.response(table, message, from),
            _ => return,
        };
        if done.is_err() {
            count(&tally.handshakes_refused, 1);
        }
    }

    fn judge(&mut self, identity: &Arc<Identity>, bytes: &[u8], from: SocketAddr) -> Verdict {
        let now = self.shared.now();
        let draw = || {
            let mut secret = [0; 32];
            Os.fill(&mut secret);
            secret
        };
        if self.baker.as_ref().is_none_or(|(owner, _)| !Arc::ptr_eq(owner, identity)) {
            self.baker = Some((identity.clone(), Baker::new(&identity.public().to_bytes(), draw(), now)));
        }
        let Some((_, baker)) = &mut self.baker else { return Verdict::Drop };
        baker.renew(now, draw);
        self.gate.judge(from, now, || baker.has_mac2(bytes, from))
    }

    fn send_cookie(&self, bytes: &[u8], from: SocketAddr) {
        let Some((_, baker)) = &self.baker else { return };
        let mut nonce = [0; 24];
        Os.fill(&mut nonce);
        count(&self.shared.tally.cookies_sent, 1);
        send_to(self.shared, from, &baker.reply(bytes, from, nonce));
    }

    fn initiation(
        &self,
        table: &Table,
        identity: &Identity,
        message: &[u8; INITIATION],
        from: SocketAddr,
    ) -> Result<(), Refused> {
        let claimed = identity.claim(message).ok_or(Refused::Invalid)?;
        let remote = table.by_key.get(&PublicKey::from_bytes(claimed.remote)).ok_or(Refused::Invalid)?;
        let mut out = Outbox::new();
        self.shared.with_env(|env| lock(&remote.core).on_initiation(claimed, env, &mut out))?;
        self.authentic(remote, INITIATION, from, &out);
        Ok(())
    }

    fn response(&self, table: &Table, message: &[u8; RESPONSE], from: SocketAddr) -> Result<(), Refused> {
        let receiver = u32::from_le_bytes(field(message, 8));
        let remote = table.by_slot.get(&(receiver >> 8)).ok_or(Refused::Invalid)?;
        let mut out = Outbox::new();
        self.shared.with_env(|env| lock(&remote.core).on_response(message, env, &mut out))?;
        self.authentic(remote, RESPONSE, from, &out);
        Ok(())
    }

    fn authentic(&self, remote: &Remote, bytes: usize, from: SocketAddr, out: &Outbox) {
        count(&remote.received, bytes as u64);
        *lock(&remote.endpoint) = Some(from);
        send_messages(self.shared, remote, out);
    }
}
