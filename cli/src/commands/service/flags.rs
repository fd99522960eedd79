//! Flags of `service create` and `service update`, turned into the Engine API's `ServiceSpec`.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::health::HealthFlags;
use super::lists::{ListChanges, Lists};
use super::mount;
use super::progress::WaitFlags;
use super::publish;
use super::registry::RegistryFlags;
use super::rollout::Rollouts;
use super::security::{SecurityChanges, SecurityFlags};
use super::values::{bytes, nano_cpus, nanoseconds, words};
use crate::commands::file_reference::{CreateFiles, UpdateFiles};
use crate::commands::pairs;

/// Flags that both commands share.
#[derive(Debug, Default, Args)]
struct Common {
    /// Tasks of a replicated service; completions of a replicated job
    #[arg(long)]
    replicas: Option<u64>,
    /// Tasks of a replicated job that run at a time; all by default
    #[arg(long)]
    max_concurrent: Option<u64>,
    /// Host name of the containers
    #[arg(long)]
    hostname: Option<String>,
    /// User, name or number, with :GROUP if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory
    #[arg(short, long)]
    workdir: Option<String>,
    /// Signal that stops a container
    #[arg(long)]
    stop_signal: Option<String>,
    /// Time before a container is killed (ns|us|ms|s|m|h)
    #[arg(long)]
    stop_grace_period: Option<String>,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// Mount the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Limit of CPUs
    #[arg(long)]
    limit_cpu: Option<f64>,
    /// Limit of memory
    #[arg(long)]
    limit_memory: Option<String>,
    /// Limit of processes
    #[arg(long)]
    limit_pids: Option<i64>,
    /// CPUs to reserve
    #[arg(long)]
    reserve_cpu: Option<f64>,
    /// Memory to reserve
    #[arg(long)]
    reserve_memory: Option<String>,
    /// Replace finished tasks: none, on-failure, any
    #[arg(long)]
    restart_condition: Option<String>,
    /// Pause before a replacement starts (ns|us|ms|s|m|h)
    #[arg(long)]
    restart_delay: Option<String>,
    /// Replacements at most
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    /// Span in which replacements are counted (ns|us|ms|s|m|h)
    #[arg(long)]
    restart_window: Option<String>,
    #[command(flatten)]
    rollouts: Rollouts,
    /// Log driver
    #[arg(long)]
    log_driver: Option<String>,
    /// Option of the log driver, KEY=VALUE; may be repeated
    #[arg(long)]
    log_opt: Vec<String>,
    #[command(flatten)]
    health: HealthFlags,
    /// vip or dnsrr
    #[arg(long)]
    endpoint_mode: Option<String>,
}

