//! Bytes in both directions over a gRPC stream of chunks. Each direction ends on its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use skep_proto::wire::session::Chunk;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};

/// Bytes of a chunk at most.
pub const CHUNK: usize = 64 << 10;
/// Chunks that wait for the connection; with more to come, writers wait.
pub const QUEUE: usize = 4;

/// One stream, on the side that answers the call.
pub struct ByteStream {
    inbound: Option<Streaming<Chunk>>,
    rest: Bytes,
    outbound: PollSender<Result<Chunk, Status>>,
}

impl ByteStream {
    /// Reads chunks from `inbound` and writes them to the returned receiver, which is the call's answer.
    pub fn new(inbound: Streaming<Chunk>) -> (Self, mpsc::Receiver<Result<Chunk, Status>>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { inbound: Some(inbound), rest: Bytes::new(), outbound: PollSender::new(sender) }, receiver)
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            let Some(inbound) = self.inbound.as_mut() else { return Poll::Ready(Ok(())) };
            match ready!(Pin::new(inbound).poll_next(cx)) {
                Some(Ok(chunk)) => self.rest = chunk.data,
                Some(Err(status)) => {
                    self.inbound = None;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, status.message())));
                }
                // The other side has shut down its writing half. Keep the stream: dropping it would reset the call,
                // and what we still have to say would be lost.
                None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.outbound.poll_reserve(cx)).map_err(|_| closed())?;
        let len = data.len().min(CHUNK);
        let chunk = Chunk { data: Bytes::copy_from_slice(&data[..len]), nonce: None };
        self.outbound.send_item(Ok(chunk)).map_err(|_| closed())?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}
