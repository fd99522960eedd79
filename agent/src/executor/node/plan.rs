//! From a task to the containers that the engine makes for it. Pure.

use skep_proto::model::container::Privileges;
use skep_proto::model::engine::{
    Container, ContainerConfig, ContainerRestart, ContainerState, ContainerStatus, NetworkMode, TaskOwner,
};
use skep_proto::model::isolation::Isolation;
use skep_proto::model::service::{PortConfig, PublishMode};
use skep_proto::model::{ContainerSpec, HealthStatus, NodeDescription, NodeId};
use skep_proto::template::task::TaskContext;

use crate::executor::{Containers, Exit, Running, TaskUnit};

/// How a task's sandbox is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// It has none of its own: the containers use the node's.
    Host,
    /// Nothing but a loopback link.
    Nothing,
    /// A sandbox of its own.
    Sandbox {
        /// It joins the default bridge.
        bridge: bool,
        /// It has a task link: a way out for tasks on overlays, and where the routing mesh reaches the task.
        mesh: bool,
    },
}

/// A network that a task cannot have, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// It must be alone.
    #[error("network {0} cannot be combined with other networks")]
    Alone(String),
    /// It is not there, or of a kind that tasks cannot use.
    #[error("network {0} not found")]
    Unknown(String),
    /// The managers gave no address.
    #[error("the task has no address on network {0}")]
    NoAddress(String),
}

/// How a task is connected. `is_internal` tells of each attachment whether its network has no way out.
///
/// # Errors
/// When its networks cannot be had together, or one cannot be had at all.
pub fn connection(
    unit: &TaskUnit,
    is_internal: impl Fn(skep_proto::model::NetworkId) -> bool,
) -> Result<Connection, ConnectionError> {
    let wanted = &unit.spec.task.networks;
    let alone = |name: &str| if wanted.len() == 1 { Ok(()) } else { Err(ConnectionError::Alone(name.to_owned())) };
    let mut bridge = false;
    for network in wanted {
        match network.target.as_str() {
            "host" => return alone("host").map(|()| Connection::Host),
            "none" => return alone("none").map(|()| Connection::Nothing),
            "bridge" => bridge = true,
            id => {
                let id = id.parse().map_err(|_| ConnectionError::Unknown(id.to_owned()))?;
                if !unit.task.attachments.iter().any(|a| a.network == id && !a.addresses.is_empty()) {
                    return Err(ConnectionError::NoAddress(network.target.clone()));
                }
            }
        }
    }
    let attachments = &unit.task.attachments;
    let ingress = unit.spec.ports.iter().any(|port| port.mode == PublishMode::Ingress);
    let host_ports = unit.spec.ports.iter().any(|port| port.mode == PublishMode::Host);
    // Without any network a task is on the default bridge, as a plain container is; published ports come by the mesh.
    let bridge = bridge || (attachments.is_empty() && !ingress);
    let way_out = attachments.iter().any(|attachment| !is_internal(attachment.network));
    Ok(Connection::Sandbox { bridge, mesh: ingress || (!bridge && (way_out || host_ports)) })
}

/// What templates of a task may name. `description` is the node's.
pub fn context(unit: &TaskUnit, node: NodeId, description: &NodeDescription) -> TaskContext {
    TaskContext {
        service_id: unit.task.spec.service.to_string(),
        service_name: unit.spec.service_name.clone(),
        service_labels: unit.spec.service_labels.clone(),
        node_id: node.to_string(),
        hostname: description.hostname.clone(),
        architecture: description.platform.architecture.clone(),
        os: description.platform.os.clone(),
        task_id: unit.task.id.to_string(),
        task_name: unit.name(node),
        // As Swarm: tasks of global services are told apart by their nodes.
        slot: if unit.task.slot == 0 { node.to_string() } else { unit.task.slot.to_string() },
    }
}

/// The engine's configuration of container number `index`, whose templates are expanded in `spec`. `hostname` is the
/// node's.
pub fn container_config(
    unit: &TaskUnit,
    mut spec: ContainerSpec,
    node: NodeId,
    index: usize,
    network: NetworkMode,
    hostname: &str,
) -> ContainerConfig {
    spec.labels.extend(unit.swarm_labels(node));
    // The credential has done its work; it does not belong into the container's record.
    spec.registry_auth = None;
    // As a plain container on the node's network has it.
    if network == NetworkMode::Host && spec.hostname.is_empty() {
        hostname.clone_into(&mut spec.hostname);
    }
    let name = match index {
        0 => unit.name(node),
        _ if spec.name.is_empty() => format!("{}.{index}", unit.name(node)),
        _ => format!("{}.{}", unit.name(node), spec.name),
    };
    ContainerConfig {
        id: unit.container_id(index),
        name,
        resources: unit.spec.task.resources.clone(),
        network,
        ports: Vec::new(),
        auto_remove: false,
        restart: ContainerRestart::No,
        privileged: spec.privileges.as_ref().is_some_and(|asked| asked.privileged),
        isolation: isolation(&spec),
        stdin_once: false,
        attach: (false, false, false),
        log: unit.spec.task.log_driver.clone(),
        task: Some(TaskOwner { task: unit.task.id, service: unit.task.spec.service, node }),
        spec,
    }
}

