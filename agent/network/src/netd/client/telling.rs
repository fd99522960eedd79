//! Which zones the process was told: the next change rests on them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Client;
use crate::dns::patch::ZonesPatch;
use crate::dns::zone::Zones;
use crate::netd::NetdError;
use crate::netd::protocol::{self, Reply, Request};
use crate::netd::told::{Edition, Told, Update};

/// Which zones the process was told.
#[derive(Debug)]
pub(super) struct Telling(Mutex<State>);

#[derive(Debug)]
pub(super) struct State {
    /// The last edition that was given.
    last: Edition,
    /// The edition that the process has, as far as this client knows.
    has: Option<Edition>,
    /// A process that knows no changes of zones was to be replaced. Once: the one that came may be no newer.
    pub replaced: bool,
}

impl Telling {
    /// Nothing yet, by a client that is unlike all others.
    pub fn new() -> Self {
        let last = Edition { by: rand::random(), number: 0 };
        Self(Mutex::new(State { last, has: None, replaced: false }))
    }

    fn next(&self) -> Edition {
        let mut state = self.lock();
        state.last.number += 1;
        state.last
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Answers from these zones and no others from now on.
    ///
    /// # Errors
    /// [`NetdError::Refused`], [`NetdError::NoAnswer`].
    pub async fn put_zones(&self, zones: Zones) -> Result<(), NetdError> {
        let next = self.shared.telling.next();
        self.done(Request::PutZones(Told { zones, edition: Some(next) })).await?;
        self.shared.telling.lock().has = Some(next);
        Ok(())
    }

    /// Changes the zones that this client put or changed last; `false` when the process has others, or did not know how.
    ///
    /// # Errors
    /// [`NetdError::NoAnswer`].
    pub async fn patch_zones(&self, patch: ZonesPatch) -> Result<bool, NetdError> {
        // Unknown until there is an answer.
        let Some(base) = self.shared.telling.lock().has.take() else { return Ok(false) };
        let next = self.shared.telling.next();
        match self.shared.call(&Request::PatchZones(Update { base, next, patch })).await {
            Ok(Reply::Done) => {
                self.shared.telling.lock().has = Some(next);
                Ok(true)
            }
            Ok(Reply::OtherZones) => Ok(false),
            Ok(other) => Err(self.shared.unexpected(&other)),
            Err(NetdError::Refused { reason }) if reason.starts_with(protocol::NOT_UNDERSTOOD) => {
                self.replace_older().await;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces a process that is of an earlier version than this one, which all zones must be put.
    async fn replace_older(&self) {
        if std::mem::replace(&mut self.shared.telling.lock().replaced, true) {
            return;
        }
        tracing::info!("the process beside the daemon is of an earlier version and is replaced");
        if let Err(error) = self.replace().await {
            tracing::warn!(%error, source = ?std::error::Error::source(&error),
                "it serves on, and is told all names when one differs");
        }
    }
}
