//! `/images` and `/distribution` (Engine API, Image, Distribution).
//!
//! Names of images hold slashes, so one route takes everything below `/images/` and the last part says what is wanted.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::stream::{BoxStream, StreamExt};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use skep_proto::model::engine::{Image, ImageConfig, PullProgress};

use crate::docker::error::ApiError;
use crate::docker::extract::{ApiVersion, Filters, Flag, Query, registry_auth};
use crate::docker::front::page_not_found;
use crate::docker::spec::container_spec::show_healthcheck;
use crate::docker::spec::service::protocol_word;
use crate::docker::state::App;
use crate::docker::stream;
use crate::docker::time::ZERO;
use crate::docker::types::Empty;
use crate::docker::types::container::Config;
use crate::docker::types::image as json;
use crate::ports::EngineError;

/// `VirtualSize` equals `Size` and is sent up to this version.
const LAST_VIRTUAL_SIZE: ApiVersion = ApiVersion(1, 43);

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/create", post(create))
        .route("/images/load", post(load))
        .route("/images/prune", post(prune))
        .route("/images/{*rest}", any(one))
        .route("/distribution/{*rest}", get(distribution))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    filters: Filters,
}

/// `GET /images/json` (Engine API, Image, "List images").
async fn list(
    State(app): State<App>,
    version: ApiVersion,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<json::ImageSummary>>, ApiError> {
    let filters = query.filters;
    filters.only(&["before", "dangling", "label", "reference", "since"])?;
    let dangling = filters.flag("dangling")?;
    let mut bounds = [None, None];
    for (bound, key) in bounds.iter_mut().zip(["before", "since"]) {
        if let Some(reference) = filters.get(key).first() {
            *bound = Some(created(&app.engine().image(reference).await?));
        }
    }
    let [before, since] = bounds;
    let mut images = app.engine().images().await?;
    images.sort_by_key(|image| std::cmp::Reverse(created(image)));
    let matching = images.iter().filter(|image| {
        dangling.is_none_or(|wanted| image.tags.is_empty() == wanted)
            && before.is_none_or(|at| created(image) < at)
            && since.is_none_or(|at| created(image) > at)
            && filters.labels("label", &image.config.labels)
            && filters.any("reference", |pattern| image.tags.iter().any(|tag| matches_reference(pattern, tag)))
    });
    let shown = matching.map(|image| {
        let mut line = summary(image, version);
        // Of an image's names, only those that were asked for.
        for names in [&mut line.repo_tags, &mut line.repo_digests].into_iter().flatten() {
            names.retain(|name| filters.any("reference", |pattern| matches_reference(pattern, name)));
        }
        line
    });
    Ok(axum::Json(shown.collect()))
}

/// `name`, `name:tag` or a pattern with `*`, against `name:tag` or `name@digest`.
fn matches_reference(pattern: &str, tag: &str) -> bool {
    let name = tag.split_once('@').or_else(|| tag.rsplit_once(':')).map_or(tag, |(name, _)| name);
    glob(pattern.as_bytes(), tag.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

/// Shell patterns with `*` and `?`, neither of which matches a slash (Go's `path.Match` without classes).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on after a mismatch: behind the last star, one byte further on.
    let (mut p, mut t, mut retry) = (0, 0, None);
    loop {
        match (pattern.get(p), text.get(t)) {
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(byte)) if *byte != b'/' => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            (Some(a), Some(b)) if a == b => {
                (p, t) = (p + 1, t + 1);
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match retry {
            Some((after, at)) if text.get(at).is_some_and(|b| *b != b'/') => {
                retry = Some((after, at + 1));
                (p, t) = (after, at + 1);
            }
            _ => return false,
        }
    }
}

/// Seconds since the Unix epoch; 0 when the image does not say.
fn created(image: &Image) -> i64 {
    image.created.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
}

/// Shows an image as one line of a list.
pub(crate) fn summary(image: &Image, version: ApiVersion) -> json::ImageSummary {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    json::ImageSummary {
        containers: -1,
        created: created(image),
        id: image.id.clone(),
        labels: (!image.config.labels.is_empty()).then(|| image.config.labels.clone()),
        parent_id: String::new(),
        repo_digests: some(&image.digests),
        repo_tags: some(&image.tags),
        shared_size: -1,
        size: image.size,
        virtual_size: (version <= LAST_VIRTUAL_SIZE).then_some(image.size),
    }
}

fn inspect(image: &Image, version: ApiVersion) -> json::ImageInspect {
    json::ImageInspect {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        parent: String::new(),
        comment: String::new(),
        created: if image.created.is_empty() { ZERO.into() } else { image.created.clone() },
        docker_version: String::new(),
        author: image.author.clone(),
        config: show_config(&image.config),
        architecture: image.architecture.clone(),
        os: image.os.clone(),
        size: image.size,
        virtual_size: (version <= LAST_VIRTUAL_SIZE).then_some(image.size),
        graph_driver: json::GraphDriver { data: None, name: "overlay2" },
        root_fs: json::RootFs { kind: "layers", layers: image.layers.clone() },
        metadata: json::ImageMetadata { last_tag_time: ZERO },
    }
}

fn show_config(config: &ImageConfig) -> Config {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    Config {
        user: config.user.clone(),
        exposed_ports: config.exposed.iter().map(|(p, n)| (format!("{n}/{}", protocol_word(*p)), Empty {})).collect(),
        env: some(&config.env),
        cmd: some(&config.command),
        healthcheck: config.healthcheck.as_ref().map(show_healthcheck),
        volumes: (!config.volumes.is_empty())
            .then(|| config.volumes.iter().map(|path| (path.clone(), Empty {})).collect()),
        working_dir: config.dir.clone(),
        entrypoint: some(&config.entrypoint),
        labels: (!config.labels.is_empty()).then(|| config.labels.clone()),
        stop_signal: config.stop_signal.clone(),
        ..Default::default()
    }
}

/// Query of `POST /images/create`; `changes` may come several times.
#[derive(Debug, Default, PartialEq)]
struct CreateQuery {
    from_image: String,
    from_src: String,
    repo: String,
    tag: String,
    message: String,
    platform: String,
    changes: Vec<String>,
}

impl From<Vec<(String, String)>> for CreateQuery {
    fn from(pairs: Vec<(String, String)>) -> Self {
        let mut query = Self::default();
        for (key, value) in pairs {
            match key.as_str() {
                "fromImage" => query.from_image = value,
                "fromSrc" => query.from_src = value,
                "repo" => query.repo = value,
                "tag" => query.tag = value,
                "message" => query.message = value,
                "platform" => query.platform = value,
                "changes" => query.changes.push(value),
                _ => {}
            }
        }
        query
    }
}

/// `POST /images/create` (Engine API, Image, "Create an image"): pulls, or imports the body.
async fn create(
    State(app): State<App>,
    Query(pairs): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = CreateQuery::from(pairs);
    if query.from_image.is_empty() {
        return import(&app, query, request).await;
    }
    let reference = join(&query.from_image, &query.tag, true);
    let platform = (!query.platform.is_empty()).then_some(query.platform);
    let progress = app.engine().pull(&reference, platform, registry_auth(request.headers())).await?;
    Ok(stream::ndjson(progress.map(show_progress).boxed()))
}

/// `name` and a tag or digest as one reference.
fn join(name: &str, tag: &str, latest: bool) -> String {
    let tagged = name.rsplit('/').next().unwrap_or(name).contains([':', '@']);
    match tag {
        "" if tagged || !latest => name.to_owned(),
        "" => format!("{name}:latest"),
        digest if digest.contains(':') => format!("{name}@{digest}"),
        tag => format!("{name}:{tag}"),
    }
}

fn show_progress(progress: Result<PullProgress, EngineError>) -> json::Progress {
    match progress {
        Ok(PullProgress { id, status, bytes }) => json::Progress {
            progress_detail: match bytes {
                Some((current, total)) => Some(json::ProgressDetail { current, total }),
                // Lines about a layer carry an empty detail, lines about the whole none.
                None if !id.is_empty() && !status.starts_with("Pulling from") => {
                    Some(json::ProgressDetail { current: 0, total: 0 })
                }
                None => None,
            },
            id,
            status,
            ..Default::default()
        },
        Err(error) => {
            let message = ApiError::from(error).message().to_owned();
            json::Progress {
                error_detail: Some(json::ErrorDetail { message: message.clone() }),
                error: message,
                ..Default::default()
            }
        }
    }
}

fn body_stream(body: Body) -> BoxStream<'static, std::io::Result<bytes::Bytes>> {
    body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other)).boxed()
}

