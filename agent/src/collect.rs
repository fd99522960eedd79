//! Keeps the disk from filling: removes what no assignment names.
//!
//! Dead containers of tasks stay while the managers remember the task, for people to read their logs; the managers keep a
//! few per slot. What belongs to no assigned task is removed here, and so are images that nothing used for long.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::executor::{Executor, TaskUnit};
use crate::state::desired::Desired;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(300);
/// While it is not known what should be here.
const SOON: Duration = Duration::from_secs(5);

/// Collects from time to time, until `cancel`.
pub async fn run(executor: Arc<dyn Executor>, desired: Arc<Desired>, cancel: CancellationToken) {
    loop {
        // Without a word of the managers everything here may still be wanted.
        let next = if desired.is_complete() {
            collect(&*executor, &desired).await;
            EVERY
        } else {
            SOON
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(next) => {}
        }
    }
}

async fn collect(executor: &dyn Executor, desired: &Desired) {
    // Listed first, compared after: a task that is assigned meanwhile is no stray.
    match executor.tasks().await {
        Ok(tasks) => {
            for task in tasks.into_iter().filter(|task| !desired.holds(*task)) {
                info!(task.id = %task, "removing what is left of a task that is not assigned to this node");
                if let Err(error) = executor.remove(task).await {
                    warn!(task.id = %task, %error, "cannot remove what is left of a task");
                }
            }
        }
        Err(error) => warn!(%error, "cannot list what is left of tasks"),
    }
    let keep: Vec<TaskUnit> = desired.tasks().into_iter().map(|(unit, _)| unit).collect();
    if let Err(error) = executor.collect(&keep).await {
        warn!(%error, "cannot collect unused images");
    }
}
