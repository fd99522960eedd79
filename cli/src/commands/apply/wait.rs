//! Waiting until services are what was asked for, with something to look at meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use skep_proto::model::{dependency, schedule};
use tokio::time::Instant;

use super::interrupt::Interrupt;
use crate::client::output::Demultiplexer;
use crate::client::{Client, collect, whole};
use crate::commands::{filters, text};

const POLL: Duration = Duration::from_millis(200);
/// How long a service must stay as it is wanted, as Docker's client has it.
const STABLE: Duration = Duration::from_secs(5);
/// Services that one request names: a request's line has 64 KiB at most, a service takes 40 bytes of it.
const AT_ONCE: usize = 500;
/// How long a cluster may give no answer.
const UNSEEN: Duration = Duration::from_secs(20);
/// Lines of the log of a task that failed.
const LOG_LINES: usize = 10;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// For people: live on a terminal, else lines.
    Text,
    /// JSON lines on standard output.
    Json,
}

/// What a look at one service shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    name: String,
    wanted: usize,
    ready: usize,
    is_job: bool,
    /// A job that runs when its schedule says so: nobody waits for that.
    is_scheduled: bool,
    /// `updating`, `paused`…
    update: String,
    update_message: String,
    /// The text of a task that cannot go on, or what is waited for.
    trouble: String,
}

impl Look {
    /// What the API shows of a service and of its tasks of the spec in force.
    fn of(service: &Value, tasks: &[&Value]) -> Self {
        let mode = &service["Spec"]["Mode"];
        let is_job = mode["ReplicatedJob"].is_object() || mode["GlobalJob"].is_object();
        let is_scheduled = is_job && service["Spec"]["Labels"][schedule::LABEL].is_string();
        let is_done = |t: &&&Value| t["Status"]["State"] == "complete" && t["DesiredState"] != "remove";
        let is_up = |t: &&&Value| t["DesiredState"] == "running" && t["Status"]["State"] == "running";
        let live: Vec<&&Value> = tasks
            .iter()
            .filter(|t| ["running", "ready", "complete"].contains(&t["DesiredState"].as_str().unwrap_or_default()))
            .collect();
        let counted = mode["Replicated"]["Replicas"].as_u64().or(mode["ReplicatedJob"]["TotalCompletions"].as_u64());
        // A task that ran to its end in success is what was asked for, too.
        let places: std::collections::BTreeSet<String> = tasks
            .iter()
            .filter(|t| is_done(t) || (!is_job && is_up(t)))
            .map(|t| format!("{}/{}", t["Slot"], if t["Slot"].is_null() { text(&t["NodeID"]) } else { String::new() }))
            .collect();
        let error_of = |t: &&&Value| t["Status"]["Err"].as_str().filter(|e| !e.is_empty()).map(str::to_owned);
        let error = live.iter().rev().find_map(error_of);
        let waits = text(&service["Spec"]["Labels"][dependency::LABEL]);
        let is_waiting = !waits.is_empty() && live.iter().any(|t| t["DesiredState"] == "ready");
        let waits = is_waiting.then(|| format!("waits for {}", waits.replace(',', ", ")));
        Self {
            name: text(&service["Spec"]["Name"]),
            wanted: counted.map_or(live.len().max(1), |n| usize::try_from(n).unwrap_or(usize::MAX)),
            ready: places.len(),
            is_job,
            is_scheduled,
            update: text(&service["UpdateStatus"]["State"]),
            update_message: text(&service["UpdateStatus"]["Message"]),
            trouble: error.or(waits).unwrap_or_default(),
        }
    }

    fn is_ready(&self) -> bool {
        if self.is_scheduled {
            return true;
        }
        self.ready >= self.wanted && !matches!(self.update.as_str(), "updating" | "rollback_started")
    }

    /// Its update has come to an end that nobody asked for.
    fn has_failed(&self) -> bool {
        matches!(self.update.as_str(), "paused" | "rollback_paused" | "rollback_completed")
    }

    fn line(&self) -> String {
        if self.is_scheduled {
            return format!("{}: {}", self.name, self.update_message);
        }
        let what = if self.is_job { "completed" } else { "running" };
        let line = format!("{}: {}/{} tasks {what} {}", self.name, self.ready, self.wanted, self.trouble);
        line.trim_end().to_owned()
    }

    fn json(&self) -> Value {
        json!({
            "service": self.name, "ready": self.ready, "wanted": self.wanted, "update": self.update, "message": self.trouble,
        })
    }
}

