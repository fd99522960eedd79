//! The WireGuard link: made, kept, and made again.

use super::{Keeper, chain, refused, write};
use crate::netd::NetdError;
use crate::netd::protocol::Reply;
use crate::tunnel::Tunnel;

impl Keeper {
    pub(super) async fn put_tunnel(&mut self, tunnel: Tunnel) -> Reply {
        let is_known = self.tunnel.wanted() == Some(&tunnel);
        match self.tunnel.put(tunnel.clone()) {
            Ok(status) => {
                self.missing = None;
                // Before the answer: after a crash the link must be what the daemon believes it to be.
                match if is_known { Ok(()) } else { self.write_tunnel(Some(tunnel)).await } {
                    Ok(()) => Reply::Tunnel(Some(status)),
                    Err(error) => refused(chain(&error)),
                }
            }
            Err(error) => {
                if self.tunnel.wanted().is_none() {
                    self.missing = Some(tunnel);
                }
                refused(chain(&error))
            }
        }
    }

    /// Makes the link that should be there and is not: somebody deleted it, or it could not be made. One that is there is
    /// brought up again.
    pub(super) fn mend_tunnel(&mut self) {
        let lost = self.tunnel.wanted().filter(|_| !self.tunnel.is_there()).cloned();
        let Some(wanted) = lost.or_else(|| self.missing.clone()) else {
            if let Err(error) = self.tunnel.mend() {
                tracing::debug!(%error, "the WireGuard link cannot be brought up");
            }
            return;
        };
        match self.tunnel.put(wanted.clone()) {
            Ok(_) => {
                tracing::info!(link = wanted.link, "the WireGuard link is there again");
                self.missing = None;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), link = wanted.link, "the WireGuard link cannot be made");
                self.missing = Some(wanted);
            }
        }
    }

    pub(super) async fn write_tunnel(&self, tunnel: Option<Tunnel>) -> Result<(), NetdError> {
        let records = self.records.clone();
        write(move || records.write_tunnel(tunnel)).await
    }
}
