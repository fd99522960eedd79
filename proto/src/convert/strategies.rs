//! Arbitrary values of the whole model, small enough to shrink well.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use proptest::prelude::*;

use crate::model::cluster::{JoinTokens, RootCa, RootRotation, Unlock};
use crate::model::container::*;
use crate::model::isolation::DeviceMapping;
use crate::model::network::{IpamConfig, Subnet};
use crate::model::node::{ManagerMembership, NodeTrust, WireGuard};
use crate::model::pod::*;
use crate::model::secret::SecretData;
use crate::model::service::*;
use crate::model::session::*;
use crate::model::task::*;
use crate::model::view::*;
use crate::model::*;

/// A type with arbitrary values.
pub trait Arb: Sized + std::fmt::Debug + 'static {
    /// Any of them.
    fn arb() -> BoxedStrategy<Self>;
}

fn arb<T: Arb>() -> BoxedStrategy<T> {
    T::arb()
}

macro_rules! from_proptest {
    ($($type:ty),+) => {$(
        impl Arb for $type {
            fn arb() -> BoxedStrategy<Self> {
                any::<$type>().boxed()
            }
        }
    )+};
}
from_proptest!(bool, u8, u16, u32, u64, i32, i64, u128, [u8; 16], [u8; 32], IpAddr);

impl Arb for f32 {
    fn arb() -> BoxedStrategy<Self> {
        (0.0f32..=1.0).boxed()
    }
}

impl Arb for String {
    fn arb() -> BoxedStrategy<Self> {
        ".{0,6}".boxed()
    }
}

impl Arb for Bytes {
    fn arb() -> BoxedStrategy<Self> {
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from).boxed()
    }
}

impl Arb for Duration {
    fn arb() -> BoxedStrategy<Self> {
        (any::<u64>(), 0..1_000_000_000u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos)).boxed()
    }
}

impl Arb for IpNet {
    fn arb() -> BoxedStrategy<Self> {
        (any::<IpAddr>(), 0..=128u8)
            .prop_map(|(address, prefix)| {
                let max = if address.is_ipv4() { 32 } else { 128 };
                IpNet::new(address, prefix.min(max)).unwrap()
            })
            .boxed()
    }
}

impl Arb for SocketAddr {
    fn arb() -> BoxedStrategy<Self> {
        any::<(IpAddr, u16)>().prop_map(SocketAddr::from).boxed()
    }
}

impl<T: Arb> Arb for Option<T> {
    fn arb() -> BoxedStrategy<Self> {
        prop::option::of(T::arb()).boxed()
    }
}

impl<T: Arb> Arb for Vec<T> {
    fn arb() -> BoxedStrategy<Self> {
        prop::collection::vec(T::arb(), 0..3).boxed()
    }
}

impl<K: Arb + Ord, V: Arb> Arb for BTreeMap<K, V> {
    fn arb() -> BoxedStrategy<Self> {
        prop::collection::btree_map(K::arb(), V::arb(), 0..3).boxed()
    }
}

impl<T: Arb> Arb for Box<T> {
    fn arb() -> BoxedStrategy<Self> {
        T::arb().prop_map(Box::new).boxed()
    }
}

impl<T: Arb> Arb for Arc<T> {
    fn arb() -> BoxedStrategy<Self> {
        T::arb().prop_map(Arc::new).boxed()
    }
}

impl<A: Arb, B: Arb> Arb for (A, B) {
    fn arb() -> BoxedStrategy<Self> {
        (A::arb(), B::arb()).boxed()
    }
}

macro_rules! newtype {
    ($($name:ident),+) => {$(
        impl Arb for $name {
            fn arb() -> BoxedStrategy<Self> {
                arb().prop_map($name).boxed()
            }
        }
    )+};
}
newtype!(
    ClusterId,
    NodeId,
    ServiceId,
    TaskId,
    NetworkId,
    SecretId,
    ConfigId,
    ContainerId,
    Timestamp,
    Version,
    RegistryAuth,
    SecretData
);

