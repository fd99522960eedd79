//! Changes of requests that name no version: when another changed the object in between, it is read again.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use skep_api::ports::control::ControlError;

use super::{Propose, from_proposal, refusal};
use crate::store::{Group, Outcome, State};

/// How often a request is tried when others change the object. Each failure is another's success.
const TRIES: usize = 20;

/// Commits what `make` says of a state: of `seen`, and when that is refused of the newest one, which `read` asks the other
/// managers for. `None` means that nothing is left to do.
///
/// # Errors
/// What `make` says of the newest state, and the store's refusals, but for an object that another changed meanwhile.
pub async fn commit<'a>(
    proposer: &dyn Propose,
    seen: Arc<State>,
    read: impl Fn() -> BoxFuture<'a, Result<Arc<State>, ControlError>>,
    make: impl Fn(&State) -> Result<Option<Group>, ControlError>,
) -> Result<(), ControlError> {
    if let Ok(Some(group)) = make(&seen)
        && let Outcome::Applied { .. } = proposer.propose(group).await.map_err(from_proposal)?
    {
        return Ok(());
    }
    for _ in 0..TRIES {
        let state = read().await?;
        let Some(group) = make(&state)? else { return Ok(()) };
        match proposer.propose(group).await.map_err(from_proposal)? {
            Outcome::Applied { .. } => return Ok(()),
            Outcome::Refused(refused) => match refusal::to_control_error(refused) {
                ControlError::OutOfSequence => {}
                other => return Err(other),
            },
        }
    }
    Err(ControlError::FailedPrecondition("the object is changed too often by others: try again".into()))
}
