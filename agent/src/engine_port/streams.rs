//! Attach and exec: streams of processes.

use futures_util::StreamExt;
use skep_api::ports::engine::{AttachStreams, Attached, EngineError, TerminalSize};
use skep_engine::containers::{self as engine, Wanted};
use skep_proto::model::ContainerId;
use skep_proto::model::engine::{LogQuery, Output};

use super::{NodeEngine, errors};

impl NodeEngine {
    pub(super) async fn attach_to(&self, id: ContainerId, request: AttachStreams) -> Result<Attached, EngineError> {
        // What is written from now on comes from the process, what was written before from the log.
        let now = (self.inner.clock)();
        let attached = match request.stream {
            true => {
                let wanted = Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
                given(self.inner.containers.attach(id, wanted).await.map_err(errors::container)?)
            }
            false => {
                let tty = self.inner.containers.inspect(id).map_err(errors::container)?.config.spec.tty;
                Attached { tty, input: None, output: futures_util::stream::empty().boxed() }
            }
        };
        if !request.logs {
            return Ok(attached);
        }
        let query = LogQuery {
            stdout: request.stdout,
            stderr: request.stderr,
            follow: false,
            tail: None,
            since_nanos: None,
            until_nanos: Some(now.0.saturating_mul(1_000_000)),
        };
        let earlier = self.inner.containers.logs(id, query).map_err(errors::container)?;
        let earlier = earlier.map(|line| line.map(|line| Output { stream: line.stream, bytes: line.bytes }));
        Ok(Attached { output: earlier.chain(attached.output).boxed(), ..attached })
    }

    pub(super) async fn start_exec(
        &self,
        id: &str,
        detach: bool,
        tty: bool,
        size: Option<TerminalSize>,
    ) -> Result<Option<Attached>, EngineError> {
        let size = size.map(|size| (size.height, size.width));
        let attached = self.inner.containers.exec_start(id, detach, tty, size).await.map_err(errors::container)?;
        Ok(attached.map(given))
    }
}

fn given(attached: engine::Attached) -> Attached {
    let engine::Attached { tty, input, output } = attached;
    Attached { tty, input, output }
}
