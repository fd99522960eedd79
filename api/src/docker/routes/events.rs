//! `/events` (Engine API, System, "Monitor events").
//!
//! A node tells of its own containers, images, volumes and networks, a manager also of the cluster's objects: any manager
//! tells of all of them.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};

use crate::docker::error::ApiError;
use crate::docker::extract::{Filters, Query};
use crate::docker::state::App;
use crate::docker::stream::ndjson;
use crate::docker::time::parse_moment;
use crate::ports::events::{Behind, Event, EventFeed, EventKind};

const NANOS_PER_MS: u64 = 1_000_000;

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/events", get(follow))
}

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    since: String,
    #[serde(default)]
    until: String,
    #[serde(default)]
    filters: Filters,
}

/// `GET /events`: events of the recent past when `since` or `until` says so, then new ones until `until`.
async fn follow(State(app): State<App>, Query(query): Query<EventsQuery>) -> Result<Response, ApiError> {
    let moment = |text: &str| parse_moment(text).map_err(ApiError::bad_request);
    let (since, until) = (moment(&query.since)?, moment(&query.until)?);
    if let (Some(since), Some(until)) = (since, until)
        && until < since
    {
        return Err(ApiError::bad_request("`since` time cannot be after `until` time"));
    }
    let filters = query.filters;
    filters.only(&KEYS)?;
    let mut feeds = vec![app.engine().events()];
    // A node that is no manager, or has no leader now, tells of itself alone.
    if let Ok(control) = app.swarm.control() {
        feeds.push(control.events());
    }
    let (past, live): (Vec<_>, Vec<_>) = feeds.into_iter().map(|EventFeed { past, live }| (past, live)).unzip();
    let mut past: Vec<Event> = past.concat();
    past.sort_by_key(|event| event.at);
    let (wants_past, from, to) = (since.is_some() || until.is_some(), since.unwrap_or(0), until.unwrap_or(u64::MAX));
    past.retain(|event| wants_past && (from..=to).contains(&nanos(event)));
    let live = stream::select_all(live).scan((), |(), event| std::future::ready(unless_behind(event)));
    let live: BoxStream<'static, Event> = match until {
        None => live.boxed(),
        Some(until) => {
            let now = (app.host.clock)().0.saturating_mul(NANOS_PER_MS);
            let left = Duration::from_nanos(until.saturating_sub(now));
            live.take_until(Box::pin(tokio::time::sleep(left))).boxed()
        }
    };
    let wanted = stream::iter(past).chain(live).filter(move |event| std::future::ready(passes(event, &filters)));
    Ok(ndjson(wanted.map(|event| show(&event)).boxed()))
}

/// Ends the stream of a client that does not keep up.
fn unless_behind(event: Result<Event, Behind>) -> Option<Event> {
    event.inspect_err(|behind| tracing::warn!(%behind, "the stream of events of a slow client is closed")).ok()
}

const KEYS: [&str; 14] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// Whether an event passes all filters. Those that name an object let no event of another kind pass.
fn passes(event: &Event, filters: &Filters) -> bool {
    let is_action = |wanted: &str| event.action == wanted || event.action.starts_with(&format!("{wanted}: "));
    let named = |key: &str, is_kind: bool| {
        filters.any(key, |wanted| {
            let name = event.attributes.get("name").is_some_and(|name| name == wanted);
            is_kind && (name || (!wanted.is_empty() && event.id.starts_with(wanted)))
        })
    };
    let kind = event.kind;
    filters.any("event", is_action)
        && filters.any("type", |word| word == kind.as_str())
        && filters.any("scope", |word| word == kind.scope())
        && filters.labels("label", &event.attributes)
        && filters.any("image", |wanted| is_image(event, wanted))
        && named("container", kind == EventKind::Container)
        && named("volume", kind == EventKind::Volume)
        && named("network", matches!(kind, EventKind::Network | EventKind::LocalNetwork))
        && named("node", kind == EventKind::Node)
        && named("service", kind == EventKind::Service)
        && named("secret", kind == EventKind::Secret)
        && named("config", kind == EventKind::Config)
        // Nothing happens to these here.
        && named("daemon", false)
        && named("plugin", false)
}

