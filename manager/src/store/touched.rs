//! What each entry touched, so that readers look again at little: a ring of the recent past that serves every watcher.

use std::collections::VecDeque;
use std::sync::Arc;

use super::entry::Kind;

/// A task that an entry touched. It names the task; the view says what is true of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchedTask {
    /// Its handle.
    pub handle: u32,
    /// Its service's handle.
    pub service: Option<u32>,
    /// Handle of its node before.
    pub old_node: Option<u32>,
    /// Handle of its node after.
    pub new_node: Option<u32>,
}

/// Whole objects that an entry touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchedObject {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: u128,
    /// Its handle: still known after it was removed.
    pub handle: u32,
}

/// All that one call of `apply` touched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// Index of the last entry of the call.
    pub index: u64,
    /// Tasks; one may appear several times.
    pub tasks: Vec<TouchedTask>,
    /// Whole objects; one may appear several times.
    pub objects: Vec<TouchedObject>,
}

impl Touched {
    /// Nothing was touched.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.objects.is_empty()
    }

    pub(super) fn mark(&self) -> (usize, usize) {
        (self.tasks.len(), self.objects.len())
    }

    pub(super) fn rewind(&mut self, mark: (usize, usize)) {
        self.tasks.truncate(mark.0);
        self.objects.truncate(mark.1);
    }

    fn weight(&self) -> usize {
        1 + self.tasks.len() + self.objects.len()
    }
}

/// What a reader that was at some index must look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Exactly this, oldest first.
    Some(Vec<Arc<Touched>>),
    /// It is too far behind: everything.
    All,
}

/// The recent past, bounded by the number of things touched.
#[derive(Debug)]
pub(super) struct Ring {
    past: VecDeque<Arc<Touched>>,
    /// Everything after this index is in `past`.
    complete_after: u64,
    weight: usize,
    limit: usize,
}

impl Ring {
    pub(super) fn new(complete_after: u64, limit: usize) -> Self {
        Self { past: VecDeque::new(), complete_after, weight: 0, limit }
    }

    pub(super) fn push(&mut self, touched: Touched) {
        if touched.is_empty() {
            return;
        }
        self.weight += touched.weight();
        self.past.push_back(Arc::new(touched));
        while self.weight > self.limit {
            let Some(oldest) = self.past.pop_front() else { break };
            self.weight -= oldest.weight();
            self.complete_after = oldest.index;
        }
    }

    pub(super) fn since(&self, index: u64) -> Changes {
        if index < self.complete_after {
            return Changes::All;
        }
        let start = self.past.partition_point(|touched| touched.index <= index);
        Changes::Some(self.past.range(start..).cloned().collect())
    }
}
