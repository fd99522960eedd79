//! The name server is told the zones: what differs, or all of them when it has others.

use std::io;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Inner;
use crate::plan::names::Book;

/// What the name server is to know, and whether it does.
#[derive(Default)]
pub struct Published {
    book: Book,
    /// It was told the zones of the book and everything since.
    is_told: bool,
}

impl Inner {
    /// Tells the name server what differs in the zones, if anything, once the managers are heard. It is asked again at the next
    /// change when it does not answer.
    pub(super) async fn publish_zones(&self) {
        self.tell_zones(false).await;
    }

    /// Begins to take back the names of what is over, if there is anything of it.
    pub(super) fn withdraw_names(self: &Arc<Self>) -> JoinHandle<()> {
        let inner = self.clone();
        tokio::spawn(async move {
            if inner.state().left.is_some() {
                inner.tell_zones(false).await;
            }
        })
    }

    /// Makes sure that the name server has the zones as well. For the same view again, they are planned anew.
    pub(super) async fn publish_all_zones(&self) {
        self.tell_zones(true).await;
    }

    async fn tell_zones(&self, surely: bool) {
        let mut published = self.published.lock().await;
        let sources = {
            let state = self.state();
            // What an earlier process told goes on until then: with what is known now it would lose all networks.
            if !state.is_heard() {
                return;
            }
            state.name_sources()
        };
        let Published { book, is_told } = &mut *published;
        let again = (surely && *book.view() == *sources.view).then(|| Book::of(sources.clone()));
        let patch = book.follow(sources);
        if let Some(again) = again {
            // Steps and the whole lead to the same: should they ever not, the whole counts.
            if again.zones() != book.zones() {
                tracing::error!("names were not what they should be; all are told anew");
                *is_told = false;
            }
            *book = again;
        }
        if *is_told && patch.is_empty() && !surely {
            return;
        }
        let told = async {
            if std::mem::take(is_told) && self.names.patch_zones(patch).await? {
                return Ok::<_, io::Error>(());
            }
            self.names.put_zones(book.zones().clone()).await
        };
        match told.await {
            Ok(()) => *is_told = true,
            Err(error) => tracing::warn!(%error, "the name server cannot be told the names"),
        }
    }

    /// Whether the name server was told all names that there should be.
    pub(super) async fn told_all_names(&self) -> bool {
        let published = self.published.lock().await;
        let wanted = Book::of(self.state().name_sources());
        // A node without any name has nothing to tell.
        *wanted.zones() == *published.book.zones() && (published.is_told || wanted.zones().is_empty())
    }
}
