//! The accept loop: TLS, limits, and one HTTP/2 connection at a time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::OptionFuture;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use skep_identity::{Identity, LiveIdentity, Stream};
use skep_proto::model::NodeRole;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use super::authorize::{Authorize, RULES, Roles, Rules};
use super::{Access, Peer};

/// Accepts transport connections. Simulation passes its own.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection, without TLS, and where it comes from.
    ///
    /// # Errors
    /// When it cannot be had; the caller tries again after a pause.
    ///
    /// # Cancel safety
    /// Must be safe.
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)>;
}

/// TCP.
#[derive(Debug)]
pub struct TcpAcceptor(pub TcpListener);

#[async_trait]
impl Listener for TcpAcceptor {
    async fn accept(&mut self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), from))
    }
}

/// What strangers and nodes may take of a manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Connections of nodes, open at a time.
    pub nodes: usize,
    /// Connections without a node certificate, and those still in the handshake, open at a time.
    pub strangers: usize,
    /// Of these, from one address.
    pub strangers_per_address: usize,
    /// Life of a connection without a node certificate.
    pub stranger_life: Duration,
    /// Pause between HTTP/2 pings, and the time for an answer.
    pub keepalive: (Duration, Duration),
    /// Time that open calls get to end when the server stops.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            nodes: 20_000,
            strangers: 512,
            strangers_per_address: 64,
            stranger_life: Duration::from_secs(30),
            keepalive: (Duration::from_secs(10), Duration::from_secs(10)),
            grace: Duration::from_secs(2),
        }
    }
}

/// A manager's gRPC server.
pub struct Server {
    routes: Routes,
    live: LiveIdentity,
    roles: Arc<dyn Roles>,
    rules: &'static [(&'static str, Access)],
    limits: Limits,
}

impl Server {
    /// Serves `routes` as `live`; `roles` are the roles that nodes have now.
    pub fn new(routes: Routes, live: LiveIdentity, roles: Arc<dyn Roles>) -> Self {
        Self { routes: routes.prepare(), live, roles, rules: RULES, limits: Limits::default() }
    }

    /// The same with other limits.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Serves until `stop`; then waits for open calls as long as the grace period.
    pub async fn run(self, mut listener: impl Listener, stop: CancellationToken) {
        let tls = TlsAcceptor::from(self.live.server_config());
        let rules = Rules { rules: self.rules, roles: self.roles, revoked: self.live.revoked().clone() };
        let shared = Arc::new(Shared {
            routes: self.routes,
            tls,
            rules: Arc::new(rules),
            limits: self.limits,
            nodes: Arc::new(Semaphore::new(self.limits.nodes)),
            strangers: Arc::new(Strangers::new(self.limits)),
            stop: stop.clone(),
            cut: CancellationToken::new(),
        });
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => match Strangers::admit(&shared.strangers, from.ip()) {
                    Some(place) => {
                        connections.spawn(Arc::clone(&shared).connection(stream, from, place));
                    }
                    None => tracing::debug!(peer = %from, "connection refused: too many without a certificate"),
                },
                Err(error) => {
                    // Out of file descriptors, most likely. Accepting at full speed would not bring any back.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        if tokio::time::timeout(self.limits.grace, connections.wait()).await.is_err() {
            tracing::debug!(open = connections.len(), "cut the connections that were still open");
            shared.cut.cancel();
            connections.wait().await;
        }
    }
}

/// What all connections share.
struct Shared {
    routes: Routes,
    tls: TlsAcceptor,
    rules: Arc<Rules>,
    limits: Limits,
    nodes: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    /// No new calls.
    stop: CancellationToken,
    /// No calls at all.
    cut: CancellationToken,
}

impl Shared {
    async fn connection(self: Arc<Self>, stream: Box<dyn Stream>, from: SocketAddr, place: Place) {
        let handshake = tokio::time::timeout(self.limits.handshake, self.tls.accept(stream));
        let tls = tokio::select! {
            () = self.stop.cancelled() => return,
            done = handshake => match done {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return tracing::debug!(peer = %from, %error, "TLS handshake refused"),
                Err(_) => return tracing::debug!(peer = %from, "TLS handshake took too long"),
            },
        };
        let Ok(identity) = peer_identity(&tls) else { return };
        // A node leaves the strangers' places and takes one of its own.
        let (_stranger, _node) = if identity.is_none() {
            (Some(place), None)
        } else {
            drop(place);
            let Ok(permit) = Arc::clone(&self.nodes).try_acquire_owned() else {
                return tracing::warn!(peer = %from, limit = self.limits.nodes, "too many connections");
            };
            (None, Some(permit))
        };
        self.serve(tls, Peer { address: from, identity }).await;
    }

    async fn serve(&self, tls: TlsStream<Box<dyn Stream>>, peer: Peer) {
        let is_stranger = peer.identity.is_none();
        // A manager may be sent, or send, much at once: a follower that catches up.
        let (stream_window, window) = match peer.identity.map(|identity| identity.role) {
            None => (64 << 10, 64 << 10),
            Some(NodeRole::Worker) => (1 << 20, 4 << 20),
            Some(NodeRole::Manager) => (8 << 20, 16 << 20),
        };
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(self.limits.keepalive.0)
            .keep_alive_timeout(self.limits.keepalive.1)
            .max_header_list_size(16 << 10)
            .max_concurrent_streams(if is_stranger { 4 } else { 1024 })
            .initial_stream_window_size(stream_window)
            .initial_connection_window_size(window);
        let service = Authorize::new(self.routes.clone(), peer, Arc::clone(&self.rules));
        let connection = http.serve_connection(TokioIo::new(tls), TowerToHyperService::new(service));
        tokio::pin!(connection);
        let removed: OptionFuture<_> = peer.identity.map(|who| self.rules.revoked.wait_for(who.node)).into();
        let expired: OptionFuture<_> = is_stranger.then(|| tokio::time::sleep(self.limits.stranger_life)).into();
        tokio::pin!(removed, expired);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(peer = %peer.address, %error, "connection ended");
                    }
                    return;
                }
                Some(()) = &mut removed => return tracing::info!(peer = %peer.address, "cut off a removed node"),
                Some(()) = &mut expired => return,
                () = self.cut.cancelled() => return,
                () = self.stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Whom the client's certificate names. The handshake has verified it.
fn peer_identity<IO>(tls: &TlsStream<IO>) -> Result<Option<Identity>, skep_identity::peer::PeerError> {
    let (_, connection) = tls.get_ref();
    connection.peer_certificates().and_then(|chain| chain.first()).map(Identity::from_certificate).transpose()
}

/// Counts connections that have not shown a node certificate.
struct Strangers {
    limits: Limits,
    /// By address. Touched briefly and never across an await.
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// A stranger's place; free again when dropped.
struct Place {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    fn new(limits: Limits) -> Self {
        Self { limits, open: Mutex::default() }
    }

    fn admit(this: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut open = this.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, by_address) = &mut *open;
        let of_address = by_address.get(&address).copied().unwrap_or(0);
        if *total >= this.limits.strangers || of_address >= this.limits.strangers_per_address {
            return None;
        }
        *total += 1;
        by_address.insert(address, of_address + 1);
        Some(Place { strangers: Arc::clone(this), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.strangers.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, by_address) = &mut *open;
        *total -= 1;
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}
