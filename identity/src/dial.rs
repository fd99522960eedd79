//! Connections to other nodes: who dials, with which TLS, and when it gives up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::live::LiveIdentity;
use crate::verify::Expect;

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// Opens transport connections. Simulation passes its own.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// A connection to `to`, without TLS.
    ///
    /// # Errors
    /// When it cannot be made.
    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>>;
}

/// TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// When a connection counts as lost. Without keepalive a client never leaves a connection whose peer was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For dialling and the TLS handshake together.
    pub connect: Duration,
    /// Pause between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// How long an answer to a ping may take.
    pub keepalive_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// No connection to a node.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to {address}")]
pub struct ConnectError {
    /// Whom.
    pub address: SocketAddr,
    /// Why.
    pub source: tonic::transport::Error,
}

/// Makes gRPC channels to nodes of the cluster with this node's certificate. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    live: LiveIdentity,
    dialer: Arc<dyn Dialer>,
    timing: Timing,
}

impl Connector {
    /// Channels as `live`, over `dialer`.
    pub fn new(live: LiveIdentity, dialer: Arc<dyn Dialer>) -> Self {
        Self { live, dialer, timing: Timing::default() }
    }

    /// The same with other timing.
    pub fn with_timing(&self, timing: Timing) -> Self {
        Self { timing, ..self.clone() }
    }

    /// This node.
    pub fn live(&self) -> &LiveIdentity {
        &self.live
    }

    /// A channel that connects when first used, and again after each loss, each time with the credentials and roots of
    /// that moment.
    pub fn channel(&self, address: SocketAddr, expect: Expect) -> Channel {
        endpoint(address, self.timing).connect_with_connector_lazy(self.tls(address, expect))
    }

    /// Like [`Self::channel`], with timing and windows of the caller's own. The address in `endpoint` is not dialled.
    pub fn channel_with(&self, endpoint: Endpoint, address: SocketAddr, expect: Expect) -> Channel {
        endpoint.connect_with_connector_lazy(self.tls(address, expect))
    }

    /// Like [`Self::channel`], connected.
    ///
    /// # Errors
    /// When the node cannot be reached in time, or is not whom `expect` names.
    pub async fn connect(&self, address: SocketAddr, expect: Expect) -> Result<Channel, ConnectError> {
        endpoint(address, self.timing)
            .connect_with_connector(self.tls(address, expect))
            .await
            .map_err(|source| ConnectError { address, source })
    }

    fn tls(&self, address: SocketAddr, expect: Expect) -> TlsDial {
        TlsDial { address, tls: self.live.client_config(expect), dialer: Arc::clone(&self.dialer) }
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("timing", &self.timing).finish_non_exhaustive()
    }
}

/// Connects without a client certificate, as a node that joins must.
pub(crate) async fn connect_with(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    dialer: Arc<dyn Dialer>,
) -> Result<Channel, ConnectError> {
    endpoint(address, Timing::default())
        .connect_with_connector(TlsDial { address, tls, dialer })
        .await
        .map_err(|source| ConnectError { address, source })
}

fn endpoint(address: SocketAddr, timing: Timing) -> Endpoint {
    // The scheme is http because TLS is ours: tonic must not add its own.
    Endpoint::from_shared(format!("http://{address}"))
        .expect("an address makes a valid authority")
        .connect_timeout(timing.connect)
        .http2_keep_alive_interval(timing.keepalive_interval)
        .keep_alive_timeout(timing.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// Bytes one stream may have in flight: 1 MiB, the size of a snapshot's chunk.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes one connection may have in flight.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A `tower` connector: dials, then speaks TLS.
#[derive(Clone)]
struct TlsDial {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    dialer: Arc<dyn Dialer>,
}

type Opened = TokioIo<tokio_rustls::client::TlsStream<Box<dyn Stream>>>;

impl tower::Service<http::Uri> for TlsDial {
    type Response = Opened;
    type Error = io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = io::Result<Opened>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let Self { address, tls, dialer } = self.clone();
        Box::pin(async move {
            let stream = dialer.dial(address).await?;
            // Certificates name nodes, not addresses: the verifier compares what it expects with the certificate.
            let name = ServerName::IpAddress(address.ip().into());
            Ok(TokioIo::new(TlsConnector::from(tls).connect(name, stream).await?))
        })
    }
}
