//! Whether a history of one object could have come from one copy of it.
//!
//! The object is a register with compare-and-set: it is created under its name, read with a version, changed by naming
//! the version that was read, deleted by its id, and perhaps created again. The search is Wing and Gong's ("Testing and
//! verifying concurrent objects", 1993) with Lowe's memory of places that were seen ("Testing for linearizability", 2017):
//! take any operation that no unfinished one precedes, see whether the model allows what it answered, go on from there.
//! An operation whose end is unknown may take effect at any time after its start, or never.

use std::collections::HashSet;

/// What a client did to one object, and what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Made it: the id that it was given, if the answer came.
    Create {
        /// Its content.
        value: u64,
        /// Its id.
        id: Option<String>,
    },
    /// Was told that there is one of that name.
    CreateRefused,
    /// Saw it.
    Seen {
        /// Its id.
        id: String,
        /// Its version.
        version: u64,
        /// Its content.
        value: u64,
    },
    /// Saw that there is none of that name.
    SeenAbsent,
    /// Changed it.
    Update {
        /// Its id.
        id: String,
        /// The version that was named.
        version: u64,
        /// The new content.
        value: u64,
    },
    /// Was told that the version is not the present one.
    UpdateStale {
        /// Its id.
        id: String,
        /// The version that was named.
        version: u64,
    },
    /// Removed it.
    Delete {
        /// Its id.
        id: String,
    },
    /// Was told that nothing has that id.
    NoSuchId {
        /// The id.
        id: String,
    },
}

/// A step with its times, in nanoseconds of one clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What, as far as it is known.
    pub step: Step,
    /// Who did it, for people.
    pub by: String,
    /// When it was sent.
    pub start: u64,
    /// When it was answered. `None`: it may have been applied, may be yet, or never.
    pub end: Option<u64>,
}

/// What the cluster itself may do to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Versions {
    /// A version changes when a client changes the object, and not else.
    Exact,
    /// The cluster changes the object as well, so a version may grow at any time.
    MayGrow,
}

/// The object, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Object {
    /// `None`: made by a request without an answer, and not seen since.
    id: Option<String>,
    /// The lowest version that it can have.
    version: u64,
    /// It has exactly that version.
    is_exact: bool,
    value: u64,
}

type State = Option<Object>;

/// The state after a step, if the model allows the step in `state`.
fn step(state: &State, step: &Step, versions: Versions) -> Option<State> {
    let is = |object: &Object, id: &str| object.id.as_deref() == Some(id);
    match (step, state) {
        (Step::Create { value, id }, None) => {
            Some(Some(Object { id: id.clone(), version: 0, is_exact: false, value: *value }))
        }
        (Step::CreateRefused, Some(_)) | (Step::SeenAbsent, None) => Some(state.clone()),
        (Step::Seen { id, version, value }, Some(object)) => {
            let is_known = object.id.is_none() || is(object, id);
            let fits = if object.is_exact { *version == object.version } else { *version >= object.version };
            (is_known && fits && *value == object.value).then(|| {
                let is_exact = versions == Versions::Exact;
                Some(Object { id: Some(id.clone()), version: *version, is_exact, value: *value })
            })
        }
        (Step::Update { id, version, value }, Some(object)) if is(object, id) => {
            // Exact and not seen since its last change: nobody can have named its version.
            let fits = match versions {
                Versions::Exact => object.is_exact && *version == object.version,
                Versions::MayGrow => *version >= object.version,
            };
            fits.then(|| Some(Object { id: object.id.clone(), version: version + 1, is_exact: false, value: *value }))
        }
        (Step::UpdateStale { id, version }, Some(object)) if is(object, id) => {
            let is_present = versions == Versions::Exact && object.is_exact && *version == object.version;
            (!is_present).then(|| state.clone())
        }
        (Step::Delete { id }, Some(object)) => is(object, id).then_some(None),
        (Step::NoSuchId { id }, state) => state.as_ref().is_none_or(|object| !is(object, id)).then(|| state.clone()),
        _ => None,
    }
}

/// What the search says of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// One copy of the object could have answered so.
    Linearizable,
    /// None could. The operations that could not be placed after the longest order that could.
    Broken(Vec<Operation>),
    /// It was given up after so many places.
    TooLong(usize),
}

/// Places that are looked at before a history is given up.
const MOST_PLACES: usize = 500_000;