fn isolation(spec: &ContainerSpec) -> Isolation {
    let Privileges { no_new_privileges, seccomp_unconfined, privileged: _, devices } =
        spec.privileges.clone().unwrap_or_default();
    Isolation { no_new_privileges, seccomp_unconfined, devices, ..Isolation::default() }
}

/// Ports of the task that this node publishes by itself.
pub fn host_ports(unit: &TaskUnit) -> impl Iterator<Item = &PortConfig> {
    unit.spec.ports.iter().filter(|port| port.mode == PublishMode::Host)
}

/// The containers of a task, taken together: those that exist, in order; `wanted` is how many should.
pub fn together(existing: &[Container], wanted: usize, running: Running) -> Containers {
    if let Some(ended) = existing.iter().find_map(end_of) {
        return Containers::Ended(ended);
    }
    let live = existing.iter().filter(|container| is_live(container.state.status)).count();
    match live {
        // Some were not made, or removed by hand: creation makes what is missing.
        0 if existing.len() < wanted => Containers::Absent,
        0 => Containers::Created,
        _ if live == wanted => Containers::Running(Running {
            pid: existing.first().map_or(0, |container| container.state.pid),
            health: health(existing),
            ..running
        }),
        // The start was cut off between two containers. A task is one attempt.
        _ => Containers::Ended(Exit { error: "not all containers of the task were started".into(), ..Exit::default() }),
    }
}

/// One that is unhealthy makes the task so; one that still starts lets it wait.
pub fn health(existing: &[Container]) -> Option<HealthStatus> {
    let all = || existing.iter().filter_map(|container| container.health.as_ref()).map(|health| health.status);
    let worst = [HealthStatus::Unhealthy, HealthStatus::Starting, HealthStatus::Healthy];
    worst.into_iter().find(|status| all().any(|one| one == *status))
}

fn is_live(status: ContainerStatus) -> bool {
    match status {
        ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => true,
        ContainerStatus::Created | ContainerStatus::Removing | ContainerStatus::Exited | ContainerStatus::Dead => false,
    }
}

/// How a container ended; `None` when it has not, or never ran.
fn end_of(container: &Container) -> Option<Exit> {
    let state = &container.state;
    let ended = match state.status {
        ContainerStatus::Exited | ContainerStatus::Dead | ContainerStatus::Removing => true,
        // It could not be started.
        ContainerStatus::Created => !state.error.is_empty(),
        ContainerStatus::Running | ContainerStatus::Paused | ContainerStatus::Restarting => false,
    };
    let unhealthy = container.health.as_ref().is_some_and(|health| health.status == HealthStatus::Unhealthy);
    ended.then(|| Exit { code: state.exit_code, error: end_error(state), unhealthy })
}

