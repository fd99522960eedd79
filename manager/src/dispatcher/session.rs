//! One agent's session: three loops side by side, until one of them ends it.

use std::net::IpAddr;
use std::sync::Arc;

use skep_identity::Identity;
use skep_proto::model::node::NodeTrust;
use skep_proto::model::session::{
    AgentMessage, AssignmentChange, Hello, ManagerMessage, ManagerPeer, StatusReport, Welcome,
};
use skep_proto::model::{Cluster, Node, NodeDescription, NodeId, NodeRole, NodeState, TaskId, Version};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::dirty::Cell;
use super::drain::Draining;
use super::outlook::Outlook;
use super::ports::{ClusterView, Leadership, NodeChange};
use super::reign::{Registered, Reign, lock, sleep_until_or_never};
use super::transport::{Inbound, Outbound, Transport, TransportError};
use super::{chain, derive, keys, status};
use crate::ca::trust;

/// Data path port until the cluster says otherwise (VXLAN, RFC 7348).
const DATA_PATH_PORT: u16 = 4789;
/// Text of a node that has left.
const LEFT: &str = "the node left";

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the agent closed the session")]
    Closed,
    #[error("the agent did not say hello")]
    NoHello,
    #[error("the node is not part of the cluster")]
    Unknown,
    #[error("the agent has seen a newer state than this manager")]
    Behind,
    #[error("the agent takes no messages")]
    Stuck,
    #[error("the node left")]
    Left,
    #[error("the node began a newer session, was lost, or this manager leads no more")]
    Replaced,
}

/// A session on this manager, which leads.
pub(super) struct AgentSession {
    pub(super) reign: Arc<Reign>,
    pub(super) id: u64,
    pub(super) peer: Identity,
    pub(super) address: IpAddr,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl AgentSession {
    /// Serves the session to its end.
    pub(super) async fn run(self, transport: Transport) -> Ended {
        let Transport { mut inbound, mut outbound } = transport;
        let hello = match timeout(self.reign.timing.hello, inbound.recv()).await {
            Ok(Ok(Some(AgentMessage::Hello(hello)))) => hello,
            Ok(Err(error)) => return error.into(),
            _ => return Ended::NoHello,
        };
        let node = match self.wait_for_node().await {
            Some(node) => node,
            None => return Ended::Unknown,
        };
        let view = self.reign.store.view();
        if hello.last_index > view.index() {
            let _ = send(&self.reign, &mut *outbound, ManagerMessage::Redirect { to: None }).await;
            return Ended::Behind;
        }
        let Registered { cell, end, mut streams } = self.reign.begin(self.peer.node, self.id);
        let (described, descriptions) = mpsc::channel(1);
        let recheck = Notify::new();
        let ended = {
            let read = self.read(&mut *inbound, described);
            let write = self.write(&mut *outbound, &cell, &mut streams, node.index, &recheck);
            let describe = self.describe(&hello, descriptions, &recheck);
            tokio::select! {
                ended = read => ended,
                ended = write => ended,
                ended = describe => ended,
                () = end.cancelled() => Ended::Replaced,
            }
        };
        self.reign.end(self.peer.node, self.id, &cell);
        match ended {
            Ended::Left => self.reign.mark_down(self.peer.node, LEFT, true).await,
            Ended::Replaced if self.reign.over.is_cancelled() => {
                let to = super::leader(&self.leadership);
                let _ = send(&self.reign, &mut *outbound, ManagerMessage::Redirect { to }).await;
            }
            _ => {}
        }
        ended
    }

    /// The node's record. One that has just joined may not have been applied here yet.
    async fn wait_for_node(&self) -> Option<Arc<skep_proto::model::Node>> {
        let find = async {
            let mut changes = self.reign.store.watch();
            loop {
                let view = self.reign.store.view();
                let node = view.node(self.peer.node);
                if node.is_some() || changes.next().await.is_none() {
                    return node;
                }
            }
        };
        timeout(self.reign.timing.hello, find).await.ok().flatten()
    }

    async fn read(&self, inbound: &mut dyn Inbound, described: mpsc::Sender<NodeDescription>) -> Ended {
        loop {
            let message = match inbound.recv().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ended::Closed,
                Err(error) => return error.into(),
            };
            self.reign.heard_of(self.peer.node);
            match message {
                AgentMessage::Heartbeat => {}
                AgentMessage::Applied { sets } => self.reign.applied(self.peer.node, self.id, sets),
                AgentMessage::Statuses(reports) => self.take_reports(reports),
                AgentMessage::Describe(description) => {
                    if described.send(description).await.is_err() {
                        return Ended::Replaced;
                    }
                }
                AgentMessage::Leaving => {
                    self.reign.forget(self.peer.node);
                    return Ended::Left;
                }
                AgentMessage::Hello(_) => return Ended::NoHello,
            }
        }
    }