/// Searches for an order of a history that the model allows. `exists` is the object before it, if there is one.
pub fn check(history: &[Operation], initial: Option<(String, u64, u64)>, versions: Versions) -> Verdict {
    let initial = initial.map(|(id, version, value)| Object {
        id: Some(id),
        version,
        is_exact: versions == Versions::Exact,
        value,
    });
    let mut operations: Vec<&Operation> = history.iter().collect();
    operations.sort_by_key(|o| o.start);
    Search::new(&operations, versions).run(initial)
}

struct Search<'a> {
    operations: &'a [&'a Operation],
    versions: Versions,
    /// Placed operations, as bits from the first one that is not placed, and the state they lead to.
    seen: HashSet<(usize, Vec<u64>, State)>,
    /// The most answered operations placed, and which were not.
    best: (usize, Vec<usize>),
}

/// A step of the search, to be taken back.
struct Taken {
    /// The operation that was placed.
    operation: usize,
    /// The first that was not placed before it.
    first: usize,
    /// The state before it.
    state: State,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation], versions: Versions) -> Self {
        Self { operations, versions, seen: HashSet::new(), best: (0, Vec::new()) }
    }

    /// Depth first, with a stack of its own: histories have thousands of operations.
    fn run(&mut self, initial: State) -> Verdict {
        let answered = self.operations.iter().filter(|o| o.end.is_some()).count();
        let mut placed = vec![false; self.operations.len()];
        let mut count = 0;
        // All before it are placed.
        let mut first = 0;
        let mut state = initial;
        let mut next = 0;
        let mut stack: Vec<Taken> = Vec::new();
        loop {
            if count == answered {
                return Verdict::Linearizable;
            }
            match self.candidate(&placed, first, next, &state) {
                Some((operation, after)) => {
                    placed[operation] = true;
                    let before = first;
                    while first < placed.len() && placed[first] {
                        first += 1;
                    }
                    let key = (first, bits(&placed, first), after.clone());
                    if self.seen.len() > MOST_PLACES {
                        return Verdict::TooLong(self.seen.len());
                    }
                    if !self.seen.insert(key) {
                        placed[operation] = false;
                        first = before;
                        next = operation + 1;
                        continue;
                    }
                    count += usize::from(self.operations[operation].end.is_some());
                    stack.push(Taken { operation, first: before, state: std::mem::replace(&mut state, after) });
                    next = first;
                    if count > self.best.0 {
                        self.best = (count, (0..placed.len()).filter(|i| !placed[*i]).collect());
                    }
                }
                None => {
                    let Some(taken) = stack.pop() else { return self.broken() };
                    placed[taken.operation] = false;
                    count -= usize::from(self.operations[taken.operation].end.is_some());
                    (first, state, next) = (taken.first, taken.state, taken.operation + 1);
                }
            }
        }
    }

    /// The next operation from `next` on that may come now and that the model allows.
    fn candidate(&self, placed: &[bool], first: usize, next: usize, state: &State) -> Option<(usize, State)> {
        // Nothing may come before an operation that ended before it began.
        let mut horizon = u64::MAX;
        let mut found = None;
        for (index, operation) in self.operations.iter().enumerate().skip(first) {
            if operation.start > horizon {
                break;
            }
            if placed[index] {
                continue;
            }
            if let Some(after) = step(state, &operation.step, self.versions) {
                // What changes nothing may come at once: whatever else may come, may come after it. So there is nothing
                // to try instead of it.
                if after == *state {
                    return (index >= next).then_some((index, after));
                }
                if index >= next && found.is_none() {
                    found = Some((index, after));
                }
            }
            horizon = horizon.min(operation.end.unwrap_or(u64::MAX));
        }
        found
    }

    fn broken(&self) -> Verdict {
        let left = if self.best.0 == 0 { (0..self.operations.len()).collect() } else { self.best.1.clone() };
        Verdict::Broken(left.into_iter().map(|i| self.operations[i].clone()).collect())
    }
}

/// The placed operations from `first` on, without the empty end.
fn bits(placed: &[bool], first: usize) -> Vec<u64> {
    let mut words: Vec<u64> =
        placed[first..].chunks(64).map(|c| c.iter().rev().fold(0, |word, is| word << 1 | u64::from(*is))).collect();
    while words.last() == Some(&0) {
        words.pop();
    }
    words
}

#[cfg(test)]
mod tests;
