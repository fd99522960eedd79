//! What every request passes first: the version prefix is taken off the path, and every answer gets Docker's headers.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Uri};
use tower::ServiceExt;

use super::error::ApiError;
use super::extract::ApiVersion;

/// The newest version that is answered. Shapes are those recorded at 1.41 with the documented additions since.
pub(crate) const MAX_VERSION: ApiVersion = ApiVersion(1, 50);
/// The oldest version that is answered.
pub(crate) const MIN_VERSION: ApiVersion = ApiVersion(1, 24);

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Puts the front before `inner`. `product` is the daemon's version, for the `Server` header.
pub(crate) fn front(inner: Router, product: &str) -> Router {
    // The form is Docker's (`Docker/VERSION (OS)`): clients take the operating system from it.
    let server = HeaderValue::from_str(&format!("Docker/skep-{product} (linux)"))
        .unwrap_or_else(|_| HeaderValue::from_static("Docker/skep (linux)"));
    Router::new().fallback(move |request: Request| {
        let (inner, server) = (inner.clone(), server.clone());
        async move {
            let mut response = match unversioned(request) {
                Ok(request) => match inner.oneshot(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                },
                Err(error) => error.into_response(),
            };
            let headers = response.headers_mut();
            headers.insert("Api-Version", HeaderValue::from_static("1.50"));
            headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
            headers.insert("Ostype", HeaderValue::from_static("linux"));
            headers.insert(http::header::SERVER, server);
            response
        }
    })
}

/// The answer to a path or method that nothing answers.
pub(crate) async fn page_not_found() -> Response {
    ApiError::not_found("page not found").into_response()
}

/// Takes `/vX.YY` off the path and keeps the version in the request's extensions.
fn unversioned(mut request: Request<Body>) -> Result<Request<Body>, ApiError> {
    let Some((version, rest)) = split_version(request.uri().path()) else { return Ok(request) };
    if version > MAX_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {MAX_VERSION}"
        )));
    }
    if version < MIN_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_VERSION}, please upgrade your \
             client to a newer version"
        )));
    }
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    *request.uri_mut() =
        target.parse::<Uri>().map_err(|e| ApiError::bad_request(format!("the path {rest} is not valid: {e}")))?;
    request.extensions_mut().insert(version);
    Ok(request)
}

/// `/v1.41/info` is (1.41, `/info`); `None` when the path does not begin with a version.
fn split_version(path: &str) -> Option<(ApiVersion, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/')?;
    let (major, minor) = rest[..end].split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(major) || !digits(minor) {
        return None;
    }
    Some((ApiVersion(major.parse().ok()?, minor.parse().ok()?), &rest[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_version_is_taken_off_the_path() {
        assert_eq!(split_version("/v1.41/info"), Some((ApiVersion(1, 41), "/info")));
        for path in ["/info", "/volumes", "/volumes/v1.2", "/v1/info", "/v1.41", "/v1.x/info", "/v+1.2/info"] {
            assert_eq!(split_version(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in "/.{0,32}") {
            let _ = split_version(&path);
        }
    }
}