macro_rules! nested {
    () => { Just(()) };
    ($first:ident $(, $rest:ident)*) => { ({ stringify!($first); arb() }, nested!($($rest),*)) };
}
macro_rules! nested_pattern {
    () => { () };
    ($first:ident $(, $rest:ident)*) => { ($first, nested_pattern!($($rest),*)) };
}
macro_rules! structs {
    ($($name:ident { $($field:ident),+ })+) => {$(
        impl Arb for $name {
            fn arb() -> BoxedStrategy<Self> {
                nested!($($field),+).prop_map(|nested_pattern!($($field),+)| $name { $($field),+ }).boxed()
            }
        }
    )+};
}
macro_rules! enums {
    ($($name:ident { $($variant:ident),+ })+) => {$(
        impl Arb for $name {
            fn arb() -> BoxedStrategy<Self> {
                prop_oneof![$(Just($name::$variant)),+].boxed()
            }
        }
    )+};
}

structs! {
    Annotations { name, labels }
    Meta { version, created_at, updated_at }
    Driver { name, options }
    Service { id, meta, spec, spec_version, previous, endpoint, update_status, pending_delete, runs }
    ScheduledRuns { decided_at, last_at, iteration }
    ServiceSpec { annotations, task, mode, update, rollback, endpoint }
    PreviousSpec { spec, spec_version }
    UpdateConfig { parallelism, delay, failure_action, monitor, max_failure_ratio, order }
    UpdateStatus { state, started_at, completed_at, message }
    EndpointSpec { mode, ports, redirects }
    PortConfig { name, protocol, target, published, mode }
    Endpoint { spec, ports, virtual_ips }
    VirtualIp { network, address }
    TaskSpec { containers, resources, restart, placement, networks, log_driver, force_update }
    Resources { limits, reservations }
    Limits { nano_cpus, memory, pids }
    Reservations { nano_cpus, memory, generic }
    RestartPolicy { condition, delay, max_attempts, window }
    Placement { constraints, preferences, max_replicas, platforms }
    Platform { architecture, os }
    NetworkAttachmentSpec { target, aliases, driver_options }
    TaskStatus { state, at, message, error, exit_code, host_ports }
    NetworkAttachment { network, addresses, aliases }
    ContainerSpec {
        name, image, labels, command, args, hostname, env, dir, user, groups, init, stop_signal, stop_grace, tty,
        open_stdin, read_only, mounts, healthcheck, hosts, dns, secrets, configs, sysctls, cap_add, cap_drop, ulimits,
        privileges, registry_auth, pod
    }
    PodContainer { role, startup, readiness, liveness, pre_stop, post_start, limits, pull }
    Probe { action, initial_delay, period, timeout, successes, failures }
    HttpGet { host, port, path, tls, headers }
    Header { name, value }
    PortRedirect { protocol, port, target }
    Mount { kind, source, target, read_only, consistency, bind, volume, tmpfs }
    BindOptions { propagation, non_recursive, create_mountpoint }
    VolumeOptions { no_copy, subpath, labels, driver, scratch, pinned, gid }
    TmpfsOptions { size, mode }
    Healthcheck { test, interval, timeout, start_period, start_interval, retries }
    DnsConfig { nameservers, search, options }
    FileTarget { name, uid, gid, mode }
    SecretReference { id, name, file }
    ConfigReference { id, name, file }
    Ulimit { name, soft, hard }
    Privileges { no_new_privileges, seccomp_unconfined, privileged, devices }
    DeviceMapping { host, container, access }
    Node { id, meta, spec, index, description, state, message, address, manager }
    NodeSpec { annotations, role, availability }
    NodeDescription {
        hostname, platform, nano_cpus, memory, generic, engine_version, engine_labels, plugins, data_path,
        named_generic, trust, volumes, wireguard, ipv4_only
    }
    WireGuard { port, key, next }
    NodeTrust { roots, issuer }
    ManagerMembership { raft_id, address }
    Network { id, meta, spec, vni, subnets, pending_delete }
    NetworkSpec { annotations, driver, ipv6, internal, ingress, attachable, ipam, ipam_options }
    IpamConfig { subnet, range, gateway, reserved }
    Subnet { subnet, range, gateway }
    Cluster { id, meta, spec, root_ca, join_tokens, address_pools, subnet_size, data_path_port, format, unlock, rotation, ingress_removed }
    Unlock { key }
    RootRotation { root, cross_signed, join_tokens }
    ClusterSpec {
        annotations, task_history, snapshot_interval, keep_old_snapshots, log_entries_for_slow_followers,
        heartbeat_tick, election_tick, heartbeat_period, cert_expiry, autolock, force_rotate
    }
    RootCa { certificates, key }
    JoinTokens { worker, manager }
    Secret { id, meta, spec }
    SecretSpec { annotations, data, driver, templating }
    Config { id, meta, spec }
    ConfigSpec { annotations, data, templating }
    Hello { description, last_index }
    StatusReport { task, status, vitals, mesh, unready }
    TaskVitals { pid, container, health }
    Welcome { session, heartbeat, index, data_path_port, mesh_removed }
    ManagerPeer { node, address }
    Assignments { index, complete, changes }
    SpecKey { service, version }
    AssignedSpec { key, service_name, service_labels, task, ports }
    AssignedTask { id, spec, slot, desired, observed, attachments }
    AssignedFile { id, content }
    FileContent { data, template }
    OpenStream { manager, nonce }
    Peer { node, index, data_path, wireguard, ipv4_only }
    OverlayNetwork { id, name, vni, subnets, internal, encrypted, mtu, port }
    ServiceView { id, name, mode, virtual_ips, aliases, ports, redirects }
    EndpointView { task, service, node, name, addresses, mesh, serving }
    EndpointAddress { network, address, aliases, names }
}

