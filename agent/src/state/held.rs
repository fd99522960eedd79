//! The set of assignments in memory, and what a message changes in it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::model::TaskId;
use skep_proto::model::session::{
    AssignedFile, AssignedSpec, AssignedTask, AssignmentChange, Assignments, FileContent, FileId, SpecKey,
};
use skep_proto::model::view::NetworkView;

use super::{Loaded, Table, Write};

/// Why a set of assignments is refused. The session it came from must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSet {
    /// The manager is behind what this node has seen.
    #[error("the manager is at index {found}, this node has seen {seen}")]
    Behind {
        /// The manager's index.
        found: u64,
        /// The node's.
        seen: u64,
    },
    /// The agent asked for everything and got less.
    #[error("the manager sent a part of the assignments where all of them were asked for")]
    Part,
    /// A task refers to a spec that was never sent.
    #[error("task {task} refers to a spec that the manager did not send")]
    UnknownSpec {
        /// The task.
        task: TaskId,
    },
}

/// A task that was assigned.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldTask {
    /// As assigned.
    pub task: AssignedTask,
    /// The managers forgot it: it is here only until nothing of it is left.
    pub gone: bool,
}

/// All that was assigned.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Held {
    /// Index of the last set. It never goes down.
    pub index: u64,
    /// Something is missing here or on disk: only a complete set will do.
    pub incomplete: bool,
    /// Tasks.
    pub tasks: BTreeMap<TaskId, HeldTask>,
    /// Specs, referred to or not: the managers send each once per session.
    pub specs: BTreeMap<SpecKey, Arc<AssignedSpec>>,
    /// The cluster's network.
    pub view: Arc<NetworkView>,
    /// Secrets and configs. In memory only: after a restart they are asked for again.
    pub files: Arc<BTreeMap<FileId, Option<FileContent>>>,
}

impl From<&Loaded> for Held {
    fn from(loaded: &Loaded) -> Self {
        let specs: BTreeMap<_, _> = loaded.specs.iter().map(|spec| (spec.key, Arc::new(spec.clone()))).collect();
        let tasks = loaded
            .tasks
            .iter()
            // Without its spec a task cannot be told apart from a stray; the managers send both again.
            .filter(|(_, (task, _))| specs.contains_key(&task.spec))
            .map(|(id, (task, gone))| (*id, HeldTask { task: task.clone(), gone: *gone }))
            .collect::<BTreeMap<_, _>>();
        let incomplete = loaded.incomplete || tasks.len() < loaded.tasks.len();
        let view = Arc::new(loaded.view.clone());
        Self { index: loaded.index, incomplete, tasks, specs, view, files: Arc::default() }
    }
}

impl Held {
    /// Takes a set over and gives the writes that keep it.
    ///
    /// # Errors
    /// When the set is refused; nothing has changed then.
    pub fn apply(&mut self, set: Assignments) -> Result<Vec<Write>, RefusedSet> {
        if set.index < self.index {
            return Err(RefusedSet::Behind { found: set.index, seen: self.index });
        }
        if self.incomplete && !set.complete {
            return Err(RefusedSet::Part);
        }
        self.check_specs(&set)?;
        let mut writes = Vec::new();
        if set.complete {
            self.begin_again(&set, &mut writes);
        }
        for change in set.changes {
            self.change(change, &mut writes);
        }
        self.index = set.index;
        self.incomplete = false;
        writes.push(Write::number("index", set.index));
        Ok(writes)
    }

