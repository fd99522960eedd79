//! The zones: served at once, and on disk before the answer.

use std::sync::Arc;

use super::{Keeper, chain, write};
use crate::dns::patch::ZonesPatch;
use crate::netd::NetdError;
use crate::netd::protocol::Reply;
use crate::netd::told::{Told, Update};

impl Keeper {
    /// What is served.
    pub(super) fn told(&self) -> Told {
        Told { zones: (**self.zones.borrow()).clone(), edition: self.edition }
    }

    /// Answers from these zones from now on.
    pub(super) async fn put_zones(&mut self, told: Told) {
        let before = self.told();
        if before == told {
            return;
        }
        let is_new = before.zones != told.zones;
        self.edition = told.edition;
        if is_new {
            self.zones.send_replace(Arc::new(told.zones));
        }
        match (is_new, before.edition, told.edition) {
            (false, Some(base), Some(next)) => self.keep(Update { base, next, patch: ZonesPatch::default() }).await,
            _ => self.flush().await,
        }
    }

    /// Goes on from the zones that an update rests on.
    pub(super) async fn patch_zones(&mut self, update: Update) -> Reply {
        let mut told = self.told();
        // Asked once more, by a client that did not get the answer.
        if told.edition == Some(update.next) {
            return Reply::Done;
        }
        if !told.follow(&update) {
            return Reply::OtherZones;
        }
        self.edition = told.edition;
        if !update.patch.is_empty() {
            self.zones.send_replace(Arc::new(told.zones));
        }
        self.keep(update).await;
        Reply::Done
    }

    /// Writes what has changed, or all zones where the journal has no room.
    async fn keep(&mut self, update: Update) {
        let Some(mut journal) = self.journal.take() else { return self.flush().await };
        let appended = tokio::task::spawn_blocking(move || journal.append(&update).map(|kept| kept.then_some(journal)));
        match appended.await.map_err(std::io::Error::other).flatten() {
            Ok(Some(journal)) => self.journal = Some(journal),
            Ok(None) => self.flush().await,
            Err(error) => {
                tracing::warn!(%error, "the journal of zones cannot be written; all zones are");
                self.flush().await;
            }
        }
    }

    pub(super) async fn write_zones(&mut self) -> Result<(), NetdError> {
        let (records, told) = (self.records.clone(), self.told());
        // What failed half has no journal: it could not be read behind the record.
        self.journal = None;
        self.journal = Some(write(move || records.write_zones(&told)).await?);
        Ok(())
    }

    /// Writes all zones. They are served also when that fails.
    pub(super) async fn flush(&mut self) {
        if let Err(error) = self.write_zones().await {
            tracing::warn!(error = chain(&error), "zones are served but would not survive a crash; will try again");
        }
    }
}