enums! {
    FailureAction { Pause, Continue, Rollback }
    UpdateOrder { StopFirst, StartFirst }
    UpdateState { Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted }
    EndpointMode { Vip, DnsRoundRobin }
    Protocol { Tcp, Udp, Sctp }
    PublishMode { Ingress, Host }
    Role { Main, Init, Sidecar }
    Pull { Always, IfNotPresent, Never }
    RestartCondition { None, OnFailure, Any }
    MountKind { Bind, Volume, Tmpfs }
    NodeRole { Worker, Manager }
    Availability { Active, Pause, Drain }
    NodeState { Unknown, Down, Ready, Disconnected }
}

impl Arb for TaskState {
    fn arb() -> BoxedStrategy<Self> {
        prop::sample::select(&TaskState::ALL[..]).boxed()
    }
}

impl Arb for ServiceMode {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![
            any::<u64>().prop_map(|replicas| Self::Replicated { replicas }),
            Just(Self::Global),
            any::<(u64, u64)>().prop_map(|(max_concurrent, total_completions)| {
                Self::ReplicatedJob { max_concurrent, total_completions }
            }),
            Just(Self::GlobalJob),
        ]
        .boxed()
    }
}

impl Arb for AgentMessage {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![
            arb().prop_map(Self::Hello),
            Just(Self::Heartbeat),
            arb().prop_map(Self::Statuses),
            arb().prop_map(Self::Describe),
            Just(Self::Leaving),
        ]
        .boxed()
    }
}

impl Arb for ManagerMessage {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![
            arb().prop_map(Self::Welcome),
            arb().prop_map(Self::Assignments),
            arb().prop_map(Self::Managers),
            arb().prop_map(Self::OpenStream),
            arb().prop_map(|role| Self::RenewCertificate { role }),
            arb().prop_map(|to| Self::Redirect { to }),
            arb().prop_map(|key| Self::KeyKnown { key }),
        ]
        .boxed()
    }
}

impl Arb for AssignmentChange {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![
            arb().prop_map(Self::PutSpec),
            arb().prop_map(Self::PutTask),
            arb().prop_map(Self::RemoveTask),
            arb().prop_map(Self::PutPeer),
            arb().prop_map(Self::RemovePeer),
            arb().prop_map(Self::PutNetwork),
            arb().prop_map(Self::RemoveNetwork),
            arb().prop_map(Self::PutService),
            arb().prop_map(Self::RemoveService),
            arb().prop_map(Self::PutEndpoint),
            arb().prop_map(Self::RemoveEndpoint),
            arb().prop_map(Self::PutFile),
            arb().prop_map(Self::RemoveFile),
        ]
        .boxed()
    }
}

impl Arb for Action {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![
            arb().prop_map(|command| Self::Exec { command }),
            arb().prop_map(Self::HttpGet),
            arb().prop_map(|(host, port)| Self::TcpSocket { host, port }),
            arb().prop_map(|time| Self::Sleep { time }),
        ]
        .boxed()
    }
}

impl Arb for FileId {
    fn arb() -> BoxedStrategy<Self> {
        prop_oneof![arb().prop_map(Self::Secret), arb().prop_map(Self::Config)].boxed()
    }
}
