//! Groups of managers under faults drawn from a seed; one invariant a file, each over runs of its own.

mod acknowledged_writes;
mod election_safety;
mod linearizable_reads;
mod log_matching;
mod net;
mod run;
mod state_agreement;
