//! What `skep doctor` asks a node, and what the node answers. As JSON it is skep's own; fields are only ever added.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// How a check ended. Later ones are worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    #[default]
    Ok,
    /// It works, and may not for long, or not well.
    Warning,
    /// Something does not work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    /// What was looked at, in a few words.
    pub name: String,
    /// The other node, by name, of a check of two nodes; empty otherwise.
    pub peer: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was seen.
    pub seen: String,
    /// What to do; empty when all is well.
    pub advice: String,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, seen: impl Into<String>) -> Self {
        Self { name: name.into(), seen: seen.into(), ..Self::default() }
    }

    /// It works, and may not for long, or not well.
    pub fn warning(name: &str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warning, advice: advice.into(), ..Self::ok(name, seen) }
    }

    /// Something does not work.
    pub fn failed(name: &str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, advice: advice.into(), ..Self::ok(name, seen) }
    }

    /// A check of two nodes.
    #[must_use]
    pub fn with(mut self, peer: &str) -> Self {
        peer.clone_into(&mut self.peer);
        self
    }
}

/// What a node is told before it looks: the cluster as the asking manager knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Question {
    /// All nodes, the asked one included. Empty for a node in no cluster, or when no manager asks.
    pub members: Vec<Member>,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// Where it listens for nodes, if it is a manager.
    pub manager: Option<SocketAddr>,
}

/// What a node saw.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Report {
    /// The node's clock when it began, in milliseconds since 1970.
    pub began: u64,
    /// The node's clock when it had finished.
    pub ended: u64,
    /// What it looked at.
    pub checks: Vec<Check>,
    /// What it knows of the cluster; `None` in no cluster.
    pub known: Option<Known>,
}

/// What a node knows of the cluster: where its names, virtual addresses and published ports lead.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Known {
    /// Ids of nodes.
    pub nodes: Vec<String>,
    /// Ids of networks that the node uses.
    pub networks: Vec<String>,
    /// Ids of services: those on networks that the node uses, and those with ports of the routing mesh.
    pub services: Vec<String>,
    /// Ids of tasks that get new connections.
    pub serving: Vec<String>,
}

/// What was seen of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Diagnosis {
    /// One for each node that was asked.
    pub nodes: Vec<NodeDiagnosis>,
    /// Whether this is the whole cluster: only a manager can ask other nodes.
    pub whole: bool,
}

/// What was seen of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeDiagnosis {
    /// Its id; empty in no cluster.
    pub id: String,
    /// Its host name.
    pub name: String,
    /// What was looked at.
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// The worst outcome.
    pub fn worst(&self) -> Outcome {
        self.nodes.iter().flat_map(|node| &node.checks).map(|check| check.outcome).max().unwrap_or_default()
    }
}