/// An image, or a container of it, by reference with or without tag.
fn is_image(event: &Event, wanted: &str) -> bool {
    let without_tag = |name: &str| match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => path.to_owned(),
        _ => name.to_owned(),
    };
    let key = if event.kind == EventKind::Image { "name" } else { "image" };
    let name = event.attributes.get(key).map_or("", String::as_str);
    let is = |name: &str| !name.is_empty() && (name == wanted || without_tag(name) == without_tag(wanted));
    let is_of_image = matches!(event.kind, EventKind::Image | EventKind::Container);
    is_of_image && (is(name) || (event.kind == EventKind::Image && is(&event.id)))
}

fn nanos(event: &Event) -> u64 {
    event.at.0.saturating_mul(NANOS_PER_MS)
}

/// An event (Engine API, `EventMessage`). The first three fields are those of API 1.21 and older, kept up to 1.51 for
/// containers and images.
#[derive(Serialize)]
struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    scope: &'static str,
    time: u64,
    #[serde(rename = "timeNano")]
    time_nano: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: std::collections::BTreeMap<String, String>,
}

fn show(event: &Event) -> Message {
    let is_old = matches!(event.kind, EventKind::Container | EventKind::Image);
    let from = event.attributes.get("image").filter(|_| event.kind == EventKind::Container);
    Message {
        status: is_old.then(|| event.action.clone()),
        id: is_old.then(|| event.id.clone()),
        from: from.cloned(),
        kind: event.kind.as_str(),
        action: event.action.clone(),
        actor: Actor { id: event.id.clone(), attributes: event.attributes.clone() },
        scope: event.kind.scope(),
        time: event.at.0 / 1000,
        time_nano: nanos(event),
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::model::Timestamp;

    use super::*;

    fn event(kind: EventKind, action: &str, attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Event { kind, action: action.into(), id: "0123abcd".into(), attributes, at: Timestamp(1_500) }
    }

    fn passes_all(event: &Event, filters: &str) -> bool {
        passes(event, &Filters::parse(filters).unwrap())
    }

    #[test]
    fn a_message_has_the_old_fields_for_containers_and_images_alone() {
        let shown = |event| serde_json::to_value(show(&event)).unwrap();
        assert_eq!(
            shown(event(EventKind::Container, "start", &[("image", "nginx"), ("name", "web")])),
            serde_json::json!({
                "status": "start", "id": "0123abcd", "from": "nginx", "Type": "container", "Action": "start",
                "Actor": {"ID": "0123abcd", "Attributes": {"image": "nginx", "name": "web"}},
                "scope": "local", "time": 1, "timeNano": 1_500_000_000_u64,
            })
        );
        assert_eq!(
            shown(event(EventKind::Service, "remove", &[("name", "web")])),
            serde_json::json!({
                "Type": "service", "Action": "remove", "Actor": {"ID": "0123abcd", "Attributes": {"name": "web"}},
                "scope": "swarm", "time": 1, "timeNano": 1_500_000_000_u64,
            })
        );
    }

    #[test]
    fn filters_of_one_key_widen_and_of_several_narrow() {
        let exec = event(
            EventKind::Container,
            "exec_create: sh -c x",
            &[("image", "h:5/nginx:1"), ("name", "web"), ("a", "b")],
        );
        for wanted in [
            r#"{}"#,
            r#"{"event":["exec_create"]}"#,
            r#"{"event":["start","exec_create"],"type":["container"]}"#,
            r#"{"container":["web"]}"#,
            r#"{"container":["0123"]}"#,
            r#"{"image":["h:5/nginx"]}"#,
            r#"{"label":["a=b"],"scope":["local"]}"#,
        ] {
            assert!(passes_all(&exec, wanted), "{wanted}");
        }
        for other in [
            r#"{"event":["exec"]}"#,
            r#"{"event":["exec_create"],"type":["image"]}"#,
            r#"{"service":["web"]}"#,
            r#"{"daemon":["0123"]}"#,
            r#"{"label":["a=c"]}"#,
            r#"{"scope":["swarm"]}"#,
        ] {
            assert!(!passes_all(&exec, other), "{other}");
        }
    }
}
