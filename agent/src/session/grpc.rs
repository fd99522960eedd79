//! Sessions and streams over gRPC.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use skep_api::ports::BoxDuplex;
use skep_identity::{Connector, Expect, Timing};
use skep_proto::convert::Assembler;
use skep_proto::model::NodeRole;
use skep_proto::model::session::{AgentMessage, Hello, ManagerMessage};
use skep_proto::wire::session as wire;
use skep_proto::wire::session::dispatcher_client::DispatcherClient;
use skep_proto::wire::session::streams_client::StreamsClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::transport::{Link, Transport, TransportError};

/// Messages that may wait for the connection.
const QUEUE: usize = 64;
/// Chunks of a stream that may wait for the connection.
const CHUNKS: usize = 16;
/// Bytes of a message from a manager at most: one part of a large set, whose last change may be large itself.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How long a stream that this side has ended waits for the other side's end.
const LINGER: Duration = Duration::from_secs(10);

/// Makes connections to managers, with this node's certificate. They must notice a peer that is cut off (HTTP/2 pings).
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// A connection to the manager at that address.
    ///
    /// # Errors
    /// When it cannot be reached, or is not a manager of the cluster.
    async fn dial(&self, manager: SocketAddr) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>>;
}

/// A manager that is cut off is left within twice this time.
const KEEPALIVE: Duration = Duration::from_secs(3);

#[async_trait]
impl Dialer for Connector {
    async fn dial(&self, manager: SocketAddr) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let timing = Timing { keepalive_interval: KEEPALIVE, keepalive_timeout: KEEPALIVE, ..Timing::default() };
        Ok(self.with_timing(timing).connect(manager, Expect::Role(NodeRole::Manager)).await?)
    }
}

/// The gRPC transport.
pub struct Grpc {
    dialer: Arc<dyn Dialer>,
}

impl Grpc {
    /// Over connections of `dialer`.
    pub fn new(dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer }
    }

    async fn dial(&self, manager: SocketAddr) -> Result<Channel, TransportError> {
        self.dialer.dial(manager).await.map_err(|source| TransportError::Connect { manager, source })
    }
}

#[async_trait]
impl Transport for Grpc {
    async fn session(&self, manager: SocketAddr, hello: Hello) -> Result<Link, TransportError> {
        let (to_manager, queue) = mpsc::channel::<AgentMessage>(QUEUE);
        let first = AgentMessage::Hello(hello);
        let messages = stream::once(async move { first }).chain(ReceiverStream::new(queue));
        let outgoing = messages.map(|message| wire::AgentMessage::from(&message));
        let mut client = DispatcherClient::new(self.dial(manager).await?).max_decoding_message_size(MAX_MESSAGE);
        let incoming = client.session(outgoing).await.map_err(|status| refused(manager, &status))?.into_inner();
        Ok(Link { to_manager, from_manager: whole_messages(manager, incoming).boxed() })
    }

    async fn attach(&self, manager: SocketAddr, nonce: [u8; 16]) -> Result<BoxDuplex, TransportError> {
        let (sender, queue) = mpsc::channel::<Bytes>(CHUNKS);
        let first = wire::Chunk { data: Bytes::new(), nonce: Some(Bytes::copy_from_slice(&nonce)) };
        let data = ReceiverStream::new(queue).map(|data| wire::Chunk { data, nonce: None });
        let outgoing = stream::once(async move { first }).chain(data);
        let mut client = StreamsClient::new(self.dial(manager).await?).max_decoding_message_size(MAX_MESSAGE);
        let incoming = client.attach(outgoing).await.map_err(|status| refused(manager, &status))?.into_inner();

        let data = Lingering(Some(incoming)).map(|chunk| chunk.map(|chunk| chunk.data).map_err(std::io::Error::other));
        let reader = StreamReader::new(data);
        let closed = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let writer = SinkWriter::new(CopyToBytes::new(PollSender::new(sender).sink_map_err(closed)));
        Ok(Box::new(tokio::io::join(reader, writer)))
    }
}

/// What comes from the manager. Dropping it would reset the call, and with it what this side has written and the connection
/// has not taken yet: the last output of a short `exec`. So it is read to its end, which follows ours, in the background.
struct Lingering(Option<Streaming<wire::Chunk>>);

impl stream::Stream for Lingering {
    type Item = Result<wire::Chunk, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Some(incoming) => Pin::new(incoming).poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let (Some(mut incoming), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            let rest = async move { while let Some(Ok(_)) = incoming.next().await {} };
            runtime.spawn(tokio::time::timeout(LINGER, rest));
        }
    }
}

/// Joins what comes in parts. Ends after the first error.
fn whole_messages(
    manager: SocketAddr,
    incoming: Streaming<wire::ManagerMessage>,
) -> impl stream::Stream<Item = Result<ManagerMessage, TransportError>> + Send {
    stream::unfold(Some((incoming, Assembler::default())), move |state| async move {
        let (mut incoming, mut assembler) = state?;
        loop {
            let part = match incoming.next().await? {
                Ok(part) => part,
                Err(status) => return Some((Err(refused(manager, &status)), None)),
            };
            match assembler.push(part) {
                Ok(Some(message)) => return Some((Ok(message), Some((incoming, assembler)))),
                Ok(None) => {}
                Err(error) => return Some((Err(error.into()), None)),
            }
        }
    })
}

fn refused(manager: SocketAddr, status: &Status) -> TransportError {
    TransportError::Call { manager, code: status.code(), message: status.message().to_owned() }
}

#[cfg(test)]
mod tests;
