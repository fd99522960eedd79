//! A group of one that begins with a state that exists already: read from a folder whose group is lost, or from a backup.
//!
//! The new folder holds one snapshot and no log. Its configuration names this member alone, so whoever belonged to the old
//! group has no part in it; the caller sees to it that they are refused before the member starts.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use super::disk::Disk;
use super::facade::StartError;
use super::log::{Seal, Workers, read_entries};
use super::machine::{Machine, SnapshotSource};
use super::seal::Sealer;
use super::snapshot::SnapshotStore;
use super::types::{EntryPayload, Membership, Peer, RaftId, SnapshotMeta, StoredMembership, log_id};

/// Brings `machine` to the last state that a folder holds, and returns its index. Entries count whether or not they are
/// known to be committed: one that was acknowledged is among them. No member may use the folder.
///
/// # Errors
/// When the folder cannot be read, or its entries not be applied.
pub fn read_last(
    disk: &Arc<dyn Disk>,
    cluster: [u8; 16],
    sealer: &Arc<Sealer>,
    machine: &mut dyn Machine,
) -> Result<u64, StartError> {
    let seal = Seal { cluster, sealer: Arc::clone(sealer) };
    let snapshots =
        SnapshotStore::open(Arc::clone(disk), seal.clone(), Workers::Threads).map_err(StartError::Snapshot)?;
    let mut last = 0;
    if let Some((meta, file)) = snapshots.current() {
        let mut reader = file.open().map_err(StartError::Snapshot)?;
        machine.restore(&mut reader).map_err(StartError::Snapshot)?;
        last = meta.last_log_id.map_or(0, |id| id.index);
    }
    for entry in read_entries(&**disk, &seal)? {
        if entry.log_id.index <= last {
            continue;
        }
        last = entry.log_id.index;
        if let EntryPayload::Normal(payload) = entry.payload {
            machine.apply(last, &payload.0).map_err(|halt| StartError::Recover(halt.0))?;
        }
    }
    Ok(last)
}

/// Writes `state`, which is that of `index`, into an empty folder, as that of a group whose only member is
/// `id`.
///
/// # Errors
/// Those of the disk.
pub async fn found(
    disk: Arc<dyn Disk>,
    cluster: [u8; 16],
    sealer: Arc<Sealer>,
    state: Box<dyn SnapshotSource>,
    index: u64,
    (id, peer): (RaftId, Peer),
) -> io::Result<()> {
    let seal = Seal { cluster, sealer };
    let snapshots = SnapshotStore::open(disk, seal, Workers::Threads)?;
    // Before every term that an election can give.
    let at = Some(log_id(0, index));
    let alone = Membership::new(vec![[id].into()], BTreeMap::from([(id, peer)])).map_err(io::Error::other)?;
    let meta = SnapshotMeta { last_log_id: at, last_membership: StoredMembership::new(at, alone) };
    let mut writer = snapshots.begin(&meta)?;
    state.write_to(&mut writer)?;
    writer.flush()?;
    snapshots.keep(meta, writer.finish()?).await.map(drop)
}
