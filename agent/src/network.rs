//! Keeps the node's network as the managers describe it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use skep_proto::model::view::NetworkView;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::state::desired::Desired;

/// Changes gather this long, so that a burst costs one pass.
const GATHER: Duration = Duration::from_millis(20);
/// First pause after a failure; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(15);
/// Without any change the network is compared with the view this often: others may have changed the kernel.
const SWEEP: Duration = Duration::from_secs(60);

/// The node's network.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Makes the kernel hold what `view` says. May be repeated; a later view replaces an earlier one.
    ///
    /// # Errors
    /// When something could not be done; everything else was.
    async fn apply(&self, view: Arc<NetworkView>) -> Result<(), NetworkError>;
}

/// The network is not as the view says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// Applies the view of `desired`, now, on every change and from time to time, until `cancel`.
pub async fn run(network: Arc<dyn Network>, desired: Arc<Desired>, cancel: CancellationToken) {
    let mut revisions = desired.revisions();
    let mut pause = FIRST_PAUSE;
    let mut applied: Option<Arc<NetworkView>> = None;
    loop {
        // Before the view: what it says is at least this revision's.
        let revision = *revisions.borrow_and_update();
        let view = desired.view();
        let next = if applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, &view)) {
            desired.applied_to_network(revision);
            SWEEP
        } else {
            match network.apply(Arc::clone(&view)).await {
                Ok(()) => {
                    desired.applied_to_network(revision);
                    applied = Some(view);
                    pause = FIRST_PAUSE;
                    SWEEP
                }
                Err(error) => {
                    warn!(%error, retry_in_seconds = pause.as_secs_f32(), "the node's network is not as it should be");
                    let next = pause;
                    pause = (pause * 2).min(LAST_PAUSE);
                    next
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(next) => applied = None,
            changed = revisions.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}