async fn import(app: &App, query: CreateQuery, request: Request) -> Result<Response, ApiError> {
    match query.from_src.as_str() {
        "-" => {}
        "" => return Err(ApiError::bad_request("neither fromImage nor fromSrc was given")),
        _ => return Err(ApiError::not_supported("importing an image from a URL")),
    }
    if !query.platform.is_empty() {
        return Err(ApiError::not_supported("importing an image for another platform"));
    }
    let reference = (!query.repo.is_empty()).then(|| join(&query.repo, &query.tag, true));
    let archive = body_stream(request.into_body());
    let status = app.engine().import(archive, reference, query.changes, query.message).await?;
    Ok(stream::later(async move { json::Progress { status, ..Default::default() } }))
}

/// `POST /images/load` (Engine API, Image, "Import images").
async fn load(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let names = app.engine().load(body_stream(request.into_body())).await?;
    let lines = names.into_iter().map(|name| {
        let line = if name.starts_with("Loaded image") { name } else { format!("Loaded image: {name}") };
        json::Progress { stream: format!("{line}\n"), ..Default::default() }
    });
    Ok(stream::ndjson(futures_util::stream::iter(lines.collect::<Vec<_>>()).boxed()))
}

/// `POST /images/prune` (Engine API, Image, "Delete unused images").
async fn prune(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<json::ImagesPruned>, ApiError> {
    let filters = query.filters;
    filters.only(&["dangling", "label"])?;
    let dangling_only = filters.flag("dangling")?.unwrap_or(true);
    let containers = app.engine().containers(true).await?;
    let (mut deleted, mut reclaimed) = (Vec::new(), 0);
    for image in app.engine().images().await? {
        let wanted = (!dangling_only || image.tags.is_empty()) && filters.labels("label", &image.config.labels);
        if !wanted || containers.iter().any(|c| c.image_id == image.id) {
            continue;
        }
        let names = if image.tags.is_empty() { vec![image.id.clone()] } else { image.tags.clone() };
        for name in names {
            // One that came into use meanwhile is refused by the engine, and stays.
            let Ok((untagged, gone)) = app.engine().remove_image(&name, false).await else { continue };
            reclaimed += if gone.is_empty() { 0 } else { image.size };
            deleted.extend(untagged.into_iter().map(json::ImageDeleted::Untagged));
            deleted.extend(gone.into_iter().map(json::ImageDeleted::Deleted));
        }
    }
    Ok(axum::Json(json::ImagesPruned {
        images_deleted: (!deleted.is_empty()).then_some(deleted),
        space_reclaimed: reclaimed,
    }))
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OneQuery {
    force: Flag,
    noprune: Flag,
    repo: String,
    tag: String,
}

/// Everything below `/images/NAME`.
async fn one(
    State(app): State<App>,
    version: ApiVersion,
    Path(rest): Path<String>,
    Query(query): Query<OneQuery>,
    method: Method,
) -> Result<Response, ApiError> {
    match (method, rest.rsplit_once('/')) {
        (Method::GET, Some((name, "json"))) => {
            let image = app.engine().image(name).await.map_err(|e| ApiError::inspecting_image(name, e))?;
            Ok(axum::Json(inspect(&image, version)).into_response())
        }
        (Method::GET, Some((name, "history"))) => {
            Ok(axum::Json(history(&app.engine().image(name).await?)).into_response())
        }
        (Method::GET, Some((_, "get"))) => Err(ApiError::not_supported("saving images")),
        (Method::POST, Some((_, "push"))) => Err(ApiError::not_supported("pushing images")),
        (Method::POST, Some((name, "tag"))) => {
            app.engine().tag(name, &join(&query.repo, &query.tag, true)).await?;
            Ok(StatusCode::CREATED.into_response())
        }
        (Method::DELETE, _) => {
            // `noprune` keeps untagged parents: there are none here.
            let _ = query.noprune;
            let (untagged, deleted) = app.engine().remove_image(&rest, query.force.0).await?;
            let lines: Vec<_> = untagged
                .into_iter()
                .map(json::ImageDeleted::Untagged)
                .chain(deleted.into_iter().map(json::ImageDeleted::Deleted))
                .collect();
            Ok(axum::Json(lines).into_response())
        }
        _ => Ok(page_not_found().await),
    }
}

/// One line for the whole image: the history of its build is not kept.
fn history(image: &Image) -> [json::HistoryItem; 1] {
    [json::HistoryItem {
        comment: String::new(),
        created: created(image),
        created_by: String::new(),
        id: image.id.clone(),
        size: image.size,
        tags: (!image.tags.is_empty()).then(|| image.tags.clone()),
    }]
}

/// `GET /distribution/{name}/json` (Engine API, Distribution). Images that are built in have no digest: 404, and clients
/// leave the reference as it is.
async fn distribution(
    State(app): State<App>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Some(name) = rest.strip_suffix("/json") else { return Ok(page_not_found().await) };
    let familiar = name.strip_prefix("docker.io/").unwrap_or(name);
    if familiar.starts_with("skep/") {
        return Err(ApiError::not_found(format!("{name} is built in: it is in no registry and has no digest")));
    }
    let found = app.engine().distribution(name, registry_auth(&headers)).await?;
    Ok(axum::Json(json::Distribution {
        descriptor: json::Descriptor { media_type: found.media_type, digest: found.digest, size: found.size },
        platforms: found
            .platforms
            .into_iter()
            .map(|(architecture, os, variant)| json::OciPlatform { architecture, os, variant })
            .collect(),
    })
    .into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tag_is_joined_with_a_colon_and_a_digest_with_an_at_sign() {
        assert_eq!(join("localhost:5000/a", "", true), "localhost:5000/a:latest");
        assert_eq!(join("a", "1", true), "a:1");
        assert_eq!(join("a", "sha256:00", true), "a@sha256:00");
        assert_eq!(join("a:1", "", true), "a:1");
    }

    #[test]
    fn references_match_names_tags_and_patterns() {
        for pattern in ["bb", "bb:1", "b*", "bb:?", "*"] {
            assert!(matches_reference(pattern, "bb:1"), "{pattern}");
        }
        assert!(matches_reference("bb", "bb@sha256:00") && !matches_reference("b", "bb@sha256:00"));
        assert!(!matches_reference("b", "bb:1") && !matches_reference("*", "a/b:1"));
    }

    proptest! {
        #[test]
        fn patterns_never_panic_and_a_text_matches_itself(pattern in "[ab*?/]{0,12}", text in "[ab/]{0,12}") {
            let _ = glob(pattern.as_bytes(), text.as_bytes());
            prop_assert!(glob(text.as_bytes(), text.as_bytes()));
        }
    }
}
