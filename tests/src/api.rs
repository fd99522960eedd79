//! A client of the Engine API on a node's socket, for what the docker CLI is too slow for or hides: how a request ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The version that requests name.
const VERSION: &str = "v1.41";
/// Most bytes of one answer.
const MOST: usize = 256 << 20;

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).context("the answer is no JSON")
    }

    /// What the daemon says went wrong.
    pub fn message(&self) -> String {
        let message = self.json().ok().and_then(|body| body["message"].as_str().map(str::to_owned));
        message.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nobody listened: the daemon has not seen the request.
    NotSent(std::io::Error),
    /// The request may have been seen.
    Unknown(anyhow::Error),
}

/// Speaks to one socket, on a connection that is kept while it works.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    timeout: Duration,
    open: Option<BufReader<UnixStream>>,
}

impl Api {
    /// A client that waits so long for an answer. Nothing is opened yet.
    pub fn new(socket: impl AsRef<Path>, timeout: Duration) -> Self {
        Self { socket: socket.as_ref().to_owned(), timeout, open: None }
    }

    /// One request, sent at most once.
    ///
    /// # Errors
    /// Says whether the daemon may have seen it.
    pub fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, NoAnswer> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => BufReader::new(UnixStream::connect(&self.socket).map_err(NoAnswer::NotSent)?),
        };
        let answer = exchange(&mut stream, self.timeout, method, path, body).map_err(NoAnswer::Unknown)?;
        if answer.1 {
            self.open = Some(stream);
        }
        Ok(answer.0)
    }

    /// The same, where anything but success is an error. A lost connection that was idle is opened again.
    ///
    /// # Errors
    /// What the daemon says, or why it says nothing.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = match self.ask(method, path, body) {
            Ok(answer) => answer,
            Err(NoAnswer::NotSent(error)) => return Err(error).context("connecting"),
            Err(NoAnswer::Unknown(error)) => return Err(error.context(format!("{method} {path}"))),
        };
        ensure!(answer.status < 400, "{method} {path}: {} {}", answer.status, answer.message());
        if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
    }

    /// `GET` of a path.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn get(&mut self, path: &str) -> anyhow::Result<Value> {
        self.call("GET", path, None)
    }
}

/// Sends a request and reads its answer; true when the connection may be used again.
fn exchange(
    stream: &mut BufReader<UnixStream>,
    timeout: Duration,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(Answer, bool)> {
    stream.get_ref().set_read_timeout(Some(timeout))?;
    stream.get_ref().set_write_timeout(Some(timeout))?;
    let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let mut request = format!(
        "{method} /{VERSION}{path} HTTP/1.1\r\nHost: skep\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    )
    .into_bytes();
    request.extend_from_slice(&bytes);
    stream.get_mut().write_all(&request)?;

    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the connection was closed");
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no HTTP answer")?;
    let (mut length, mut is_chunked, mut is_kept) = (None, false, true);
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the connection was closed within the answer's head");
        let Some((name, value)) = line.trim().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse::<usize>().context("its length")?),
            "transfer-encoding" => is_chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" => is_kept = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let body = match (is_chunked, length) {
        (true, _) => read_chunks(stream)?,
        (false, Some(length)) => {
            ensure!(length <= MOST, "an answer of {length} bytes");
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            body
        }
        (false, None) if status == 204 || status == 304 => Vec::new(),
        (false, None) => bail!("an answer without a length"),
    };
    Ok((Answer { status, body }, is_kept))
}

/// A chunked body (RFC 9112, section 7.1), without trailers.
fn read_chunks(stream: &mut BufReader<UnixStream>) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "the connection was closed within the answer");
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        ensure!(body.len() + size <= MOST, "an answer of more than {MOST} bytes");
        let start = body.len();
        body.resize(start + size, 0);
        stream.read_exact(&mut body[start..])?;
        line.clear();
        stream.read_line(&mut line)?;
        if size == 0 {
            return Ok(body);
        }
    }
}
