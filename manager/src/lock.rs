//! Locking of managers: the keys of this manager's log are wrapped with the cluster's unlock key as the cluster's record
//! says, and a manager that was stopped since needs that key to start.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::raft::Raft;
use crate::raft::disk::Folder;
use crate::raft::keys::{DataKeys, KeyError, UnlockKey};
use crate::store::Store;

/// For a read barrier, and the pause after what failed.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// What guards a Raft folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// There are no keys: nothing to open.
    Empty,
    /// The key that a sealed TLS key of the node is opened with.
    Open([u8; 32]),
    /// The unlock key is needed.
    Locked,
}

/// Looks at the Raft folder `dir`, which need not exist, with the unlock key where the operator gave one.
///
/// # Errors
/// [`KeyError::WrongKey`], or that the keys cannot be read.
pub fn look(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Guard, KeyError> {
    if !dir.join("keys").exists() {
        return Ok(Guard::Empty);
    }
    let disk = Folder::open(dir)?;
    if unlock.is_none() && DataKeys::is_locked(&disk)? {
        return Ok(Guard::Locked);
    }
    Ok(Guard::Open(DataKeys::open(&disk, unlock)?.node_seal()))
}

/// Keeps the keys of a running manager wrapped as the cluster says.
pub(crate) struct Lock {
    keys: DataKeys,
    disk: Arc<Folder>,
    /// What they are wrapped with on disk.
    with: Option<UnlockKey>,
    seal: watch::Sender<Option<[u8; 32]>>,
}

impl Lock {
    pub(crate) fn new(keys: DataKeys, disk: Arc<Folder>, with: Option<UnlockKey>) -> Self {
        let seal = watch::Sender::new(with.as_ref().map(|_| keys.node_seal()));
        Self { keys, disk, with, seal }
    }

    /// The key that seals the node's TLS key while managers are locked.
    pub(crate) fn seal(&self) -> watch::Receiver<Option<[u8; 32]>> {
        self.seal.subscribe()
    }

    /// Follows the cluster's record until `stop`.
    pub(crate) async fn keep(mut self, store: Arc<Store>, raft: Raft, stop: CancellationToken) {
        let (_, mut watch) = store.view_and_watch();
        loop {
            let is_done = self.follow(&store, &raft).await;
            tokio::select! {
                () = stop.cancelled() => return,
                next = watch.next(), if is_done => if next.is_none() { return },
                () = tokio::time::sleep(RETRY), if !is_done => {}
            }
        }
    }

    /// Whether the keys are as the record says.
    async fn follow(&mut self, store: &Store, raft: &Raft) -> bool {
        let wanted = |store: &Store| store.view().cluster().map(|c| c.unlock.as_ref().and_then(|u| u.key.parse().ok()));
        if wanted(store).is_none_or(|wanted| wanted == self.with) {
            return true;
        }
        // A manager that has just started may still apply what was true long ago: its operator holds the newest key.
        if raft.read_index(PATIENCE).await.is_err() {
            return false;
        }
        let Some(wanted) = wanted(store) else { return true };
        if let Err(error) = self.keys.save(&*self.disk, wanted.as_ref()) {
            tracing::error!(%error, "the keys of the log could not be wrapped anew");
            return false;
        }
        tracing::info!(locked = wanted.is_some(), "wrapped the keys of the log anew");
        self.seal.send_replace(wanted.as_ref().map(|_| self.keys.node_seal()));
        self.with = wanted;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_says_whether_it_is_locked_and_opens_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path(), None).unwrap(), Guard::Empty);
        let disk = Folder::open(dir.path()).unwrap();
        let keys = DataKeys::open(&disk, None).unwrap();
        let open = Guard::Open(keys.node_seal());
        assert_eq!(look(dir.path(), None).unwrap(), open);
        let key = UnlockKey::random();
        keys.save(&disk, Some(&key)).unwrap();
        assert_eq!(look(dir.path(), None).unwrap(), Guard::Locked);
        assert_eq!(look(dir.path(), Some(&key)).unwrap(), open);
        assert!(matches!(look(dir.path(), Some(&UnlockKey::random())), Err(KeyError::WrongKey)));
    }
}
