//! Which secrets and configs a node was told, and which it must be told next. Pure.
//!
//! A node gets the content that its own live tasks refer to, and nothing else. What is in a secret or config never
//! changes, so it is sent once; when the last task that uses it has ended, the node is told to forget it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skep_proto::model::session::{AssignedFile, AssignedSpec, AssignmentChange, FileId};

use super::ports::ClusterView;

/// Bytes of content in one set of assignments at most, but for a single file that is larger. The agent joins a set in
/// memory before it takes it over.
const SET_BYTES: usize = 8 * 1024 * 1024;

/// Secrets and configs that a spec refers to.
pub type Files = Arc<[FileId]>;

/// The secrets and configs that tasks of a spec use.
pub fn referred(spec: &AssignedSpec) -> Files {
    let containers = &spec.task.containers;
    let secrets = containers.iter().flat_map(|container| &container.secrets).map(|secret| FileId::Secret(secret.id));
    let configs = containers.iter().flat_map(|container| &container.configs).map(|config| FileId::Config(config.id));
    secrets.chain(configs).collect::<BTreeSet<_>>().into_iter().collect()
}

/// One session's memory.
#[derive(Debug, Default)]
pub struct FilesTold {
    /// By position of the node's own tasks; those that use none are absent.
    used: BTreeMap<u32, Files>,
    sent: BTreeSet<FileId>,
    /// `used` changed since everything was sent.
    is_dirty: bool,
}

impl FilesTold {
    /// Notes what the task at a position uses; `None` when it needs nothing any more.
    pub fn used_by(&mut self, handle: u32, files: Option<&Files>) {
        let files = files.filter(|files| !files.is_empty());
        let before = match files {
            Some(files) => self.used.insert(handle, files.clone()),
            None => self.used.remove(&handle),
        };
        self.is_dirty |= before.as_ref() != files;
    }

    /// What to send next: as much as fits into one set.
    pub fn step(&mut self, view: &dyn ClusterView, out: &mut Vec<AssignmentChange>) {
        if !self.is_dirty {
            return;
        }
        let needed: BTreeSet<FileId> = self.used.values().flat_map(|files| files.iter().copied()).collect();
        out.extend(self.sent.difference(&needed).copied().map(AssignmentChange::RemoveFile));
        self.sent.retain(|id| needed.contains(id));
        let mut bytes = 0;
        for id in needed {
            if self.sent.contains(&id) {
                continue;
            }
            let content = view.file(id);
            let len = content.as_ref().map_or(0, |content| content.data.0.len());
            if bytes > 0 && bytes + len > SET_BYTES {
                return;
            }
            bytes += len;
            self.sent.insert(id);
            out.push(AssignmentChange::PutFile(AssignedFile { id, content }));
        }
        self.is_dirty = false;
    }
}
