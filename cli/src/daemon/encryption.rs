//! The node's WireGuard key in the cluster: told to the managers, changed when the certificate is renewed.
//!
//! A certificate is renewed by schedule, and by `docker swarm ca --rotate`; each time the node makes another key, tells it
//! beside the one in use, and goes over to it when the managers say that all other nodes know it. Their side is
//! `manager/src/dispatcher/keys.rs`.

use std::sync::Arc;
use std::time::Duration;

use skep_agent::engine_port::sandboxes::Encryption;
use skep_agent::session::SessionStatus;
use skep_identity::LiveIdentity;
use skep_network::{NetworkError, NodeNetwork};
use skep_proto::model::NodeDescription;
use skep_proto::model::node::WireGuard;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::NodeServices;

/// Pause before a step that failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// What the node tells of itself. A node without a key takes part in networks that are not encrypted alone.
pub fn announced(network: &NodeNetwork) -> Option<WireGuard> {
    match network.wireguard() {
        Ok(own) => Some(own),
        Err(error) => {
            tracing::error!(error = text(error), "the node has no WireGuard key: nothing encrypted reaches it");
            None
        }
    }
}

/// Keeps what the node tells true, and its key young, until `stop`.
pub async fn keep(
    services: Arc<NodeServices>,
    live: LiveIdentity,
    mut session: watch::Receiver<SessionStatus>,
    describe: watch::Sender<NodeDescription>,
    stop: CancellationToken,
) {
    let mut credentials = live.subscribe();
    credentials.mark_unchanged();
    let mut begins = false;
    loop {
        let network = services.network.layer();
        let known = session.borrow_and_update().key_known;
        let done = step(network, begins, known).await;
        begins &= !done;
        tell(&describe, network);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = credentials.changed() => match changed {
                Ok(()) => begins = true,
                Err(_) => return,
            },
            changed = session.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if !done => {}
        }
    }
}

/// Begins a change of keys if asked for, and ends one that the other nodes know of. False when it must be tried again.
async fn step(network: &NodeNetwork, begins: bool, known: Option<[u8; 32]>) -> bool {
    let begun = if begins { network.begin_key_change() } else { Ok(()) };
    let switched = match known {
        Some(key) => network.switch_key(key).await,
        None => Ok(false),
    };
    if let Ok(true) = switched {
        tracing::info!("this node uses its new WireGuard key");
    }
    match begun.err().or(switched.err()) {
        Some(error) => {
            tracing::warn!(error = text(error), "the WireGuard key is not changed yet");
            false
        }
        None => true,
    }
}

/// An error with its causes.
pub fn text(error: NetworkError) -> String {
    crate::output::chain(&anyhow::Error::new(error))
}

fn tell(describe: &watch::Sender<NodeDescription>, network: &NodeNetwork) {
    let wireguard = announced(network);
    describe.send_if_modified(|description| {
        let changed = description.wireguard != wireguard;
        description.wireguard = wireguard;
        changed
    });
}

/// What `docker info` shows.
pub async fn shown(network: &NodeNetwork) -> Encryption {
    let now = network.encryption().await;
    let mut warnings = Vec::new();
    if let Some(reason) = now.failure {
        warnings.push(format!("WARNING: this node has no WireGuard link, and nothing encrypted reaches it: {reason}"));
    }
    if !now.plain.is_empty() {
        let names = now.plain.join(", ");
        warnings.push(format!("WARNING: traffic between nodes is not encrypted on these networks: {names}"));
    }
    Encryption { path: now.path.map(|path| path.as_str().to_owned()), warnings }
}