    fn take_reports(&self, reports: Vec<StatusReport>) {
        let (view, node) = (self.reign.store.view(), self.peer.node);
        for report in reports {
            match status::accept(&*view, node, &report) {
                Ok(update) => self.reign.report(update),
                Err(status::Ignored::Late) => {}
                Err(why) => {
                    let state = report.status.state.as_str();
                    tracing::debug!(node.id = %node, task.id = %report.task, state, ?why, "status not accepted");
                    continue;
                }
            }
            self.reign.set_ready(&*view, report.task, !report.unready || report.status.state.is_terminal());
            self.reign.set_vitals(node, self.id, report.task, report.vitals);
        }
    }

    /// Keeps the node's record as the agent describes it, and ready.
    async fn describe(
        &self,
        hello: &Hello,
        mut descriptions: mpsc::Receiver<NodeDescription>,
        recheck: &Notify,
    ) -> Ended {
        let mut description = hello.description.clone();
        self.refuse_foreign_key(&mut description);
        loop {
            self.record(&description).await;
            tokio::select! {
                Some(next) = descriptions.recv() => {
                    description = next;
                    self.refuse_foreign_key(&mut description);
                }
                () = recheck.notified() => {}
            }
        }
    }

    /// A node may tell its own key only.
    fn refuse_foreign_key(&self, description: &mut NodeDescription) {
        let Some(announced) = &description.wireguard else { return };
        let nodes = self.reign.store.view().nodes();
        if keys::is_taken(self.peer.node, announced, nodes.iter().map(|node| &**node)) {
            tracing::warn!(node.id = %self.peer.node, "the node announces a WireGuard key of another node; it is ignored");
            description.wireguard = None;
        }
    }

    async fn record(&self, description: &NodeDescription) {
        loop {
            let node = self.reign.store.view().node(self.peer.node);
            let is_recorded = node.is_none_or(|node| {
                node.state == NodeState::Ready && node.address == Some(self.address) && node.description == *description
            });
            if is_recorded {
                return;
            }
            let change = NodeChange {
                node: self.peer.node,
                state: NodeState::Ready,
                message: String::new(),
                description: Some(description.clone()),
                address: Some(self.address),
            };
            match self.reign.store.change_node(change).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(node.id = %self.peer.node, error = %chain(&error), "node not recorded as ready");
                    sleep(self.reign.timing.retry).await;
                }
            }
        }
    }

    async fn write(
        &self,
        outbound: &mut dyn Outbound,
        cell: &Arc<Cell>,
        streams: &mut mpsc::Receiver<skep_proto::model::session::OpenStream>,
        index: u16,
        recheck: &Notify,
    ) -> Ended {
        let welcome = self.welcome(index);
        if let Err(ended) = send(&self.reign, outbound, ManagerMessage::Welcome(welcome.clone())).await {
            return ended;
        }
        let mut writer = Writer {
            session: self,
            outlook: Outlook::new(self.peer.node).with_readiness(Arc::clone(&self.reign.unready)),
            managers: Vec::new(),
            role: self.peer.role,
            welcome,
            trust: Trust::default(),
            recheck,
            draining: Draining::default(),
            key_known: None,
        };
        loop {
            let result = tokio::select! {
                biased;
                Some(open) = streams.recv() => send(&self.reign, outbound, ManagerMessage::OpenStream(open)).await,
                () = cell.wait() => writer.tell_changes(outbound, cell).await,
                () = sleep_until_or_never(writer.draining.next()) => {
                    let given_up = writer.draining.give_up(Instant::now());
                    tracing::info!(
                        node.id = %self.peer.node, tasks = given_up.len(),
                        "tasks are stopped though a node may still lead to them: it did not answer in time"
                    );
                    cell.mark(|dirty| dirty.own.extend(given_up));
                    Ok(())
                }
            };
            if let Err(ended) = result {
                return ended;
            }
        }
    }
}

impl AgentSession {
    fn welcome(&self, index: u16) -> Welcome {
        let cluster = self.reign.store.view().cluster();
        let heartbeat = self.reign.heartbeat();
        self.reign.set_heartbeat(self.peer.node, self.id, heartbeat);
        let (data_path_port, mesh_removed) =
            cluster.map_or((DATA_PATH_PORT, false), |cluster| (cluster.data_path_port, cluster.ingress_removed));
        Welcome { session: self.id, heartbeat, index, data_path_port, mesh_removed }
    }
}

/// What was told, and how the rest is.
struct Writer<'a> {
    session: &'a AgentSession,
    outlook: Outlook,
    managers: Vec<ManagerPeer>,
    role: NodeRole,
    welcome: Welcome,
    trust: Trust,
    /// The node's record changed: it may say that the node is down.
    recheck: &'a Notify,
    draining: Draining,
    /// The node was told that the others know this key.
    key_known: Option<[u8; 32]>,
}

/// What the node's certificate should rest on.
#[derive(Default)]
struct Trust {
    /// Version of the cluster's record that it was taken from.
    of: Version,
    wanted: Option<NodeTrust>,
    /// The node was told to renew its certificate for this.
    told: Option<NodeTrust>,
}

