//! `skep exec`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::client::{Client, encode};
use crate::commands::{text, text_lines};
use crate::terminal;
use crate::terminal::session::{End, Session};

/// Run a further command in a container
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct ExecFlags {
    /// Leave the command alone
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave the command, such as ctrl-a,d
    #[arg(long, default_value = "")]
    detach_keys: String,
    /// Variable, NAME=VALUE; may be repeated
    #[arg(short, long)]
    env: Vec<String>,
    /// File of variables, one a line; may be repeated
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// Connect the input
    #[arg(short, long)]
    interactive: bool,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// User, name or number, with :GROUP if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long)]
    workdir: Option<String>,
    /// The container, and the command
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    container_and_command: Vec<String>,
}

/// Runs it. The exit code is the command's.
pub async fn run(flags: ExecFlags, client: &Client) -> anyhow::Result<ExitCode> {
    let [container, command @ ..] = flags.container_and_command.as_slice() else { bail!("a container is needed") };
    let stdin = flags.interactive && !flags.detach;
    ensure!(!(flags.tty && stdin) || terminal::is_input_a_terminal(), "the input device is not a TTY: -t needs one");
    let env = [text_lines(&flags.env_file)?, flags.env].concat();
    let request = json!({
        "User": flags.user.unwrap_or_default(),
        "Privileged": flags.privileged,
        "Tty": flags.tty,
        "AttachStdin": stdin, "AttachStdout": !flags.detach, "AttachStderr": !flags.detach,
        "DetachKeys": flags.detach_keys,
        "Env": env,
        "WorkingDir": flags.workdir.unwrap_or_default(),
        "Cmd": command,
    });
    let created = client.post(&format!("/containers/{}/exec", encode(container)), &request).await?;
    let created: Value = serde_json::from_slice(&created).context("the daemon's answer is no JSON")?;
    let path = format!("/exec/{}", text(&created["Id"]));
    if flags.detach {
        client.post(&format!("{path}/start"), &json!({"Detach": true, "Tty": flags.tty})).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut start = json!({"Detach": false, "Tty": flags.tty});
    if let Some((height, width)) = terminal::size().filter(|_| flags.tty) {
        start["ConsoleSize"] = json!([height, width]);
    }
    let connection = client.hijack(&format!("{path}/start"), start.to_string()).await?;
    let session = Session { tty: flags.tty, stdin, detach_keys: &flags.detach_keys, object: path.clone() };
    if session.run(client, connection).await? == End::Detached {
        bail!("read escape sequence");
    }
    let ended: Value = client.get(&format!("{path}/json")).await?;
    let code = ended["ExitCode"].as_u64().unwrap_or(0);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
