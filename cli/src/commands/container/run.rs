//! `skep run` and `skep create`.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use http::Method;
use serde_json::Value;

use super::attach::{self, Waiting};
use super::flags::ContainerFlags;
use crate::client::{Client, encode, is_not_found};
use crate::commands::image::pull;
use crate::commands::text;
use crate::output::Status;
use crate::terminal::session::End;

/// Make a container and run it
#[derive(Debug, Args)]
pub struct RunFlags {
    /// Print the container's id and leave it alone
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the container, such as ctrl-a,d
    #[arg(long, default_value = "")]
    detach_keys: String,
    /// Pass this process's signals on
    #[arg(long, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sig_proxy: Switch,
    #[command(flatten)]
    container: ContainerFlags,
}

/// `true` or `false`, behind an equals sign.
pub type Switch = bool;

/// Runs `create`.
pub async fn create_only(flags: ContainerFlags, client: &Client) -> anyhow::Result<()> {
    // Whoever starts it attaches to what there is.
    println!("{}", create(&flags, false, client).await?);
    Ok(())
}

/// Runs `run`. The exit code is the container's, or 125, 126 and 127 as docker's.
pub async fn run(flags: RunFlags, client: &Client) -> anyhow::Result<ExitCode> {
    started(&flags, client).await.map_err(|error| {
        let code = code_of(&crate::output::chain(&error));
        Status {
            code,
            message: format!("{}\n\nRun 'skep run --help' for more information", crate::output::chain(&error)),
        }
        .into()
    })
}

/// What the code says: 127 the command was not found, 126 it cannot be run, 125 all else (docker/cli,
/// `container/run.go`).
fn code_of(message: &str) -> u8 {
    if message.contains("executable file not found") || message.contains("no such file or directory") {
        127
    } else if message.contains("permission denied") || message.contains("is a directory") {
        126
    } else {
        125
    }
}

async fn started(flags: &RunFlags, client: &Client) -> anyhow::Result<ExitCode> {
    let container = &flags.container;
    let attach = container.attach(flags.detach)?;
    ensure!(
        !(container.tty && attach.stdin) || crate::terminal::is_input_a_terminal(),
        "the input device is not a TTY: -t needs one"
    );
    let id = create(container, flags.detach, client).await?;
    let path = format!("/containers/{id}");
    if flags.detach {
        return match client.call(Method::POST, &format!("{path}/start"), None).await {
            Ok(_) => {
                println!("{id}");
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                discard(container, &id, client).await;
                Err(error)
            }
        };
    }
    // Everything is in place before the start, so that no output and no end is missed.
    let session = attach::session(&path, container.tty, attach.stdin, &flags.detach_keys);
    let connection = attach::connect(client, &session, &attach).await?;
    let waiting = Waiting::begin(client, &path, if container.rm { "removed" } else { "next-exit" }).await?;
    if let Err(error) = client.call(Method::POST, &format!("{path}/start"), None).await {
        discard(container, &id, client).await;
        return Err(error);
    }
    let signals = attach::pass_signals_on(client, &path, flags.sig_proxy && !container.tty);
    let end = tokio::select! {
        end = session.run(client, connection) => end?,
        error = signals => return Err(error),
    };
    match end {
        End::Detached => Ok(ExitCode::SUCCESS),
        End::Output => waiting.end().await,
    }
}

/// A container that was to be removed at its end is not left behind when it never began.
async fn discard(flags: &ContainerFlags, id: &str, client: &Client) {
    if flags.rm {
        // The daemon removes it by itself; this is for one that it no longer knows what to do with.
        let _ = client.call(Method::DELETE, &format!("/containers/{id}?v=1&force=1"), None).await;
    }
}

/// Makes the container and returns its id. An image that is missing is pulled.
async fn create(flags: &ContainerFlags, detached: bool, client: &Client) -> anyhow::Result<String> {
    ensure!(
        ["always", "missing", "never"].contains(&flags.pull.as_str()),
        "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
        flags.pull
    );
    if let Some(file) = &flags.cidfile {
        ensure!(
            !file.exists(),
            "container ID file found, make sure the other container isn't running or delete {}",
            file.display()
        );
    }
    let request = flags.request(detached)?;
    let shown = if flags.quiet { pull::Show::Nothing } else { pull::Show::StandardError };
    if flags.pull == "always" {
        pull::pull(client, flags.image(), flags.platform.as_deref(), shown).await?;
    }
    let path = format!(
        "/containers/create?name={}&platform={}",
        encode(flags.name.as_deref().unwrap_or_default()),
        encode(flags.platform.as_deref().unwrap_or_default())
    );
    let created = match client.post(&path, &request).await {
        Err(error)
            if flags.pull == "missing" && is_not_found(&error) && error.to_string().contains("No such image") =>
        {
            eprintln!("Unable to find image '{}' locally", pull::with_tag(flags.image()));
            pull::pull(client, flags.image(), flags.platform.as_deref(), shown).await?;
            client.post(&path, &request).await?
        }
        result => result?,
    };
    let created: Value = serde_json::from_slice(&created).context("the daemon's answer is no JSON")?;
    for warning in created["Warnings"].as_array().map(Vec::as_slice).unwrap_or_default() {
        eprintln!("WARNING: {}", text(warning));
    }
    let id = text(&created["Id"]);
    if let Some(file) = &flags.cidfile {
        std::fs::write(file, &id).with_context(|| format!("failed to write the container ID to {}", file.display()))?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_whose_fault_it_is() {
        assert_eq!(code_of("exec: \"x\": executable file not found in $PATH"), 127);
        assert_eq!(code_of("exec: \"/etc\": permission denied"), 126);
        assert_eq!(code_of("Conflict. The container name is in use"), 125);
    }
}
