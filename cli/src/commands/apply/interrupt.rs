//! Ctrl-C, from the moment on at which something is changed.

use std::future::Future;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output::Status;

/// The exit code of a shell's command that `SIGINT` ended (128 + 2).
const CODE: u8 = 130;

/// Notices the signal from its making on, also between two waits. The one that it notices does not end the program.
pub struct Interrupt(Signal);

impl Interrupt {
    /// # Errors
    /// When there is no handler to be had.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt()).context("waiting for Ctrl-C")?))
    }

    /// Works until that is done, or gives it up at the signal: then the error is what `said` says, with the exit code 130.
    ///
    /// # Errors
    /// Those of the work, and the signal.
    pub async fn or<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
        said: impl FnOnce() -> String,
    ) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            _ = self.0.recv() => Err(Status { code: CODE, message: said() }.into()),
            done = work => done,
        }
    }
}
