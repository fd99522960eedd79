//! What the cluster talks about: ids, specs, states. Terms are Swarm's.

pub mod addressing;
pub mod annotations;
pub mod cluster;
pub mod container;
pub mod dependency;
pub mod doctor;
pub mod engine;
pub mod health;
pub mod id;
pub mod isolation;
pub mod network;
pub mod node;
pub mod pod;
pub mod schedule;
pub mod secret;
pub mod service;
pub mod session;
pub mod task;
pub mod time;
pub mod view;

pub use annotations::{Annotations, Labels, Meta, Version};
pub use cluster::{Cluster, ClusterSpec};
pub use container::ContainerSpec;
pub use health::{Health, HealthStatus, ProbeResult};
pub use id::{ClusterId, ConfigId, ContainerId, NetworkId, NodeId, SecretId, ServiceId, TaskId};
pub use network::{Network, NetworkSpec};
pub use node::{Availability, Node, NodeDescription, NodeRole, NodeSpec, NodeState};
pub use secret::{Config, ConfigSpec, Secret, SecretSpec};
pub use service::{Service, ServiceMode, ServiceSpec};
pub use task::{Task, TaskSpec, TaskState, TaskStatus};
pub use time::Timestamp;
