//! One container in memory: its record, who waits for it, and the turn-taking of operations on it.

use std::io;
use std::sync::Mutex;

use skep_proto::model::engine::{Container, ContainerState, ContainerStatus};
use skep_proto::model::{ContainerId, Health, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::record::Record;
use super::run::Paths;
use super::streams::Ends;
use super::{ContainerError, StartWith};
use crate::runtime::health;

/// What those who wait look at.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// A process of it runs.
    pub running: bool,
    /// It waits for its restart.
    pub restarting: bool,
    /// Runs that have ended.
    pub exits: u64,
    /// Exit code of the last one, and what went wrong.
    pub last: (i32, String),
    /// It is gone.
    pub removed: bool,
}

/// A container.
pub struct Entry {
    /// Its id.
    pub id: ContainerId,
    /// Its files.
    pub paths: Paths,
    /// Held by an operation that changes what runs.
    pub turn: tokio::sync::Mutex<Turn>,
    /// For those who wait.
    pub progress: watch::Sender<Progress>,
    /// Results of the probes, for those who wait for its health.
    pub health: watch::Sender<Option<Health>>,
    record: Mutex<Record>,
    /// Clients that attached before the start.
    waiting: Mutex<Vec<Ends>>,
}

/// Work that an operation began and does not wait for.
pub type Background = JoinHandle<io::Result<()>>;

/// What only the operation whose turn it is may use.
#[derive(Default)]
pub struct Turn {
    /// Takes the last run away, in the background: its processes, then its files.
    pub cleanup: Option<(Background, Background)>,
    /// Reads the shim's events.
    pub supervisor: Option<JoinHandle<()>>,
    /// Probes the container's health.
    pub prober: Option<JoinHandle<()>>,
    /// What the last start was given.
    pub with: StartWith,
    /// Failures in a row, for the pause between restarts.
    pub failures: u32,
    /// The container was removed while this operation waited for its turn.
    pub removed: bool,
}

impl Entry {
    /// A container whose record is on disk.
    pub fn new(record: Record, paths: Paths) -> Self {
        let progress = Progress {
            running: record.state.pid != 0,
            last: (record.state.exit_code, record.state.error.clone()),
            ..Progress::default()
        };
        Self {
            id: record.config.id,
            paths,
            turn: tokio::sync::Mutex::default(),
            progress: watch::Sender::new(progress),
            health: watch::Sender::new(record.health.map(health::unprobed)),
            record: Mutex::new(record),
            waiting: Mutex::default(),
        }
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        self.record.lock().expect("nothing panics while it holds the lock").clone()
    }

    /// Where it stands.
    pub fn state(&self) -> ContainerState {
        self.record.lock().expect("nothing panics while it holds the lock").state.clone()
    }

    /// Changes the record, in memory and on disk. What cannot be written is logged: the shim and the kernel know better.
    pub fn update(&self, change: impl FnOnce(&mut Record)) {
        let mut record = self.record.lock().expect("nothing panics while it holds the lock");
        change(&mut record);
        if let Err(error) = record.save(&self.paths.dir) {
            tracing::error!(container.id = %self.id, %error, "writing the container's record");
        }
    }

    /// Notes the end of a run and tells those who wait.
    pub fn ended(&self, code: i32, oom: bool, error: &str, at: Timestamp, restarting: bool) {
        self.update(|r| {
            r.state.status = if restarting { ContainerStatus::Restarting } else { ContainerStatus::Exited };
            r.state.pid = 0;
            r.state.exit_code = code;
            r.state.oom_killed = oom;
            error.clone_into(&mut r.state.error);
            r.state.finished_at = Some(at);
        });
        self.progress.send_modify(|p| {
            p.running = false;
            p.restarting = restarting;
            p.exits += 1;
            p.last = (code, error.to_owned());
        });
    }

    /// As inspection shows it.
    pub fn view(&self) -> Container {
        let record = self.record();
        let id = self.id.to_string();
        Container {
            created_at: record.created_at,
            image_id: record.image_id.clone(),
            process: record.process.clone(),
            state: record.state.clone(),
            health: self.health.borrow().clone(),
            restart_count: record.restart_count,
            mounts: record.mounts(),
            networks: Vec::new(),
            ports: Vec::new(),
            exposed: record.exposed.clone(),
            log_path: match super::run::log_options(record.config.log.as_ref()) {
                Ok(Some(_)) => self.paths.log(&id),
                _ => std::path::PathBuf::new(),
            },
            etc: self.paths.etc(),
            config: record.config,
        }
    }

    /// Keeps a client's streams until the start.
    pub fn keep_waiting(&self, ends: Ends) {
        let mut waiting = self.waiting.lock().expect("nothing panics while it holds the lock");
        waiting.retain(|other| !other.is_abandoned());
        waiting.push(ends);
    }

    /// Streams of clients that attached before the start.
    pub fn take_waiting(&self) -> Vec<Ends> {
        std::mem::take(&mut self.waiting.lock().expect("nothing panics while it holds the lock"))
    }

    /// The answer to operations on a container that was removed while they waited.
    pub fn gone(&self) -> ContainerError {
        ContainerError::NotFound(self.id.to_string())
    }
}
