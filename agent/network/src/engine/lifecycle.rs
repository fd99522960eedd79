//! The life of a sandbox: reserved, made, recorded, served; and the way back.

use std::sync::Arc;
use std::time::Duration;

use skep_proto::model::service::Protocol;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::conntrack::Cut;
use super::cuts::{Due, node_addresses};
use super::kept::OnDisk;
use super::sandbox::{self, Live};
use super::state::Record;
use super::{Inner, LiveCell, Moving, blocking, conntrack, lock, ports};
use crate::error::{NetworkError, Step};
use crate::plan::leaving::Places;
use crate::record;
use crate::spec::{Sandbox, SandboxId, SandboxSpec};

/// How long a new sandbox waits for the managers to tell of its networks.
pub(super) const NETWORK_WAIT: Duration = Duration::from_secs(5);

/// Whether a step failed because the managers took back meanwhile what they had told, and there is time to hear more. A node
/// whose only container starts again is told of the end of its place on a network and of the next one, and both are late.
pub(super) fn is_untold(error: &NetworkError, until: Instant) -> bool {
    matches!(error, NetworkError::UnknownNetwork { .. } | NetworkError::NoIndex) && Instant::now() < until
}

impl Inner {
    pub(super) async fn create(self: Arc<Self>, spec: SandboxSpec) -> Result<Sandbox, NetworkError> {
        let id = spec.id.clone();
        let _moving = Moving::new(&self, &id);
        let live = self.live_cell(&id).lock_owned().await;
        let result = self.create_in(spec, live).await;
        if result.is_err() {
            self.forget_cell(&id);
        }
        self.publish_zones().await;
        result
    }

    /// Makes a sandbox whose cell is locked.
    pub(super) async fn create_in(
        self: &Arc<Self>,
        spec: SandboxSpec,
        mut live: OwnedMutexGuard<Option<Live>>,
    ) -> Result<Sandbox, NetworkError> {
        let id = spec.id.clone();
        let known = self.state().records.get(&id).cloned();
        if let (Some(record), true) = (&known, live.is_some()) {
            return match record.spec == spec {
                true => Ok(record.sandbox(&self.config)),
                false => Err(NetworkError::Differs { id: id.to_string() }),
            };
        }
        // Of a creation that could not be taken back; making it again replaces it.
        self.state().records.remove(&id);
        let until = Instant::now() + NETWORK_WAIT;
        let (record, made) = loop {
            self.wait_for_networks(&spec, until).await?;
            let (inner, wanted) = (self.clone(), spec.clone());
            let record = blocking(move || inner.reserve(wanted)).await?;
            match self.clone().make(record.clone()).await {
                Ok(made) => break (record, made),
                Err(error) => {
                    self.unmake(record).await;
                    if !is_untold(&error, until) {
                        return Err(error);
                    }
                }
            }
        };
        let sandbox = record.sandbox(&self.config);
        let is_newest = made.view == self.view_number();
        *live = Some(made);
        // What the managers said meanwhile did not wait for it.
        if !is_newest {
            let followed = self.refresh(&id, live).await;
            self.or_behind(followed)?;
        }
        Ok(sandbox)
    }

    pub(super) fn reserve(&self, spec: SandboxSpec) -> Result<Record, NetworkError> {
        // In the node's namespace, for the check whether a program of the node has a port.
        let checked = self.netns.enter(|| {
            let asked = spec.host_ports.clone();
            self.state().reserve(spec, &self.config, ports::is_free).map_err(|error| match error {
                // Nobody here has it: what the system says of it tells more.
                NetworkError::PortTaken { address, port, protocol } => {
                    let asked = asked.iter().find(|asked| (asked.published, asked.protocol) == (Some(port), protocol));
                    let refused = asked.and_then(|asked| ports::refusal(asked.bind, port, protocol));
                    refused.unwrap_or(NetworkError::PortTaken { address, port, protocol })
                }
                other => other,
            })
        });
        checked.step("look for free ports")?
    }

