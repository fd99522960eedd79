//! Health of a container, as its probes show it.

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Health of a container that has a health check (Engine API, `Health`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What follows from the probes.
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last probes, oldest first.
    pub log: Vec<ProbeResult>,
}

/// What follows from a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HealthStatus {
    /// No probe has succeeded yet, and not enough have failed.
    Starting,
    /// The last probe succeeded, or not enough have failed since one did.
    Healthy,
    /// Too many failed in a row.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One probe (Engine API, `HealthcheckResult`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Exit code of the probe; -1 when it could not be run or took too long.
    pub exit_code: i32,
    /// What it wrote, cut to 4096 bytes.
    pub output: String,
}
