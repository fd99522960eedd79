//! Where the writer publishes and readers look.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::state::State;
use super::touched::{Changes, Ring, Touched};

/// How many touched things of the recent past are remembered for watchers: 8 MB at most, and at 20,000 changes a second
/// still 13 s in which a session may come back and be told the difference.
const RING: usize = 1 << 18;

/// The published versions of the state.
pub struct Store {
    current: ArcSwap<State>,
    ring: Mutex<Ring>,
    index: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Self { current: ArcSwap::default(), ring: Mutex::new(Ring::new(0, RING)), index: watch::Sender::new(0) }
    }
}

impl Store {
    /// The newest version: consistent, and never changing.
    pub fn view(&self) -> Arc<State> {
        self.current.load_full()
    }

    /// The newest version, and a watch that tells everything that is touched after it.
    pub fn view_and_watch(self: &Arc<Self>) -> (Arc<State>, Watch) {
        let published = self.index.subscribe();
        let view = self.view();
        let watch = Watch { store: Arc::clone(self), seen: view.index(), published };
        (view, watch)
    }

    /// Publishes a version. `touched` is all that changed since the one before; `None` after a restore: all of it.
    pub(super) fn publish(&self, state: State, touched: Option<Touched>) {
        let index = state.index();
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            match touched {
                Some(touched) => ring.push(touched),
                None => *ring = Ring::new(index, RING),
            }
            self.current.store(Arc::new(state));
        }
        self.index.send_replace(index);
    }

    fn since(&self, index: u64) -> (Arc<State>, Changes) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (self.view(), ring.since(index))
    }
}

/// Tells what was touched since it was asked last.
pub struct Watch {
    store: Arc<Store>,
    seen: u64,
    published: watch::Receiver<u64>,
}

impl Watch {
    /// Waits for a newer version, and gives it with what was touched. `None` when the store is gone.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<(Arc<State>, Changes)> {
        let seen = self.seen;
        self.published.wait_for(|index| *index > seen).await.ok()?;
        let (view, changes) = self.store.since(seen);
        self.seen = view.index();
        Some((view, changes))
    }
}