/// Waits until all those services are ready and have been for five seconds.
///
/// # Errors
/// An update that was paused or rolled back and the time-out, with what the failing task says; a signal; a cluster that does
/// not answer for long.
pub async fn wait(
    client: &Client,
    services: &[String],
    timeout: Duration,
    show: Show,
    interrupt: &mut Interrupt,
) -> anyhow::Result<()> {
    let mut progress = Progress::new(show);
    let waited = until_ready(client, services, timeout, &mut progress);
    let said = || "not waited for any more; everything was handed to the cluster, which goes on with it".to_owned();
    let ended = interrupt.or(waited, said).await;
    progress.end();
    ended
}

async fn until_ready(
    client: &Client,
    services: &[String],
    timeout: Duration,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let (start, mut since) = (Instant::now(), BTreeMap::<String, Instant>::new());
    let mut seen = start;
    loop {
        let began = Instant::now();
        let looks = match look(client, services).await {
            Ok(looks) => looks,
            // A leader that changes or a daemon that starts anew is back soon; what was asked for goes on meanwhile.
            Err(_) if seen.elapsed() < UNSEEN => {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error.context("everything was handed to the cluster, but it cannot be looked at")),
        };
        seen = Instant::now();
        // One that was removed meanwhile will never be ready.
        if let Some(gone) = services.iter().find(|id| !looks.contains_key(*id)) {
            bail!("the service {gone} was removed while it was waited for");
        }
        for (id, look) in &looks {
            progress.tell(look);
            if look.has_failed() {
                let what = look.update.replace('_', " ");
                let report = failure(client, id).await;
                bail!("service {}: the update is {what}: {}{report}", look.name, look.update_message);
            }
            if look.is_ready() {
                since.entry(id.clone()).or_insert_with(Instant::now);
            } else {
                since.remove(id);
            }
        }
        // What has completed stays so.
        let is_stable =
            |(id, look): (&String, &Look)| since.get(id).is_some_and(|at| look.is_job || at.elapsed() >= STABLE);
        if looks.iter().all(is_stable) {
            return Ok(());
        }
        if !timeout.is_zero() && start.elapsed() >= timeout {
            let mut message = format!("not done after {} s; the cluster goes on with it", timeout.as_secs());
            for (id, look) in looks.iter().filter(|(_, look)| !look.is_ready()) {
                message.push_str(&format!("\nservice {}", look.line()));
                message.push_str(&failure(client, id).await);
            }
            bail!("{message}");
        }
        // A large stack takes the managers some time to show: most of it is left to them for their work.
        tokio::time::sleep(POLL.max(began.elapsed() * 4)).await;
    }
}

async fn look(client: &Client, services: &[String]) -> anyhow::Result<BTreeMap<String, Look>> {
    let mut looks = BTreeMap::new();
    for services in services.chunks(AT_ONCE) {
        let found: Vec<Value> = client.get(&format!("/services?filters={}", filters(&[("id", services)]))).await?;
        let query = filters(&[("service", services), ("_up-to-date", &["true".to_owned()])]);
        let tasks: Vec<Value> = client.get(&format!("/tasks?filters={query}")).await?;
        let mut of_service: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for task in &tasks {
            of_service.entry(task["ServiceID"].as_str().unwrap_or_default()).or_default().push(task);
        }
        for service in &found {
            let id = text(&service["ID"]);
            let tasks = of_service.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
            let look = Look::of(service, tasks);
            looks.insert(id, look);
        }
    }
    Ok(looks)
}

/// What the newest task that failed says, and the last lines of its log; empty when none did.
async fn failure(client: &Client, service: &str) -> String {
    report(client, service).await.ok().flatten().unwrap_or_default()
}

async fn report(client: &Client, service: &str) -> anyhow::Result<Option<String>> {
    let query = filters(&[("service", &[service.to_owned()])]);
    let tasks: Vec<Value> = client.get(&format!("/tasks?filters={query}")).await?;
    let has_failed = |t: &&Value| ["failed", "rejected"].contains(&t["Status"]["State"].as_str().unwrap_or_default());
    let Some(task) = tasks.iter().filter(has_failed).max_by_key(|t| text(&t["Status"]["Timestamp"])) else {
        return Ok(None);
    };
    let id = text(&task["ID"]);
    let mut report = format!("\n  task {} {}: {}", id, text(&task["Status"]["State"]), text(&task["Status"]["Err"]));
    let lines = tokio::time::timeout(Duration::from_secs(5), log(client, &id)).await;
    if let Ok(Ok(lines)) = lines
        && !lines.is_empty()
    {
        report.push_str("\n  the last lines of its log:");
        lines.iter().for_each(|line| report.push_str(&format!("\n    {line}")));
    }
    Ok(Some(report))
}

