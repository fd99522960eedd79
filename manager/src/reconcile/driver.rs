//! Runs a planner until it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use skep_proto::model::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Env, Planner, SWEEP};
use crate::control::Propose;
use crate::store::{Changes, Group, Outcome, Store};

/// The time, as planners see it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Pause before a key is looked at again whose change was refused or got no answer.
const BACKOFF: Duration = Duration::from_millis(50);
/// Keys planned on one view before their changes are proposed.
const BATCH: usize = 256;

/// Looks at every key, then at those that changes touch, that are due, or that time has come for.
pub async fn run<P: Planner>(
    mut planner: P,
    store: Arc<Store>,
    proposer: Arc<dyn Propose>,
    clock: Clock,
    stop: CancellationToken,
) {
    let (mut state, mut watch) = store.view_and_watch();
    let mut due: BTreeSet<P::Key> = planner.keys(&state).into_iter().collect();
    let mut later: BTreeMap<P::Key, Timestamp> = BTreeMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.reset();
    loop {
        let now = clock();
        let ripe: Vec<P::Key> = later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| *key).collect();
        for key in ripe {
            later.remove(&key);
            due.insert(key);
        }
        if !due.is_empty() {
            state = store.view();
            let keys: Vec<P::Key> = due.iter().take(BATCH).copied().collect();
            let mut work: Vec<(P::Key, Group)> = Vec::new();
            for key in keys {
                due.remove(&key);
                let plan = planner.plan(&state, key, &mut Env { now, rng: &mut rand::rng() });
                work.extend(plan.groups.into_iter().map(|group| (key, group)));
                if let Some(at) = plan.recheck_at {
                    later.insert(key, at);
                }
            }
            let proposals = work.into_iter().map(|(key, group)| {
                let proposer = Arc::clone(&proposer);
                async move { (key, proposer.propose(group).await) }
            });
            let outcomes = tokio::select! {
                () = stop.cancelled() => return,
                outcomes = join_all(proposals) => outcomes,
            };
            for (key, outcome) in outcomes {
                match outcome {
                    Ok(Outcome::Applied { .. }) => {}
                    Ok(Outcome::Refused(refusal)) => {
                        tracing::debug!(planner = P::NAME, %refusal, "a change was refused; planning again");
                        later.insert(key, clock().after(BACKOFF));
                    }
                    Err(error) => {
                        tracing::debug!(planner = P::NAME, %error, "a change could not be proposed; planning again");
                        later.insert(key, clock().after(BACKOFF));
                    }
                }
            }
        }
        let wait = if due.is_empty() { until_next(&later, &clock) } else { Duration::ZERO };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = watch.next() => {
                let Some((view, changes)) = next else { return };
                match changes {
                    Changes::All => due.extend(planner.keys(&view)),
                    Changes::Some(past) => due.extend(past.iter().flat_map(|touched| planner.touched(touched, &view))),
                }
            }
            _ = sweep.tick() => due.extend(planner.keys(&store.view())),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// How long nothing needs to be looked at.
fn until_next<K>(later: &BTreeMap<K, Timestamp>, clock: &Clock) -> Duration {
    later.values().min().map_or(SWEEP, |at| at.since(clock()))
}
