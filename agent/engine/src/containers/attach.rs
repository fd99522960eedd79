//! Attaching to a container's streams, before its start or later, and its terminal's size.

use skep_proto::model::ContainerId;
use skep_proto::model::engine::ContainerStatus;
use skep_shim::protocol::{Attach, Op, Resize};

use super::shim::{Connection, ShimError};
use super::streams::{Attached, Wanted, pair, pump};
use super::{ContainerError, Containers};

impl Containers {
    /// Connects to a container's streams. One that does not run yet is connected before its first output.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] for a paused container, as Docker's.
    pub async fn attach(&self, id: ContainerId, wanted: Wanted) -> Result<Attached, ContainerError> {
        let entry = self.entry(id)?;
        let turn = entry.turn.lock().await;
        let record = entry.record();
        let (attached, ends) = pair(wanted, record.config.spec.tty);
        match record.state.status {
            ContainerStatus::Paused => {
                let text = format!("container {id} is paused, unpause the container before attach");
                return Err(ContainerError::Conflict(text));
            }
            ContainerStatus::Running => {}
            _ if turn.removed => return Err(entry.gone()),
            _ => {
                entry.keep_waiting(ends);
                return Ok(attached);
            }
        }
        let attach = Attach { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr };
        match Connection::open(&entry.paths.run()).await {
            Ok(mut connection) => match connection.ask(Op::Attach(attach)).await {
                Ok(_) => drop(tokio::spawn(pump(connection, ends, |_| ()))),
                Err(ShimError::Gone(_)) => drop(ends),
                Err(e) => return Err(ContainerError::internal("attaching to the container", std::io::Error::other(e))),
            },
            // It has just ended: streams that end at once.
            Err(_) => drop(ends),
        }
        Ok(attached)
    }

    /// Sets the size of a container's terminal, in characters.
    ///
    /// # Errors
    /// [`ContainerError::Conflict`] when it does not run.
    pub async fn resize(&self, id: ContainerId, rows: u16, columns: u16) -> Result<(), ContainerError> {
        self.resize_terminal(id, "", rows, columns).await
    }

    pub(super) async fn resize_terminal(
        &self,
        id: ContainerId,
        exec: &str,
        rows: u16,
        columns: u16,
    ) -> Result<(), ContainerError> {
        let entry = self.entry(id)?;
        let stopped = || ContainerError::Conflict(format!("Container {id} is not running"));
        let resize = Resize { exec: exec.to_owned(), rows: rows.into(), columns: columns.into() };
        let mut shim = Connection::open(&entry.paths.run()).await.map_err(|_| stopped())?;
        match shim.ask(Op::Resize(resize)).await {
            Ok(_) => Ok(()),
            Err(ShimError::Gone(_)) => Err(stopped()),
            Err(e) => Err(ContainerError::Conflict(format!("cannot resize: {e}"))),
        }
    }
}
