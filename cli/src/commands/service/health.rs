//! Flags of the health check.

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use super::flags::set;
use super::values::nanoseconds;

/// How a container's health is checked.
#[derive(Debug, Default, Args)]
pub struct HealthFlags {
    /// Line for the container's shell that checks its health; empty for the image's
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between two checks (ms|s|m|h)
    #[arg(long)]
    health_interval: Option<String>,
    /// Time after which a check has failed (ms|s|m|h)
    #[arg(long)]
    health_timeout: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long)]
    health_retries: Option<u32>,
    /// Time after the start in which failures do not count (ms|s|m|h)
    #[arg(long)]
    health_start_period: Option<String>,
    /// Time between two checks in that time (ms|s|m|h)
    #[arg(long)]
    health_start_interval: Option<String>,
    /// Check nothing, also if the image says so
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthFlags {
    /// Writes what was given into a container's spec.
    ///
    /// # Errors
    /// A value that cannot be read, and `--no-healthcheck` beside another flag.
    pub fn apply(&self, container: &mut Value) -> anyhow::Result<()> {
        let spans = [
            ("Interval", nanoseconds("--health-interval", self.health_interval.as_ref())?),
            ("Timeout", nanoseconds("--health-timeout", self.health_timeout.as_ref())?),
            ("StartPeriod", nanoseconds("--health-start-period", self.health_start_period.as_ref())?),
            ("StartInterval", nanoseconds("--health-start-interval", self.health_start_interval.as_ref())?),
        ];
        let is_given =
            self.health_cmd.is_some() || self.health_retries.is_some() || spans.iter().any(|(_, span)| span.is_some());
        if self.no_healthcheck {
            ensure!(!is_given, "--no-healthcheck conflicts with --health-* options");
            container["Healthcheck"] = json!({"Test": ["NONE"]});
            return Ok(());
        }
        if !is_given {
            return Ok(());
        }
        if !container["Healthcheck"].is_object() || container["Healthcheck"]["Test"] == json!(["NONE"]) {
            container["Healthcheck"] = json!({});
        }
        let check = &mut container["Healthcheck"];
        let test = self.health_cmd.as_ref().map(|line| match line.as_str() {
            "" => json!([]),
            line => json!(["CMD-SHELL", line]),
        });
        set(check, "Test", test);
        set(check, "Retries", self.health_retries);
        spans.into_iter().for_each(|(key, span)| set(check, key, span));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: HealthFlags,
    }

    fn apply(words: &[&str], mut container: Value) -> anyhow::Result<Value> {
        let flags = Line::try_parse_from(std::iter::once(&"x").chain(words)).unwrap().flags;
        flags.apply(&mut container).map(|()| container)
    }

    #[test]
    fn flags_become_what_dockers_client_sends_and_leave_the_rest() {
        let checked = apply(&["--health-cmd", "ask me", "--health-interval", "2s", "--health-retries", "2"], json!({}));
        let check = json!({"Test": ["CMD-SHELL", "ask me"], "Interval": 2_000_000_000_i64, "Retries": 2});
        let checked = checked.unwrap();
        assert_eq!(checked["Healthcheck"], check);
        let changed = apply(&["--health-retries", "5"], checked.clone()).unwrap();
        assert_eq!(changed["Healthcheck"]["Test"], check["Test"]);
        assert_eq!(changed["Healthcheck"]["Retries"], 5);
        assert_eq!(apply(&[], checked.clone()).unwrap(), checked);
        assert_eq!(apply(&["--no-healthcheck"], checked).unwrap()["Healthcheck"], json!({"Test": ["NONE"]}));
        assert!(apply(&["--no-healthcheck", "--health-retries", "1"], json!({})).is_err());
    }
}
