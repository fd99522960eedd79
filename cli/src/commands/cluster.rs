//! `skep cluster`: a backup of the whole cluster, and a cluster made of one.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use http::Method;

use super::backup_file;
use crate::client::Client;
use crate::daemon::restore::{self, Target};

/// Back up and restore the cluster's state
#[derive(Debug, Args)]
pub struct ClusterCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the cluster's state, sealed, to a file; the cluster goes on meanwhile
    ///
    /// The file holds all that managers know: services, networks, secrets, the root's key, join tokens, the unlock key. It is
    /// sealed with the passphrase, or with a key that is drawn and shown once. Volumes and images are not in it.
    Backup {
        /// The file, which must not exist; - for the standard output
        file: PathBuf,
        /// File whose first line is the passphrase
        #[arg(long)]
        passphrase_file: Option<PathBuf>,
    },
    /// Make a manager of a backup, in a root that no daemon has used; then start the daemon there
    Restore {
        /// The file; - for the standard input
        file: PathBuf,
        /// Directory of the new manager's state
        #[arg(long, default_value = "/var/lib/skep")]
        root: PathBuf,
        /// File whose first line is the passphrase, or the key that the backup showed
        #[arg(long)]
        passphrase_file: PathBuf,
        /// Address that other nodes are told; best the one of a manager that they know
        #[arg(long)]
        advertise_addr: IpAddr,
        /// Port of the cluster's protocol
        #[arg(long, default_value_t = crate::daemon::config::CLUSTER_PORT)]
        port: u16,
    },
}

/// Runs the command.
pub async fn run(command: ClusterCommand, client: impl FnOnce() -> anyhow::Result<Client>) -> anyhow::Result<()> {
    match command.action {
        Action::Backup { file, passphrase_file } => {
            let state = client()?.call(Method::GET, "/skep/cluster/backup", None).await?;
            let passphrase = passphrase_file.as_deref().map(first_line).transpose()?;
            let (sealed, drawn) = backup_file::seal(&state, passphrase.as_deref())?;
            write(&file, &sealed)?;
            if let Some(key) = drawn {
                eprintln!("The backup is sealed with this key, which is kept nowhere else:\n\n    {key}\n");
            }
        }
        Action::Restore { file, root, passphrase_file, advertise_addr, port } => {
            let sealed = read(&file)?;
            let state = backup_file::open(&sealed, &first_line(&passphrase_file)?)?;
            let told =
                restore::run(&state, Target { root: root.clone(), advertise: (advertise_addr, port).into() }).await?;
            println!("{told}\nStart the daemon with --root {}.", root.display());
        }
    }
    Ok(())
}

fn first_line(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    anyhow::ensure!(!line.is_empty(), "{} has no passphrase in its first line", path.display());
    Ok(line.to_owned())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("reading the standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    }
    Ok(bytes)
}

fn write(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if file == Path::new("-") {
        return std::io::stdout().write_all(bytes).context("writing the standard output");
    }
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let mut out = made.with_context(|| format!("making {}", file.display()))?;
    out.write_all(bytes).and_then(|()| out.sync_all()).with_context(|| format!("writing {}", file.display()))
}
