//! `/skep/doctor` and `/skep/doctor/node`: skep's own, Docker has nothing like it.
//!
//! ```text
//! client -> GET /skep/doctor on a manager -> POST /skep/doctor/node on every node, at once
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use skep_proto::model::doctor::{Diagnosis, Member, NodeDiagnosis, Question, Report};

use crate::docker::doctor::{Fact, Store, clock, condense, truth, unreachable};
use crate::docker::error::ApiError;
use crate::docker::extract::{OptionalJson, Query};
use crate::docker::state::{App, Local};
use crate::ports::ControlPlane;
use crate::ports::control::{NodeStatus, TaskFilter};

/// How long a node may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest report that is read, in bytes: that of a node among a thousand, with ten thousand tasks, is below 2 MB.
const REPORT: usize = 16 << 20;

pub(crate) fn of_cluster() -> Router<App> {
    Router::new().route("/skep/doctor", get(cluster))
}

pub(crate) fn of_node() -> Router<Local> {
    Router::new().route("/skep/doctor/node", post(node))
}

/// `POST /skep/doctor/node`: what this node sees.
async fn node(
    State(local): State<Local>,
    OptionalJson(question): OptionalJson<Question>,
) -> Result<axum::Json<Report>, ApiError> {
    Ok(axum::Json(local.engine.doctor(question).await?))
}

#[derive(Deserialize)]
struct ClusterQuery {
    node: Option<String>,
}

/// `GET /skep/doctor`: what every node sees, or one of them (`node`, by id, unique prefix or host name). Of a node that
/// does not manage, or is in no cluster, what it sees itself.
async fn cluster(State(app): State<App>, Query(query): Query<ClusterQuery>) -> Result<axum::Json<Diagnosis>, ApiError> {
    let own = app.node();
    if !app.swarm.status().is_manager {
        if query.node.is_some() {
            return Err(app.control().err().unwrap_or_else(|| ApiError::bad_request("this node is no manager")));
        }
        return Ok(axum::Json(alone(&app).await?));
    }
    let control = app.control()?;
    let nodes = control.nodes().await?;
    let members: Vec<Member> = nodes.iter().map(member).collect();
    let asked = match &query.node {
        Some(reference) => vec![control.node(reference).await?],
        None => nodes,
    };
    let from = members.iter().find(|m| Some(&m.id) == own.map(|id| id.to_string()).as_ref());
    let from = from.map_or("this manager", |member| member.name.as_str()).to_owned();
    let question = Question { members };
    let before = facts(&*control).await?;
    let mut reports: FuturesOrdered<_> = asked.iter().map(|status| ask(&app, &control, status, &question)).collect();
    let mut heard = Vec::new();
    while let Some(report) = reports.next().await {
        heard.push(report);
    }
    drop(reports);
    let nodes = question.members.iter().map(|member| member.id.clone()).collect();
    let store = Store { nodes, before, after: facts(&*control).await? };
    let judged = asked.iter().zip(heard).map(|(status, report)| NodeDiagnosis {
        id: status.node.id.to_string(),
        name: status.node.description.hostname.clone(),
        checks: match report {
            Err(error) => vec![unreachable(error.message(), &from)],
            Ok((asked, report, heard)) => {
                let is_self = Some(status.node.id) == own;
                let mut checks = report.checks;
                if !is_self {
                    checks.insert(0, clock(asked, report.began, report.ended, heard));
                }
                checks.extend(report.known.map(|known| truth(&known, &store)));
                checks
            }
        },
    });
    let mut diagnosis = Diagnosis { nodes: judged.collect(), whole: query.node.is_none() };
    condense(&mut diagnosis);
    Ok(axum::Json(diagnosis))
}

/// What this node alone sees; of the managers it knows addresses, of other nodes ids.
async fn alone(app: &App) -> Result<Diagnosis, ApiError> {
    let status = app.swarm.status();
    let manager = |(id, address): &(_, _)| {
        let id: &skep_proto::model::NodeId = id;
        Member { id: id.to_string(), name: id.to_string(), manager: Some(*address) }
    };
    let question = Question { members: status.managers.iter().map(manager).collect() };
    let (report, info) = tokio::join!(app.engine().doctor(question), app.engine().info());
    let id = status.node.map(|id| id.to_string()).unwrap_or_default();
    let node = NodeDiagnosis { id, name: info?.name, checks: report?.checks };
    Ok(Diagnosis { nodes: vec![node], whole: status.node.is_none() })
}

fn member(status: &NodeStatus) -> Member {
    Member {
        id: status.node.id.to_string(),
        name: status.node.description.hostname.clone(),
        manager: status.manager.as_ref().map(|manager| manager.address),
    }
}

async fn facts(control: &dyn ControlPlane) -> Result<Vec<Fact>, ApiError> {
    Ok(control.tasks(&TaskFilter::default()).await?.iter().map(Fact::of).collect())
}

/// A node's report, with this manager's clock before and after.
async fn ask(
    app: &App,
    control: &Arc<dyn ControlPlane>,
    status: &NodeStatus,
    question: &Question,
) -> Result<(u64, Report, u64), ApiError> {
    let now = || (app.local.clock)().0;
    let id = status.node.id;
    let asked = now();
    let asking = async {
        if app.node() == Some(id) {
            return Ok(app.engine().doctor(question.clone()).await?);
        }
        let wrong = |text: String| ApiError::bad_gateway(format!("its answer cannot be read: {text}"));
        let body = serde_json::to_vec(question).map_err(|error| wrong(error.to_string()))?;
        let request = http::Request::post("/skep/doctor/node")
            .header(HOST, HeaderValue::from_static("engine"))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Body::from(body))
            .map_err(|error| wrong(error.to_string()))?;
        let response = app.remote.send(&**control, id, request).await?;
        let code = response.status();
        let body = Limited::new(response.into_body(), REPORT).collect().await;
        let bytes = body.map_err(|error| wrong(error.to_string()))?.to_bytes();
        if code == StatusCode::NOT_FOUND {
            return Err(ApiError::bad_gateway("its daemon is older than skep doctor: upgrade it"));
        }
        if !code.is_success() {
            return Err(ApiError::bad_gateway(format!(
                "it answers {code}: {}",
                String::from_utf8_lossy(&bytes).trim()
            )));
        }
        serde_json::from_slice::<Report>(&bytes).map_err(|error| wrong(error.to_string()))
    };
    let late = || ApiError::bad_gateway(format!("no answer in {} s", PATIENCE.as_secs()));
    let report = tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(late()))?;
    Ok((asked, report, now()))
}
