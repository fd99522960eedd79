//! A person, or a pipe, connected to a process: bytes both ways, the size of the terminal, and the keys that leave.

use std::future::pending;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::Method;
use skep_api::docker::detach::Detach;
use skep_proto::model::engine::OutputStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::output::{Demultiplexer, Sinks, own};
use crate::client::{Client, Hijacked};

/// Bytes read at a time from the daemon.
const CHUNK: usize = 32 << 10;

/// What the connection is for.
#[derive(Debug, Clone)]
pub struct Session<'a> {
    /// Whether the process has a terminal.
    pub tty: bool,
    /// Whether it gets this process's input.
    pub stdin: bool,
    /// Keys that leave it, in Docker's notation; empty for the usual ones.
    pub detach_keys: &'a str,
    /// Where to tell the size of the terminal: `/containers/ID` or `/exec/ID`.
    pub object: String,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process's output is over.
    Output,
    /// The person left with the detach keys; the process goes on.
    Detached,
}

impl Session<'_> {
    /// Moves bytes until the output is over or the person leaves. The terminal is raw meanwhile.
    ///
    /// # Errors
    /// When the connection breaks, or nobody reads the output.
    pub async fn run(&self, client: &Client, connection: Hijacked) -> anyhow::Result<End> {
        let detach = if self.tty && self.stdin { Detach::parse(self.detach_keys)? } else { Detach::never() };
        let raw = if self.tty && self.stdin { super::Raw::enter()? } else { None };
        let input = self.stdin.then(super::input);
        let resizes = async { if self.tty { self.follow_size(client).await } else { pending().await } };
        let (reader, writer) = tokio::io::split(connection);
        let end = tokio::select! {
            end = copy(reader, writer, input, own()?, self.tty, detach) => end,
            error = resizes => Err(error),
        };
        drop(raw);
        end
    }

    /// Tells the size now and whenever it changes. Only returns when signals cannot be had.
    async fn follow_size(&self, client: &Client) -> anyhow::Error {
        let mut changes: Signal = match signal(SignalKind::window_change()) {
            Ok(changes) => changes,
            Err(error) => return anyhow::Error::from(error).context("watching the size of the terminal"),
        };
        loop {
            self.tell_size(client).await;
            if changes.recv().await.is_none() {
                pending::<()>().await;
            }
        }
    }

    /// A process that has just ended, or has not begun, has no size: then there is nothing to tell.
    async fn tell_size(&self, client: &Client) {
        if let Some((height, width)) = super::size() {
            let path = format!("{}/resize?h={height}&w={width}", self.object);
            let _ = client.call(Method::POST, &path, None).await;
        }
    }
}

/// Moves bytes between the daemon and this process. The end of the input closes the process's input only.
async fn copy<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin>(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    input: Option<mpsc::Receiver<Bytes>>,
    mut sinks: Sinks<O, E>,
    tty: bool,
    mut detach: Detach,
) -> anyhow::Result<End> {
    let from_process = async {
        let mut streams = Demultiplexer::new(tty);
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.clear();
            if reader.read_buf(&mut buffer).await.context("the connection to the process broke")? == 0 {
                return Ok(End::Output);
            }
            for (stream, bytes) in streams.feed(&buffer)? {
                write(&mut sinks, stream, &bytes).await?;
            }
        }
    };
    let to_process = async {
        let Some(mut input) = input else { return pending().await };
        while let Some(bytes) = input.recv().await {
            let (bytes, detached) = detach.feed(&bytes);
            let sent = writer.write_all(&bytes).await.is_ok() && writer.flush().await.is_ok();
            if detached {
                return Ok(End::Detached);
            }
            // A process that reads no more still has output.
            if !sent {
                return pending().await;
            }
        }
        let _ = writer.shutdown().await;
        pending().await
    };
    tokio::select! {
        end = from_process => end,
        end = to_process => end,
    }
}

async fn write<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin>(
    sinks: &mut Sinks<O, E>,
    stream: OutputStream,
    bytes: &[u8],
) -> anyhow::Result<()> {
    sinks.write(stream, bytes).await.context("writing the output of the process")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinks() -> Sinks<Vec<u8>, Vec<u8>> {
        Sinks { out: Vec::new(), err: Vec::new() }
    }

    #[tokio::test]
    async fn the_detach_keys_leave_and_do_not_reach_the_process() {
        let (near, mut far) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(near);
        let (send, receive) = mpsc::channel(1);
        send.send(Bytes::from_static(b"ls\x10\x11")).await.unwrap();
        let end = copy(reader, writer, Some(receive), sinks(), true, Detach::parse("").unwrap()).await.unwrap();
        assert_eq!(end, End::Detached);
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"ls");
    }

    #[tokio::test]
    async fn the_end_of_the_input_is_passed_on_and_the_output_still_comes() {
        let (near, mut far) = tokio::io::duplex(64);
        let (reader, writer) = tokio::io::split(near);
        let (send, receive) = mpsc::channel(1);
        send.send(Bytes::from_static(b"in")).await.unwrap();
        drop(send);
        let mut sinks = sinks();
        let shown = Sinks { out: &mut sinks.out, err: &mut sinks.err };
        let process = async {
            let mut seen = Vec::new();
            far.read_to_end(&mut seen).await.unwrap();
            far.write_all(&seen).await.unwrap();
            drop(far);
        };
        let (end, ()) = tokio::join!(copy(reader, writer, Some(receive), shown, true, Detach::never()), process);
        assert_eq!((end.unwrap(), sinks.out), (End::Output, b"in".to_vec()));
    }
}
