//! Flags of `service create` and `service update` that say how updates and rollbacks proceed.

use clap::Args;
use serde_json::{Value, json};

use super::values::nanoseconds;

/// Both rollouts.
#[derive(Debug, Default, Args)]
pub struct Rollouts {
    /// Tasks that an update changes at a time; 0 for all
    #[arg(long)]
    update_parallelism: Option<u64>,
    /// Pause between two of them (ns|us|ms|s|m|h)
    #[arg(long)]
    update_delay: Option<String>,
    /// start-first or stop-first
    #[arg(long)]
    update_order: Option<String>,
    /// pause, continue or rollback
    #[arg(long)]
    update_failure_action: Option<String>,
    /// How long a new task is watched for failure (ns|us|ms|s|m|h)
    #[arg(long)]
    update_monitor: Option<String>,
    /// Share of tasks, 0 to 1, that may fail
    #[arg(long)]
    update_max_failure_ratio: Option<f32>,
    /// Tasks that a rollback changes at a time; 0 for all
    #[arg(long)]
    rollback_parallelism: Option<u64>,
    /// Pause between two of them (ns|us|ms|s|m|h)
    #[arg(long)]
    rollback_delay: Option<String>,
    /// start-first or stop-first
    #[arg(long)]
    rollback_order: Option<String>,
    /// pause or continue
    #[arg(long)]
    rollback_failure_action: Option<String>,
    /// How long a task is watched for failure (ns|us|ms|s|m|h)
    #[arg(long)]
    rollback_monitor: Option<String>,
    /// Share of tasks, 0 to 1, that may fail
    #[arg(long)]
    rollback_max_failure_ratio: Option<f32>,
}

/// One of them.
struct Rollout<'a> {
    name: &'a str,
    parallelism: Option<u64>,
    delay: Option<&'a String>,
    order: Option<&'a String>,
    failure_action: Option<&'a String>,
    monitor: Option<&'a String>,
    max_failure_ratio: Option<f32>,
}

impl Rollouts {
    /// Puts them into the spec.
    ///
    /// # Errors
    /// A duration that cannot be read.
    pub fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        let update = Rollout {
            name: "update",
            parallelism: self.update_parallelism,
            delay: self.update_delay.as_ref(),
            order: self.update_order.as_ref(),
            failure_action: self.update_failure_action.as_ref(),
            monitor: self.update_monitor.as_ref(),
            max_failure_ratio: self.update_max_failure_ratio,
        };
        let rollback = Rollout {
            name: "rollback",
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay.as_ref(),
            order: self.rollback_order.as_ref(),
            failure_action: self.rollback_failure_action.as_ref(),
            monitor: self.rollback_monitor.as_ref(),
            max_failure_ratio: self.rollback_max_failure_ratio,
        };
        update.apply(&mut spec["UpdateConfig"])?;
        rollback.apply(&mut spec["RollbackConfig"])?;
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|key, value| !(value.is_null() && ["UpdateConfig", "RollbackConfig"].contains(&key.as_str())));
        }
        Ok(())
    }
}

impl Rollout<'_> {
    fn apply(&self, config: &mut Value) -> anyhow::Result<()> {
        let time = |what: &str, text| nanoseconds(&format!("--{}-{what}", self.name), text);
        let parts = [
            ("Parallelism", self.parallelism.map(|n| json!(n))),
            ("Delay", time("delay", self.delay)?.map(|n| json!(n))),
            ("Order", self.order.map(|word| json!(word))),
            ("FailureAction", self.failure_action.map(|word| json!(word))),
            ("Monitor", time("monitor", self.monitor)?.map(|n| json!(n))),
            ("MaxFailureRatio", self.max_failure_ratio.map(|share| json!(share))),
        ];
        let given: Vec<(&str, Value)> = parts.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        // The API takes an absent number for 0, which means "all at once".
        if !given.is_empty() && !config.is_object() {
            config["Parallelism"] = json!(1);
        }
        given.into_iter().for_each(|(key, value)| config[key] = value);
        Ok(())
    }
}