    fn check_specs(&self, set: &Assignments) -> Result<(), RefusedSet> {
        let mut sent = BTreeSet::new();
        for change in &set.changes {
            match change {
                AssignmentChange::PutSpec(spec) => {
                    sent.insert(spec.key);
                }
                AssignmentChange::PutTask(task)
                    if !sent.contains(&task.spec) && !self.specs.contains_key(&task.spec) =>
                {
                    return Err(RefusedSet::UnknownSpec { task: task.id });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the complete `set` does not name goes. Everything is written anew, so that the file is right whatever it held.
    fn begin_again(&mut self, set: &Assignments, writes: &mut Vec<Write>) {
        let named: BTreeSet<TaskId> = set
            .changes
            .iter()
            .filter_map(|change| match change {
                AssignmentChange::PutTask(task) => Some(task.id),
                _ => None,
            })
            .collect();
        self.view = Arc::default();
        self.files = Arc::default();
        let view = [Table::Peers, Table::Networks, Table::Services, Table::Endpoints];
        writes.extend(view.map(Write::Clear));
        writes.push(Write::Clear(Table::Tasks));
        for (id, held) in &mut self.tasks {
            held.gone |= !named.contains(id);
            writes.push(Write::task(&held.task, held.gone));
        }
        writes.push(Write::Clear(Table::Specs));
        let used = self.used_specs();
        self.specs.retain(|key, _| used.contains(key));
        writes.extend(self.specs.values().map(|spec| Write::spec(spec)));
    }

    fn change(&mut self, change: AssignmentChange, writes: &mut Vec<Write>) {
        match change {
            AssignmentChange::PutSpec(spec) => {
                writes.push(Write::spec(&spec));
                self.specs.insert(spec.key, spec);
            }
            AssignmentChange::PutTask(task) => {
                writes.push(Write::task(&task, false));
                self.tasks.insert(task.id, HeldTask { task, gone: false });
            }
            AssignmentChange::RemoveTask(id) => {
                if let Some(held) = self.tasks.get_mut(&id) {
                    held.gone = true;
                    writes.push(Write::task(&held.task, true));
                }
            }
            AssignmentChange::PutPeer(peer) => {
                writes.push(Write::peer(&peer));
                Arc::make_mut(&mut self.view).peers.insert(peer.node, peer);
            }
            AssignmentChange::RemovePeer(id) => {
                writes.push(Write::delete(Table::Peers, id.0));
                Arc::make_mut(&mut self.view).peers.remove(&id);
            }
            AssignmentChange::PutNetwork(network) => {
                writes.push(Write::network(&network));
                Arc::make_mut(&mut self.view).networks.insert(network.id, network);
            }
            AssignmentChange::RemoveNetwork(id) => {
                writes.push(Write::delete(Table::Networks, id.0));
                Arc::make_mut(&mut self.view).networks.remove(&id);
            }
            AssignmentChange::PutService(service) => {
                writes.push(Write::service(&service));
                Arc::make_mut(&mut self.view).services.insert(service.id, service);
            }
            AssignmentChange::RemoveService(id) => {
                writes.push(Write::delete(Table::Services, id.0));
                Arc::make_mut(&mut self.view).services.remove(&id);
            }
            AssignmentChange::PutEndpoint(endpoint) => {
                writes.push(Write::endpoint(&endpoint));
                Arc::make_mut(&mut self.view).endpoints.insert(endpoint.task, endpoint);
            }
            AssignmentChange::RemoveEndpoint(id) => {
                writes.push(Write::delete(Table::Endpoints, id.0));
                Arc::make_mut(&mut self.view).endpoints.remove(&id);
            }
            AssignmentChange::PutFile(AssignedFile { id, content }) => {
                Arc::make_mut(&mut self.files).insert(id, content);
            }
            AssignmentChange::RemoveFile(id) => {
                Arc::make_mut(&mut self.files).remove(&id);
            }
        }
    }

    /// Every task shall go, and so shall the cluster's network.
    pub fn abandon(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        let nothing = Assignments { index: self.index, complete: true, changes: Vec::new() };
        self.begin_again(&nothing, &mut writes);
        writes
    }

    /// Nothing of a task that is gone is left.
    pub fn forget(&mut self, task: TaskId) -> Vec<Write> {
        match self.tasks.get(&task) {
            Some(held) if held.gone => {
                self.tasks.remove(&task);
                vec![Write::delete(Table::Tasks, task.0), Write::delete(Table::Statuses, task.0)]
            }
            Some(_) | None => Vec::new(),
        }
    }

    /// A session began: the managers will send each spec again before they refer to it, so unused ones go.
    pub fn drop_unused_specs(&mut self) -> Vec<Write> {
        let used = self.used_specs();
        let unused: Vec<SpecKey> = self.specs.keys().filter(|key| !used.contains(key)).copied().collect();
        self.specs.retain(|key, _| used.contains(key));
        unused.into_iter().map(Write::delete_spec).collect()
    }

    fn used_specs(&self) -> BTreeSet<SpecKey> {
        self.tasks.values().map(|held| held.task.spec).collect()
    }
}
