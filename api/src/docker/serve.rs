//! Serving a router on listeners and on connections that others made.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept (no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens on a Unix socket that the group `skep`, where it exists, may use: root:skep 0660. A socket that a dead daemon
/// left is replaced; one that answers is not.
///
/// # Errors
/// `AddrInUse` when another process serves the path, and what the file system says.
pub async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if path.exists() {
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another process serves {}: is a daemon running already?", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Some(group) = group_id("skep")? {
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    Ok(listener)
}

/// The number of a group of this host (group(5)); `None` when there is no such group.
fn group_id(name: &str) -> io::Result<Option<u32>> {
    let text = match std::fs::read_to_string("/etc/group") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    Ok(parse_group(&text, name))
}

fn parse_group(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Serves `router` on a Unix socket until `stop` is cancelled, then lets requests under way end within `grace`.
///
/// # Errors
/// None while it serves: a connection's errors end that connection only.
pub async fn serve(listener: UnixListener, router: Router, stop: CancellationToken, grace: Duration) -> io::Result<()> {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = connection(stream, router.clone());
        let (stop, cut) = (stop.clone(), cut.clone());
        connections.spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = connection => result,
                        () = cut.cancelled() => Ok(()),
                    }
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        // Streams that never end: logs, waits.
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// Serves `router` on one connection, until the client closes it or an upgrade takes it over. For streams that other
/// nodes open, and for connections under TLS.
///
/// # Errors
/// What broke the connection.
pub async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
) -> Result<(), hyper::Error> {
    connection(stream, router).await
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    router: Router,
) -> hyper::server::conn::http1::UpgradeableConnection<
    TokioIo<S>,
    impl hyper::service::Service<
        http::Request<Incoming>,
        Response = http::Response<Body>,
        Error = Infallible,
        Future = Answer,
    >,
> {
    let service = service_fn(move |request: http::Request<Incoming>| -> Answer {
        let router = router.clone();
        Box::pin(async move { router.oneshot(request.map(Body::new)).await })
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_by_its_name() {
        let text = "root:x:0:\nskep:x:991:alice,bob\nskepx:x:5:\n";
        assert_eq!(parse_group(text, "skep"), Some(991));
        assert_eq!(parse_group(text, "ske"), None);
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_replaced_and_one_that_is_served_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        drop(bind_unix(&path).await.unwrap());
        let second = bind_unix(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(bind_unix(&path).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(second);
    }
}
