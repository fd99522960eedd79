//! Places of plain containers on networks of the cluster: tasks without a service.
//!
//! A place is given when a container starts and taken back when it ends. Which places there should be, its node knows:
//! it tells all of them from time to time, so that what a lost message left behind is mended.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use skep_api::ports::control::ControlError;
use skep_proto::model::{ContainerId, Network, NetworkId, NodeId, TaskId, TaskState};

use super::{Control, PATIENCE, from_proposal, networks, refusal};
use crate::store::{Attached, Change, Group, Outcome, Reference, State, TaskRef, TaskRow};

/// Attempts to take a place back while others change it, too.
const TRIES: usize = 5;

/// A plain container that wants a place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Its node.
    pub node: NodeId,
    /// The container.
    pub container: ContainerId,
    /// Its name.
    pub name: String,
    /// The network: id, name or unique prefix of an id.
    pub network: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// The IPv4 address asked for; `None` for any.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 address asked for; `None` for any.
    pub address6: Option<Ipv6Addr>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The network.
    pub network: NetworkId,
    /// Its addresses there, with prefix length.
    pub addresses: Vec<IpNet>,
}

/// Why a container gets no place.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The network is for services only. swarmkit's words.
    #[error("network {0} not manually attachable")]
    NotAttachable(String),
    /// As for other calls.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Control {
    /// A network that a container is to join.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], and those of reading.
    pub async fn network_to_join(&self, reference: &str) -> Result<Arc<Network>, ControlError> {
        networks::find(&*self.read().await?, reference)
    }

    /// Gives a container a place; repeating it gives the same one.
    ///
    /// # Errors
    /// [`AttachError`]. Nothing is left behind then.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Place, AttachError> {
        let state = self.read().await?;
        let network = networks::find(&state, &request.network)?;
        if !network.spec.attachable {
            return Err(AttachError::NotAttachable(network.spec.annotations.name.clone()));
        }
        let task = match place_of(&state, request, network.id) {
            Some(known) => {
                self.rename_place(&state, known, request).await?;
                known
            }
            None => self.make_place(&state, request, network.id).await?,
        };
        match tokio::time::timeout(PATIENCE, self.address_of(task)).await {
            Ok(Ok(addresses)) => Ok(Place { network: network.id, addresses }),
            Ok(Err(error)) => {
                self.end_place(task).await?;
                Err(error.into())
            }
            Err(_) => {
                self.end_place(task).await?;
                Err(ControlError::Timeout.into())
            }
        }
    }

    async fn make_place(
        &self,
        state: &State,
        request: &AttachRequest,
        network: NetworkId,
    ) -> Result<TaskRef, ControlError> {
        let gone = |what: &str| ControlError::FailedPrecondition(format!("the {what} was removed meanwhile"));
        let node = state.nodes().reference(request.node).ok_or_else(|| gone("node"))?;
        let network = state.networks().reference(network).ok_or_else(|| gone("network"))?;
        let attached = Attached {
            network,
            container: request.container,
            name: request.name.clone(),
            aliases: request.aliases.clone(),
            address: request.address,
        };
        let id = TaskId::random(&mut rand::rng());
        let change = match request.address6 {
            None => Change::Attach { id, node, attached },
            Some(address6) => Change::AttachAt { id, node, attached, address6 },
        };
        match self.parts.proposer.propose(Group::of(change)).await.map_err(from_proposal)? {
            Outcome::Applied { created, .. } => created.first().copied().ok_or(ControlError::Timeout),
            Outcome::Refused(refusal) => Err(refusal::to_control_error(refusal)),
        }
    }

    /// Waits for the allocator.
    async fn address_of(&self, task: TaskRef) -> Result<Vec<IpNet>, ControlError> {
        let (mut state, mut watch) = self.parts.store.view_and_watch();
        loop {
            let row = state.row(task).filter(|row| !row.is_dead());
            let row =
                row.ok_or_else(|| ControlError::FailedPrecondition("the place was taken back meanwhile".into()))?;
            if row.state == TaskState::Running {
                let attachments = state.attachments(task.handle(), row);
                return Ok(attachments.into_iter().flat_map(|a| a.addresses).collect());
            }
            if let Some(extra) = state.extra(task.handle()).filter(|extra| !extra.error.is_empty()) {
                return Err(ControlError::FailedPrecondition(extra.error.clone()));
            }
            state = watch.next().await.ok_or(ControlError::NoLeader)?.0;
        }
    }

    /// Takes back a container's places, or the one on a network.
    ///
    /// # Errors
    /// Those of reading and of proposals.
    pub async fn detach(
        &self,
        node: NodeId,
        container: ContainerId,
        network: Option<NetworkId>,
    ) -> Result<(), ControlError> {
        let state = self.read().await?;
        let is_meant = |network_of: NetworkId, attached: &Attached| {
            attached.container == container && network.is_none_or(|network| network == network_of)
        };
        let places: Vec<TaskRef> =
            places_on(&state, node).filter(|(_, network, a)| is_meant(*network, a)).map(|(task, ..)| task).collect();
        for task in places {
            self.end_place(task).await?;
        }
        Ok(())
    }

    /// Brings the places of a node's containers to what the node says they are.
    ///
    /// # Errors
    /// The first place that its container cannot have any more; the others were seen to.
    pub async fn keep(&self, node: NodeId, wanted: &[AttachRequest]) -> Result<(), AttachError> {
        let state = self.read().await?;
        let known: BTreeSet<(ContainerId, String)> =
            wanted.iter().map(|place| (place.container, place.network.clone())).collect();
        for (task, network, attached) in places_on(&state, node) {
            if !known.contains(&(attached.container, network.to_string())) {
                self.end_place(task).await?;
            }
        }
        let mut result = Ok(());
        for place in wanted {
            let network = place.network.parse::<NetworkId>().ok();
            let kept = match network.and_then(|network| place_of(&state, place, network)) {
                Some(known) => self.rename_place(&state, known, place).await.map_err(AttachError::from),
                None => self.attach(place).await.map(drop),
            };
            result = result.and(kept);
        }
        result
    }

    /// Gives a place the names that its container has now.
    async fn rename_place(&self, state: &State, task: TaskRef, request: &AttachRequest) -> Result<(), ControlError> {
        let has_others = |known: &Arc<Attached>| (&known.name, &known.aliases) != (&request.name, &request.aliases);
        if !state.attached(task.handle()).is_some_and(has_others) {
            return Ok(());
        }
        let (name, aliases) = (request.name.clone(), request.aliases.clone());
        let change = Change::RenameAttached { task, name, aliases };
        match self.parts.proposer.propose(Group::of(change)).await.map_err(from_proposal)? {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Refused(refusal) => Err(refusal::to_control_error(refusal)),
        }
    }

    /// Gives a place back: its address is free when this returns.
    async fn end_place(&self, task: TaskRef) -> Result<(), ControlError> {
        for _ in 0..TRIES {
            let state = self.parts.store.view();
            let Some(row) = state.row(task).filter(|row| !row.is_dead()) else { return Ok(()) };
            let change = match row.state {
                TaskState::New => Change::Desire { task, if_version: row.version, to: TaskState::Remove },
                _ => Change::Status { task, state: TaskState::Shutdown, at_ms: state.now().0, exit: None },
            };
            self.parts.proposer.propose(Group::of(change)).await.map_err(from_proposal)?;
        }
        Err(ControlError::FailedPrecondition(
            "the container's place on the network changes too often: try again".into(),
        ))
    }
}

/// Places that containers of a node have or wait for.
fn places_on(state: &State, node: NodeId) -> impl Iterator<Item = (TaskRef, NetworkId, &Arc<Attached>)> {
    let rows = state.nodes().reference(node).into_iter().flat_map(|node| state.rows_on_node(node));
    let is_live = |(_, row): &(u32, &TaskRow)| row.service.is_none() && !row.is_dead();
    rows.filter(is_live).filter_map(|(handle, row)| {
        let attached = state.attached(handle)?;
        Some((row.reference(handle), state.networks().lookup(attached.network)?.id, attached))
    })
}

fn place_of(state: &State, request: &AttachRequest, network: NetworkId) -> Option<TaskRef> {
    let is_same = |of: NetworkId, attached: &Attached| of == network && attached.container == request.container;
    places_on(state, request.node).find(|(_, of, attached)| is_same(*of, attached)).map(|(task, ..)| task)
}
