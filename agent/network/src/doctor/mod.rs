//! What `skep doctor` says of a node's network: probes are thin, what they saw is judged by pure functions.
//!
//! Nothing is changed by looking.

mod answers;
pub mod echo;
mod families;
mod features;
mod pairs;
mod ports;
mod truth;

pub use answers::{Asked, Reply, judge as judge_answers};
pub use echo::{Ask, Echo};
pub use families::{Families, judge as judge_families};
pub use features::{Features, judge as judge_features};
pub use pairs::{Link, Second, Seen, judge as judge_pair};
pub use ports::{Needed, Socket, judge as judge_port, owners, sockets};
pub use truth::{Truth, judge as judge_truth};
