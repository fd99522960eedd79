//! The daemon's side: starts the process when there is none, starts it again when it dies, and tells it what to serve.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::telling::Telling;
use crate::dns::patch::ZonesPatch;
use crate::dns::zone::Zones;
use crate::names::{DnsPorts, Names, SandboxDns};
use crate::netd::protocol::{self, Reply, Request};
use crate::netd::{NetdError, socket};
use crate::spec::SandboxId;
use crate::sys::detach;
use crate::tunnel::{Tunnel, TunnelStatus, Tunnels};

mod telling;

/// How long a call is tried: a process that died is back long before.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(10);
/// Shortest time between two starts of the process, so that one that cannot live does not take a core.
const RESTART: Duration = Duration::from_millis(500);

/// Settings of the client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Folder of the process.
    pub dir: PathBuf,
    /// The program, called as `EXE net --dir DIR ARGS…`.
    pub exe: PathBuf,
    /// More arguments.
    pub args: Vec<OsString>,
}

impl ClientConfig {
    /// Without more arguments.
    pub fn new(dir: impl Into<PathBuf>, exe: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), exe: exe.into(), args: Vec::new() }
    }
}

/// Speaks to the name server's process and keeps it alive while this lives. The process itself outlives it.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    supervising: CancellationToken,
    _end: DropGuard,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    telling: Telling,
}

impl Client {
    /// Finds the running process of the folder or starts one.
    ///
    /// # Errors
    /// [`NetdError::Io`] when the program cannot be started, [`NetdError::NoAnswer`] when it does not come up.
    pub async fn start(config: ClientConfig) -> Result<Self, NetdError> {
        let shared = Arc::new(Shared { config, telling: Telling::new() });
        let (watch, _) = shared.ensure().await?;
        let supervising = CancellationToken::new();
        let (task, token) = (shared.clone(), supervising.clone());
        tokio::spawn(async move {
            tokio::select! {
                // First: the process that ends because of it is not started again.
                biased;
                () = token.cancelled() => (),
                () = task.supervise(watch) => (),
            }
        });
        Ok(Self { shared, _end: supervising.clone().drop_guard(), supervising })
    }

    /// Serves a sandbox, or serves it with other settings. The same call again gives the same ports. A namespace that
    /// was made anew gets new ones.
    ///
    /// # Errors
    /// [`NetdError::Refused`] when the namespace cannot be used; [`NetdError::NoAnswer`].
    pub async fn put_sandbox(&self, sandbox: SandboxDns) -> Result<DnsPorts, NetdError> {
        match self.shared.call(&Request::PutSandbox(sandbox)).await? {
            Reply::Ports(ports) => Ok(ports),
            other => Err(self.shared.unexpected(&other)),
        }
    }

    /// Closes the sockets of a sandbox; done already when there is none of that id.
    ///
    /// # Errors
    /// [`NetdError::Refused`], [`NetdError::NoAnswer`].
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), NetdError> {
        self.done(Request::RemoveSandbox(id.clone())).await
    }

    /// What is served, with its ports.
    ///
    /// # Errors
    /// [`NetdError::Refused`], [`NetdError::NoAnswer`].
    pub async fn served(&self) -> Result<Vec<(SandboxDns, DnsPorts)>, NetdError> {
        match self.shared.call(&Request::Sandboxes).await? {
            Reply::Sandboxes(served) => Ok(served.into_iter().map(|served| (served.dns, served.ports)).collect()),
            other => Err(self.shared.unexpected(&other)),
        }
    }

    /// Process id of the process that serves now.
    ///
    /// # Errors
    /// [`NetdError::NoAnswer`].
    pub async fn process_id(&self) -> Result<u32, NetdError> {
        match self.shared.call(&Request::Watch).await? {
            Reply::Process(id) => Ok(id),
            other => Err(self.shared.unexpected(&other)),
        }
    }

    /// Replaces the process by a new one of the configured program, which takes over the open sockets; returns its
    /// process id.
    ///
    /// # Errors
    /// [`NetdError::Io`] when the program cannot be started, [`NetdError::NoAnswer`] when it does not take over.
    pub async fn replace(&self) -> Result<u32, NetdError> {
        let before = self.process_id().await?;
        self.shared.spawn().await?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let now = self.process_id().await?;
            if now != before {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(self.shared.no_answer(io::ErrorKind::TimedOut.into()));
            }
            sleep(PAUSE).await;
        }
    }

    /// Ends the process and does not start it again. The records stay.
    ///
    /// # Errors
    /// [`NetdError::Refused`], [`NetdError::NoAnswer`].
    pub async fn stop(self) -> Result<(), NetdError> {
        self.supervising.cancel();
        self.done(Request::Stop).await
    }

    async fn done(&self, request: Request) -> Result<(), NetdError> {
        match self.shared.call(&request).await? {
            Reply::Done => Ok(()),
            other => Err(self.shared.unexpected(&other)),
        }
    }
}

#[async_trait::async_trait]
impl Names for Client {
    async fn put_sandbox(&self, sandbox: SandboxDns) -> io::Result<DnsPorts> {
        Client::put_sandbox(self, sandbox).await.map_err(io::Error::other)
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> io::Result<()> {
        Client::remove_sandbox(self, id).await.map_err(io::Error::other)
    }

    async fn put_zones(&self, zones: Zones) -> io::Result<()> {
        Client::put_zones(self, zones).await.map_err(io::Error::other)
    }

    async fn patch_zones(&self, patch: ZonesPatch) -> io::Result<bool> {
        Client::patch_zones(self, patch).await.map_err(io::Error::other)
    }

    async fn sandboxes(&self) -> io::Result<Vec<SandboxId>> {
        let served = self.served().await.map_err(io::Error::other)?;
        Ok(served.into_iter().map(|(sandbox, _)| sandbox.id).collect())
    }
}

#[async_trait::async_trait]
impl Tunnels for Client {
    async fn put_tunnel(&self, tunnel: Tunnel) -> io::Result<TunnelStatus> {
        let status = self.of_tunnel(Request::PutTunnel(tunnel)).await?;
        status.ok_or_else(|| io::Error::other("the process told of no WireGuard link"))
    }

