//! The daemon's side of a shim's socket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use bytes::{Buf, BytesMut};
use prost::Message;
use skep_shim::protocol::{Answer, MAX_FRAME, Op, Reply, Request, SOCKET, put_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// There is no shim, or it left.
    #[error("the container's shim does not answer")]
    Gone(#[source] io::Error),
    /// It said no; the text is an OCI runtime's.
    #[error("{0}")]
    Refused(String),
    /// It said something that is no answer to the question.
    #[error("the container's shim gave an unexpected answer")]
    Unexpected,
}

impl From<io::Error> for ShimError {
    fn from(e: io::Error) -> Self {
        Self::Gone(e)
    }
}

/// A connection to a shim.
pub struct Connection {
    /// Answers.
    pub reader: Reader,
    /// Requests.
    pub writer: Writer,
}

/// The receiving half.
pub struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

/// The sending half.
pub struct Writer {
    half: OwnedWriteHalf,
}

impl Connection {
    /// Connects to the shim whose run directory is `run`. The directory's path may be of any length.
    pub async fn open(run: &Path) -> Result<Self, ShimError> {
        let dir = File::open(run)?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await?;
        let (read, write) = stream.into_split();
        Ok(Self { reader: Reader { half: read, buffer: BytesMut::new() }, writer: Writer { half: write } })
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, op: Op) -> Result<Answer, ShimError> {
        self.writer.send(op).await?;
        match self.reader.next().await? {
            Some(Answer::Refused(refused)) => Err(ShimError::Refused(refused.text)),
            Some(answer) => Ok(answer),
            None => Err(ShimError::Gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl Writer {
    /// Sends a request.
    pub async fn send(&mut self, op: Op) -> io::Result<()> {
        let mut frame = Vec::new();
        put_frame(&mut frame, &Request::new(op));
        self.half.write_all(&frame).await
    }
}

impl Reader {
    /// The next answer; `None` at the end.
    ///
    /// # Cancel safety
    /// Safe: what was read stays for the next call.
    pub async fn next(&mut self) -> Result<Option<Answer>, ShimError> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<4>() {
                let len = u32::from_be_bytes(*head) as usize;
                if len > MAX_FRAME {
                    return Err(ShimError::Unexpected);
                }
                if self.buffer.len() >= 4 + len {
                    self.buffer.advance(4);
                    let frame = self.buffer.split_to(len);
                    let reply = Reply::decode(frame.freeze()).map_err(|_| ShimError::Unexpected)?;
                    return reply.answer.map(Some).ok_or(ShimError::Unexpected);
                }
            }
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
