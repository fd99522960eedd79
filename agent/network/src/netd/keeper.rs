//! The owner of all that is served: takes changes one at a time.
//!
//! What it does with them is in the folder: `sandboxes` opens and closes sockets, `zones` keeps what is answered, `tunnel` the
//! WireGuard link, and `succession` gives all of it to the next process.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use self::sandboxes::Entry;
pub use self::succession::Frozen;
use crate::dns::forward::Forwarder;
use crate::dns::zone::Zones;
use crate::error::NetworkError;
use crate::netd::NetdError;
use crate::netd::journal::Journal;
use crate::netd::protocol::{Reply, Request, Served};
use crate::netd::records::{Records, Start};
use crate::netd::told::Edition;
use crate::netd::wireguard::{FOLLOW, Given, Owner};
use crate::spec::SandboxId;
use crate::tunnel::Tunnel;

mod sandboxes;
mod succession;
mod tunnel;
mod zones;

/// How often sockets that could not be opened are tried again, and zones that could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// How often gone namespaces are looked for, in retries: nobody waits for it.
const SWEEP: u32 = 10;

/// What the keeper is asked; the answer goes back by the sender.
pub enum Command {
    /// A request of a client.
    Ask(Request, oneshot::Sender<Reply>),
    /// Everything, for a successor. No change is taken from then on.
    Freeze {
        /// The successor takes the WireGuard link too.
        with_tunnel: bool,
        /// Where the answer goes; `None` when another successor is taking over.
        answer: oneshot::Sender<Option<Frozen>>,
    },
    /// The successor failed: changes are taken again.
    Thaw,
    /// The successor serves.
    Finish(oneshot::Sender<Reply>),
}

/// Serves until it is told to stop.
pub struct Keeper {
    records: Records,
    zones: watch::Sender<Arc<Zones>>,
    /// How the daemon calls them.
    edition: Option<Edition>,
    /// Where changes of them go; `None` while they could not be written.
    journal: Option<Journal>,
    sandboxes: BTreeMap<SandboxId, Entry>,
    forwarder: Arc<Forwarder>,
    tasks: TaskTracker,
    frozen: bool,
    tunnel: Owner,
    /// The link while a successor takes it over: only one of the two reads from it.
    given: Option<Given>,
    /// What a link that is not there should be: tried again from time to time.
    missing: Option<Tunnel>,
}

