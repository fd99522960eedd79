//! Entering and leaving a cluster. What is on the node stays; what the cluster told is forgotten or brought elsewhere.

use std::sync::Arc;

use skep_proto::model::view::NetworkView;

use super::state::Remembered;
use super::{Inner, SwitchCell, blocking, lock};
use crate::config::Place;
use crate::error::NetworkError;
use crate::record;

impl Inner {
    pub(super) async fn move_to(self: Arc<Self>, place: Place) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        let (before, underlay) = {
            let mut state = self.state();
            // Nothing was remembered of a node that was in no cluster.
            let underlay = state.remembered.underlay;
            (std::mem::replace(&mut state.place, place.clone()), underlay)
        };
        let other_cluster = before.node.is_some_and(|node| place.node != Some(node));
        let moved = underlay.is_some_and(|underlay| Some(underlay) != place.underlay());
        if !other_cluster && !moved {
            return Ok(());
        }
        let forgotten = match other_cluster {
            true => self.bring(Remembered::default(), Arc::default()).await,
            false => Ok(()),
        };
        let inner = self.clone();
        forgotten.and(blocking(move || inner.speak_from_here()).await)
    }

    pub(super) async fn leave(self: Arc<Self>) -> Result<(), NetworkError> {
        let _one = self.applying.lock().await;
        {
            let mut state = self.state();
            if state.place.node.take().is_none() && state.remembered == Remembered::default() {
                return Ok(());
            }
        }
        self.bring(Remembered::default(), Arc::new(NetworkView::default())).await
    }

    /// The links between nodes spoke from an address that is no longer ours. The mesh link is made again at the managers'
    /// next word; the others are told the address.
    fn speak_from_here(&self) -> Result<(), NetworkError> {
        self.state().remembered = Remembered::default();
        let mut result = record::write(&self.config.state_dir.join("node.record"), &Remembered::default());
        result = result.and(self.sync_node());
        let Some(local) = self.state().place.underlay() else { return result };
        let cells: Vec<SwitchCell> = lock(&self.switches).values().cloned().collect();
        for cell in cells {
            if let Some(switch) = lock(&cell).as_ref() {
                result = result.and(switch.speak_from(local));
            }
        }
        result
    }
}
