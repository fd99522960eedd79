//! Carries a follower's entries to the leader, on one stream for as long as it leads.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use skep_proto::wire::raft as pb;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::leadership::Leader;
use super::node::{Outcome, Shared};
use super::types::Peer;

/// Entries queued on the stream. The proposer bounds what is in flight below that.
const QUEUE: usize = 64;

type Pending = Arc<std::sync::Mutex<HashMap<u64, oneshot::Sender<Outcome>>>>;

/// An open stream to a leader.
#[derive(Clone)]
struct Open {
    leader: Leader,
    requests: mpsc::Sender<pb::ProposeRequest>,
    pending: Pending,
}

/// The stream to the present leader, opened when there is something to carry.
pub(super) struct Forwarder {
    shared: Arc<Shared>,
    // An async mutex: opening the stream awaits, and only one may be opened.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    next: u64,
}

impl Forwarder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, state: Mutex::default() }
    }

    /// Hands `entry` to `leader` and waits for its answer, until another leads: one that was cut off never answers, and
    /// what waits for it would hold up what the next one could take.
    pub(super) async fn forward(&self, leader: &Leader, entry: Bytes, deadline: Instant) -> Outcome {
        let mut known = self.shared.leader.clone();
        let replaced = known.wait_for(|now| now.as_ref().is_some_and(|now| now.term > leader.term));
        tokio::pin!(replaced);
        let sent = tokio::select! {
            biased;
            sent = tokio::time::timeout_at(deadline, self.send(leader, entry)) => sent.ok().flatten(),
            _ = &mut replaced => None,
        };
        // Until the request is on the stream, it is certainly in no log.
        let Some(answer) = sent else { return Outcome::NotLeader(None) };
        tokio::select! {
            biased;
            answered = tokio::time::timeout_at(deadline, answer) => match answered {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Outcome::Unknown,
            },
            _ = replaced => Outcome::Unknown,
        }
    }

    /// Puts the entry on the stream. `None`: there is no stream to be had.
    async fn send(&self, leader: &Leader, entry: Bytes) -> Option<oneshot::Receiver<Outcome>> {
        let mut state = self.state.lock().await;
        let usable = state.open.as_ref().filter(|open| open.leader == *leader && !open.requests.is_closed()).cloned();
        let open = match usable {
            Some(open) => open,
            None => state.open.insert(self.open(leader).await?).clone(),
        };
        state.next += 1;
        let request = state.next;
        let permit = open.requests.reserve().await.ok()?;
        let (answer, rx) = oneshot::channel();
        open.pending.lock().expect("no one panics while holding the answers").insert(request, answer);
        permit.send(pb::ProposeRequest { request, entry });
        Some(rx)
    }

    async fn open(&self, leader: &Leader) -> Option<Open> {
        let mut client = self.shared.links.client(leader.id, &leader.peer).ok()?;
        let (requests, rx) = mpsc::channel(QUEUE);
        // Opened with nothing on it: if this fails, nothing was sent.
        let call = client.propose(self.shared.links.request(leader.id, ReceiverStream::new(rx)));
        let opened = tokio::time::timeout(self.shared.timing.election_max, call).await.ok()?;
        let mut answers =
            opened.inspect_err(|status| tracing::debug!(%status, "no stream to the leader")).ok()?.into_inner();

        let pending = Pending::default();
        let waiting = Arc::clone(&pending);
        let sender = requests.downgrade();
        self.shared.runtime.spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let waiter = waiting.lock().expect("no one panics while holding the answers").remove(&answer.request);
                if let Some(waiter) = waiter {
                    // Who gave up waiting does not need to know.
                    let _ = waiter.send(outcome(answer.result));
                }
            }
            // The stream is over. Nobody is to put more on it, and what waits may or may not have been taken.
            drop(answers);
            if let Some(sender) = sender.upgrade() {
                sender.closed().await;
            }
            waiting.lock().expect("no one panics while holding the answers").clear();
        });
        Some(Open { leader: leader.clone(), requests, pending })
    }
}

fn outcome(result: Option<pb::propose_response::Result>) -> Outcome {
    use pb::propose_response::Result as R;
    match result {
        Some(R::Applied(applied)) => Outcome::Applied { index: applied.index, reply: applied.reply },
        Some(R::NotLeader(other)) => {
            let known = !other.address.is_empty();
            Outcome::NotLeader(known.then(|| (other.id, Peer { address: other.address, node_id: String::new() })))
        }
        Some(R::Unknown(_)) | None => Outcome::Unknown,
    }
}
