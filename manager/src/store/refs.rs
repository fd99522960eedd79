//! References to rows: a position in a table and how often that position was used.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// What all references share.
pub trait Reference: Copy + Eq {
    /// A reference from its parts.
    fn new(handle: u32, generation: NonZeroU32) -> Self;
    /// Position in the table. Dense: the lowest free one is given first, so columns and bitmaps by handle stay short.
    fn handle(self) -> u32;
    /// How often the position was used: an old reference never meets a new row.
    fn generation(self) -> NonZeroU32;
}

macro_rules! reference {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        ///
        /// Given by `apply`, the same on every replica; entries and indexes name rows by it because it is small.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name {
            handle: u32,
            generation: NonZeroU32,
        }

        impl Reference for $name {
            fn new(handle: u32, generation: NonZeroU32) -> Self {
                Self { handle, generation }
            }
            fn handle(self) -> u32 {
                self.handle
            }
            fn generation(self) -> NonZeroU32 {
                self.generation
            }
        }
    )+};
}

reference!(
    /// A row of the task table.
    TaskRef,
    /// A service.
    ServiceRef,
    /// A node.
    NodeRef,
    /// A network.
    NetworkRef,
    /// A secret.
    SecretRef,
    /// A config.
    ConfigRef,
    /// The cluster's own record.
    ClusterRef,
);
