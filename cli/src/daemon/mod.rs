//! The daemon: what it is configured with, and how its parts are put together.

pub mod config;
mod encryption;
mod local_network;
pub mod net;
mod network;
mod node;
mod places;
mod resources;
pub mod restore;
mod swarm;
mod sys;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::FlockOperation;
use skep_api::docker::{self, Host, Ports};
use skep_proto::model::ContainerId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use config::{ApiAddress, Config, Flags};
use node::NodeServices;
use swarm::NodeSwarm;

/// How long open requests may take when the daemon stops.
const GRACE: Duration = Duration::from_secs(5);

/// How long a daemon that was here before may take to be gone.
const LOCK: Duration = Duration::from_secs(3);

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting.
pub fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    small_pages();
    let config = Config::load(flags)?;
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("--log {}", config.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "the daemon needs root: it makes namespaces, mounts and cgroups (rootless is not supported)"
    );
    // Nobody else has installed one: this is the first thing that uses TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let _lock = lock(&config)?;
    let services = Arc::new(NodeServices::start(&config, data_path(&config)).await?);
    let swarm = Arc::new(NodeSwarm::new(config.clone(), services.clone()));
    // Before anybody can ask: a manager that is not one yet would say so.
    swarm.resume().await;
    let router = docker::router(Ports { swarm: swarm.clone(), engine: services.engine.clone(), host: host() });
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let settling = (services.engine.clone(), stop.clone());
    servers.spawn(async move {
        settling.0.run(settling.1).await;
        Ok(())
    });
    let watching = (services.network.clone(), stop.clone());
    servers.spawn(async move {
        watching.0.layer().watch(watching.1).await;
        Ok(())
    });
    let following = (swarm.clone(), stop.clone());
    servers.spawn(async move {
        following.0.follow_addresses(following.1).await;
        Ok(())
    });
    for ApiAddress::Unix(path) in &config.hosts {
        let listener = docker::bind_unix(path).await.with_context(|| format!("listening on {}", path.display()))?;
        servers.spawn(docker::serve(listener, router.clone(), stop.clone(), GRACE));
    }
    tracing::info!(node.name = %config.node_name, version = env!("CARGO_PKG_VERSION"), "the daemon is ready");
    wait_for_signal().await?;
    tracing::info!("the daemon stops; containers go on");
    stop.cancel();
    swarm.stop().await;
    while let Some(ended) = servers.join_next().await {
        ended.context("a server of the API")?.context("serving the API")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Keeps the kernel from backing this process with huge pages: the allocator's sparsely used areas would each cost 2 MB,
/// which doubles the memory of a manager and triples that of a worker. Children inherit it; the shim takes it back, so
/// that containers get what the machine is set to.
fn small_pages() {
    // A kernel that cannot has no huge pages.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Makes the daemon's directories and takes its lock: two daemons on one root would destroy each other's containers.
fn lock(config: &Config) -> anyhow::Result<File> {
    let state = config.root.join("state");
    for path in [&config.root, &config.run_dir, &state] {
        std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
    }
    let path = config.root.join("lock");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let deadline = std::time::Instant::now() + LOCK;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // One that was killed holds its files until its last thread has ended.
            Err(rustix::io::Errno::AGAIN) if std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => {
                return Err(error).with_context(|| format!("another daemon runs on {}", config.root.display()));
            }
        }
    }
}

/// Where overlays would run, as far as it is known before the node is in a cluster.
fn data_path(config: &Config) -> IpAddr {
    let (locals, towards) = swarm::addresses::of_this_host();
    let outside = || locals.iter().map(|(_, ip)| *ip).find(|ip| !ip.is_loopback());
    config.data_path.or(config.advertise).or(towards).or_else(outside).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn host() -> Host {
    Host {
        version: env!("CARGO_PKG_VERSION").into(),
        git_commit: option_env!("SKEP_COMMIT").unwrap_or("unknown").into(),
        build_time: option_env!("SKEP_BUILD_TIME").unwrap_or("1970-01-01T00:00:00Z").into(),
        clock: Arc::new(node::now),
        draw_id: Arc::new(|| ContainerId::random(&mut rand::rng())),
    }
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
