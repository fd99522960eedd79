//! Keeps the node where its host's addresses are: looks for them, and has the node enter its cluster again with others.
//!
//! That is what a restart of the daemon with another `--advertise-addr` does, without the restart: containers, their
//! addresses and what passes between them stay; the session, the tunnels' outer ends and a manager's port move.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_manager::raft::keys::UnlockKey;
use tokio_util::sync::CancellationToken;

use super::moves::{self, Look};
use super::saved::Saved;
use super::{NodeSwarm, addresses};

/// Time between two looks at the host's addresses. One that is missing at two of them is gone: a client of DHCP may take
/// one away and put it back.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two looks at which interface has which address: it may change while the addresses stay.
const LOOK_ALL: Duration = Duration::from_secs(30);
/// Time until a node that could not enter its cluster with another address tries again.
const PAUSE: Duration = Duration::from_secs(5);

/// The node could not enter its cluster with another address; a locked manager needs the key for another try.
struct Failed(Option<UnlockKey>);

/// Whether an address that an interface had is not there.
fn is_gone(saved: &Saved) -> bool {
    let is_gone = |address: IpAddr, link: &Option<String>| link.is_some() && !addresses::is_here(address);
    is_gone(saved.advertise.ip(), &saved.advertise_link) || is_gone(saved.data_path, &saved.data_path_link)
}

impl NodeSwarm {
    /// Follows the host's addresses until `stop`.
    pub async fn follow_addresses(&self, stop: CancellationToken) {
        let mut before = Look::Same;
        let mut looked = None;
        let mut failed = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(if failed.is_some() { PAUSE } else { LOOK }) => {}
            }
            if let Some(Failed(unlock)) = failed.take() {
                failed = self.enter_again(unlock, &stop).await.err();
            }
            let Some(member) = self.member.load_full() else { continue };
            let saved = member.saved();
            let known = (saved.advertise.ip(), saved.data_path);
            // With all interfaces, only when there is something to find.
            let is_fresh = |(of, at): (_, Instant)| of == known && at.elapsed() < LOOK_ALL;
            if before == Look::Same && !is_gone(&saved) && looked.is_some_and(is_fresh) {
                continue;
            }
            looked = Some((known, Instant::now()));
            let now = moves::look(&saved, &addresses::of_this_host().0, &self.configured());
            match &now {
                Look::Same => {}
                Look::Noted(noted) => {
                    if let Err(error) = member.note_links(noted) {
                        tracing::warn!(error = crate::output::chain(&error), "cannot note the node's interfaces");
                    }
                }
                Look::Moved(_) if now != before => {}
                Look::Moved(_) => {
                    drop(member);
                    failed = self.go_over().await.err();
                }
            }
            before = now;
        }
    }

    /// Addresses that the daemon was started with.
    pub(super) fn configured(&self) -> Vec<IpAddr> {
        self.config.advertise.into_iter().chain(self.config.data_path).collect()
    }

    /// Has the node enter its cluster with the addresses that its host has now.
    async fn go_over(&self) -> Result<(), Failed> {
        let _held = self.changing.lock().await;
        // Meanwhile the node may have left.
        let Some(member) = self.member.load_full() else { return Ok(()) };
        let old = member.saved();
        let Look::Moved(new) = moves::look(&old, &addresses::of_this_host().0, &self.configured()) else {
            return Ok(());
        };
        let (from, to) = ((old.advertise.ip(), old.data_path), (new.advertise.ip(), new.data_path));
        tracing::warn!(
            advertise.old = %from.0, advertise.new = %to.0, data_path.old = %from.1, data_path.new = %to.1,
            "the host has another address: this node goes over to it"
        );
        let unlock = member.manager().and_then(|manager| manager.unlock_key());
        self.error.store(Some(Arc::new(format!("this node goes over to the address {}", to.0))));
        self.member.store(None);
        member.stop().await;
        drop(member);
        let entered = self.resume_with(new, unlock.clone()).await;
        self.told(entered, unlock)
    }

    /// Tries again after [`Self::go_over`] failed, unless the node left since then.
    async fn enter_again(&self, unlock: Option<UnlockKey>, stop: &CancellationToken) -> Result<(), Failed> {
        let _held = self.changing.lock().await;
        if stop.is_cancelled() || self.member.load().is_some() || self.error.load().is_none() {
            return Ok(());
        }
        let entered = self.try_resume(unlock.clone()).await;
        self.told(entered, unlock)
    }

    fn told(&self, entered: anyhow::Result<()>, unlock: Option<UnlockKey>) -> Result<(), Failed> {
        entered.map_err(|error| {
            let text = crate::output::chain(&error);
            tracing::error!(error = text, "the node cannot go on in its cluster with its new address yet");
            self.error.store(Some(Arc::new(text)));
            Failed(unlock)
        })
    }
}