async fn log(client: &Client, task: &str) -> anyhow::Result<Vec<String>> {
    let path = format!("/tasks/{task}/logs?stdout=true&stderr=true&tail={LOG_LINES}");
    let response = client.open(Method::GET, &path, &[], whole(Bytes::new())).await?;
    let mut streams = Demultiplexer::of(&response);
    let body = collect(response).await.context("reading the log")?;
    let pieces = streams.feed(&body)?;
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].to_vec())
}

/// Tells how far services are, each state once.
struct Progress {
    show: Show,
    /// Bars on a terminal that can draw.
    bars: Option<(MultiProgress, BTreeMap<String, ProgressBar>)>,
    told: BTreeMap<String, Look>,
}

impl Progress {
    fn new(show: Show) -> Self {
        // A terminal that cannot draw (`TERM` is `dumb` or not set) gets lines.
        let live = show == Show::Text && !ProgressDrawTarget::stderr().is_hidden();
        Self { show, bars: live.then(|| (MultiProgress::new(), BTreeMap::new())), told: BTreeMap::new() }
    }

    fn tell(&mut self, look: &Look) {
        if self.told.get(&look.name) == Some(look) {
            return;
        }
        if let Some((all, bars)) = &mut self.bars {
            let bar = bars.entry(look.name.clone()).or_insert_with(|| {
                let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}")
                    .expect("the template is ours");
                all.add(ProgressBar::new(1)).with_style(style).with_prefix(look.name.clone())
            });
            bar.set_length(look.wanted as u64);
            bar.set_position(look.ready as u64);
            bar.set_message(look.trouble.clone());
        } else if self.show == Show::Json {
            println!("{}", look.json());
        } else {
            eprintln!("{}", look.line());
        }
        self.told.insert(look.name.clone(), look.clone());
    }

    fn end(&mut self) {
        if let Some((_, bars)) = &self.bars {
            bars.values().for_each(ProgressBar::abandon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(desired: &str, state: &str, slot: u64, error: &str) -> Value {
        json!({"DesiredState": desired, "Slot": slot, "Status": {"State": state, "Err": error}})
    }

    #[test]
    fn a_service_is_ready_when_all_its_tasks_run_or_have_completed() {
        let service = json!({"Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": 2}}}});
        let (up, done) = (task("running", "running", 1, ""), task("running", "complete", 2, ""));
        let failed = task("shutdown", "failed", 2, "exit 1");
        assert!(Look::of(&service, &[&up, &done]).is_ready());
        let half = Look::of(&service, &[&up, &failed, &task("running", "starting", 2, "")]);
        assert_eq!((half.is_ready(), half.line().as_str()), (false, "web: 1/2 tasks running"));
        let updating = json!({"Spec": service["Spec"], "UpdateStatus": {"State": "updating"}});
        assert!(!Look::of(&updating, &[&up, &done]).is_ready());
        let job = json!({"Spec": {"Name": "job", "Mode": {"ReplicatedJob": {"TotalCompletions": 1}}}});
        assert!(!Look::of(&job, &[&up]).is_ready() && Look::of(&job, &[&done]).is_ready());
    }

    #[test]
    fn a_job_with_a_schedule_is_not_waited_for() {
        let spec = json!({"Name": "night", "Mode": {"ReplicatedJob": {"TotalCompletions": 1}}, "Labels": {"skep.schedule": "@daily"}});
        let told = json!({"State": "completed", "Message": "runs by its schedule, next at 2026-11-22T00:00:00Z"});
        let look = Look::of(&json!({"Spec": spec, "UpdateStatus": told}), &[]);
        assert!(look.is_ready() && !look.has_failed());
        assert_eq!(look.line(), "night: runs by its schedule, next at 2026-11-22T00:00:00Z");
    }

    #[test]
    fn what_a_service_waits_for_is_told() {
        let spec = json!({"Name": "web", "Mode": {"Replicated": {"Replicas": 1}}, "Labels": {"skep.depends-on": "db:service_healthy"}});
        let look = Look::of(&json!({"Spec": spec}), &[&task("ready", "ready", 1, "")]);
        assert_eq!(look.line(), "web: 0/1 tasks running waits for db:service_healthy");
    }
}
