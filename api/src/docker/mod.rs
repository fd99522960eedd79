//! The Docker Engine API, versions 1.24 to 1.50.
//!
//! A request passes the front (version prefix, common headers), then for containers and exec sessions the proxy (which
//! node has it?), then one handler that extracts, reads, calls one port and shows the answer.

pub mod detach;
mod doctor;
mod error;
mod extract;
mod front;
mod names;
mod proxy;
pub mod requests;
mod routes;
mod serve;
mod signal;
mod spec;
mod state;
pub mod stdcopy;
mod stream;
mod time;
mod types;

use std::sync::Arc;

use axum::Router;
use skep_proto::model::Timestamp;
use tokio_util::task::TaskTracker;

pub use serve::{bind_unix, serve, serve_connection};
pub use state::{Host, Ports};

use crate::ports::Engine;
use state::{App, Local};

/// The whole API over one node's ports.
pub fn router(ports: Ports) -> Router {
    let Ports { swarm, engine, host } = ports;
    let local = Local { engine, clock: host.clock.clone(), pumps: TaskTracker::new() };
    let version = host.version.clone();
    let app = App { swarm, local: local.clone(), host, remote: proxy::Remote::default() };
    let anywhere = routes::containers::one()
        .merge(routes::exec::routes())
        .with_state(local.clone())
        .layer(axum::middleware::from_fn_with_state(app.clone(), proxy::route));
    let routes = Router::new()
        .merge(routes::system::routes())
        .merge(routes::events::routes())
        .merge(routes::doctor::of_cluster())
        .merge(routes::swarm::routes())
        .merge(routes::nodes::routes())
        .merge(routes::services::routes())
        .merge(routes::tasks::routes())
        .merge(routes::networks::routes())
        .merge(routes::volumes::routes())
        .merge(routes::images::routes())
        .merge(routes::files::routes())
        .merge(routes::containers::collection())
        .merge(routes::unsupported::routes())
        .with_state(app)
        .merge(routes::doctor::of_node().with_state(local))
        .merge(anywhere);
    front::front(with_not_found(routes), &version)
}

/// The routes about this node's own containers and exec sessions only: what a node serves to the managers.
pub fn local_router(engine: Arc<dyn Engine>, version: &str, clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Router {
    let local = Local { engine, clock, pumps: TaskTracker::new() };
    let routes = routes::containers::one().merge(routes::exec::routes()).merge(routes::networks::of_containers());
    let routes = routes.merge(routes::doctor::of_node());
    let routes = routes.with_state(local);
    front::front(with_not_found(routes), version)
}

/// An unknown method is answered as an unknown path is, as dockerd does.
fn with_not_found(routes: Router) -> Router {
    routes.fallback(front::page_not_found).method_not_allowed_fallback(front::page_not_found)
}
