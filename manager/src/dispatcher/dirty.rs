//! Which keys a session must look at again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_proto::model::{NetworkId, NodeId, ServiceId};
use tokio::sync::Notify;

use super::ports::{Changes, Touched};

/// Keys that may have changed for one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dirty {
    /// All keys: the session has just begun, or fell behind.
    pub all: bool,
    /// Positions of tasks that are, or were, the node's own.
    pub own: BTreeSet<u32>,
    /// Positions of tasks of services that the node knows.
    pub endpoints: BTreeSet<u32>,
    /// Services.
    pub services: BTreeSet<ServiceId>,
    /// Networks.
    pub networks: BTreeSet<NetworkId>,
    /// Nodes.
    pub nodes: BTreeSet<NodeId>,
    /// The cluster's own record.
    pub cluster: bool,
}

impl Dirty {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One session's dirty keys. The lock is held for pushes only and never across an await.
#[derive(Debug, Default)]
pub struct Cell {
    dirty: Mutex<Dirty>,
    wake: Notify,
}

impl Cell {
    /// Takes what is dirty.
    pub fn take(&self) -> Dirty {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until something is.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait(&self) {
        while self.lock().is_empty() {
            self.wake.notified().await;
        }
    }

    /// Marks keys.
    pub fn mark(&self, mark: impl FnOnce(&mut Dirty)) {
        let wake = {
            let mut dirty = self.lock();
            let was_empty = dirty.is_empty();
            mark(&mut dirty);
            was_empty && !dirty.is_empty()
        };
        if wake {
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cells by node, and who wants to hear of which service.
#[derive(Debug, Default)]
pub struct Routes {
    cells: HashMap<NodeId, Arc<Cell>>,
    interest: HashMap<ServiceId, BTreeSet<NodeId>>,
}

impl Routes {
    /// Adds a session; it replaces an older one of the node.
    pub fn insert(&mut self, node: NodeId, cell: Arc<Cell>) {
        self.remove(node);
        self.cells.insert(node, cell);
    }

    /// Removes the node's session.
    pub fn remove(&mut self, node: NodeId) {
        self.cells.remove(&node);
        self.interest.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
    }

    /// Whether `cell` is the one of the node's current session.
    pub fn is_current(&self, node: NodeId, cell: &Arc<Cell>) -> bool {
        self.cells.get(&node).is_some_and(|current| Arc::ptr_eq(current, cell))
    }

    /// Changes which services' tasks the node hears of.
    pub fn subscribe(&mut self, node: NodeId, more: &[ServiceId], fewer: &[ServiceId]) {
        for service in more {
            self.interest.entry(*service).or_default().insert(node);
        }
        for service in fewer {
            if let Some(nodes) = self.interest.get_mut(service) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.interest.remove(service);
                }
            }
        }
    }

    /// Marks tasks of a node by their positions.
    pub fn mark_own(&self, node: NodeId, handles: impl IntoIterator<Item = u32>) {
        if let Some(cell) = self.cells.get(&node) {
            cell.mark(|dirty| dirty.own.extend(handles));
        }
    }

    /// Marks a node's own record, for its session.
    pub fn mark_node(&self, node: NodeId) {
        if let Some(cell) = self.cells.get(&node) {
            cell.mark(|dirty| {
                dirty.nodes.insert(node);
            });
        }
    }

    /// Marks what changed on every session that it may concern.
    pub fn route(&self, changes: &Changes) {
        match changes {
            Changes::All => self.cells.values().for_each(|cell| cell.mark(|dirty| dirty.all = true)),
            Changes::Some(touched) => self.route_some(touched),
        }
    }

    fn route_some(&self, touched: &Touched) {
        let mut by_service: HashMap<Option<ServiceId>, Vec<u32>> = HashMap::new();
        for task in &touched.tasks {
            if task.old_node.is_none() && task.new_node.is_none() {
                continue; // Without a node nobody is told of it.
            }
            for node in BTreeSet::from_iter([task.old_node, task.new_node].into_iter().flatten()) {
                if let Some(cell) = self.cells.get(&node) {
                    cell.mark(|dirty| {
                        dirty.own.insert(task.handle);
                    });
                }
            }
            by_service.entry(task.service).or_default().push(task.handle);
        }
        for (service, handles) in &by_service {
            let mark = |cell: &Arc<Cell>| cell.mark(|dirty| dirty.endpoints.extend(handles));
            match service {
                Some(service) => {
                    let nodes = self.interest.get(service).into_iter().flatten();
                    nodes.filter_map(|node| self.cells.get(node)).for_each(mark);
                }
                // Attachments of plain containers: rare, and anyone on the network must know.
                None => self.cells.values().for_each(mark),
            }
        }
        let has_objects = !(touched.services.is_empty() && touched.networks.is_empty() && touched.nodes.is_empty());
        if has_objects || touched.cluster {
            for cell in self.cells.values() {
                cell.mark(|dirty| {
                    dirty.services.extend(&touched.services);
                    dirty.networks.extend(&touched.networks);
                    dirty.nodes.extend(&touched.nodes);
                    dirty.cluster |= touched.cluster;
                });
            }
        }
    }
}
