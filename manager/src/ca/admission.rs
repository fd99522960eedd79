//! Decides who may join: pure.

use std::time::Duration;

use skep_identity::{JoinToken, MAX_CLOCK_SKEW};
use skep_proto::model::{NodeRole, Timestamp};

use super::ClusterCa;

/// Why a node gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a token at all.
    #[error("invalid join token: expected the form SWMTKN-1-<50 characters>-<25 characters>")]
    NotAToken,
    /// A token of another cluster.
    #[error("the join token is for another cluster: its root digest does not match this cluster's")]
    OtherCluster,
    /// The secret is none of the two that are valid now.
    #[error(
        "the join token is not valid (any more): it was mistyped, or rotated since; get the current one on a manager \
         with `docker swarm join-token worker` or `docker swarm join-token manager`"
    )]
    WrongSecret,
    /// The clocks differ too much.
    #[error(
        "the node's clock is {difference:?} {direction} this manager's (at most {MAX_CLOCK_SKEW:?} is allowed); set the clock, then try again"
    )]
    ClockSkew {
        /// By how much.
        difference: Duration,
        /// `ahead of` or `behind`.
        direction: &'static str,
    },
}

/// The role that `token` gives in `cluster`.
///
/// # Errors
/// When it gives none.
pub fn role_of_token(token: &str, cluster: &ClusterCa) -> Result<NodeRole, Refusal> {
    let token: JoinToken = token.parse().map_err(|_| Refusal::NotAToken)?;
    let valid = |text: &str| text.parse::<JoinToken>().ok();
    let (worker, manager) = (valid(&cluster.tokens.worker), valid(&cluster.tokens.manager));
    // Both are compared always, so that the time taken says nothing.
    let is_worker = worker.is_some_and(|t| t.same_secret(&token));
    let is_manager = manager.is_some_and(|t| t.same_secret(&token));
    let same_root = [worker, manager].iter().flatten().any(|t| t.root == token.root);
    match (same_root, is_manager, is_worker) {
        (false, _, _) => Err(Refusal::OtherCluster),
        (true, true, _) => Ok(NodeRole::Manager),
        (true, false, true) => Ok(NodeRole::Worker),
        (true, false, false) => Err(Refusal::WrongSecret),
    }
}

/// Refuses a node whose clock is too far from ours.
///
/// # Errors
/// When it is.
pub fn check_clock(node: Timestamp, own: Timestamp) -> Result<(), Refusal> {
    let (ahead, behind) = (node.since(own), own.since(node));
    if ahead > MAX_CLOCK_SKEW {
        return Err(Refusal::ClockSkew { difference: ahead, direction: "ahead of" });
    }
    if behind > MAX_CLOCK_SKEW {
        return Err(Refusal::ClockSkew { difference: behind, direction: "behind" });
    }
    Ok(())
}
