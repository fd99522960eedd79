//! Connections that stop being HTTP: what a process reads and writes (Engine API, "Attach to a container", "Hijacking").

use anyhow::Context;
use bytes::Bytes;
use http::{Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{Client, whole};

/// A connection to the process behind it.
pub type Hijacked = TokioIo<Upgraded>;

impl Client {
    /// POSTs and takes the connection over.
    ///
    /// # Errors
    /// The daemon's words when it refuses.
    pub async fn hijack(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Hijacked> {
        let headers = [(header::CONNECTION.as_str(), "Upgrade"), (header::UPGRADE.as_str(), "tcp")];
        let response = self.open(Method::POST, path, &headers, whole(body)).await?;
        anyhow::ensure!(
            response.status() == StatusCode::SWITCHING_PROTOCOLS,
            "the daemon answered {} where it should have handed over the connection",
            response.status()
        );
        let upgraded = hyper::upgrade::on(response).await.context("the daemon closed the connection")?;
        Ok(TokioIo::new(upgraded))
    }
}
