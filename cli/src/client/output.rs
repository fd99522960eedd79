//! Output of processes as it comes from the daemon: bytes of a terminal, or two streams in frames.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::bail;
use bytes::{Bytes, BytesMut};
use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use skep_api::docker::stdcopy::{self, Kind};
use skep_proto::model::engine::OutputStream;
use tokio::fs::File;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Puts output back into its streams.
#[derive(Debug, Default)]
pub struct Demultiplexer {
    /// Whether there are no frames: all is standard output.
    raw: bool,
    buffer: BytesMut,
}

impl Demultiplexer {
    /// For output of a terminal (`raw`) or of two streams.
    pub fn new(raw: bool) -> Self {
        Self { raw, buffer: BytesMut::new() }
    }

    /// For the body of an answer, whose content type says what it is.
    pub fn of(response: &Response<Incoming>) -> Self {
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        Self::new(kind == Some("application/vnd.docker.raw-stream"))
    }

    /// Takes bytes from the wire and returns what has arrived whole.
    ///
    /// # Errors
    /// A message of the daemon in place of output, or bytes that are no frames.
    pub fn feed(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<(OutputStream, Bytes)>> {
        if self.raw {
            return Ok(vec![(OutputStream::Stdout, Bytes::copy_from_slice(bytes))]);
        }
        self.buffer.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while let Some((kind, payload)) = stdcopy::take(&mut self.buffer)? {
            match kind {
                Kind::Output(stream) => pieces.push((stream, payload)),
                Kind::SystemError => bail!("{}", String::from_utf8_lossy(&payload).trim_end().to_owned()),
            }
        }
        Ok(pieces)
    }
}

/// Where output goes.
#[derive(Debug)]
pub struct Sinks<O, E> {
    /// For standard output.
    pub out: O,
    /// For standard error.
    pub err: E,
}

/// This process's own output, without a buffer of its own.
///
/// # Errors
/// When there is none.
pub fn own() -> anyhow::Result<Sinks<File, File>> {
    let copy = |stream: BorrowedFd<'_>| -> std::io::Result<File> {
        Ok(File::from_std(std::fs::File::from(stream.try_clone_to_owned()?)))
    };
    Ok(Sinks { out: copy(std::io::stdout().as_fd())?, err: copy(std::io::stderr().as_fd())? })
}

impl<O: AsyncWrite + Unpin, E: AsyncWrite + Unpin> Sinks<O, E> {
    /// Writes to a stream, and what was written is there when this returns.
    ///
    /// # Errors
    /// When nobody reads.
    pub async fn write(&mut self, stream: OutputStream, bytes: &[u8]) -> std::io::Result<()> {
        match stream {
            OutputStream::Stdout => {
                self.out.write_all(bytes).await?;
                self.out.flush().await
            }
            OutputStream::Stderr => {
                self.err.write_all(bytes).await?;
                self.err.flush().await
            }
        }
    }
}

/// Prints the body of an answer, such as a log, as it comes.
///
/// # Errors
/// A message of the daemon, a broken connection, or nobody who reads.
pub async fn print(response: Response<Incoming>) -> anyhow::Result<()> {
    let mut streams = Demultiplexer::of(&response);
    let mut body = response.into_body();
    let mut sinks = own()?;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        for (stream, bytes) in streams.feed(&data)? {
            sinks.write(stream, &bytes).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_to_their_streams_however_they_were_cut() {
        let mut wire = stdcopy::frame(Kind::Output(OutputStream::Stdout), b"out").to_vec();
        wire.extend(stdcopy::frame(Kind::Output(OutputStream::Stderr), b"err"));
        let mut streams = Demultiplexer::new(false);
        let pieces: Vec<_> = wire.chunks(3).flat_map(|c| streams.feed(c).unwrap()).collect();
        let expected = [(OutputStream::Stdout, Bytes::from("out")), (OutputStream::Stderr, Bytes::from("err"))];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn a_message_of_the_daemon_ends_the_output_as_an_error() {
        let wire = stdcopy::frame(Kind::SystemError, b"warning: incomplete log stream");
        let error = Demultiplexer::new(false).feed(&wire).unwrap_err();
        assert_eq!(error.to_string(), "warning: incomplete log stream");
    }

    #[test]
    fn output_of_a_terminal_is_passed_on_as_it_is() {
        let pieces = Demultiplexer::new(true).feed(b"\x01\x00bytes").unwrap();
        assert_eq!(pieces, [(OutputStream::Stdout, Bytes::from_static(b"\x01\x00bytes"))]);
    }
}