/// Make a service
#[derive(Debug, Args)]
pub struct CreateFlags {
    #[command(flatten)]
    common: Common,
    /// Whether and how it waits.
    #[command(flatten)]
    pub wait: WaitFlags,
    /// What goes with the image.
    #[command(flatten)]
    pub registry: RegistryFlags,
    #[command(flatten)]
    lists: Lists,
    /// Secrets and configs.
    #[command(flatten)]
    pub files: CreateFiles,
    #[command(flatten)]
    security: SecurityFlags,
    /// Name of the service
    #[arg(long)]
    name: Option<String>,
    /// replicated, global, replicated-job or global-job
    #[arg(long, default_value = "replicated")]
    mode: String,
    /// Variable, NAME=VALUE; may be repeated
    #[arg(short, long)]
    env: Vec<String>,
    /// Label of the service, KEY=VALUE; may be repeated
    #[arg(short, long)]
    label: Vec<String>,
    /// Label of the containers, KEY=VALUE; may be repeated
    #[arg(long)]
    container_label: Vec<String>,
    /// Mount, type=bind|volume|tmpfs,source=…,target=…; may be repeated
    #[arg(long)]
    mount: Vec<String>,
    /// Network to join; may be repeated
    #[arg(long)]
    network: Vec<String>,
    /// Port to publish, [PUBLISHED:]TARGET[/PROTOCOL] or published=…,target=…,mode=…; may be repeated
    #[arg(short, long)]
    publish: Vec<String>,
    /// Where tasks may run, node.role==worker; may be repeated
    #[arg(long)]
    constraint: Vec<String>,
    /// How to spread tasks, spread=node.labels.zone; may be repeated, the outermost first
    #[arg(long)]
    placement_pref: Vec<String>,
    /// Tasks on one node at most; 0 for no limit
    #[arg(long, default_value_t = 0)]
    replicas_max_per_node: u64,
    /// Replaces the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// The image
    image: String,
    /// Replaces the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Change a service
#[derive(Debug, Args)]
pub struct UpdateFlags {
    #[command(flatten)]
    common: Common,
    /// Whether and how it waits.
    #[command(flatten)]
    pub wait: WaitFlags,
    /// What goes with the image.
    #[command(flatten)]
    pub registry: RegistryFlags,
    /// Return to what the service was before its last change; other changes are not made
    #[arg(long)]
    pub rollback: bool,
    #[command(flatten)]
    lists: ListChanges,
    /// Secrets and configs.
    #[command(flatten)]
    pub files: UpdateFiles,
    #[command(flatten)]
    security: SecurityChanges,
    /// Another image
    #[arg(long)]
    image: Option<String>,
    /// Another entry point, one line
    #[arg(long)]
    entrypoint: Option<String>,
    /// Another command, one line
    #[arg(long)]
    args: Option<String>,
    /// Add or change a variable, NAME=VALUE; may be repeated
    #[arg(long)]
    env_add: Vec<String>,
    /// Remove a variable; may be repeated
    #[arg(long)]
    env_rm: Vec<String>,
    /// Add or change a label, KEY=VALUE; may be repeated
    #[arg(long)]
    label_add: Vec<String>,
    /// Remove a label; may be repeated
    #[arg(long)]
    label_rm: Vec<String>,
    /// Publish a port; may be repeated
    #[arg(long)]
    publish_add: Vec<String>,
    /// Publish a target port no longer; may be repeated
    #[arg(long)]
    publish_rm: Vec<u16>,
    /// Add a constraint; may be repeated
    #[arg(long)]
    constraint_add: Vec<String>,
    /// Remove a constraint; may be repeated
    #[arg(long)]
    constraint_rm: Vec<String>,
    /// Add a placement preference, spread=node.labels.zone; may be repeated
    #[arg(long)]
    placement_pref_add: Vec<String>,
    /// Remove a placement preference; may be repeated
    #[arg(long)]
    placement_pref_rm: Vec<String>,
    /// Tasks on one node at most; 0 for no limit
    #[arg(long)]
    replicas_max_per_node: Option<u64>,
    /// Replace every task though nothing else changes; run a job again
    #[arg(long)]
    force: bool,
    /// The service
    service: String,
}

impl CreateFlags {
    /// The spec.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn spec(&self) -> anyhow::Result<Value> {
        let mut spec = json!({
            "Name": self.name.clone().unwrap_or_else(random_name),
            "Labels": pairs(&self.label),
            "TaskTemplate": {
                "ContainerSpec": {"Image": self.image, "Labels": pairs(&self.container_label)},
                "Placement": {
                    "Constraints": self.constraint,
                    "Preferences": preferences(&self.placement_pref)?,
                    "MaxReplicas": self.replicas_max_per_node,
                },
            },
            "Mode": match self.mode.as_str() {
                "replicated" => json!({"Replicated": {"Replicas": 1}}),
                "global" => json!({"Global": {}}),
                "replicated-job" => json!({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}),
                "global-job" => json!({"GlobalJob": {}}),
                other => bail!("the mode is replicated, global, replicated-job or global-job, not {other:?}"),
            },
            "EndpointSpec": {},
        });
        let container = &mut spec["TaskTemplate"]["ContainerSpec"];
        if !self.command.is_empty() {
            container["Args"] = json!(self.command);
        }
        if let Some(line) = &self.entrypoint {
            container["Command"] = json!(words(line));
        }
        if !self.env.is_empty() {
            container["Env"] = json!(self.env);
        }
        if !self.mount.is_empty() {
            container["Mounts"] =
                json!(self.mount.iter().map(|m| mount::parse(m)).collect::<anyhow::Result<Vec<_>>>()?);
        }
        if !self.network.is_empty() {
            spec["TaskTemplate"]["Networks"] =
                json!(self.network.iter().map(|n| json!({"Target": n})).collect::<Vec<_>>());
        }
        let ports = self.publish.iter().map(|p| publish::parse(p)).collect::<anyhow::Result<Vec<_>>>()?;
        if !ports.is_empty() {
            spec["EndpointSpec"]["Ports"] = json!(ports.concat());
        }
        self.lists.apply(&mut spec)?;
        self.security.apply(&mut spec["TaskTemplate"]["ContainerSpec"])?;
        self.common.apply(&mut spec)?;
        Ok(spec)
    }
}

