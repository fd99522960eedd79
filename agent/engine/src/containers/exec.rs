//! Further processes in a running container.

use std::sync::{Arc, Mutex};

use rand::Rng;
use skep_proto::model::ContainerId;
use skep_proto::model::engine::{ContainerStatus, ExecConfig, ExecState};
use skep_shim::protocol::{Answer, Exec, Op};

use super::shim::{Connection, ShimError};
use super::streams::{Attached, Wanted, pair, pump};
use super::{ContainerError, Containers, EventKind, ExecEvent, blocking, run};
use crate::runtime::spec;
use crate::runtime::users::{Accounts, User};

/// Ended sessions that can still be inspected, per node.
const KEPT: usize = 1024;

/// An exec session.
pub struct Session {
    /// Its container.
    pub container: ContainerId,
    config: ExecConfig,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    started: bool,
    pid: u32,
    exit_code: Option<i32>,
    order: u64,
}

impl Session {
    fn event(&self, id: &str) -> ExecEvent {
        ExecEvent { id: id.to_owned(), command: self.config.command.join(" ") }
    }

    /// `false` when that was known.
    fn ended(&self, code: i32) -> bool {
        let mut state = self.state.lock().expect("nothing panics while it holds the lock");
        let is_news = state.exit_code.is_none();
        if is_news {
            state.exit_code = Some(code);
            state.pid = 0;
        }
        is_news
    }
}

impl Containers {
    fn end_session(&self, exec: &str, session: &Session, exit_code: i32) {
        if session.ended(exit_code) {
            self.publish(session.container, EventKind::ExecDie { exec: session.event(exec), exit_code });
        }
    }

    /// Prepares a process; gives its id, 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when the container does not run, [`ContainerError::Invalid`] without a command.
    pub fn exec_create(&self, id: ContainerId, config: ExecConfig) -> Result<String, ContainerError> {
        let entry = self.entry(id)?;
        running(id, entry.state().status)?;
        if config.command.first().is_none_or(String::is_empty) {
            return Err(ContainerError::Invalid("No exec command specified".to_owned()));
        }
        let exec = id.exec(rand::rng().random());
        let mut execs = self.inner.execs.lock().expect("nothing panics while it holds the lock");
        let order = execs.values().map(|s| s.state.lock().expect("nothing panics while it holds the lock").order).max();
        let ended = |s: &Arc<Session>| s.state.lock().expect("nothing panics while it holds the lock").clone();
        if execs.len() >= KEPT {
            let oldest = execs.iter().map(|(id, s)| (ended(s), id)).filter(|(s, _)| s.exit_code.is_some());
            if let Some(oldest) = oldest.min_by_key(|(s, _)| s.order).map(|(_, id)| id.clone()) {
                execs.remove(&oldest);
            }
        }
        let state = State { order: order.map_or(0, |o| o + 1), ..State::default() };
        let event = EventKind::ExecCreate(ExecEvent { id: exec.clone(), command: config.command.join(" ") });
        execs.insert(exec.clone(), Arc::new(Session { container: id, config, state: Mutex::new(state) }));
        drop(execs);
        self.publish(id, event);
        Ok(exec)
    }

    /// Starts it. The streams are `None` when `detach`. `size`: rows and columns of its terminal.
    ///
    /// # Errors
    /// [`ContainerError::StartFailed`] with an OCI runtime's words.
    pub async fn exec_start(
        &self,
        exec: &str,
        detach: bool,
        tty: bool,
        size: Option<(u16, u16)>,
    ) -> Result<Option<Attached>, ContainerError> {
        let session = self.session(exec)?;
        let entry = self.entry(session.container)?;
        running(entry.id, entry.state().status)?;
        {
            let mut state = session.state.lock().expect("nothing panics while it holds the lock");
            if state.started {
                return Err(ContainerError::Conflict(format!("Error: Exec command {exec} has already run")));
            }
            state.started = true;
        }
        self.publish(entry.id, EventKind::ExecStart(session.event(exec)));
        let begun = self.exec_begin(exec, &session, &entry, detach, tty, size).await;
        if let Err(e) = &begun {
            self.end_session(exec, &session, super::start::code_of_failure(&e.to_string(), 126));
        }
        begun
    }

    async fn exec_begin(
        &self,
        exec: &str,
        session: &Arc<Session>,
        entry: &super::entry::Entry,
        detach: bool,
        tty: bool,
        size: Option<(u16, u16)>,
    ) -> Result<Option<Attached>, ContainerError> {
        let config = &session.config;
        let tty = tty || config.tty;
        let wanted = Wanted {
            stdin: config.attach_stdin && !detach,
            stdout: config.attach_stdout || tty,
            stderr: config.attach_stderr,
        };
        let request = self.exec_request(exec, config, entry, tty, wanted, detach, size).await?;
        let failed = |error: ShimError| refusal(entry.id, error);
        let mut connection = Connection::open(&entry.paths.run()).await.map_err(failed)?;
        let Answer::Started(started) = connection.ask(Op::Exec(request)).await.map_err(failed)? else {
            return Err(failed(ShimError::Unexpected));
        };
        {
            let mut state = session.state.lock().expect("nothing panics while it holds the lock");
            if state.exit_code.is_none() {
                state.pid = started.pid;
            }
        }
        if detach {
            return Ok(None);
        }
        let (attached, ends) = pair(wanted, tty);
        let (session, containers, exec) = (session.clone(), self.clone(), exec.to_owned());
        tokio::spawn(pump(connection, ends, move |code| containers.end_session(&exec, &session, code)));
        Ok(Some(attached))
    }

