//! The cluster.

use super::field::record;
use crate::model::cluster::{JoinTokens, RootCa, RootRotation, Unlock};
use crate::model::{Cluster, ClusterSpec};
use crate::wire::objects as wire;

record!(Cluster {
    id,
    meta,
    spec,
    root_ca,
    join_tokens,
    address_pools,
    subnet_size,
    data_path_port,
    format,
    unlock,
    rotation,
    ingress_removed
});
record!(RootRotation { root, cross_signed, join_tokens });
record!(Unlock { key });
record!(ClusterSpec {
    annotations,
    task_history,
    snapshot_interval,
    keep_old_snapshots,
    log_entries_for_slow_followers,
    heartbeat_tick,
    election_tick,
    heartbeat_period,
    cert_expiry,
    autolock,
    force_rotate,
});
record!(RootCa { certificates, key });
record!(JoinTokens { worker, manager });