    pub(super) async fn make(self: Arc<Self>, record: Record) -> Result<Live, NetworkError> {
        let (inner, wanted) = (self.clone(), record.clone());
        let netns = blocking(move || sandbox::build(&inner, &wanted)).await?;
        let ports = self.names.put_sandbox(record.dns(&self.config)).await;
        let dns = ports.map_err(|source| NetworkError::Names { id: record.spec.id.to_string(), source })?;
        blocking(move || {
            let mut made = Live::new(netns, dns, true);
            made.load_rules(&self, &record)?;
            self.load_node_rules()?;
            let udp = record.host_ports.iter().filter(|port| port.protocol == Protocol::Udp);
            let cut = Cut { opened: udp.filter_map(|port| port.published).collect(), ..Cut::default() };
            conntrack::cut(&self.netns, &cut).step("cut connections to ports that were closed")?;
            let path = self.record_path(&record.spec.id);
            OnDisk { record, dns }.write(&path)?;
            Ok(made)
        })
        .await
    }

    /// Takes back what a failed creation made.
    pub(super) async fn unmake(self: &Arc<Self>, record: Record) {
        let inner = self.clone();
        let id = record.spec.id.clone();
        if let Err(error) = self.names.remove_sandbox(&id).await {
            tracing::debug!(%error, sandbox.id = %id, "the name server cannot forget a sandbox");
        }
        let undone = blocking(move || {
            let removed = sandbox::remove(&inner, &record);
            let deleted = record::delete(&inner.record_path(&record.spec.id));
            inner.state().records.remove(&record.spec.id);
            removed.and(deleted).and(inner.load_node_rules())
        })
        .await;
        if let Err(error) = undone {
            tracing::warn!(%error, sandbox.id = %id, "cannot take back a sandbox that could not be made");
        }
    }

    pub(super) fn forget_cell(&self, id: &SandboxId) {
        let mut cells = lock(&self.live);
        let unused = |cell: &LiveCell| cell.try_lock().is_ok_and(|live| live.is_none());
        // Somebody who waits for the cell goes on with it.
        if cells.get(id).is_some_and(|cell| Arc::strong_count(cell) == 1 && unused(cell)) {
            cells.remove(id);
        }
    }

    /// Waits for the managers to tell of a sandbox's networks.
    pub(super) async fn wait_for_networks(&self, spec: &SandboxSpec, until: Instant) -> Result<(), NetworkError> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                let ready = self.state().ready_for(spec, &self.config);
                if ready.is_ok() || changed.changed().await.is_err() {
                    return ready;
                }
            }
        };
        match tokio::time::timeout_at(until, wait).await {
            Ok(ready) => ready,
            Err(_) => self.state().ready_for(spec, &self.config),
        }
    }

    pub(super) async fn delete(self: Arc<Self>, id: &SandboxId) -> Result<(), NetworkError> {
        let _moving = Moving::new(&self, id);
        let cell = self.live_cell(id);
        let mut live = cell.lock_owned().await;
        let Some(record) = self.state().records.get(id).cloned() else {
            drop(live);
            self.forget_cell(id);
            return Ok(());
        };
        if let Err(error) = self.names.remove_sandbox(id).await {
            tracing::warn!(%error, sandbox.id = %id, "the name server cannot forget a sandbox");
        }
        let inner = self.clone();
        blocking(move || {
            // Its sockets would keep the namespace alive.
            *live = None;
            sandbox::remove(&inner, &record)?;
            record::delete(&inner.record_path(&record.spec.id))?;
            inner.state().records.remove(&record.spec.id);
            inner.load_node_rules()?;
            let gone = Places { node: node_addresses(&record).collect(), ..Places::default() };
            inner.cut_later(Due { gone, ..Due::default() }, Places::default());
            Ok(())
        })
        .await?;
        self.forget_cell(id);
        self.publish_zones().await;
        Ok(())
    }
}
