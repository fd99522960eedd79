//! `skep version`.

use serde_json::Value;

use super::text;
use crate::client::{API_VERSION, Client};

/// Runs it.
pub async fn version(client: &Client) -> anyhow::Result<()> {
    println!(
        "Client:\n Version:     {}\n API version: {}",
        env!("CARGO_PKG_VERSION"),
        API_VERSION.trim_start_matches('v')
    );
    let server: Value = client.get("/version").await?;
    println!(
        "\nServer:\n Version:     {}\n API version: {} (minimum version {})",
        text(&server["Version"]),
        text(&server["ApiVersion"]),
        text(&server["MinAPIVersion"])
    );
    Ok(())
}
