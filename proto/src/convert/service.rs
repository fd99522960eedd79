//! Services.

use super::DecodeError;
use super::field::{choice, message, record, required};
use crate::model::service::{
    Endpoint, EndpointMode, EndpointSpec, FailureAction, PortConfig, PreviousSpec, Protocol, PublishMode,
    ScheduledRuns, UpdateConfig, UpdateOrder, UpdateState, UpdateStatus, VirtualIp,
};
use crate::model::{Service, ServiceMode, ServiceSpec};
use crate::wire::objects as wire;
use crate::wire::objects::service_mode::{Global, GlobalJob, Mode, Replicated, ReplicatedJob};

record!(Service { id, meta, spec, spec_version, previous, endpoint, update_status, pending_delete, runs });
record!(ScheduledRuns { decided_at, last_at, iteration });
record!(ServiceSpec { annotations, task, mode, update, rollback, endpoint });
record!(PreviousSpec { spec, spec_version });
record!(UpdateConfig { parallelism, delay, failure_action, monitor, max_failure_ratio, order });
choice!(FailureAction { Pause, Continue, Rollback });
choice!(UpdateOrder { StopFirst, StartFirst });
record!(UpdateStatus { state, started_at, completed_at, message });
choice!(UpdateState { Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted });
record!(EndpointSpec { mode, ports, redirects });
choice!(EndpointMode { Vip, DnsRoundRobin });
record!(PortConfig { name, protocol, target, published, mode });
choice!(Protocol { Tcp, Udp, Sctp });
choice!(PublishMode { Ingress, Host });
record!(Endpoint { spec, ports, virtual_ips });
record!(VirtualIp { network, address });

impl From<&ServiceMode> for wire::ServiceMode {
    fn from(value: &ServiceMode) -> Self {
        let mode = match *value {
            ServiceMode::Replicated { replicas } => Mode::Replicated(Replicated { replicas }),
            ServiceMode::Global => Mode::Global(Global {}),
            ServiceMode::ReplicatedJob { max_concurrent, total_completions } => {
                Mode::ReplicatedJob(ReplicatedJob { max_concurrent, total_completions })
            }
            ServiceMode::GlobalJob => Mode::GlobalJob(GlobalJob {}),
        };
        Self { mode: Some(mode) }
    }
}

impl TryFrom<wire::ServiceMode> for ServiceMode {
    type Error = DecodeError;
    fn try_from(message: wire::ServiceMode) -> Result<Self, DecodeError> {
        Ok(match required(message.mode)? {
            Mode::Replicated(Replicated { replicas }) => Self::Replicated { replicas },
            Mode::Global(Global {}) => Self::Global,
            Mode::ReplicatedJob(ReplicatedJob { max_concurrent, total_completions }) => {
                Self::ReplicatedJob { max_concurrent, total_completions }
            }
            Mode::GlobalJob(GlobalJob {}) => Self::GlobalJob,
        })
    }
}

message!(ServiceMode);
