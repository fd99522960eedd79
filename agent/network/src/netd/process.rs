//! The process: start from a predecessor or from the records, then serve the control socket.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skep_wireguard::Handover;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::forward::Forwarder;
use crate::dns::server::IDLE;
use crate::dns::upstream::NodeServers;
use crate::netd::keeper::{Command, Keeper};
use crate::netd::protocol::{self, GivenTunnel, Reply, Request};
use crate::netd::records::{Records, Start};
use crate::netd::wireguard::{Given, Owner};
use crate::netd::{NetdError, handover, socket};

/// How long a predecessor may take to hand over, and a successor to take over.
const HANDOVER: Duration = Duration::from_secs(10);
/// Commands that wait for the keeper; more make their connections wait.
const COMMANDS: usize = 64;

/// Settings of the name server's process.
#[derive(Debug, Clone)]
pub struct NetdConfig {
    /// Its folder: control socket and records.
    pub dir: PathBuf,
    /// The file that names the node's servers.
    pub resolv_conf: PathBuf,
    /// Port of servers outside.
    pub server_port: u16,
}

impl NetdConfig {
    /// The usual settings, with that folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), resolv_conf: "/etc/resolv.conf".into(), server_port: 53 }
    }
}

/// Serves until a successor has taken over or a client says stop. Takes over from a running process of that folder.
/// One thread is enough: run it on a runtime of the current thread, which must have I/O and time.
///
/// # Errors
/// When the folder, its records or the control socket cannot be used, or a running process does not hand over.
pub async fn run(config: NetdConfig) -> Result<(), NetdError> {
    let failed = |step| {
        let path = config.dir.display().to_string();
        move |source| NetdError::Io { step, path, source }
    };
    fs::create_dir_all(&config.dir).map_err(failed("create"))?;
    fs::set_permissions(&config.dir, fs::Permissions::from_mode(0o700)).map_err(failed("protect"))?;
    raise_file_limit();

    // Two that start at once do so one after the other; the second takes over from the first.
    let starting = fs::File::create(config.dir.join("netd.lock")).map_err(failed("lock"))?;
    let starting = tokio::task::spawn_blocking(move || {
        flock(&starting, FlockOperation::LockExclusive).map(|()| starting).map_err(io::Error::from)
    });
    let starting = starting.await.map_err(io::Error::other).flatten().map_err(failed("lock"))?;

    let records = Records::new(config.dir.clone());
    let (start, mut predecessor) = match socket::connect(&config.dir).await {
        Ok(stream) => {
            let taken = timeout(HANDOVER, take_over(stream, &config.dir)).await.map_err(io::Error::from).flatten();
            let (start, stream) = taken.map_err(failed("take over from the running process in"))?;
            (start, Some(stream))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            (records.load(), None)
        }
        Err(error) => return Err(failed("look for a running process in")(error)),
    };

    let tasks = TaskTracker::new();
    let forwarder = Arc::new(Forwarder::new(NodeServers::new(config.resolv_conf.clone()), config.server_port));
    let keeper = Keeper::start(records, start, forwarder, tasks.clone()).await?;
    let listener = socket::listen(&config.dir).map_err(failed("listen in"))?;
    if let Some(stream) = &mut predecessor {
        // From here on both serve the same sockets, until the predecessor has let go of them.
        let finished = timeout(HANDOVER, finish(stream)).await.map_err(io::Error::from).flatten();
        if let Err(error) = finished {
            tracing::warn!(%error, "the predecessor did not say that it goes");
        }
    }
    drop((starting, predecessor));
    tracing::info!(dir = %config.dir.display(), "serving names");

    let (sender, receiver) = mpsc::channel(COMMANDS);
    let gone = CancellationToken::new();
    let accepting = tokio::spawn(accept(listener, sender, gone.clone(), tasks.clone()));
    keeper.run(receiver).await;
    gone.cancel();
    let _ = accepting.await;
    tasks.close();
    // Questions that were taken are answered, and open streams are served until they fall silent.
    if timeout(IDLE, tasks.wait()).await.is_err() {
        tracing::info!("streams that were still open are closed");
    }
    Ok(())
}

/// Each sandbox takes two descriptors, each stream and question outside one more.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

