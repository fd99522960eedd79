//! Settings of a cluster, as flags of `skep swarm init` and `skep swarm update`.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

/// Settings that are given; the others stay as they are.
#[derive(Debug, Args)]
pub struct SwarmSettings {
    /// Tasks kept of each slot
    #[arg(long)]
    task_history_limit: Option<u64>,
    /// Time between two heartbeats of a node (ns|us|ms|s|m|h)
    #[arg(long, value_parser = duration)]
    dispatcher_heartbeat: Option<Duration>,
    /// Life of a node certificate (ns|us|ms|s|m|h)
    #[arg(long, value_parser = duration)]
    cert_expiry: Option<Duration>,
    /// Log entries between two snapshots
    #[arg(long)]
    snapshot_interval: Option<u64>,
    /// Older snapshots kept
    #[arg(long)]
    max_snapshots: Option<u64>,
    /// Signing endpoints of an external authority (not supported)
    #[arg(long)]
    external_ca: Vec<String>,
}

impl SwarmSettings {
    /// Puts what is given into a spec of the API.
    ///
    /// # Errors
    /// For what is not supported.
    pub fn put_into(&self, spec: &mut Value) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.external_ca.is_empty(),
            "--external-ca is not supported by skep: certificates are signed by the managers themselves"
        );
        let mut set = |group: &str, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec[group][key] = value;
            }
        };
        let nanos = |d: Option<Duration>| d.map(|d| json!(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)));
        set("Orchestration", "TaskHistoryRetentionLimit", self.task_history_limit.map(|n| json!(n)));
        set("Raft", "SnapshotInterval", self.snapshot_interval.map(|n| json!(n)));
        set("Raft", "KeepOldSnapshots", self.max_snapshots.map(|n| json!(n)));
        set("Dispatcher", "HeartbeatPeriod", nanos(self.dispatcher_heartbeat));
        set("CAConfig", "NodeCertExpiry", nanos(self.cert_expiry));
        Ok(())
    }
}

/// Reads a duration in the form of Go: `1h30m`, `1.5s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write 90s, 1h30m or 500ms");
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * seconds;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Duration::try_from_secs_f64(total).map_err(|_| wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_gos_form() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["", "1", "h", "1x", "1..2s", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_is_given_is_changed() {
        let settings = SwarmSettings {
            task_history_limit: Some(3),
            dispatcher_heartbeat: None,
            cert_expiry: Some(Duration::from_secs(3600)),
            snapshot_interval: None,
            max_snapshots: None,
            external_ca: Vec::new(),
        };
        let mut spec = json!({"Raft": {"SnapshotInterval": 7}});
        settings.put_into(&mut spec).unwrap();
        let wanted = json!({
            "Raft": {"SnapshotInterval": 7}, "Orchestration": {"TaskHistoryRetentionLimit": 3},
            "CAConfig": {"NodeCertExpiry": 3_600_000_000_000u64},
        });
        assert_eq!(spec, wanted);
    }
}
