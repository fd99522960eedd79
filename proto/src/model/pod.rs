//! What containers have that share a task with others: their turn, their probes, their hooks.
//!
//! The words are those of Kubernetes (core/v1, `Container`), whose manifests ask for it. The first container of a task is
//! always a main one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::service::Protocol;
use super::task::Limits;

/// What a container has beside what Docker's have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodContainer {
    /// When it runs.
    pub role: Role,
    /// Until it succeeds the other probes wait, and so do the containers after a sidecar. Failing, it ends the container.
    pub startup: Option<Probe>,
    /// While it fails the task gets no new connections.
    pub readiness: Option<Probe>,
    /// When it fails the container is ended, and started again or the task with it.
    pub liveness: Option<Probe>,
    /// Done before the stop signal. The time that it takes counts as grace.
    pub pre_stop: Option<Action>,
    /// Done after the start. Failing, it ends the container.
    pub post_start: Option<Action>,
    /// Limits of this container alone, in place of the task's.
    pub limits: Option<Limits>,
    /// When its image is fetched; `None` for Docker's way.
    pub pull: Option<Pull>,
}

/// When a container of a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Role {
    /// With the others, once those before it are through.
    #[default]
    Main,
    /// Alone, in order, to its end: before the main ones.
    Init,
    /// From its turn among the init containers to the end of the main ones; started again when it ends before.
    Sidecar,
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pull {
    /// At each start, as far as a tag may have moved.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

/// Asks a container again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How.
    pub action: Action,
    /// Time between the container's start and the first probe.
    pub initial_delay: Duration,
    /// Time between two probes; at least a second.
    pub period: Duration,
    /// Time after which a probe has failed.
    pub timeout: Duration,
    /// Successes in a row after which a failing probe counts as succeeding.
    pub successes: u32,
    /// Failures in a row after which it counts as failing.
    pub failures: u32,
}

/// A deed on a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Runs a program in it; exit code 0 is success.
    Exec {
        /// Its words.
        command: Vec<String>,
    },
    /// Asks by HTTP; a status from 200 to 399 is success.
    HttpGet(HttpGet),
    /// Connects by TCP.
    TcpSocket {
        /// Host name or address; empty for the task itself.
        host: String,
        /// Port.
        port: u16,
    },
    /// Waits.
    Sleep {
        /// So long.
        time: Duration,
    },
}

/// A question by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpGet {
    /// Address; empty for the task itself.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path with query; begins with a slash.
    pub path: String,
    /// Over TLS, whatever the certificate says.
    pub tls: bool,
    /// Further header lines, as name and value.
    pub headers: Vec<Header>,
}

/// A header line.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A port of a service's virtual address that leads to another port of its tasks: a Service's port where its target
/// differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRedirect {
    /// Protocol.
    pub protocol: Protocol,
    /// The port that is asked.
    pub port: u16,
    /// The port that answers.
    pub target: u16,
}
