//! A line of work: jobs come in order, several threads work on them at once, and they leave in the order in which they
//! came, one at a time.
//!
//! ```text
//! leader: fills a job --put--> waiting | taken | done --leave, in order--> spare
//! ```
//!
//! The leader is the thread that fills jobs; helpers are the others. All of them do whatever is next ([`Line::step`]):
//! let the first job leave, if it is done and nobody else is at it; else work on the first that waits. So a leader alone
//! carries each job from end to end, and no thread waits for another while there is something to do. Helpers sleep until
//! they are called, which costs the leader a system call: it calls when it knows that more is to come.
//!
//! The line is bounded: a leader that has filled all jobs does some of the work itself, then waits. Nothing is dropped.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
};

use super::shared::lock;

/// What is done with each job.
pub trait Stages<J> {
    /// By several threads at once, in no order.
    fn work(&self, job: &mut J);

    /// In order, one job at a time. The job is empty afterwards, as it is filled again.
    fn leave(&self, job: &mut J);
}

/// See the module's text.
pub struct Line<J> {
    state: Mutex<State<J>>,
    /// Something is to be done, or the line is closed.
    called: Condvar,
    /// The leader may find something to fill or to do.
    room: Condvar,
    limit: usize,
}

struct State<J> {
    /// The first is the next to leave.
    places: VecDeque<Place<J>>,
    /// The number of the first place.
    first: u64,
    spare: Vec<J>,
    /// Somebody lets jobs leave.
    is_leaving: bool,
    /// The leader waits.
    is_waiting: bool,
    /// Helpers that sleep, and those of them that were called.
    sleeping: usize,
    calls: usize,
    is_closed: bool,
}

enum Place<J> {
    Waiting(J),
    /// Somebody works on it.
    Taken,
    /// Nothing is left of a job on which a thread panicked.
    Done(Option<J>),
}

impl<J> Line<J> {
    /// A line on which at most `limit` jobs are under way.
    pub fn new(limit: usize) -> Line<J> {
        let state = State {
            places: VecDeque::with_capacity(limit),
            first: 0,
            spare: vec![],
            is_leaving: false,
            is_waiting: false,
            sleeping: 0,
            calls: 0,
            is_closed: false,
        };
        Line { state: Mutex::new(state), called: Condvar::new(), room: Condvar::new(), limit }
    }

    /// A job to fill: one that has left, or a new one. Works and waits while too many are under way.
    pub fn job(&self, stages: &impl Stages<J>, new: impl FnOnce() -> J) -> J {
        loop {
            let mut state = lock(&self.state);
            if state.places.len() < self.limit {
                return state.spare.pop().unwrap_or_else(new);
            }
            drop(state);
            self.call();
            if !self.step(stages) {
                self.wait();
            }
        }
    }

    /// Until there is room, or the first job can leave.
    fn wait(&self) {
        let mut state = lock(&self.state);
        while state.places.len() >= self.limit && !state.can_leave() {
            state.is_waiting = true;
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_waiting = false;
    }

    /// Appends a filled job. Wakes nobody: [`Line::call`] does.
    pub fn put(&self, job: J) {
        lock(&self.state).places.push_back(Place::Waiting(job));
    }

    /// Wakes a helper, if one sleeps and a job waits.
    pub fn call(&self) {
        let mut state = lock(&self.state);
        if state.sleeping > state.calls && state.waiting().is_some() {
            state.calls += 1;
            drop(state);
            self.called.notify_one();
        }
    }

    /// Does what is next; false if there is nothing that this thread could do.
    pub fn step(&self, stages: &impl Stages<J>) -> bool {
        let mut state = lock(&self.state);
        if state.can_leave() {
            state.is_leaving = true;
            drop(state);
            self.leave(stages);
            return true;
        }
        let Some(at) = state.waiting() else { return false };
        let Place::Waiting(mut job) = std::mem::replace(&mut state.places[at], Place::Taken) else { return false };
        let mut taken = Taken { line: self, number: state.first + at as u64, done: None };
        drop(state);
        stages.work(&mut job);
        taken.done = Some(job);
        true
    }

    /// Does all that this thread can do; false if there was nothing.
    pub fn finish(&self, stages: &impl Stages<J>) -> bool {
        let mut has_done = false;
        while self.step(stages) {
            has_done = true;
        }
        has_done
    }

    /// Lets jobs leave while the first is done.
    fn leave(&self, stages: &impl Stages<J>) {
        let mut leaving = Leaving { line: self, is_over: false };
        let mut left = None;
        while let Some(job) = leaving.next(left) {
            left = job.map(|mut job| {
                stages.leave(&mut job);
                job
            });
        }
    }

    /// Works as a helper until the line is closed.
    pub fn help(&self, stages: &impl Stages<J>) {
        while self.is_open() {
            while self.step(stages) {}
            let mut state = lock(&self.state);
            state.sleeping += 1;
            while state.calls == 0 && !state.can_leave() && state.waiting().is_none() && !state.is_closed {
                state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.sleeping -= 1;
            state.calls = state.calls.saturating_sub(1);
        }
    }

    fn is_open(&self) -> bool {
        !lock(&self.state).is_closed
    }

    /// Lets the helpers go, each with the step that it is at. What is left then is the leader's.
    pub fn close(&self) {
        lock(&self.state).is_closed = true;
        self.called.notify_all();
    }
}

impl<J> State<J> {
    fn can_leave(&self) -> bool {
        !self.is_leaving && matches!(self.places.front(), Some(Place::Done(_)))
    }

    /// The first job that nobody works on.
    fn waiting(&self) -> Option<usize> {
        self.places.iter().position(|place| matches!(place, Place::Waiting(_)))
    }
}

/// Puts a job back when the work on it has ended, also by a panic.
struct Taken<'a, J> {
    line: &'a Line<J>,
    number: u64,
    done: Option<J>,
}

impl<J> Drop for Taken<'_, J> {
    fn drop(&mut self) {
        let mut state = lock(&self.line.state);
        let at = (self.number - state.first) as usize;
        state.places[at] = Place::Done(self.done.take());
        if state.is_waiting && state.can_leave() {
            self.line.room.notify_one();
        }
    }
}

/// The right to let jobs leave, given back also by a panic.
struct Leaving<'a, J> {
    line: &'a Line<J>,
    is_over: bool,
}

impl<J> Leaving<'_, J> {
    /// The next job that can leave, if any; `left` is the one before.
    fn next(&mut self, left: Option<J>) -> Option<Option<J>> {
        let mut state = lock(&self.line.state);
        state.spare.extend(left);
        if !matches!(state.places.front(), Some(Place::Done(_))) {
            // In one step with the look at the first place: who makes it done later must see that nobody is at it.
            (state.is_leaving, self.is_over) = (false, true);
            return None;
        }
        let Some(Place::Done(job)) = state.places.pop_front() else { return None };
        state.first += 1;
        if state.is_waiting {
            self.line.room.notify_one();
        }
        Some(job)
    }
}

impl<J> Drop for Leaving<'_, J> {
    fn drop(&mut self) {
        if !self.is_over {
            lock(&self.line.state).is_leaving = false;
        }
    }
}

#[cfg(test)]
mod tests;
