//! The zones: served at once, and written before the answer.

use std::sync::Arc;

use super::{Keeper, chain, write};
use crate::dns::zone::Zones;
use crate::netd::NetdError;

impl Keeper {
    /// Answers from these zones from now on.
    pub(super) async fn put_zones(&mut self, zones: Zones) {
        let changed = self.zones.send_if_modified(|old| {
            let changed = **old != zones;
            if changed {
                *old = Arc::new(zones);
            }
            changed
        });
        if changed {
            self.flush().await;
        }
    }

    pub(super) async fn write_zones(&self) -> Result<(), NetdError> {
        let (records, zones) = (self.records.clone(), self.zones.borrow().clone());
        write(move || records.write_zones(&zones)).await
    }

    /// Writes the zones. They are served also when that fails.
    pub(super) async fn flush(&mut self) {
        let written = self.write_zones().await;
        self.zones_dirty = written.is_err();
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "zones are served but would not survive a crash; will try again");
        }
    }
}