impl UpdateFlags {
    /// The service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The spec after the change.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, mut spec: Value) -> anyhow::Result<Value> {
        self.common.apply(&mut spec)?;
        self.lists.apply(&mut spec)?;
        self.security.apply(&mut spec["TaskTemplate"]["ContainerSpec"])?;
        let labels = object(&mut spec["Labels"]);
        labels.extend(pairs(&self.label_add));
        self.label_rm.iter().for_each(|key| drop(labels.remove(key)));
        let task = &mut spec["TaskTemplate"];
        if self.force {
            task["ForceUpdate"] = json!(task["ForceUpdate"].as_u64().unwrap_or(0) + 1);
        }
        if !self.constraint_add.is_empty() || !self.constraint_rm.is_empty() {
            let constraints = list(&mut task["Placement"]["Constraints"]);
            constraints.retain(|c| !self.constraint_rm.iter().any(|rm| c == rm));
            constraints.extend(self.constraint_add.iter().map(|c| json!(c)));
        }
        if !self.placement_pref_add.is_empty() || !self.placement_pref_rm.is_empty() {
            let gone = preferences(&self.placement_pref_rm)?;
            let known = list(&mut task["Placement"]["Preferences"]);
            known.retain(|p| !gone.contains(p));
            known.extend(preferences(&self.placement_pref_add)?);
        }
        set_in(task, "Placement", "MaxReplicas", self.replicas_max_per_node);
        let container = &mut task["ContainerSpec"];
        if let Some(image) = &self.image {
            container["Image"] = json!(image);
        }
        if let Some(line) = &self.entrypoint {
            container["Command"] = json!(words(line));
        }
        if let Some(line) = &self.args {
            container["Args"] = json!(words(line));
        }
        if !self.env_add.is_empty() || !self.env_rm.is_empty() {
            let name_of = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
            let gone: Vec<String> =
                self.env_rm.iter().cloned().chain(self.env_add.iter().map(|e| name_of(e))).collect();
            let env = list(&mut container["Env"]);
            env.retain(|line| !gone.contains(&name_of(line.as_str().unwrap_or_default())));
            env.extend(self.env_add.iter().map(|e| json!(e)));
        }
        if !self.publish_add.is_empty() || !self.publish_rm.is_empty() {
            let ports = list(&mut spec["EndpointSpec"]["Ports"]);
            ports.retain(|p| !self.publish_rm.iter().any(|target| p["TargetPort"] == *target));
            for port in &self.publish_add {
                ports.extend(publish::parse(port)?);
            }
        }
        Ok(spec)
    }
}

impl Common {
    fn apply_counts(&self, mode: &mut Value) -> anyhow::Result<()> {
        if mode["ReplicatedJob"].is_object() {
            // Docker's client too: without a limit all run at once.
            set_in(mode, "ReplicatedJob", "TotalCompletions", self.replicas);
            set_in(mode, "ReplicatedJob", "MaxConcurrent", self.max_concurrent.or(self.replicas));
            return Ok(());
        }
        if self.max_concurrent.is_some() {
            bail!("max-concurrent can only be used with replicated-job mode");
        }
        if self.replicas.is_some() && !mode["Replicated"].is_object() {
            bail!("replicas can only be used with replicated or replicated-job mode");
        }
        set_in(mode, "Replicated", "Replicas", self.replicas);
        Ok(())
    }

    fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        self.apply_counts(&mut spec["Mode"])?;
        set(&mut spec["EndpointSpec"], "Mode", self.endpoint_mode.as_deref());
        let task = &mut spec["TaskTemplate"];
        let container = &mut task["ContainerSpec"];
        set(container, "Hostname", self.hostname.as_deref());
        set(container, "User", self.user.as_deref());
        set(container, "Dir", self.workdir.as_deref());
        set(container, "StopSignal", self.stop_signal.as_deref());
        set(container, "StopGracePeriod", nanoseconds("--stop-grace-period", self.stop_grace_period.as_ref())?);
        set(container, "TTY", self.tty.then_some(true));
        set(container, "ReadOnly", self.read_only.then_some(true));
        let resources = &mut task["Resources"];
        set_in(resources, "Limits", "NanoCPUs", self.limit_cpu.map(nano_cpus));
        set_in(resources, "Limits", "MemoryBytes", bytes("--limit-memory", self.limit_memory.as_ref())?);
        set_in(resources, "Limits", "Pids", self.limit_pids);
        set_in(resources, "Reservations", "NanoCPUs", self.reserve_cpu.map(nano_cpus));
        set_in(resources, "Reservations", "MemoryBytes", bytes("--reserve-memory", self.reserve_memory.as_ref())?);
        set_in(task, "RestartPolicy", "Condition", self.restart_condition.as_deref());
        set_in(task, "RestartPolicy", "Delay", nanoseconds("--restart-delay", self.restart_delay.as_ref())?);
        set_in(task, "RestartPolicy", "MaxAttempts", self.restart_max_attempts);
        set_in(task, "RestartPolicy", "Window", nanoseconds("--restart-window", self.restart_window.as_ref())?);
        if let Some(name) = &self.log_driver {
            task["LogDriver"] = json!({"Name": name});
        }
        if !self.log_opt.is_empty() {
            object(&mut task["LogDriver"]["Options"]).extend(pairs(&self.log_opt));
        }
        self.health.apply(&mut spec["TaskTemplate"]["ContainerSpec"])?;
        self.rollouts.apply(spec)
    }
}

/// `spread=node.labels.zone` in the API's form.
fn preferences(given: &[String]) -> anyhow::Result<Vec<Value>> {
    let read = |text: &String| {
        let (strategy, over) =
            text.split_once('=').context("placement preference must be of the format \"<strategy>=<arg>\"")?;
        if strategy != "spread" {
            bail!("unsupported placement preference {strategy} (only spread is supported)");
        }
        Ok(json!({"Spread": {"SpreadDescriptor": over}}))
    };
    given.iter().map(read).collect()
}

pub(super) fn set(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[key] = value.into();
    }
}

pub(super) fn set_in(object: &mut Value, part: &str, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[part][key] = value.into();
    }
}

pub(super) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("just made one")
}

pub(super) fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("just made one")
}

/// A name for a service that was given none.
fn random_name() -> String {
    format!("service-{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Create {
        #[command(flatten)]
        flags: CreateFlags,
    }

    fn create(line: &str) -> Value {
        let words = std::iter::once("create").chain(line.split(' '));
        Create::try_parse_from(words).unwrap().flags.spec().unwrap()
    }

    #[test]
    fn a_command_line_becomes_the_spec_that_dockers_client_sends() {
        let spec =
            create("--name web --replicas 3 -e A=1 -p 8080:80 --limit-memory 64M --restart-delay 1s nginx -g daemon");
        assert_eq!(spec["Mode"], json!({"Replicated": {"Replicas": 3}}));
        let container = &spec["TaskTemplate"]["ContainerSpec"];
        assert_eq!((&container["Args"], &container["Env"]), (&json!(["-g", "daemon"]), &json!(["A=1"])));
        assert_eq!(spec["TaskTemplate"]["Resources"]["Limits"]["MemoryBytes"], 64 << 20);
        assert_eq!(spec["TaskTemplate"]["RestartPolicy"]["Delay"], 1_000_000_000_i64);
        assert_eq!(spec["EndpointSpec"]["Ports"][0]["PublishedPort"], 8080);
        assert!(spec.get("UpdateConfig").is_none());
    }

    #[test]
    fn a_job_runs_all_its_tasks_at_once_unless_it_is_told_otherwise() {
        let mode = |line| create(line)["Mode"].clone();
        let job = |most, total| json!({"ReplicatedJob": {"MaxConcurrent": most, "TotalCompletions": total}});
        assert_eq!(mode("--mode replicated-job x"), job(1, 1));
        assert_eq!(mode("--mode replicated-job --replicas 5 x"), job(5, 5));
        assert_eq!(mode("--mode replicated-job --replicas 5 --max-concurrent 2 x"), job(2, 5));
        assert_eq!(mode("--mode global-job x"), json!({"GlobalJob": {}}));
    }

    #[test]
    fn an_update_config_without_parallelism_changes_one_task_at_a_time() {
        assert_eq!(
            create("--update-order start-first x")["UpdateConfig"],
            json!({"Parallelism": 1, "Order": "start-first"})
        );
    }
}