impl Keeper {
    /// Opens what `start` names. Sandboxes whose namespace is gone are left out.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub async fn start(
        records: Records,
        start: Start,
        forwarder: Arc<Forwarder>,
        tasks: TaskTracker,
    ) -> Result<Self, NetdError> {
        let zones = watch::Sender::new(Arc::new(start.zones.zones));
        let mut keeper = Self {
            records,
            zones,
            edition: start.zones.edition,
            journal: None,
            sandboxes: BTreeMap::new(),
            forwarder,
            tasks,
            frozen: false,
            tunnel: start.tunnel,
            given: None,
            missing: None,
        };
        if keeper.tunnel.wanted().is_none() {
            keeper.missing = keeper.records.load_tunnel();
            keeper.mend_tunnel();
        }
        let mut sockets = start.sockets;
        for Served { dns, ports } in start.sandboxes {
            let inherited = sockets.remove(&dns.id);
            let opened = match inherited {
                Some(pair) => keeper.adopt(&dns, pair),
                None => keeper.open(&dns, Some(ports)).await,
            };
            let open = match opened {
                Ok(open) => Some(open),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::info!(sandbox.id = %dns.id, "the sandbox is gone");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(sandbox.id = %dns.id, %error, "cannot open the name server's ports yet");
                    None
                }
            };
            keeper.sandboxes.insert(dns.id.clone(), Entry { dns, ports, open });
        }
        keeper.write_zones().await?;
        keeper.write_sandboxes().await?;
        Ok(keeper)
    }

    /// Works off commands until one ends it or all senders are gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Ask(Request::Stop, answer)) => {
                        let _ = answer.send(Reply::Done);
                        break;
                    }
                    Some(Command::Finish(answer)) if self.frozen => {
                        let _ = answer.send(Reply::Done);
                        break;
                    }
                    Some(command) => self.execute(command).await,
                    None => break,
                },
                () = sleep(FOLLOW), if self.tunnel.is_following() && !self.frozen => {
                    if let Err(error) = self.tunnel.follow() {
                        tracing::warn!(%error, "cannot follow a node to its next key");
                    }
                }
                // While frozen a successor has all in its own hands.
                _ = retry.tick(), if !self.frozen => {
                    ticks = ticks.wrapping_add(1);
                    self.mend_tunnel();
                    self.sweep(ticks.is_multiple_of(SWEEP)).await;
                    if self.journal.is_none() {
                        self.flush().await;
                    }
                }
            }
        }
        for open in std::mem::take(&mut self.sandboxes).into_values().filter_map(|entry| entry.open) {
            open.server.drain();
        }
    }

    async fn execute(&mut self, command: Command) {
        // A sender that went away needs no answer.
        match command {
            Command::Ask(request, answer) => {
                let reply = self.ask(request).await;
                let _ = answer.send(reply);
            }
            Command::Freeze { with_tunnel, answer } => {
                let frozen = (!self.frozen).then(|| self.freeze(with_tunnel)).and_then(|frozen| {
                    frozen.inspect_err(|error| tracing::warn!(%error, "cannot hand the WireGuard link over")).ok()
                });
                let is_frozen = frozen.is_some();
                self.frozen |= answer.send(frozen).is_ok() && is_frozen;
            }
            Command::Thaw => self.thaw().await,
            Command::Finish(answer) => {
                let _ = answer.send(refused("there was no hand-over"));
            }
        }
    }

    async fn ask(&mut self, request: Request) -> Reply {
        if self.frozen && !matches!(request, Request::Sandboxes) {
            return Reply::Refused { retry: true, reason: "a successor is taking over".into() };
        }
        let done = |result: Result<(), NetdError>| match result {
            Ok(()) => Reply::Done,
            Err(error) => refused(chain(&error)),
        };
        match request {
            Request::PutSandbox(dns) => match self.put(dns).await {
                Ok(ports) => Reply::Ports(ports),
                Err(error) => refused(chain(&error)),
            },
            Request::RemoveSandbox(id) => match self.sandboxes.remove(&id) {
                Some(_) => done(self.write_sandboxes().await),
                None => Reply::Done,
            },
            Request::PutZones(zones) => {
                self.put_zones(zones).await;
                Reply::Done
            }
            Request::PatchZones(update) => self.patch_zones(update).await,
            Request::Sandboxes => Reply::Sandboxes(self.served()),
            Request::PutTunnel(tunnel) => self.put_tunnel(tunnel).await,
            Request::RemoveTunnel => {
                self.tunnel.remove();
                self.missing = None;
                match self.write_tunnel(None).await {
                    Ok(()) => Reply::Tunnel(None),
                    Err(error) => refused(chain(&error)),
                }
            }
            Request::Tunnel => match self.tunnel.status() {
                Ok(status) => Reply::Tunnel(status),
                Err(error) => refused(chain(&error)),
            },
            Request::Watch | Request::Handover | Request::HandoverAll | Request::Finish | Request::Stop => {
                refused("not asked of the keeper")
            }
        }
    }
}

/// Writes beside the loop that answers questions: to replace a file may wait for the disk.
async fn write<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetdError> {
    let failed =
        |error| NetworkError::Record { step: "write", path: "a record".into(), source: io::Error::other(error) };
    let written = tokio::task::spawn_blocking(act).await.map_err(failed).flatten();
    written.map_err(|source| NetdError::Record { source })
}

fn refused(reason: impl Into<String>) -> Reply {
    Reply::Refused { retry: false, reason: reason.into() }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
