//! Which daemon a client command speaks to.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

use crate::client::Client;

const DEFAULT_SOCKET: &str = "/run/skep/docker.sock";

/// Which daemon a client command speaks to.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// Daemon to speak to [default: unix:///run/skep/docker.sock]
    #[arg(short = 'H', long = "host", env = "DOCKER_HOST", global = true)]
    host: Option<String>,
}

impl Connection {
    /// A client of that daemon.
    ///
    /// # Errors
    /// When the address is none that `skep` speaks to.
    pub fn client(&self) -> anyhow::Result<Client> {
        let path = match self.host.as_deref() {
            None | Some("") => PathBuf::from(DEFAULT_SOCKET),
            Some(host) => match host.strip_prefix("unix://") {
                Some(path) => path.into(),
                None => bail!("{host}: skep's own client speaks to unix:///PATH only; the docker CLI can do more"),
            },
        };
        Ok(Client::new(path))
    }
}

/// Runs a client command to its end.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    // A read of standard input that nobody waits for any more must not hold the end up.
    runtime.shutdown_background();
    result
}
