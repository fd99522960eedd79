//! Everything goes to a successor, or comes back when that one fails.

use std::io;
use std::os::fd::OwnedFd;

use super::Keeper;
use super::sandboxes::Open;
use crate::dns::server::OwnedFdRef;
use crate::netd::protocol::{DeviceState, GivenTunnel, Reply};
use crate::netd::wireguard::Owner;
use crate::spec::SandboxId;

/// What a successor gets.
pub struct Frozen {
    /// The first part.
    pub reply: Reply,
    /// The sockets named in it.
    pub sockets: Vec<OwnedFdRef>,
    /// The descriptors of the WireGuard link.
    pub device: Vec<OwnedFd>,
}

impl Keeper {
    pub(super) fn freeze(&mut self, with_tunnel: bool) -> io::Result<Frozen> {
        let kept = self.tunnel.give()?;
        let open: Vec<(&SandboxId, &Open)> =
            self.sandboxes.iter().filter_map(|(id, entry)| Some((id, entry.open.as_ref()?))).collect();
        let (zones, sandboxes) = (self.told(), self.served());
        let sockets = open.iter().flat_map(|(_, open)| open.server.fds()).collect();
        let open = open.iter().map(|(id, _)| (*id).clone()).collect();
        if !with_tunnel {
            return Ok(Frozen { reply: Reply::Handover { zones, sandboxes, open }, sockets, device: Vec::new() });
        }
        let mut device = Vec::new();
        let tunnel = self.tunnel.give()?.map(|given| {
            let state = given.device.map(|handover| {
                device = handover.fds;
                (u32::try_from(device.len()).unwrap_or(u32::MAX), DeviceState(handover.state))
            });
            GivenTunnel { wanted: given.wanted, device: state }
        });
        self.tunnel.let_go();
        self.given = kept;
        Ok(Frozen { reply: Reply::HandoverAll { zones, sandboxes, open, tunnel }, sockets, device })
    }

    /// Takes changes again: the successor failed.
    pub(super) async fn thaw(&mut self) {
        self.frozen = false;
        // It may have begun a journal in place of ours.
        self.flush().await;
        if let Some(given) = self.given.take() {
            self.missing = Some(given.wanted.clone());
            match Owner::adopt(given) {
                Ok(owner) => (self.tunnel, self.missing) = (owner, None),
                Err(error) => tracing::warn!(%error, "the WireGuard link is made anew"),
            }
        }
    }
}
