//! What only the manager that holds a node's session can do, from any manager: here if it is this one, else by a call to
//! the leader.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use skep_identity::{Connector, Expect};
use skep_proto::model::session::{OpenStream, TaskVitals};
use skep_proto::model::{NodeId, NodeRole, TaskId};
use skep_proto::wire::dispatch as wire;
use skep_proto::wire::dispatch::relay_client::RelayClient;
use tonic::Code;
use tonic::transport::Channel;

use super::reign::lock;
use super::streams::{AskNode, StreamError};
use super::{Dispatcher, NoSession};

/// For a call to the leader.
const CALL: Duration = Duration::from_secs(5);
/// Tasks asked for in one call at most.
pub(super) const MAX_TASKS: usize = 10_000;

/// Reaches the manager that holds the sessions.
pub struct Relay {
    dispatcher: Arc<Dispatcher>,
    connector: Connector,
    /// To the last leader.
    channel: Mutex<Option<(SocketAddr, Channel)>>,
}

impl Relay {
    /// Through `dispatcher` while it leads, else through calls made by `connector`.
    pub fn new(dispatcher: Arc<Dispatcher>, connector: Connector) -> Self {
        Self { dispatcher, connector, channel: Mutex::default() }
    }

    /// Volatile facts of tasks. It never fails: facts that cannot be had now are left out.
    pub async fn vitals(&self, tasks: &[TaskId]) -> BTreeMap<TaskId, TaskVitals> {
        if self.dispatcher.is_leading() {
            return tasks.iter().filter_map(|task| Some((*task, self.dispatcher.vitals(*task)?))).collect();
        }
        let Some(mut leader) = self.leader() else { return BTreeMap::new() };
        let mut found = BTreeMap::new();
        for some in tasks.chunks(MAX_TASKS) {
            let tasks = some.iter().map(|task| id_bytes(task.0)).collect();
            let mut call = tonic::Request::new(wire::VitalsRequest { tasks });
            call.set_timeout(CALL);
            match leader.vitals(call).await {
                Ok(answer) => found.extend(answer.into_inner().vitals.into_iter().filter_map(|vitals| {
                    let task = TaskId(id_of(&vitals.task)?);
                    Some((task, TaskVitals::try_from(vitals.vitals?).ok()?))
                })),
                Err(status) => {
                    tracing::debug!(code = ?status.code(), "no vitals from the leader: {}", status.message());
                    break;
                }
            }
        }
        found
    }

    fn leader(&self) -> Option<RelayClient<Channel>> {
        let address = self.dispatcher.leader()?;
        let mut cached = lock(&self.channel);
        let channel = match &*cached {
            Some((known, channel)) if *known == address => channel.clone(),
            _ => {
                let channel = self.connector.channel(address, Expect::Role(NodeRole::Manager));
                *cached = Some((address, channel.clone()));
                channel
            }
        };
        Some(RelayClient::new(channel))
    }
}

#[async_trait]
impl AskNode for Relay {
    async fn ask(&self, node: NodeId, open: OpenStream) -> Result<(), StreamError> {
        if self.dispatcher.is_leading() {
            return self.dispatcher.ask_stream(node, open).map_err(|error| match error {
                NoSession::NotConnected(node) => StreamError::NotConnected { node },
                NoSession::Busy(node) => StreamError::Busy { node },
            });
        }
        let mut leader = self.leader().ok_or(StreamError::NoLeader)?;
        let open = Some((&open).into());
        let mut call = tonic::Request::new(wire::OpenStreamRequest { node: id_bytes(node.0), open });
        call.set_timeout(CALL);
        match leader.open_stream(call).await {
            Ok(_) => Ok(()),
            Err(status) => Err(match status.code() {
                Code::NotFound => StreamError::NotConnected { node },
                Code::ResourceExhausted => StreamError::Busy { node },
                _ => StreamError::Leader { node, message: status.message().to_owned() },
            }),
        }
    }
}

pub(super) fn id_bytes(id: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.to_be_bytes())
}

pub(super) fn id_of(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.try_into().ok()?))
}