    async fn remove_tunnel(&self) -> io::Result<()> {
        self.of_tunnel(Request::RemoveTunnel).await.map(drop)
    }

    async fn tunnel(&self) -> io::Result<Option<TunnelStatus>> {
        self.of_tunnel(Request::Tunnel).await
    }
}

impl Client {
    /// Asks about the WireGuard link. A process of an earlier version does not understand that and is replaced.
    async fn of_tunnel(&self, request: Request) -> io::Result<Option<TunnelStatus>> {
        let mut reply = self.shared.call(&request).await;
        if matches!(&reply, Err(NetdError::Refused { reason }) if reason.starts_with(protocol::NOT_UNDERSTOOD)) {
            tracing::info!("the process beside the daemon is of an earlier version and is replaced");
            self.replace().await.map_err(io::Error::other)?;
            reply = self.shared.call(&request).await;
        }
        match reply {
            Err(NetdError::Refused { reason }) => Err(io::Error::new(io::ErrorKind::Unsupported, reason)),
            Err(error) => Err(io::Error::other(error)),
            Ok(Reply::Tunnel(status)) => Ok(status),
            Ok(other) => Err(io::Error::other(self.shared.unexpected(&other))),
        }
    }
}

impl Shared {
    /// Waits for the process to go and starts it again, for ever.
    async fn supervise(&self, mut watch: UnixStream) {
        loop {
            // It sends nothing more on this connection; its end is all that comes.
            let _ = watch.read_u8().await;
            tracing::debug!("the name server's process has gone or is being replaced");
            watch = loop {
                match self.ensure().await {
                    Ok((watch, pid)) => {
                        tracing::info!(pid, "connected to the name server's process");
                        break watch;
                    }
                    Err(error) => {
                        tracing::error!(%error, source = ?std::error::Error::source(&error),
                            "names are not served in containers; trying again");
                        sleep(RESTART).await;
                    }
                }
            };
        }
    }

    /// A connection to the process, which is started when there is none, and its process id.
    async fn ensure(&self) -> Result<(UnixStream, u32), NetdError> {
        let deadline = Instant::now() + DEADLINE;
        let mut started: Option<Instant> = None;
        loop {
            let error = match timeout(ATTEMPT, self.watch()).await.map_err(io::Error::from).flatten() {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            let missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if missing && started.is_none_or(|at| at.elapsed() >= RESTART) {
                self.spawn().await?;
                started = Some(Instant::now());
            }
            if Instant::now() > deadline {
                return Err(self.no_answer(error));
            }
            sleep(PAUSE).await;
        }
    }

    async fn watch(&self) -> io::Result<(UnixStream, u32)> {
        let mut stream = socket::connect(&self.config.dir).await?;
        protocol::write(&mut stream, &Request::Watch).await?;
        match protocol::read(&mut stream).await? {
            Reply::Process(id) => Ok((stream, id)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "another reply than a process id")),
        }
    }

    async fn spawn(&self) -> Result<(), NetdError> {
        let config = self.config.clone();
        let path = config.exe.display().to_string();
        let spawned = tokio::task::spawn_blocking(move || {
            let (exe, dir) = (std::path::absolute(&config.exe)?, std::path::absolute(&config.dir)?);
            fs::create_dir_all(&dir)?;
            let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("netd.log"))?;
            let mut command = Command::new(exe);
            command.arg("net").arg("--dir").arg(&dir).args(&config.args).current_dir("/");
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            detach::spawn(&mut command)
        });
        spawned.await.map_err(io::Error::other).flatten().map_err(|source| NetdError::Io {
            step: "start",
            path,
            source,
        })
    }

    /// The reply to a request. It may be sent more than once, so it must be of the kind where that does not matter.
    async fn call(&self, request: &Request) -> Result<Reply, NetdError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let error = match timeout(ATTEMPT, self.attempt(request)).await.map_err(io::Error::from).flatten() {
                Ok(Reply::Refused { retry: true, reason }) => io::Error::other(reason),
                Ok(Reply::Refused { retry: false, reason }) => return Err(NetdError::Refused { reason }),
                Ok(reply) => return Ok(reply),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(NetdError::Protocol { path: self.path(), detail: error.to_string() });
                }
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(self.no_answer(error));
            }
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&self, request: &Request) -> io::Result<Reply> {
        let mut stream = socket::connect(&self.config.dir).await?;
        protocol::write(&mut stream, request).await?;
        protocol::read(&mut stream).await
    }

    fn path(&self) -> String {
        socket::path(&self.config.dir).display().to_string()
    }

    fn no_answer(&self, source: io::Error) -> NetdError {
        NetdError::NoAnswer { path: self.path(), seconds: DEADLINE.as_secs(), source }
    }

    fn unexpected(&self, reply: &Reply) -> NetdError {
        let detail = match reply {
            Reply::Process(_) => "it told its process id",
            Reply::Ports(_) => "it told ports",
            Reply::Done => "it said done",
            Reply::Sandboxes(_) => "it told its sandboxes",
            Reply::Handover { .. } | Reply::HandoverAll { .. } => "it handed over",
            Reply::Refused { .. } => "it refused",
            Reply::Tunnel(_) => "it told its WireGuard link",
            Reply::OtherZones => "it has other zones",
        };
        NetdError::Protocol { path: self.path(), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests;
