//! Probes the health of running containers: one task for each that has a health check, which sleeps between probes.
//!
//! A probe is a further process of the container, as `exec` makes them. It does not outlive its connection to the shim:
//! one that takes too long, or whose daemon ends, is killed by the shim with what it started.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use skep_proto::model::engine::{ContainerStatus, ExecConfig};
use skep_proto::model::{ContainerId, HealthStatus, ProbeResult};
use skep_shim::protocol::{Answer, Exec, Op};
use tokio::task::JoinHandle;

use super::entry::Entry;
use super::exec::refusal;
use super::shim::{Connection, ShimError};
use super::streams::Wanted;
use super::{ContainerError, Containers};
use crate::runtime::health::{Check, Output, timed_out, unprobed};

impl Containers {
    /// Probes a container that has just been started, if it has a health check.
    pub(super) fn probe_from_start(&self, entry: &Arc<Entry>) -> Option<JoinHandle<()>> {
        let check = Check::of(entry.record().process.healthcheck.as_ref())?;
        let first = check.pause(HealthStatus::Starting, Duration::ZERO);
        Some(tokio::spawn(self.clone().probe_from(entry.clone(), check, first)))
    }

    /// Goes on probing a container that an earlier process started.
    pub(super) fn probe_again(&self, entry: &Arc<Entry>) -> Option<JoinHandle<()>> {
        let check = Check::of(entry.record().process.healthcheck.as_ref())?;
        let pause = check.pause(entry.status_of_health(), self.ran(entry));
        // So that not all containers of the node are probed in the same moment from now on.
        let first = pause.mul_f64(rand::rng().random::<f64>());
        Some(tokio::spawn(self.clone().probe_from(entry.clone(), check, first)))
    }

    /// Ends with the container: whoever notes its end aborts this.
    async fn probe_from(self, entry: Arc<Entry>, check: Check, first: Duration) {
        let mut pause = first;
        loop {
            tokio::time::sleep(pause).await;
            // A frozen container answers nothing, which says nothing of its health.
            if is_awake(&entry) {
                let ran = self.ran(&entry);
                let result = self.probe_with(&entry, &check.command, check.timeout).await;
                if is_awake(&entry) {
                    entry.note_probe(|health| check.judge(health, ran, result));
                }
            }
            pause = check.pause(entry.status_of_health(), self.ran(&entry));
        }
    }

    /// How long a container has been running; zero when it does not.
    pub fn running_for(&self, id: ContainerId) -> Duration {
        self.entry(id)
            .map_or(Duration::ZERO, |entry| if entry.state().pid == 0 { Duration::ZERO } else { self.ran(&entry) })
    }

    /// How long the container has been running.
    fn ran(&self, entry: &Entry) -> Duration {
        let now = (self.inner.config.clock)();
        entry.state().started_at.map_or(Duration::ZERO, |at| now.since(at))
    }

    /// Runs a program in a container to see how it does. Nobody is told of it but the caller.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`]. That it cannot be run is a result with exit code -1.
    ///
    /// # Cancel safety
    /// The program is killed.
    pub async fn probe(
        &self,
        id: ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ProbeResult, ContainerError> {
        let entry = self.entry(id)?;
        Ok(self.probe_with(&entry, &command, timeout).await)
    }

    async fn probe_with(&self, entry: &Entry, command: &[String], timeout: Duration) -> ProbeResult {
        let clock = self.inner.config.clock;
        let start = clock();
        let mut output = Output::default();
        let probed = tokio::time::timeout(timeout, self.run_probe(entry, command, &mut output)).await;
        let (exit_code, output) = match probed {
            Ok(Ok(code)) => (code, output.text()),
            Ok(Err(error)) => (-1, error.to_string()),
            Err(_) => (-1, timed_out(timeout, &output)),
        };
        ProbeResult { start, end: clock(), exit_code, output }
    }

    /// Runs the probe; gives its exit code.
    ///
    /// # Cancel safety
    /// The shim kills a probe whose connection ends.
    async fn run_probe(&self, entry: &Entry, command: &[String], output: &mut Output) -> Result<i32, ContainerError> {
        let id = hex::encode(rand::rng().random::<[u8; 32]>());
        let config = ExecConfig { command: command.to_vec(), ..ExecConfig::default() };
        let wanted = Wanted { stdin: false, stdout: true, stderr: true };
        let request = self.exec_request(&id, &config, entry, false, wanted, false, None).await?;
        let failed = |error: ShimError| refusal(entry.id, error);
        let mut connection = Connection::open(&entry.paths.run()).await.map_err(failed)?;
        let probe = Exec { kill_on_leave: true, ..request };
        let Answer::Started(_) = connection.ask(Op::Exec(probe)).await.map_err(failed)? else {
            return Err(failed(ShimError::Unexpected));
        };
        while let Some(answer) = connection.reader.next().await.map_err(failed)? {
            match answer {
                Answer::Output(piece) => output.push(&piece.bytes),
                Answer::Exited(exited) => return Ok(exited.exit.map_or(-1, |exit| exit.code)),
                Answer::Done(_) | Answer::Refused(_) | Answer::Started(_) | Answer::Status(_) => {}
            }
        }
        Err(failed(ShimError::Gone(std::io::ErrorKind::UnexpectedEof.into())))
    }
}

fn is_awake(entry: &Entry) -> bool {
    entry.state().status == ContainerStatus::Running
}

impl Entry {
    /// A run begins, or is found to have begun.
    pub(super) fn health_begins(&self) {
        self.health.send_replace(self.record().health.map(unprobed));
    }

    fn status_of_health(&self) -> HealthStatus {
        self.health.borrow().as_ref().map_or(HealthStatus::Starting, |health| health.status)
    }

    /// Takes a result in. Only what the status becomes is worth a write.
    fn note_probe(&self, judge: impl FnOnce(&mut skep_proto::model::Health)) {
        let before = self.status_of_health();
        self.health.send_modify(|health| judge(health.get_or_insert_with(|| unprobed(before))));
        let after = self.status_of_health();
        if after != before {
            self.update(|record| record.health = Some(after));
        }
    }
}
