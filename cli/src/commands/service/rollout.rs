//! Flags that say how an update or a rollback proceeds.

use clap::Args;
use serde_json::{Value, json};

use super::flags::{nanoseconds, set};

/// How an update proceeds.
#[derive(Debug, Default, Args)]
pub struct UpdatePolicy {
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
    /// Share of tasks, 0 to 1, that may fail before that
    #[arg(long)]
    update_max_failure_ratio: Option<f64>,
    /// How long a new task is watched for failure (ns|us|ms|s|m|h)
    #[arg(long)]
    update_monitor: Option<String>,
}

impl UpdatePolicy {
    /// Writes what was given into the spec.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        let policy = Policy {
            parallelism: self.update_parallelism,
            delay: nanoseconds("--update-delay", self.update_delay.as_ref())?,
            order: self.update_order.as_deref(),
            failure_action: self.update_failure_action.as_deref(),
            max_failure_ratio: self.update_max_failure_ratio,
            monitor: nanoseconds("--update-monitor", self.update_monitor.as_ref())?,
        };
        policy.apply(spec, "UpdateConfig");
        Ok(())
    }
}

/// How a rollback proceeds.
#[derive(Debug, Default, Args)]
pub struct RollbackPolicy {
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
    /// Share of tasks, 0 to 1, that may fail before that
    #[arg(long)]
    rollback_max_failure_ratio: Option<f64>,
    /// How long a new task is watched for failure (ns|us|ms|s|m|h)
    #[arg(long)]
    rollback_monitor: Option<String>,
}

impl RollbackPolicy {
    /// Writes what was given into the spec.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn apply(&self, spec: &mut Value) -> anyhow::Result<()> {
        let policy = Policy {
            parallelism: self.rollback_parallelism,
            delay: nanoseconds("--rollback-delay", self.rollback_delay.as_ref())?,
            order: self.rollback_order.as_deref(),
            failure_action: self.rollback_failure_action.as_deref(),
            max_failure_ratio: self.rollback_max_failure_ratio,
            monitor: nanoseconds("--rollback-monitor", self.rollback_monitor.as_ref())?,
        };
        policy.apply(spec, "RollbackConfig");
        Ok(())
    }
}

/// What was given for one of them; spans in nanoseconds.
#[derive(PartialEq, Default)]
struct Policy<'a> {
    parallelism: Option<u64>,
    delay: Option<i64>,
    order: Option<&'a str>,
    failure_action: Option<&'a str>,
    max_failure_ratio: Option<f64>,
    monitor: Option<i64>,
}

impl Policy<'_> {
    fn apply(&self, spec: &mut Value, section: &str) {
        if *self == Policy::default() {
            return;
        }
        if !spec[section].is_object() {
            // The API takes an absent number for 0, which means "all at once".
            spec[section] = json!({"Parallelism": 1});
        }
        let config = &mut spec[section];
        set(config, "Parallelism", self.parallelism);
        set(config, "Delay", self.delay);
        set(config, "Order", self.order);
        set(config, "FailureAction", self.failure_action);
        set(config, "MaxFailureRatio", self.max_failure_ratio);
        set(config, "Monitor", self.monitor);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        update: UpdatePolicy,
        #[command(flatten)]
        rollback: RollbackPolicy,
    }

    #[test]
    fn an_update_and_a_rollback_have_parameters_of_their_own() {
        let line = "x --update-parallelism 2 --update-failure-action rollback --update-max-failure-ratio 0.25 --rollback-order start-first --rollback-delay 2s";
        let flags = Line::try_parse_from(line.split(' ')).unwrap();
        let mut spec = json!({});
        flags.update.apply(&mut spec).unwrap();
        flags.rollback.apply(&mut spec).unwrap();
        let update = json!({"Parallelism": 2, "FailureAction": "rollback", "MaxFailureRatio": 0.25});
        let rollback = json!({"Parallelism": 1, "Order": "start-first", "Delay": 2_000_000_000_i64});
        assert_eq!(spec, json!({"UpdateConfig": update, "RollbackConfig": rollback}));
        let mut untouched = json!({});
        Line::try_parse_from(["x"]).unwrap().update.apply(&mut untouched).unwrap();
        assert_eq!(untouched, json!({}));
    }
}
