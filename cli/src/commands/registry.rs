//! `skep login` and `skep logout`.

use std::io::Read;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::text;
use crate::client::Client;
use crate::client::credentials::{Credentials, HUB, key_of};
use crate::terminal;

/// Log in to a registry
#[derive(Debug, Args)]
pub struct LoginFlags {
    /// Password; others see it in the list of processes
    #[arg(short, long)]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    /// User
    #[arg(short, long)]
    username: Option<String>,
    /// The registry; Docker Hub when none is named
    server: Option<String>,
}

/// Log out from a registry
#[derive(Debug, Args)]
pub struct LogoutFlags {
    /// The registry; Docker Hub when none is named
    server: Option<String>,
}

/// Runs `login`.
pub async fn login(flags: LoginFlags, client: &Client) -> anyhow::Result<()> {
    let server = key_of(flags.server.as_deref().unwrap_or_default());
    let mut credentials = Credentials::read()?;
    let (user, password) = if flags.password_stdin {
        let user = flags.username.context("Must provide --username with --password-stdin")?;
        let mut password = String::new();
        std::io::stdin().read_to_string(&mut password).context("reading the password")?;
        (user, password.trim_end_matches(['\r', '\n']).to_owned())
    } else {
        let asks = flags.username.is_none() && flags.password.is_none();
        match if asks { credentials.get(&server)? } else { None } {
            Some(known) => known,
            None => {
                let user = flags.username.map_or_else(|| terminal::ask("Username: "), Ok)?;
                let password = flags.password.map_or_else(|| terminal::ask_hidden("Password: "), Ok)?;
                (user, password)
            }
        }
    };
    ensure!(!user.is_empty(), "Error: username is required");
    ensure!(!password.is_empty(), "Error: password is required");
    let request = json!({"username": user, "password": password, "serveraddress": server});
    let answer: Value = serde_json::from_slice(&client.post("/auth", &request).await?)?;
    credentials.put(&server, &user, &password)?;
    println!("{}", text(&answer["Status"]));
    Ok(())
}

/// Runs `logout`.
pub fn logout(flags: &LogoutFlags) -> anyhow::Result<()> {
    let server = key_of(flags.server.as_deref().unwrap_or_default());
    let shown = if server == HUB { "https://index.docker.io/v1/" } else { server.as_str() };
    if Credentials::read()?.forget(&server)? {
        println!("Removing login credentials for {shown}");
    } else {
        println!("Not logged in to {shown}");
    }
    Ok(())
}