async fn take_over(mut stream: UnixStream, dir: &Path) -> io::Result<(Start, UnixStream)> {
    protocol::write(&mut stream, &Request::HandoverAll).await?;
    let reply = match protocol::read(&mut stream).await? {
        // One of an earlier version has no link to hand over, and closes after a request that it does not know.
        Reply::Refused { reason, .. } if reason.starts_with(protocol::NOT_UNDERSTOOD) => {
            stream = socket::connect(dir).await?;
            protocol::write(&mut stream, &Request::Handover).await?;
            protocol::read(&mut stream).await?
        }
        reply => reply,
    };
    let (zones, sandboxes, open, tunnel) = match reply {
        Reply::Handover { zones, sandboxes, open } => (zones, sandboxes, open, None),
        Reply::HandoverAll { zones, sandboxes, open, tunnel } => (zones, sandboxes, open, tunnel),
        Reply::Refused { reason, .. } => return Err(io::Error::other(reason)),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "another reply than a hand-over")),
    };
    let mut fds = handover::receive(&stream, open.len() * 2).await?.into_iter();
    let pairs = std::iter::from_fn(|| Some((fds.next()?, fds.next()?)));
    let sockets = open.into_iter().zip(pairs).collect();
    let tunnel = match tunnel {
        None => Owner::default(),
        Some(GivenTunnel { wanted, device: None }) => Owner::adopt(Given { wanted, device: None })?,
        Some(GivenTunnel { wanted, device: Some((count, state)) }) => {
            let fds = handover::receive(&stream, usize::try_from(count).unwrap_or(usize::MAX)).await?;
            Owner::adopt(Given { wanted, device: Some(Handover { fds, state: state.0 }) })?
        }
    };
    Ok((Start { zones, sandboxes, sockets, tunnel }, stream))
}

async fn finish(stream: &mut UnixStream) -> io::Result<()> {
    protocol::write(stream, &Request::Finish).await?;
    protocol::read::<Reply>(stream).await.map(drop)
}

async fn accept(listener: UnixListener, keeper: mpsc::Sender<Command>, gone: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = gone.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (keeper, gone) = (keeper.clone(), gone.clone());
                tasks.spawn(async move {
                    if let Err(error) = converse(stream, &keeper, &gone).await {
                        tracing::debug!(%error, "a control connection ended early");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection until its other end closes it, or this process goes.
async fn converse(mut stream: UnixStream, keeper: &mpsc::Sender<Command>, gone: &CancellationToken) -> io::Result<()> {
    loop {
        let request = tokio::select! {
            () = gone.cancelled() => return Ok(()),
            request = protocol::read::<Request>(&mut stream) => match request {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    let reply = Reply::Refused { retry: false, reason: format!("{}: {error}", protocol::NOT_UNDERSTOOD) };
                    return protocol::write(&mut stream, &reply).await;
                }
                request => request?,
            },
        };
        let reply = match request {
            Request::Watch => Reply::Process(std::process::id()),
            Request::Handover => return hand_over(stream, keeper, false).await,
            Request::HandoverAll => return hand_over(stream, keeper, true).await,
            Request::Finish => Reply::Refused { retry: false, reason: "there was no hand-over".into() },
            request @ (Request::PutSandbox(_)
            | Request::RemoveSandbox(_)
            | Request::PutZones(_)
            | Request::PatchZones(_)
            | Request::Sandboxes
            | Request::PutTunnel(_)
            | Request::RemoveTunnel
            | Request::Tunnel
            | Request::Stop) => ask(keeper, |answer| Command::Ask(request, answer)).await.unwrap_or_else(going),
        };
        protocol::write(&mut stream, &reply).await?;
    }
}

fn going() -> Reply {
    Reply::Refused { retry: true, reason: "the process is going".into() }
}

/// The keeper's answer; `None` when it has ended.
async fn ask<T>(keeper: &mpsc::Sender<Command>, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
    let (answer, reply) = oneshot::channel();
    keeper.send(command(answer)).await.ok()?;
    reply.await.ok()
}

async fn hand_over(mut stream: UnixStream, keeper: &mpsc::Sender<Command>, with_tunnel: bool) -> io::Result<()> {
    let Some(Some(frozen)) = ask(keeper, |answer| Command::Freeze { with_tunnel, answer }).await else {
        let reply = Reply::Refused { retry: true, reason: "another successor is taking over".into() };
        return protocol::write(&mut stream, &reply).await;
    };
    let given = async {
        protocol::write(&mut stream, &frozen.reply).await?;
        handover::send(&stream, &frozen.sockets).await?;
        handover::send(&stream, &frozen.device).await?;
        protocol::read::<Request>(&mut stream).await
    };
    match timeout(HANDOVER, given).await.map_err(io::Error::from).flatten() {
        Ok(Request::Finish) => {
            let reply = ask(keeper, Command::Finish).await.unwrap_or_else(going);
            protocol::write(&mut stream, &reply).await
        }
        other => {
            tracing::warn!(error = ?other.err(), "a successor failed to take over; serving on");
            let _ = keeper.send(Command::Thaw).await;
            Ok(())
        }
    }
}
