//! The cluster's own record.

use std::sync::Arc;
use std::time::Duration;

use skep_api::ports::control::{ControlError, Rotations};
use skep_proto::model::cluster::{RootRotation, Unlock};
use skep_proto::model::{Cluster, ClusterSpec, NodeRole, Version};

use super::Control;
use crate::ca;
use crate::raft::keys::UnlockKey;
use crate::store::Change;

/// Shortest life of a certificate (swarmkit): below it nodes could not renew in time.
const SHORTEST_EXPIRY: Duration = Duration::from_secs(3600);

impl Control {
    pub(super) async fn get_cluster(&self) -> Result<Arc<Cluster>, ControlError> {
        self.read().await?.cluster().cloned().ok_or(ControlError::NotInSwarm)
    }

    pub(super) async fn get_unlock_key(&self) -> Result<String, ControlError> {
        Ok(self.get_cluster().await?.unlock.as_ref().map(|unlock| unlock.key.clone()).unwrap_or_default())
    }

    pub(super) async fn write_backup(&self) -> Result<Vec<u8>, ControlError> {
        let state = self.read().await?;
        let write = move || {
            let mut bytes = Vec::new();
            state.write_to(&mut bytes).map(|()| bytes)
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other).flatten();
        written
            .map_err(|source| ControlError::Internal { context: "writing the backup".into(), source: Box::new(source) })
    }

    pub(super) async fn change_cluster(
        &self,
        at: Version,
        spec: ClusterSpec,
        rotate: Rotations,
    ) -> Result<(), ControlError> {
        let state = self.read().await?;
        let now = state.now();
        let mut cluster = (**state.cluster().ok_or(ControlError::NotInSwarm)?).clone();
        check(&spec, &cluster.spec)?;
        cluster.unlock = match (spec.autolock, cluster.unlock) {
            (true, Some(unlock)) if !rotate.unlock_key => Some(unlock),
            (true, _) => Some(new_unlock_key()),
            (false, _) => None,
        };
        let unusable =
            |context: &str, source| ControlError::Internal { context: context.into(), source: Box::new(source) };
        if spec.force_rotate != cluster.spec.force_rotate {
            let made = ca::begin_rotation(cluster.id, &cluster.root_ca, now, &mut rand::rng());
            cluster.rotation = Some(made.map_err(|source| unusable("making a root certificate", source))?);
        }
        for (asked, role) in [(rotate.worker_token, NodeRole::Worker), (rotate.manager_token, NodeRole::Manager)] {
            if asked {
                let made = ca::rotate_token(&mut cluster.join_tokens, role, &cluster.root_ca, &mut rand::rng());
                made.map_err(|source| unusable("making a join token", source))?;
                if let Some(RootRotation { root, join_tokens, .. }) = &mut cluster.rotation {
                    let made = ca::rotate_token(join_tokens, role, root, &mut rand::rng());
                    made.map_err(|source| unusable("making a join token", source))?;
                }
            }
        }
        cluster.meta.version = at;
        cluster.spec = spec;
        self.change(Change::update(&cluster)).await
    }
}

/// A key that unlocks managers.
pub fn new_unlock_key() -> Unlock {
    Unlock { key: UnlockKey::random().reveal() }
}

fn check(spec: &ClusterSpec, old: &ClusterSpec) -> Result<(), ControlError> {
    if spec.annotations.name != old.annotations.name {
        return Err(ControlError::InvalidArgument(format!("swarm spec must be named {:?}", old.annotations.name)));
    }
    check_settings(spec)
}

/// Checks what an operator may set of a cluster, when it is made and later (swarmkit, `validateClusterSpec`).
///
/// # Errors
/// [`ControlError::InvalidArgument`] in swarmkit's words.
pub fn check_settings(spec: &ClusterSpec) -> Result<(), ControlError> {
    if spec.cert_expiry < SHORTEST_EXPIRY {
        return Err(ControlError::InvalidArgument("minimum certificate expiry time is: 1h0m0s".into()));
    }
    if spec.heartbeat_period < Duration::from_millis(500) {
        return Err(ControlError::InvalidArgument("heartbeat time interval cannot be below 500ms".into()));
    }
    Ok(())
}
