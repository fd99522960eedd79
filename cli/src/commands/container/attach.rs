//! `skep attach` and `skep start`, and what all commands that stay with a container share.

use std::future::pending;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{Method, Response};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::flags::Attach;
use super::run::Switch;
use crate::client::{self, Client, Hijacked, encode, whole};
use crate::commands::{each, text};
use crate::terminal::session::{End, Session};

/// Connect to a container's input and output
#[derive(Debug, Args)]
pub struct AttachFlags {
    /// Keys that leave the container, such as ctrl-a,d
    #[arg(long, default_value = "")]
    detach_keys: String,
    /// Do not connect the input
    #[arg(long)]
    no_stdin: bool,
    /// Pass this process's signals on
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: Switch,
    /// The container
    container: String,
}

/// Start containers
#[derive(Debug, Args)]
pub struct StartFlags {
    /// Show the output, and pass signals on
    #[arg(short, long)]
    attach: bool,
    /// Connect the input
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container, such as ctrl-a,d
    #[arg(long, default_value = "")]
    detach_keys: String,
    /// The containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Signals that a client passes on to the process, by Docker's name. SIGCHLD, SIGPIPE and SIGURG are its own.
const PASSED: [(&str, i32); 6] = [
    ("INT", libc::SIGINT),
    ("TERM", libc::SIGTERM),
    ("HUP", libc::SIGHUP),
    ("QUIT", libc::SIGQUIT),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
];

/// A session with a container.
pub fn session<'a>(path: &str, tty: bool, stdin: bool, detach_keys: &'a str) -> Session<'a> {
    Session { tty, stdin, detach_keys, object: path.to_owned() }
}

/// Connects to a container, which need not run yet.
pub async fn connect(client: &Client, session: &Session<'_>, attach: &Attach) -> anyhow::Result<Hijacked> {
    let flag = |set: bool| u8::from(set);
    let path = format!(
        "{}/attach?stream=1&stdin={}&stdout={}&stderr={}&detachKeys={}",
        session.object,
        flag(attach.stdin),
        flag(attach.stdout),
        flag(attach.stderr),
        encode(session.detach_keys)
    );
    client.hijack(&path, Bytes::new()).await
}

/// The end of a container, which is on its way.
pub struct Waiting(Response<Incoming>);

impl Waiting {
    /// Returns as soon as the daemon watches: what ends afterwards is not missed.
    pub async fn begin(client: &Client, path: &str, condition: &str) -> anyhow::Result<Self> {
        let path = format!("{path}/wait?condition={condition}");
        Ok(Self(client.open(Method::POST, &path, &[], whole(Bytes::new())).await?))
    }

    /// The container's exit code as this process's own.
    pub async fn end(self) -> anyhow::Result<ExitCode> {
        let code = self.code().await?;
        Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
    }

    /// The container's exit code.
    pub async fn code(self) -> anyhow::Result<i64> {
        let ended: Value = serde_json::from_slice(&client::collect(self.0).await?)
            .context("the daemon did not say how the container ended")?;
        if let Some(message) = ended["Error"]["Message"].as_str().filter(|m| !m.is_empty()) {
            bail!("error waiting for container: {message}");
        }
        ended["StatusCode"].as_i64().context("the daemon did not say how the container ended")
    }
}

/// Passes this process's signals on to the container. Only returns when signals cannot be had.
pub async fn pass_signals_on(client: &Client, path: &str, wanted: bool) -> anyhow::Error {
    if !wanted {
        return pending().await;
    }
    let mut streams = Vec::new();
    for (name, number) in PASSED {
        match signal(SignalKind::from_raw(number)) {
            Ok(stream) => streams.push((name, stream)),
            Err(error) => return anyhow::Error::from(error).context("watching for signals"),
        }
    }
    loop {
        let arrived = streams.iter_mut().map(|(name, stream)| async { stream.recv().await.map(|()| *name) });
        let mut arrived: FuturesUnordered<_> = arrived.collect();
        if let Some(Some(name)) = arrived.next().await {
            // One that has just ended needs no signal.
            let _ = client.call(Method::POST, &format!("{path}/kill?signal={name}"), None).await;
        }
    }
}

/// Runs `attach`. The exit code is the container's.
pub async fn run(flags: AttachFlags, client: &Client) -> anyhow::Result<ExitCode> {
    let found: Value = client.get(&format!("/containers/{}/json", encode(&flags.container))).await?;
    let state = &found["State"];
    ensure!(state["Running"] == true, "You cannot attach to a stopped container, start it first");
    ensure!(state["Paused"] != true, "You cannot attach to a paused container, unpause it first");
    ensure!(state["Restarting"] != true, "You cannot attach to a restarting container, wait until it is running");
    let path = format!("/containers/{}", text(&found["Id"]));
    let tty = found["Config"]["Tty"] == true;
    let stdin = !flags.no_stdin && found["Config"]["OpenStdin"] == true;
    ensure!(
        !(tty && stdin) || crate::terminal::is_input_a_terminal(),
        "the input device is not a TTY: --no-stdin needs none"
    );
    let session = session(&path, tty, stdin, &flags.detach_keys);
    let connection = connect(client, &session, &Attach { stdin, stdout: true, stderr: true }).await?;
    // One that has ended since is over, with the code it had.
    let waiting = Waiting::begin(client, &path, "not-running").await?;
    let end = tokio::select! {
        end = session.run(client, connection) => end?,
        error = pass_signals_on(client, &path, flags.sig_proxy && !tty) => return Err(error),
    };
    match end {
        End::Detached => bail!("read escape sequence"),
        End::Output => waiting.end().await,
    }
}

/// Runs `start`. With `-a` or `-i` the exit code is the container's.
pub async fn start(flags: StartFlags, client: &Client) -> anyhow::Result<ExitCode> {
    if !flags.attach && !flags.interactive {
        each(&flags.containers, async |name| {
            client.call(Method::POST, &format!("/containers/{}/start", encode(name)), None).await?;
            println!("{name}");
            Ok(())
        })
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let [name] = flags.containers.as_slice() else { bail!("you cannot start and attach multiple containers at once") };
    let found: Value = client.get(&format!("/containers/{}/json", encode(name))).await?;
    let path = format!("/containers/{}", text(&found["Id"]));
    let tty = found["Config"]["Tty"] == true;
    let stdin = flags.interactive && found["Config"]["OpenStdin"] == true;
    ensure!(!(tty && stdin) || crate::terminal::is_input_a_terminal(), "the input device is not a TTY");
    let session = session(&path, tty, stdin, &flags.detach_keys);
    let connection = connect(client, &session, &Attach { stdin, stdout: true, stderr: true }).await?;
    let condition = if found["HostConfig"]["AutoRemove"] == true { "removed" } else { "next-exit" };
    let waiting = Waiting::begin(client, &path, condition).await?;
    client.call(Method::POST, &format!("{path}/start"), None).await?;
    let end = tokio::select! {
        end = session.run(client, connection) => end?,
        error = pass_signals_on(client, &path, !tty) => return Err(error),
    };
    match end {
        End::Detached => bail!("read escape sequence"),
        End::Output => waiting.end().await,
    }
}
