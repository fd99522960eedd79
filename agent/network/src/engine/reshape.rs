//! A sandbox joins and leaves networks, or gets other names, while its processes run.
//!
//! What goes, goes first; then comes what is new. The record tells of a link no longer than the link is there: one that a
//! crash leaves behind is a leftover for the next start.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::conntrack::{self, Cut};
use super::kept::OnDisk;
use super::lifecycle::{NETWORK_WAIT, is_untold};
use super::sandbox::{self, Live};
use super::state::Record;
use super::{Inner, Moving, blocking};
use crate::error::{NetworkError, Step};
use crate::spec::{Sandbox, SandboxLink, SandboxSpec};

impl Inner {
    pub(super) async fn reshape(self: Arc<Self>, spec: SandboxSpec) -> Result<Sandbox, NetworkError> {
        let id = spec.id.clone();
        let _moving = Moving::new(&self, &id);
        let live = self.live_cell(&id).lock_owned().await;
        let known = self.state().records.get(&id).cloned().filter(|_| live.is_some());
        let Some(record) = known else {
            drop(live);
            self.forget_cell(&id);
            return Err(NetworkError::UnknownSandbox { id: id.to_string() });
        };
        let same = SandboxSpec {
            overlays: spec.overlays.clone(),
            bridges: spec.bridges.clone(),
            mesh: spec.mesh,
            ..record.spec.clone()
        };
        if same != spec {
            return Err(NetworkError::Differs { id: id.to_string() });
        }
        if record.spec == spec {
            return Ok(record.sandbox(&self.config));
        }
        let until = Instant::now() + NETWORK_WAIT;
        let (mut live, mut record) = (live, record);
        let result = loop {
            if let Err(error) = self.wait_for_networks(&spec, until).await {
                break Err(error);
            }
            let (inner, wanted) = (self.clone(), spec.clone());
            let reshaped;
            (live, reshaped) = blocking(move || {
                let result = inner.reshape_live(&mut live, record, wanted);
                Ok((live, result))
            })
            .await?;
            match self.state().records.get(&id).cloned() {
                Some(left) if reshaped.as_ref().is_err_and(|error| is_untold(error, until)) => record = left,
                Some(_) | None => break reshaped,
            }
        };
        if let Some(live) = live.as_mut() {
            live.names_confirmed = false;
            // Asked again at the managers' next word.
            if let Err(error) = self.serve_names(&id, live).await {
                tracing::warn!(%error, sandbox.id = %id, "the name server cannot be told of a sandbox's networks");
            }
        }
        drop(live);
        self.publish_zones().await;
        result.map(|record| record.sandbox(&self.config))
    }

    fn reshape_live(
        &self,
        live: &mut OwnedMutexGuard<Option<Live>>,
        record: Record,
        spec: SandboxSpec,
    ) -> Result<Record, NetworkError> {
        let unknown = || NetworkError::UnknownSandbox { id: spec.id.to_string() };
        let live = live.as_mut().ok_or_else(unknown)?;
        let left = self.state().without(&record, &spec);
        let gone: Vec<SandboxLink> = record.links.iter().filter(|link| !left.links.contains(link)).cloned().collect();
        if !gone.is_empty() {
            // First on disk: a link that is left then is a leftover, one that is missing would not be made again.
            self.write(&left, live)?;
            sandbox::remove_links(self, &record, &gone)?;
            sandbox::use_way_out(&live.netns, &left)?;
        }
        self.state().records.insert(left.spec.id.clone(), left.clone());

        let wanted = {
            let mut state = self.state();
            let links = state.plan_links(&spec, &self.config, &left.links);
            links.map(|links| {
                let wanted = Record { spec, links, ..left.clone() };
                state.records.insert(wanted.spec.id.clone(), wanted.clone());
                wanted
            })
        };
        let made = wanted.and_then(|wanted| self.add(live, &left, wanted));
        let now = made.as_ref().unwrap_or(&left);
        let rules = live.load_rules(self, now).and_then(|()| self.load_node_rules());
        let cut = Cut { gone: gone.iter().flat_map(SandboxLink::addresses).collect(), ..Cut::default() };
        let cut = conntrack::cut(&self.netns, &cut).step("cut connections to a sandbox");
        let record = made?;
        rules.and(cut).map(|()| record)
    }

    /// Makes what `wanted` has more than `left`, or nothing.
    fn add(&self, live: &Live, left: &Record, wanted: Record) -> Result<Record, NetworkError> {
        let new = &wanted.links[left.links.len()..];
        let made = sandbox::add_links(self, &live.netns, &wanted, new).and_then(|()| self.write(&wanted, live));
        let Err(error) = made else { return Ok(wanted) };
        if let Err(error) = sandbox::remove_links(self, &wanted, new) {
            tracing::warn!(%error, sandbox.id = %wanted.spec.id, "cannot take back links of a sandbox");
        }
        self.state().records.insert(left.spec.id.clone(), left.clone());
        Err(error)
    }

    fn write(&self, record: &Record, live: &Live) -> Result<(), NetworkError> {
        let kept = OnDisk { record: record.clone(), dns: live.dns };
        kept.write(&self.record_path(&record.spec.id))
    }
}
