//! Secrets and configs of this node's tasks, in memory: put by the session, taken by the executor.

use std::collections::BTreeMap;
use std::sync::Arc;

use skep_proto::model::session::{FileContent, FileId};
use tokio::sync::watch;

/// What the managers sent; `None` for what they do not have any more.
type Sent = Arc<BTreeMap<FileId, Option<FileContent>>>;

/// Secrets and configs. Cheap to clone; every clone shows the same. Its `Debug` shows no content.
#[derive(Debug, Clone, Default)]
pub struct Files(Arc<watch::Sender<Sent>>);

/// Contents by id.
pub type Contents = BTreeMap<FileId, FileContent>;

impl Files {
    /// Replaces all of them.
    pub fn set(&self, sent: Sent) {
        self.0.send_if_modified(|now| {
            let differs = !Arc::ptr_eq(now, &sent);
            *now = sent;
            differs
        });
    }

    /// Waits until all of these have come: after a restart a task may be older than the first session.
    ///
    /// # Errors
    /// The first that the managers do not have.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn get(&self, ids: &[FileId]) -> Result<Contents, FileId> {
        let mut sent = self.0.subscribe();
        let Ok(sent) = sent.wait_for(|sent| ids.iter().all(|id| sent.contains_key(id))).await else {
            unreachable!("the sending half is held by self");
        };
        ids.iter().map(|id| sent.get(id).cloned().flatten().map(|content| (*id, content)).ok_or(*id)).collect()
    }
}
