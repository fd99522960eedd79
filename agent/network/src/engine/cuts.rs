//! Connections to tasks that left, cut beside everything else: a walk through the connections of a busy node takes long,
//! and nobody who leads elsewhere already has to wait for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::conntrack::{self, Cut};
use super::state::Record;
use super::{Inner, blocking, lock};
use crate::error::{NetworkError, Step};
use crate::plan::leaving::{self, Places};
use crate::spec::{LinkKind, SandboxLink};

/// How long connections on their way to a task that drains have to be answered. What is not by then was lost, and is
/// sent again after 1 s at the earliest (RFC 6298 section 2): then it is led to another task.
const HALF_OPEN: Duration = Duration::from_millis(300);

/// What is to be cut, gathered until it is.
#[derive(Debug, Default)]
pub struct Cuts {
    pending: Mutex<Pending>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    now: Due,
    /// Half-open connections, and from when on.
    later: Vec<(Instant, Places)>,
    /// Somebody works on it.
    is_worked_on: bool,
}

/// What is to be cut now.
#[derive(Debug, Default, Clone)]
pub struct Due {
    /// All connections to these.
    pub gone: Places,
    /// Those to these that were not answered.
    pub half_open: Places,
    /// Those to these UDP ports that lead nowhere.
    pub opened: BTreeSet<u16>,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.half_open.is_empty() && self.opened.is_empty()
    }
}

/// What to do next.
#[derive(Debug)]
enum Next {
    Cut(Due),
    Wait(Instant),
    Nothing,
}

impl Pending {
    fn next(&mut self, now: Instant) -> Next {
        let ripe = self.later.extract_if(.., |(from, _)| *from <= now).collect::<Vec<_>>();
        for (_, places) in ripe {
            self.now.half_open.add(places);
        }
        if !self.now.is_empty() {
            return Next::Cut(std::mem::take(&mut self.now));
        }
        match self.later.iter().map(|(from, _)| *from).min() {
            Some(from) => Next::Wait(from),
            None => {
                self.is_worked_on = false;
                Next::Nothing
            }
        }
    }
}

impl Inner {
    /// Has connections cut: at once those of `due`, and after a while those to `drained` that were not answered.
    pub(super) fn cut_later(self: &Arc<Self>, due: Due, drained: Places) {
        if due.is_empty() && drained.is_empty() {
            return;
        }
        let mut pending = lock(&self.cuts.pending);
        pending.now.gone.add(due.gone);
        pending.now.half_open.add(due.half_open);
        pending.now.opened.extend(due.opened);
        if !drained.is_empty() {
            pending.later.push((Instant::now() + HALF_OPEN, drained));
        }
        self.cuts.more.notify_one();
        if !std::mem::replace(&mut pending.is_worked_on, true) {
            tokio::spawn(self.clone().work_on_cuts());
        }
    }

    async fn work_on_cuts(self: Arc<Self>) {
        loop {
            let next = lock(&self.cuts.pending).next(Instant::now());
            match next {
                Next::Cut(due) => {
                    if let Err(error) = self.cut_now(due).await {
                        tracing::warn!(%error, "connections to tasks that are gone may hang until their time-out");
                    }
                }
                Next::Wait(until) => tokio::select! {
                    () = tokio::time::sleep_until(until) => {}
                    () = self.cuts.more.notified() => {}
                },
                Next::Nothing => return,
            }
        }
    }

    /// Cuts connections, but for those to addresses that another task has by now: it serves there, or was made here.
    ///
    /// # Errors
    /// The first of the kernel's; all was tried.
    async fn cut_now(self: &Arc<Self>, due: Due) -> Result<(), NetworkError> {
        let due = {
            let state = self.state();
            let serving = leaving::serving(&state.view, &[&due.gone, &due.half_open]);
            let here = state.records.values().flat_map(node_addresses).collect();
            let here = Places { node: here, ..Places::default() };
            Due { gone: due.gone.without(&serving).without(&here), half_open: due.half_open.without(&serving), ..due }
        };
        self.cut_all(due).await
    }

    /// Cuts connections.
    ///
    /// # Errors
    /// As [`Self::cut_now`].
    pub(super) async fn cut_all(self: &Arc<Self>, due: Due) -> Result<(), NetworkError> {
        let node = Cut { gone: due.gone.all(), half_open: due.half_open.all(), opened: due.opened };
        let inner = self.clone();
        let step = "cut connections to tasks that are gone";
        let mut result = blocking(move || conntrack::cut(&inner.netns, &node).step(step)).await;
        if due.gone.overlay.is_empty() && due.half_open.overlay.is_empty() {
            return result;
        }
        for (id, cell) in self.live_cells() {
            let Some(networks) = self.state().records.get(&id).map(Record::networks) else { continue };
            let (gone, half_open) = (due.gone.on(&networks), due.half_open.on(&networks));
            let cut = Cut { gone, half_open, opened: BTreeSet::new() };
            if cut.is_empty() {
                continue;
            }
            // Looking for connections takes its time, in which others may change the sandbox.
            let opened = match cell.lock_owned().await.as_ref() {
                Some(live) => conntrack::open(&live.netns).step(step),
                None => continue,
            };
            result = result.and(match opened {
                Ok(connections) => blocking(move || connections.cut(&cut).step(step)).await,
                Err(error) => Err(error),
            });
        }
        result
    }
}

/// Addresses of a sandbox that only its node has connections to.
pub fn node_addresses(record: &Record) -> impl Iterator<Item = IpAddr> + '_ {
    let own = |kind: &LinkKind| !matches!(kind, LinkKind::Overlay(_));
    record.links.iter().filter(move |link| own(&link.kind)).flat_map(SandboxLink::addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_open_connections_wait_their_time_and_gone_ones_do_not() {
        let now = Instant::now();
        let place = |last| Places { node: [IpAddr::from([100, 64, 0, last])].into(), ..Places::default() };
        let mut pending = Pending { is_worked_on: true, ..Pending::default() };
        pending.later = vec![(now + HALF_OPEN, place(1)), (now + HALF_OPEN * 2, place(2))];
        assert!(matches!(pending.next(now), Next::Wait(until) if until == now + HALF_OPEN));
        pending.now.gone = place(3);
        assert!(matches!(pending.next(now), Next::Cut(due) if due.gone == place(3) && due.half_open.is_empty()));
        let later = now + HALF_OPEN;
        assert!(matches!(pending.next(later), Next::Cut(due) if due.half_open == place(1) && due.gone.is_empty()));
        assert!(matches!(pending.next(later), Next::Wait(_)) && pending.is_worked_on);
        assert!(matches!(pending.next(later + HALF_OPEN), Next::Cut(_)));
        assert!(matches!(pending.next(later), Next::Nothing) && !pending.is_worked_on);
    }
}