    #[allow(clippy::too_many_arguments)] // One call; a struct would only repeat the names.
    pub(super) async fn exec_request(
        &self,
        exec: &str,
        config: &ExecConfig,
        entry: &super::entry::Entry,
        tty: bool,
        wanted: Wanted,
        detach: bool,
        size: Option<(u16, u16)>,
    ) -> Result<Exec, ContainerError> {
        let record = entry.record();
        let name = if config.user.is_empty() { record.process.user.clone() } else { config.user.clone() };
        let (rootfs, groups) = (entry.paths.rootfs(), record.config.spec.groups.clone());
        let user: User = blocking(move || {
            let accounts =
                Accounts::read(&rootfs).map_err(|e| ContainerError::internal("reading the container's users", e))?;
            accounts.resolve(&name, &groups).map_err(|e| ContainerError::StartFailed(e.to_string()))
        })
        .await?;
        let invalid = |e: spec::SpecError| ContainerError::Invalid(e.to_string());
        let dir = if config.dir.is_empty() { record.process.dir.clone() } else { config.dir.clone() };
        let all = config.privileged || record.config.privileged;
        let (rows, columns) = size.unwrap_or_default();
        Ok(Exec {
            id: exec.to_owned(),
            args: config.command.clone(),
            env: spec::process_env(&record.process, tty, &user.home, &config.env),
            dir,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            capabilities: spec::capabilities(&record.config.spec, all).map_err(invalid)?,
            limits: run::rlimits(spec::limits(&record.config.spec.ulimits).map_err(invalid)?),
            tty,
            stdin: wanted.stdin,
            attach: !detach,
            rows: rows.into(),
            columns: columns.into(),
            kill_on_leave: false,
        })
    }

    /// Sets the size of its terminal, in characters.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when it does not run.
    pub async fn exec_resize(&self, exec: &str, rows: u16, columns: u16) -> Result<(), ContainerError> {
        let session = self.session(exec)?;
        self.resize_terminal(session.container, exec, rows, columns).await
    }

    /// What is known of it.
    ///
    /// # Errors
    /// [`ContainerError::NoSuchExec`].
    pub fn exec_inspect(&self, exec: &str) -> Result<ExecState, ContainerError> {
        let session = self.session(exec)?;
        let state = session.state.lock().expect("nothing panics while it holds the lock").clone();
        Ok(ExecState {
            id: exec.to_owned(),
            container: session.container,
            config: session.config.clone(),
            running: state.pid != 0,
            exit_code: state.exit_code,
            pid: state.pid,
        })
    }

    fn session(&self, exec: &str) -> Result<Arc<Session>, ContainerError> {
        let execs = self.inner.execs.lock().expect("nothing panics while it holds the lock");
        execs.get(exec).cloned().ok_or_else(|| ContainerError::NoSuchExec(exec.to_owned()))
    }

    pub(super) fn exec_ended(&self, exec: &str, code: i32) {
        if let Ok(session) = self.session(exec) {
            self.end_session(exec, &session, code);
        }
    }

    /// Processes end with their container.
    pub(super) fn execs_of_ended(&self, id: ContainerId) {
        let execs = self.inner.execs.lock().expect("nothing panics while it holds the lock");
        for (exec, session) in execs.iter().filter(|(_, s)| s.container == id) {
            let started = session.state.lock().expect("nothing panics while it holds the lock").started;
            if started {
                self.end_session(exec, session, 137);
            }
        }
    }

    pub(super) fn forget_execs(&self, id: ContainerId) {
        let mut execs = self.inner.execs.lock().expect("nothing panics while it holds the lock");
        execs.retain(|_, s| s.container != id);
    }
}

/// A shim's no, in Docker's words.
pub(super) fn refusal(container: ContainerId, error: ShimError) -> ContainerError {
    match error {
        ShimError::Refused(text) => ContainerError::StartFailed(format!(
            "OCI runtime exec failed: exec failed: unable to start container process: {text}: unknown"
        )),
        ShimError::Gone(_) => ContainerError::Conflict(format!("Container {container} is not running")),
        e @ ShimError::Unexpected => ContainerError::internal("starting a process", std::io::Error::other(e)),
    }
}

fn running(id: ContainerId, status: ContainerStatus) -> Result<(), ContainerError> {
    match status {
        ContainerStatus::Running => Ok(()),
        ContainerStatus::Paused => {
            Err(ContainerError::Conflict(format!("Container {id} is paused, unpause the container before exec")))
        }
        _ => Err(ContainerError::Conflict(format!("container {id} is not running"))),
    }
}
