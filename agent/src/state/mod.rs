//! What the agent must not forget: assignments, statuses on their way, managers, the last index seen.
//!
//! One redb file. Rows are the wire form of the model, so they outlive releases; the file carries a format number. Writers
//! hand over batches that are committed in order, several in one transaction when they come at once.
//! [`held`] keeps the same in memory and decides what a set of assignments changes.

pub mod desired;
pub mod held;
mod load;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

pub use load::Loaded;
pub use write::{Table, Write};

/// Format of the file. A release reads its own and earlier ones.
const FORMAT: u64 = 1;
/// Bytes of redb's cache: the file is small and read once.
const CACHE_BYTES: usize = 1024 * 1024;
/// Batches that may wait for the disk.
const QUEUE: usize = 1024;

type Rows = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Why the local state cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError {
    /// The file cannot be opened or read.
    #[error(
        "cannot read the agent's state in {path}; without that file the node gets its tasks again from the managers"
    )]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: Arc<redb::Error>,
    },
    /// The file was written by a later release.
    #[error("the agent's state in {path} has format {found}, this release reads up to {FORMAT}: run the newer release")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: u64,
    },
    /// A change cannot be written.
    #[error("cannot write the agent's state")]
    Write {
        /// Why.
        source: Arc<redb::Error>,
    },
    /// The writer has stopped, with the agent.
    #[error("the agent is stopping")]
    Stopped,
}

/// The local state. Cheap to clone; all clones share one writer.
#[derive(Clone)]
pub struct LocalState {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    writes: Vec<Write>,
    done: Option<oneshot::Sender<Result<(), StateError>>>,
}

/// Commits what the clones of a [`LocalState`] hand over, until all are gone.
#[must_use = "nothing is written until it runs"]
pub struct Writer {
    /// `None` after a failed commit: redb takes nothing more until it is opened again.
    database: Option<Arc<Database>>,
    /// Where it is opened again; `None` for a database in memory.
    path: Option<PathBuf>,
    jobs: mpsc::Receiver<Job>,
    placement: Placement,
}

/// Where commits run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// On a thread that may wait for the disk.
    Thread,
    /// In the task itself: for databases in memory, so that simulations stay deterministic.
    Inline,
}

/// Opens the state in the file `path`, made when it is missing.
///
/// # Errors
/// [`StateError::Read`], [`StateError::Format`].
pub fn open(path: &Path) -> Result<(LocalState, Loaded, Writer), StateError> {
    let read = |source: redb::Error| StateError::Read { path: path.display().to_string(), source: Arc::new(source) };
    let database = open_file(path).map_err(|error| read(error.into()))?;
    let (state, loaded, writer) = with_database(database, &path.display().to_string(), Placement::Thread)?;
    Ok((state, loaded, Writer { path: Some(path.to_owned()), ..writer }))
}

fn open_file(path: &Path) -> Result<Arc<Database>, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map(Arc::new)
}

/// The state in a database that is open already; `name` stands for it in errors.
///
/// # Errors
/// As [`open`].
pub fn with_database(
    database: Arc<Database>,
    name: &str,
    placement: Placement,
) -> Result<(LocalState, Loaded, Writer), StateError> {
    let read = |source: redb::Error| StateError::Read { path: name.to_owned(), source: Arc::new(source) };
    let format = load::format(&database).map_err(read)?;
    if let Some(found) = format.filter(|format| *format > FORMAT) {
        return Err(StateError::Format { path: name.to_owned(), found });
    }
    if format.is_none() {
        write::commit(&database, &[Write::number("format", FORMAT)]).map_err(read)?;
    }
    let loaded = load::load(&database).map_err(read)?;
    let (sender, jobs) = mpsc::channel(QUEUE);
    Ok((LocalState { jobs: sender }, loaded, Writer { database: Some(database), path: None, jobs, placement }))
}

impl LocalState {
    /// Writes a batch, all or nothing; returns when it is on disk.
    ///
    /// # Errors
    /// [`StateError::Write`], [`StateError::Stopped`].
    pub async fn write(&self, writes: Vec<Write>) -> Result<(), StateError> {
        let (done, result) = oneshot::channel();
        self.jobs.send(Job { writes, done: Some(done) }).await.map_err(|_| StateError::Stopped)?;
        result.await.map_err(|_| StateError::Stopped)?
    }

    /// Writes a batch that may be lost, when the disk is too slow or the process ends first.
    pub fn write_later(&self, writes: Vec<Write>) {
        // A full queue means that the disk lags: what may be lost makes room for what may not.
        let _ = self.jobs.try_send(Job { writes, done: None });
    }
}

impl Writer {
    /// Runs until the last [`LocalState`] is dropped and everything is written.
    pub async fn run(mut self) {
        while let Some(first) = self.jobs.recv().await {
            let mut batch = vec![first];
            while batch.len() < QUEUE
                && let Ok(job) = self.jobs.try_recv()
            {
                batch.push(job);
            }
            let (writes, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.writes, job.done)).unzip();
            let result =
                self.commit(writes.concat()).await.map_err(|source| StateError::Write { source: Arc::new(source) });
            if let Err(error) = &result {
                warn!(error = %crate::chain(error), "local state was not written");
            }
            for done in waiting.into_iter().flatten() {
                // Who does not wait any more does not need the answer.
                let _ = done.send(result.clone());
            }
        }
    }

    /// A batch that failed may be on disk all the same: batches may be repeated.
    async fn commit(&mut self, writes: Vec<Write>) -> Result<(), redb::Error> {
        let database = match (self.database.take(), &self.path) {
            (Some(database), _) => database,
            (None, Some(path)) => open_file(path)?,
            (None, None) => return Err(redb::Error::PreviousIo),
        };
        let result = self.commit_to(&database, writes).await;
        self.database = result.is_ok().then_some(database);
        result
    }

    async fn commit_to(&self, database: &Arc<Database>, writes: Vec<Write>) -> Result<(), redb::Error> {
        match self.placement {
            Placement::Inline => write::commit(database, &writes),
            Placement::Thread => {
                let database = Arc::clone(database);
                match tokio::task::spawn_blocking(move || write::commit(&database, &writes)).await {
                    Ok(result) => result,
                    Err(_) => Err(redb::Error::Io(std::io::Error::other("the thread that writes has died"))),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