fn end_error(state: &ContainerState) -> String {
    if state.oom_killed { "OOMKilled".to_owned() } else { state.error.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use skep_proto::model::engine::{EtcFiles, ResolvedProcess};
    use skep_proto::model::service::Protocol;
    use skep_proto::model::task::{NetworkAttachment, NetworkAttachmentSpec};
    use skep_proto::model::{Health, NetworkId, Timestamp};

    use super::*;
    use crate::test_support::{NODE, unit};

    fn on(networks: &[&str], ports: &[PublishMode]) -> TaskUnit {
        let mut unit = unit(1);
        let spec = Arc::make_mut(&mut unit.spec);
        spec.task.networks = networks
            .iter()
            .map(|target| NetworkAttachmentSpec { target: (*target).to_owned(), ..NetworkAttachmentSpec::default() })
            .collect();
        spec.ports = ports
            .iter()
            .map(|mode| PortConfig {
                name: String::new(),
                protocol: Protocol::Tcp,
                target: 80,
                published: Some(8080),
                mode: *mode,
            })
            .collect();
        unit.task.attachments = networks
            .iter()
            .filter_map(|target| target.parse().ok())
            .map(|network| NetworkAttachment {
                network,
                addresses: vec!["10.0.1.5/24".parse().unwrap()],
                aliases: Vec::new(),
            })
            .collect();
        unit
    }

    #[test]
    fn networks_and_ports_decide_how_a_sandbox_is_connected() {
        let (open, closed) = (NetworkId(1).to_string(), NetworkId(2).to_string());
        let sandbox = |bridge, mesh| Ok(Connection::Sandbox { bridge, mesh });
        use PublishMode::{Host, Ingress};
        let rows: [(&[&str], &[PublishMode], _); 11] = [
            (&[], &[], sandbox(true, false)),
            (&[], &[Host], sandbox(true, false)),
            (&[], &[Ingress], sandbox(false, true)),
            (&["bridge"], &[Ingress], sandbox(true, true)),
            (&[&open], &[], sandbox(false, true)),
            (&[&closed], &[], sandbox(false, false)),
            (&[&closed], &[Ingress], sandbox(false, true)),
            (&[&closed], &[Host], sandbox(false, true)),
            (&["host"], &[], Ok(Connection::Host)),
            (&["none"], &[], Ok(Connection::Nothing)),
            (&["host", "bridge"], &[], Err(ConnectionError::Alone("host".into()))),
        ];
        for (networks, ports, expected) in rows {
            assert_eq!(connection(&on(networks, ports), |n| n == NetworkId(2)), expected, "{networks:?} {ports:?}");
        }
    }

    #[test]
    fn a_network_without_an_address_is_refused_by_name() {
        let mut unit = on(&[&NetworkId(1).to_string()], &[]);
        unit.task.attachments.clear();
        let error = connection(&unit, |_| false).unwrap_err();
        assert_eq!(error.to_string(), format!("the task has no address on network {}", NetworkId(1)));
    }

    #[test]
    fn a_tasks_container_has_swarms_name_id_and_labels() {
        let spec = |unit: &TaskUnit| unit.spec.task.containers[0].clone();
        let config =
            container_config(&unit(1), unit(1).spec.task.containers[0].clone(), NODE, 0, NetworkMode::Host, "n1");
        let id = unit(1).task.id;
        assert_eq!(config.name, format!("web.1.{id}"));
        assert_eq!(config.id, skep_proto::model::ContainerId::of_task(id, 0));
        assert_eq!(config.spec.labels["com.docker.swarm.task.name"], config.name);
        assert_eq!(config.spec.labels["com.docker.swarm.node.id"], NODE.to_string());
        assert_eq!(config.spec.labels["com.docker.swarm.task"], "");
        let mut global = unit(1);
        global.task.slot = 0;
        assert_eq!(
            container_config(&global, spec(&global), NODE, 0, NetworkMode::Host, "n1").name,
            format!("web.{NODE}.{id}")
        );
    }

    fn container(status: ContainerStatus, exit_code: i32, error: &str) -> Container {
        Container {
            config: container_config(
                &unit(1),
                unit(1).spec.task.containers[0].clone(),
                NODE,
                0,
                NetworkMode::Host,
                "n1",
            ),
            created_at: Timestamp(0),
            image_id: String::new(),
            process: ResolvedProcess::default(),
            state: ContainerState {
                status,
                pid: 9,
                exit_code,
                error: error.into(),
                oom_killed: false,
                started_at: None,
                finished_at: None,
            },
            health: None,
            restart_count: 0,
            mounts: Vec::new(),
            networks: Vec::new(),
            ports: Vec::new(),
            exposed: Vec::new(),
            log_path: PathBuf::new(),
            etc: EtcFiles::default(),
        }
    }

    fn with_health(status: HealthStatus, container: Container) -> Container {
        Container { health: Some(Health { status, failing_streak: 0, log: Vec::new() }), ..container }
    }

    #[test]
    fn a_task_is_as_healthy_as_the_worst_of_its_containers_and_remembers_it_at_the_end() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let runs = || container(ContainerStatus::Running, 0, "");
        let of = |all: &[HealthStatus]| health(&all.iter().map(|s| with_health(*s, runs())).collect::<Vec<_>>());
        assert_eq!(of(&[Healthy, Starting]), Some(Starting));
        assert_eq!(of(&[Starting, Unhealthy]), Some(Unhealthy));
        assert_eq!(of(&[Healthy, Healthy]), Some(Healthy));
        assert_eq!(health(&[runs()]), None);
        let ended = with_health(Unhealthy, container(ContainerStatus::Exited, 0, ""));
        assert_eq!(
            together(&[ended], 1, Running::default()),
            Containers::Ended(Exit { unhealthy: true, ..Exit::default() })
        );
    }

    #[test]
    fn containers_of_one_task_live_and_end_together() {
        use ContainerStatus::{Created, Exited, Running as Runs};
        let (created, runs) = (container(Created, 0, ""), container(Runs, 0, ""));
        let running = Containers::Running(Running { pid: 9, ..Running::default() });
        let ended = |code, error: &str| Containers::Ended(Exit { code, error: error.into(), unhealthy: false });
        let cut = "not all containers of the task were started";
        let rows = [
            (vec![], Containers::Absent),
            (vec![created.clone()], Containers::Absent),
            (vec![created.clone(), created.clone()], Containers::Created),
            (vec![runs.clone(), runs.clone()], running),
            (vec![runs.clone(), container(Exited, 3, "")], ended(3, "")),
            (vec![container(Created, 127, "no such file"), created.clone()], ended(127, "no such file")),
            (vec![runs.clone(), created], ended(0, cut)),
            (vec![runs], ended(0, cut)),
        ];
        for (states, expected) in rows {
            assert_eq!(together(&states, 2, Running::default()), expected, "{states:?}");
        }
    }
}
