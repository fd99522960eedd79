//! gRPC over the simulated network.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use skep_manager::raft::network::{ConnectError, Connector, endpoint};
use skep_manager::raft::types::{Peer, RaftId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// Dials hosts of the simulation by name.
pub struct Simulated;

impl Connector for Simulated {
    fn connect(&self, id: RaftId, peer: &Peer) -> Result<Channel, ConnectError> {
        let failed = |reason: String| ConnectError { id, address: peer.address.clone(), reason };
        let endpoint = endpoint(format!("http://{}", peer.address)).map_err(|e| failed(e.to_string()))?;
        let dial = tower::service_fn(|uri: Uri| async move {
            let address = (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or_default());
            TcpStream::connect(address).await.map(TokioIo::new)
        });
        Ok(endpoint.connect_with_connector_lazy(dial))
    }
}

/// An accepted connection.
pub struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Connections that come in at `port` of this host.
pub async fn listen(port: u16) -> io::Result<impl Stream<Item = io::Result<Accepted>>> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    Ok(futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    }))
}
