//! Routes of the Engine API that are not built: each answers 501 naming what is missing, and never pretends.

use axum::Router;
use axum::extract::Path;
use axum::routing::{any, get};

use crate::docker::error::ApiError;

/// Path and what is missing.
const MISSING: [(&str, &str); 11] = [
    ("/build", "building images"),
    ("/build/cancel", "building images"),
    ("/commit", "committing a container to an image"),
    ("/images/get", "saving images"),
    ("/images/search", "searching a registry"),
    ("/session", "the session of BuildKit"),
    ("/grpc", "the gRPC tunnel of BuildKit"),
    ("/plugins/pull", "installing plugins"),
    ("/plugins/create", "installing plugins"),
    ("/plugins/privileges", "installing plugins"),
    ("/debug/vars", "debugging by HTTP"),
];

pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new().route("/plugins", get(no_plugins)).route("/plugins/{*rest}", any(no_such_plugin));
    for (path, thing) in MISSING {
        router = router.route(path, any(move || async move { ApiError::not_supported(thing) }));
    }
    router
}

/// Routes below `/containers/{id}` that are not built.
const OF_CONTAINERS: [(&str, &str); 9] = [
    ("/containers/{id}/archive", "copying files from and to containers"),
    ("/containers/{id}/changes", "listing the changes of a container's file system"),
    ("/containers/{id}/export", "exporting a container's file system"),
    ("/containers/{id}/stats", "the statistics of a container"),
    ("/containers/{id}/update", "updating a container"),
    ("/containers/{id}/attach/ws", "attaching by WebSocket"),
    ("/containers/{id}/checkpoints", "checkpoints"),
    ("/containers/{id}/checkpoints/{checkpoint}", "checkpoints"),
    ("/containers/{id}/copy", "copying files from containers"),
];

pub(crate) fn of_containers<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for (path, thing) in OF_CONTAINERS {
        router = router.route(path, any(move || async move { ApiError::not_supported(thing) }));
    }
    router
}

/// `GET /plugins` (Engine API, Plugin, "List plugins"): there are none.
async fn no_plugins() -> axum::Json<[String; 0]> {
    axum::Json([])
}

async fn no_such_plugin(Path(rest): Path<String>) -> ApiError {
    let name = rest.split('/').next().unwrap_or("").to_owned();
    ApiError::not_found(format!("plugin \"{name}\" not found"))
}
