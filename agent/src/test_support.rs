//! Builders for tests: they name what matters and fill in the rest.

use std::net::SocketAddr;
use std::sync::Arc;

use redb::Database;
use redb::backends::InMemoryBackend;
use skep_proto::model::session::{AssignedSpec, AssignedTask, SpecKey, StatusReport, TaskVitals};
use skep_proto::model::{ContainerSpec, NodeId, ServiceId, TaskId, TaskSpec, TaskState, TaskStatus, Timestamp};

use crate::executor::TaskUnit;
use crate::state::{self, LocalState, Placement};
use skep_identity::Clock;

pub const NODE: NodeId = NodeId(77);

/// A clock that stands still.
#[derive(Debug)]
pub struct Noon;

impl Clock for Noon {
    fn now(&self) -> Timestamp {
        Timestamp(43_200_000)
    }
}

pub fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 2377))
}

pub fn database() -> Arc<Database> {
    Arc::new(Database::builder().create_with_backend(InMemoryBackend::new()).unwrap())
}

/// A local state in memory, written at once.
pub fn scratch_state() -> LocalState {
    let (state, _, writer) = state::with_database(database(), "memory", Placement::Inline).unwrap();
    tokio::spawn(writer.run());
    state
}

pub fn status(state: TaskState) -> TaskStatus {
    TaskStatus {
        state,
        at: Timestamp(1),
        message: String::new(),
        error: String::new(),
        exit_code: None,
        host_ports: Vec::new(),
    }
}

pub fn report(task: u128, state: TaskState) -> StatusReport {
    StatusReport {
        task: TaskId(task),
        status: status(state),
        vitals: TaskVitals::default(),
        mesh: None,
        unready: false,
    }
}

pub fn spec() -> Arc<AssignedSpec> {
    Arc::new(AssignedSpec {
        key: SpecKey { service: ServiceId(5), version: 1 },
        service_name: "web".into(),
        service_labels: Default::default(),
        task: TaskSpec {
            containers: vec![ContainerSpec { image: "skep/whoami:latest".into(), ..ContainerSpec::default() }],
            ..TaskSpec::default()
        },
        ports: Vec::new(),
    })
}

pub fn task(id: u128, desired: TaskState) -> AssignedTask {
    AssignedTask {
        id: TaskId(id),
        spec: spec().key,
        slot: 1,
        desired,
        observed: TaskState::Assigned,
        attachments: Vec::new(),
    }
}

pub fn unit(id: u128) -> TaskUnit {
    TaskUnit { task: task(id, TaskState::Running), spec: spec() }
}