impl Trust {
    /// Whether the node has to be told now.
    fn is_news(&mut self, cluster: &Cluster, node: &Node) -> bool {
        if self.of != cluster.meta.version {
            (self.of, self.wanted) = (cluster.meta.version, trust::wanted(cluster));
        }
        // One that tells nothing yet has renewed nothing since the rotation began.
        let differs = match &node.description.trust {
            Some(own) => self.wanted.as_ref().is_some_and(|wanted| wanted != own),
            None => cluster.rotation.is_some(),
        };
        if !differs || self.told == self.wanted {
            return false;
        }
        self.told.clone_from(&self.wanted);
        true
    }
}

impl Writer<'_> {
    async fn tell_changes(&mut self, outbound: &mut dyn Outbound, cell: &Arc<Cell>) -> Result<(), Ended> {
        let (reign, node) = (&self.session.reign, self.session.peer.node);
        // A burst of changes becomes one message.
        sleep(reign.timing.debounce).await;
        let dirty = cell.take();
        let following = self.outlook.follow(&*reign.store.view(), &dirty);
        lock(&reign.routes).subscribe(node, &following.more, &following.fewer);
        let view = reign.store.view();
        if dirty.all || dirty.cluster || !dirty.nodes.is_empty() {
            self.tell_managers(outbound, &*view).await?;
            self.recheck.notify_one();
        }
        if dirty.cluster {
            let welcome = self.session.welcome(self.welcome.index);
            if welcome != self.welcome {
                self.welcome = welcome.clone();
                send(reign, outbound, ManagerMessage::Welcome(welcome)).await?;
            }
        }
        let limit = Instant::now() + reign.timing.drain;
        let mut misses_nodes = None;
        let mut drains = |task, handle| {
            self.draining.waits(task, handle, limit, || {
                let is_routed = lock(&reign.routing).wait(task, node, handle);
                is_routed || *misses_nodes.get_or_insert_with(|| reign.misses_nodes())
            })
        };
        if let Some(set) = self.outlook.step(&*view, &dirty, &following, &mut drains) {
            let gone: Vec<TaskId> = set
                .changes
                .iter()
                .filter_map(|change| if let AssignmentChange::RemoveTask(id) = change { Some(*id) } else { None })
                .collect();
            reign.drop_vitals(node, self.session.id, &gone);
            reign.sending(node, self.session.id, &set);
            send(reign, outbound, ManagerMessage::Assignments(set)).await?;
            while let Some(files) = self.outlook.more_files(&*view) {
                // Agents count every set.
                reign.sending(node, self.session.id, &files);
                send(reign, outbound, ManagerMessage::Assignments(files)).await?;
            }
        }
        Ok(())
    }

    async fn tell_managers(&mut self, outbound: &mut dyn Outbound, view: &dyn ClusterView) -> Result<(), Ended> {
        let reign = &self.session.reign;
        let managers = derive::managers(&view.nodes());
        if managers != self.managers {
            self.managers.clone_from(&managers);
            send(reign, outbound, ManagerMessage::Managers(managers)).await?;
        }
        let role = view.node(self.session.peer.node).map_or(self.role, |node| derive::certificate_role(&node));
        let node = view.node(self.session.peer.node);
        let is_news = view.cluster().zip(node).is_some_and(|(cluster, node)| self.trust.is_news(&cluster, &node));
        if role != self.role || is_news {
            self.role = role;
            send(reign, outbound, ManagerMessage::RenewCertificate { role }).await?;
        }
        self.tell_key(outbound, view).await
    }

    /// Tells the node that the others know its next key, once they do.
    async fn tell_key(&mut self, outbound: &mut dyn Outbound, view: &dyn ClusterView) -> Result<(), Ended> {
        let (reign, id) = (&self.session.reign, self.session.peer.node);
        let own = view.node(id).and_then(|node| node.description.wireguard.clone());
        let Some(next) = own.and_then(|own| own.next).filter(|next| self.key_known.as_ref() != Some(next)) else {
            return Ok(());
        };
        if reign.is_key_known(view, id, &next) {
            self.key_known = Some(next);
            send(reign, outbound, ManagerMessage::KeyKnown { key: next }).await?;
        }
        Ok(())
    }
}

/// Sends, but not for ever: an agent that takes nothing is as good as gone.
async fn send(reign: &Reign, outbound: &mut dyn Outbound, message: ManagerMessage) -> Result<(), Ended> {
    match timeout(reign.timing.send, outbound.send(message)).await {
        Ok(result) => result.map_err(Ended::from),
        Err(_) => Err(Ended::Stuck),
    }
}

/// For logs.
pub(super) fn log_end(node: NodeId, session: u64, ended: &Ended) {
    tracing::debug!(node.id = %node, session, reason = %chain(ended), "session ended");
}
