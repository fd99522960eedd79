//! From a task to the containers that the engine makes for it. Pure.

use skep_proto::model::container::{Driver, Mount, MountKind, Privileges, VolumeOptions};
use skep_proto::model::engine::{ContainerConfig, ContainerRestart, NetworkMode, TaskOwner};
use skep_proto::model::isolation::Isolation;
use skep_proto::model::pod::Role;
use skep_proto::model::service::{PortConfig, PublishMode};
use skep_proto::model::task::Resources;
use skep_proto::model::{ContainerSpec, NodeDescription, NodeId};
use skep_proto::template::task::TaskContext;

use super::pod::role;
use crate::executor::TaskUnit;

/// Label of volumes that live as long as a task: its id.
pub const SCRATCH: &str = "skep.task";
/// Label of a container among several of a task: its name there.
pub const CONTAINER_LABEL: &str = "skep.container";
/// Where processes find memory that they share by name.
const SHM: &str = "/dev/shm";

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
        address: address(unit).map_or_else(String::new, |address| address.to_string()),
        node_address: description.data_path.first().map_or_else(String::new, ToString::to_string),
    }
}

/// The task's address on its first network.
fn address(unit: &TaskUnit) -> Option<std::net::IpAddr> {
    unit.task.attachments.iter().flat_map(|attachment| &attachment.addresses).next().map(ipnet::IpNet::addr)
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
    if spec.pod.is_some() {
        as_one_of_several(unit, &mut spec);
    }
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
        resources: match &spec.pod {
            Some(pod) => Resources { limits: pod.limits.clone(), ..unit.spec.task.resources.clone() },
            None => unit.spec.task.resources.clone(),
        },
        network,
        ports: Vec::new(),
        auto_remove: false,
        restart: ContainerRestart::No,
        privileged: spec.privileges.as_ref().is_some_and(|asked| asked.privileged),
        isolation: Isolation { no_shm: spec.mounts.iter().any(|mount| mount.target == SHM), ..isolation(&spec) },
        stdin_once: false,
        attach: (false, false, false),
        log: unit.spec.task.log_driver.clone(),
        task: Some(TaskOwner { task: unit.task.id, service: unit.task.spec.service, node }),
        spec,
    }
}

/// Host name, shared memory and volumes are the same in all containers of a task.
fn as_one_of_several(unit: &TaskUnit, spec: &mut ContainerSpec) {
    spec.labels.insert(CONTAINER_LABEL.to_owned(), spec.name.clone());
    if spec.hostname.is_empty() {
        spec.hostname = unit.container_id(0).short();
    }
    let staying = unit.spec.task.containers.iter().filter(|other| role(other) != Role::Init).count();
    if staying > 1 && role(spec) != Role::Init && !spec.mounts.iter().any(|mount| mount.target == SHM) {
        spec.mounts.push(shared_memory());
    }
    for mount in &mut spec.mounts {
        let Some(volume) = mount.volume.as_mut().filter(|volume| volume.scratch) else { continue };
        volume.labels.insert(SCRATCH.to_owned(), unit.task.id.to_string());
        mount.source = format!("{}-{}", unit.task.id, mount.source);
    }
}

fn shared_memory() -> Mount {
    let options = [("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=64m,mode=1777,nosuid,nodev,noexec")];
    let driver = Driver {
        name: "local".to_owned(),
        options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    };
    let volume = VolumeOptions { no_copy: true, scratch: true, driver: Some(driver), ..VolumeOptions::default() };
    Mount {
        kind: MountKind::Volume,
        source: "dev-shm".to_owned(),
        target: SHM.to_owned(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: Some(volume),
        tmpfs: None,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_proto::model::NetworkId;
    use skep_proto::model::service::Protocol;
    use skep_proto::model::task::{NetworkAttachment, NetworkAttachmentSpec};

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
}
