//! Collects images that nobody uses, and content that no image needs, so that disks do not fill.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::model::Timestamp;

use super::Images;
use super::builtin::is_builtin;
use super::catalog::State;
use super::digest::Digest;
use super::error::{ImageError, blocking};
use super::layers::Detached;

/// Unfinished downloads are kept this long for the next attempt.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);

/// Which images go. Images that a lease holds never do, nor do built-in ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectPolicy {
    /// Those without a name (`docker image prune`).
    Dangling,
    /// Those that no container uses (`docker image prune -a`).
    Unused,
    /// Those without a name, and those not used for so long.
    UnusedFor(Duration),
}

/// What a collection removed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// Names (familiar).
    pub untagged: Vec<String>,
    /// Ids of images.
    pub deleted: Vec<String>,
    /// Bytes of blobs and layers.
    pub reclaimed: u64,
}

impl Images {
    /// Removes the images that `policy` names and that no lease holds, then all content that no image needs.
    ///
    /// After a start of the daemon, [`Images::hold`] the image of each container first.
    ///
    /// # Errors
    /// [`ImageError::Storage`].
    pub async fn collect(&self, policy: CollectPolicy) -> Result<Collected, ImageError> {
        let images = self.clone();
        let now = (self.0.clock)();
        let mut collected = blocking(move || {
            let inner = &images.0;
            inner.pins.while_locked(|is_held| {
                inner.catalog.update(|state| {
                    let doomed = plan(state, policy, now, is_held);
                    let names = state.names.extract_if(.., |_, id| doomed.contains(id));
                    let untagged = names.map(|(name, _)| name.familiar()).collect();
                    state.images.retain(|id, _| !doomed.contains(id));
                    let deleted = doomed.iter().map(Digest::to_string).collect();
                    Ok(Collected { untagged, deleted, reclaimed: 0 })
                })
            })
        })
        .await?;
        collected.reclaimed = self.sweep().await?;
        Ok(collected)
    }

    /// Removes blobs, layers and old unfinished downloads that neither an image nor a lease needs; gives the bytes freed.
    pub(super) async fn sweep(&self) -> Result<u64, ImageError> {
        let inner = self.0.clone();
        blocking(move || {
            let now = std::time::UNIX_EPOCH + Duration::from_millis((inner.clock)().0);
            let mut candidates: BTreeSet<Digest> = inner.content.blobs()?.into_iter().collect();
            let layers: BTreeSet<Digest> = inner.layers.layers()?.into_iter().collect();
            let is_old = |changed| now.duration_since(changed).is_ok_and(|age| age > PARTIAL_AGE);
            candidates.extend(inner.content.partials()?.into_iter().filter(|(_, t)| is_old(*t)).map(|(d, _)| d));
            let (mut freed, mut detached) = (0, Vec::<Detached>::new());
            inner.pins.while_locked(|is_held| {
                let needed = inner.catalog.state().content();
                let is_free = |digest: &&Digest| !needed.contains(digest) && !is_held(digest);
                for digest in candidates.iter().filter(is_free) {
                    freed += inner.content.remove(digest)?;
                }
                for digest in layers.iter().filter(is_free) {
                    detached.push(inner.layers.detach(digest)?);
                }
                Ok::<_, ImageError>(())
            })?;
            // The files go here, after the lock.
            Ok(freed + detached.into_iter().map(|layer| layer.size).sum::<u64>())
        })
        .await
    }
}

/// Images that go.
fn plan(state: &State, policy: CollectPolicy, now: Timestamp, is_held: &dyn Fn(&Digest) -> bool) -> BTreeSet<Digest> {
    let goes = |id: &Digest, used_at: Timestamp, removed: bool| {
        let mut names = state.names_of(*id).peekable();
        let dangling = names.peek().is_none();
        if names.any(is_builtin) {
            return false;
        }
        removed
            || match policy {
                CollectPolicy::Dangling => dangling,
                CollectPolicy::Unused => true,
                CollectPolicy::UnusedFor(age) => dangling || now.since(used_at) >= age,
            }
    };
    let images = state.images.values().map(|known| &known.record);
    images
        .filter(|record| !is_held(&record.id) && goes(&record.id, Timestamp(record.used_at), record.removed))
        .map(|record| record.id)
        .collect()
}
