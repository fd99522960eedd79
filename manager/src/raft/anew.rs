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

#[cfg(test)]
mod tests {
    use super::super::disk::memory::Memory;
    use super::super::keys::DataKeys;
    use super::*;
    use crate::store::Replica;
    use crate::world::World;

    const CLUSTER: [u8; 16] = [7; 16];

    #[tokio::test]
    async fn a_state_that_was_founded_is_read_back_with_its_index() {
        let world = World::new().nodes(3);
        let mut replica = Replica::new().0;
        replica.restore(&mut world.snapshot().as_slice()).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(Memory::default());
        let sealer = Arc::new(DataKeys::open(&*disk, None).unwrap().sealer());
        let me = (4, Peer { address: "10.0.0.1:2377".into(), node_id: "n".into() });
        found(Arc::clone(&disk), CLUSTER, Arc::clone(&sealer), replica.snapshot(), 900, me).await.unwrap();
        let (mut read, store) = Replica::new();
        assert_eq!(read_last(&disk, CLUSTER, &sealer, &mut read).unwrap(), 900);
        assert_eq!(store.view().digest(), world.view().digest());
        assert!(read_last(&disk, [8; 16], &sealer, &mut Replica::new().0).is_err(), "another cluster's folder");
    }
}
