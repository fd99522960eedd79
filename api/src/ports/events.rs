//! Events: what happened to objects, for whoever follows it (Engine API, System, "Monitor events").
//!
//! A node records what happens to its own containers, images, volumes and networks; a manager what happens to the
//! cluster's objects. Both keep the last [`KEPT`] in a [`EventLog`], and nothing on disk: events are news, not history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::stream::{BoxStream, StreamExt};
use skep_proto::model::Timestamp;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that can be asked for after they happened: as many as dockerd keeps.
pub const KEPT: usize = 256;
/// Events that a client may be behind before it is dropped.
const BEHIND: usize = 1024;

/// Something happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Kind of the object.
    pub kind: EventKind,
    /// What happened: `create`, `start`, `exec_create: sh`.
    pub action: String,
    /// Id of the object; the name of a volume, the reference of an image that was pulled.
    pub id: String,
    /// Name, labels and circumstances.
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub at: Timestamp,
}

/// Kinds of objects that have events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// A container of a node.
    Container,
    /// An image of a node.
    Image,
    /// A volume of a node.
    Volume,
    /// A network of a node.
    LocalNetwork,
    /// A network of the cluster.
    Network,
    /// A node.
    Node,
    /// A service.
    Service,
    /// A secret.
    Secret,
    /// A config.
    Config,
}

impl EventKind {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::LocalNetwork | Self::Network => "network",
            Self::Node => "node",
            Self::Service => "service",
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// `local` for what one node has, `swarm` for what the cluster has.
    pub fn scope(self) -> &'static str {
        match self {
            Self::Container | Self::Image | Self::Volume | Self::LocalNetwork => "local",
            Self::Network | Self::Node | Self::Service | Self::Secret | Self::Config => "swarm",
        }
    }
}

/// The recent past, and whoever follows what comes.
#[derive(Debug)]
pub struct EventLog {
    past: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { past: Mutex::default(), live: broadcast::channel(BEHIND).0 }
    }
}

/// Events of one source: those that are remembered, and all that follow them.
pub struct EventFeed {
    /// Oldest first.
    pub past: Vec<Event>,
    /// Ends when the source ends, or with [`Behind`] when the reader is too slow.
    pub live: BoxStream<'static, Result<Event, Behind>>,
}

/// A reader was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client was {0} events behind")]
pub struct Behind(pub u64);

impl EventFeed {
    /// A source that has no events.
    pub fn none() -> Self {
        Self { past: Vec::new(), live: futures_util::stream::empty().boxed() }
    }
}

impl EventLog {
    /// Records an event.
    pub fn publish(&self, event: Event) {
        // Under the lock, so that a feed that begins now has each event once.
        let mut past = self.past();
        if past.len() == KEPT {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody listens: that is no failure.
        let _ = self.live.send(event);
    }

    /// What is remembered, and what comes.
    pub fn feed(&self) -> EventFeed {
        let past = self.past();
        let live = self.live.subscribe();
        let remembered = past.iter().cloned().collect();
        drop(past);
        let next = |mut live: broadcast::Receiver<Event>| async move {
            match live.recv().await {
                Ok(event) => Some((Ok(event), live)),
                Err(RecvError::Lagged(events)) => Some((Err(Behind(events)), live)),
                Err(RecvError::Closed) => None,
            }
        };
        EventFeed { past: remembered, live: futures_util::stream::unfold(live, next).boxed() }
    }

    fn past(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // Changed by single pushes and pops.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> Event {
        Event {
            kind: EventKind::Volume,
            action: "create".into(),
            id: n.to_string(),
            attributes: BTreeMap::new(),
            at: Timestamp(n),
        }
    }

    #[tokio::test]
    async fn a_feed_has_the_last_events_and_then_each_new_one_once() {
        let log = EventLog::default();
        (0..300).for_each(|n| log.publish(event(n)));
        let mut feed = log.feed();
        log.publish(event(300));
        assert_eq!(feed.past.iter().map(|e| e.at.0).collect::<Vec<_>>(), (44..300).collect::<Vec<_>>());
        assert_eq!(feed.live.next().await, Some(Ok(event(300))));
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_so() {
        let log = EventLog::default();
        let mut feed = log.feed();
        (0..1030).for_each(|n| log.publish(event(n)));
        assert_eq!(feed.live.next().await, Some(Err(Behind(6))));
    }
}
