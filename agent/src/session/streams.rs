//! Streams of bytes to managers, on which this node's engine answers.
//!
//! The node dials because workers have no open port. The manager then speaks HTTP on the stream as a client, and one
//! stream serves one client's connection: `exec`, `logs` and `attach` upgrade it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use skep_api::ports::BoxDuplex;
use skep_proto::model::session::OpenStream;
use tracing::{debug, warn};

use super::transport::Transport;

/// How long the dial may take. The manager's client waits for it.
const DIAL: Duration = Duration::from_secs(5);

/// What answers on a stream.
pub trait StreamService: Send + Sync + 'static {
    /// Serves the stream until it ends.
    fn serve(&self, stream: BoxDuplex) -> BoxFuture<'static, ()>;
}

/// An HTTP service, such as an axum router, as [`StreamService`].
#[derive(Debug, Clone)]
pub struct Http<S>(pub S);

impl<S, B> StreamService for Http<S>
where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn serve(&self, stream: BoxDuplex) -> BoxFuture<'static, ()> {
        let service = TowerToHyperService::new(self.0.clone());
        Box::pin(async move {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
            if let Err(error) = connection.await {
                debug!(error = %crate::chain(&error), "a manager's stream ended early");
            }
        })
    }
}

/// Dials the manager that asked and serves the stream.
pub(super) async fn serve(transport: Arc<dyn Transport>, service: Arc<dyn StreamService>, open: OpenStream) {
    match tokio::time::timeout(DIAL, transport.attach(open.manager, open.nonce)).await {
        Ok(Ok(stream)) => service.serve(stream).await,
        Ok(Err(error)) => {
            warn!(manager = %open.manager, error = %crate::chain(&error), "cannot open a stream to the manager")
        }
        Err(_) => warn!(manager = %open.manager, "the manager that asked for a stream does not answer"),
    }
}
