//! The daemon: what it is configured with, and how its parts are put together.

pub mod config;
pub mod net;

use std::process::ExitCode;

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use tokio::net::UnixListener;
use tracing_subscriber::EnvFilter;

use config::{ApiAddress, Config, Flags};

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting.
pub fn run(flags: Flags) -> anyhow::Result<ExitCode> {
    let config = Config::load(flags)?;
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("--log {}", config.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&config.root).with_context(|| format!("making {}", config.root.display()))?;
    let router = Router::new().route("/_ping", get(async || "OK")).route("/{version}/_ping", get(async || "OK"));
    for ApiAddress::Unix(path) in &config.hosts {
        // A socket file that a killed daemon left behind would refuse the bind.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
        tokio::spawn(axum::serve(listener, router.clone()).into_future());
    }
    tracing::info!(node.name = %config.node_name, "daemon started");
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::SUCCESS)
}
