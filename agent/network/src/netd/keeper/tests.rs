use std::fs;
use std::path::Path;

use super::*;
use crate::dns::patch::{NamePatch, ZonePatch, ZonesPatch};
use crate::dns::server::ADDRESS;
use crate::dns::upstream::NodeServers;
use crate::dns::zone::{Zone, ZoneKey};
use crate::names::{DnsPorts, SandboxDns};
use crate::netd::told::{Told, Update};

fn id(text: &str) -> SandboxId {
    SandboxId::new(text).unwrap()
}

async fn start(dir: &Path, start: Start) -> Keeper {
    let forwarder = Arc::new(Forwarder::new(NodeServers::new("/nonexistent".into()), 53));
    Keeper::start(Records::new(dir.into()), start, forwarder, TaskTracker::new()).await.unwrap()
}

fn key() -> ZoneKey {
    ZoneKey::Bridge("back".into())
}

fn edition(number: u64) -> Edition {
    Edition { by: 1, number }
}

fn zones() -> Told {
    let mut zone = Zone::new("back");
    zone.add("web", ADDRESS);
    Told { zones: Zones::from([(key(), zone)]), edition: Some(edition(1)) }
}

/// Makes a name known.
fn update(base: u64, next: u64, name: &str) -> Request {
    let known = NamePatch { known: true, ..NamePatch::default() };
    let names = BTreeMap::from([(name.to_owned(), known)]);
    let zone = ZonePatch::There { network: "back".into(), names, pointers: BTreeMap::new() };
    let patch = ZonesPatch(BTreeMap::from([(key(), zone)]));
    Request::PatchZones(Update { base: edition(base), next: edition(next), patch })
}

/// The zones that a process would start from, and how many names they have.
fn on_disk(dir: &Path) -> (Told, usize) {
    let told = Records::new(dir.into()).load().zones;
    let names = told.zones.get(&key()).map_or(0, |zone| zone.names().count());
    (told, names)
}

#[tokio::test]
async fn what_is_written_is_what_a_restart_begins_with_but_gone_sandboxes_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let gone = SandboxDns {
        id: id("a"),
        netns: folder.path().join("none"),
        zones: vec![ZoneKey::Bridge("back".into())],
        servers: vec![[9, 9, 9, 9].into()],
    };
    let served = Served { dns: gone, ports: DnsPorts { udp: 40_000, tcp: 40_001 } };
    let records = Records::new(folder.path().into());
    records.write_zones(&zones()).unwrap();
    records.write_sandboxes(std::slice::from_ref(&served)).unwrap();
    let loaded = records.load();
    assert_eq!((&loaded.zones, &loaded.sandboxes), (&zones(), &vec![served]));
    let keeper = start(folder.path(), loaded).await;
    assert_eq!(keeper.served(), []);
    assert_eq!(records.load().sandboxes, []);
}

#[tokio::test]
async fn a_damaged_record_is_set_aside_and_does_not_keep_the_server_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("zones"), b"rubbish").unwrap();
    assert!(Records::new(folder.path().into()).load().zones.zones.is_empty());
    assert_eq!(fs::read(folder.path().join("zones.damaged")).unwrap(), b"rubbish");
}

#[tokio::test]
async fn changed_zones_are_on_disk_when_the_call_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
    assert_eq!(Records::new(folder.path().into()).load().zones, zones());
}

#[tokio::test]
async fn a_change_is_on_disk_when_it_is_answered_and_one_of_other_zones_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    assert_eq!(keeper.ask(update(1, 2, "a")).await, Reply::OtherZones);
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
    let whole = fs::read(folder.path().join("zones")).unwrap();
    assert_eq!(keeper.ask(update(1, 2, "a")).await, Reply::Done);
    // Asked again by who did not hear the answer.
    assert_eq!(keeper.ask(update(1, 2, "a")).await, Reply::Done);
    assert_eq!(keeper.ask(update(1, 3, "b")).await, Reply::OtherZones);
    assert_eq!(keeper.ask(update(2, 3, "b")).await, Reply::Done);
    assert_eq!(on_disk(folder.path()), (keeper.told(), 3));
    assert_eq!(fs::read(folder.path().join("zones")).unwrap(), whole, "a change is not all zones");

    // The next process goes on from there, also when the last change was cut off.
    let journal = folder.path().join("zones.journal");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..bytes.len() - 1]).unwrap();
    let mut next = start(folder.path(), Records::new(folder.path().into()).load()).await;
    assert_eq!(next.ask(update(3, 4, "c")).await, Reply::OtherZones);
    assert_eq!(next.ask(update(2, 5, "c")).await, Reply::Done);
    assert_eq!(on_disk(folder.path()).1, 3);
    assert_eq!(on_disk(folder.path()).0.edition, Some(edition(5)));

    // A client that has just started puts all: nothing but the edition is new.
    let whole = fs::read(folder.path().join("zones")).unwrap();
    let told = Told { edition: Some(edition(9)), ..next.told() };
    assert_eq!(next.ask(Request::PutZones(told.clone())).await, Reply::Done);
    assert_eq!(on_disk(folder.path()).0, told);
    assert_eq!(fs::read(folder.path().join("zones")).unwrap(), whole);
}

#[tokio::test]
async fn changes_are_written_whole_when_the_journal_is_full_and_stay_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
    let long = "x".repeat(10_000);
    for number in 1..100 {
        assert_eq!(keeper.ask(update(number, number + 1, &format!("{long}{}", number % 10))).await, Reply::Done);
        assert!(fs::metadata(folder.path().join("zones.journal")).unwrap().len() <= 256 << 10);
    }
    assert_eq!(on_disk(folder.path()), (keeper.told(), 11));
}

#[tokio::test]
async fn what_cannot_be_written_is_served_and_written_as_soon_as_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
    // Nothing can be put in its place, whoever tries.
    let (journal, record) = (folder.path().join("zones.journal"), folder.path().join("zones.new"));
    keeper.journal = None;
    fs::create_dir(&record).unwrap();
    assert_eq!(keeper.ask(update(1, 2, "a")).await, Reply::Done);
    assert_eq!((on_disk(folder.path()).1, keeper.told().edition), (1, Some(edition(2))));
    fs::remove_dir(&record).unwrap();
    assert_eq!(keeper.ask(update(2, 3, "b")).await, Reply::Done);
    assert_eq!(on_disk(folder.path()), (keeper.told(), 3));
    assert!(journal.exists());
}

#[tokio::test]
async fn changes_before_and_after_a_hand_over_that_failed_are_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
    assert_eq!(keeper.ask(update(1, 2, "a")).await, Reply::Done);
    let (answer, frozen) = oneshot::channel();
    keeper.execute(Command::Freeze { with_tunnel: false, answer }).await;
    let Reply::Handover { zones, .. } = frozen.await.unwrap().unwrap().reply else { panic!() };
    assert_eq!(zones, keeper.told());
    // The successor begins records of its own and dies.
    fs::remove_file(folder.path().join("zones.journal")).unwrap();
    drop(start(folder.path(), Start { zones, ..Start::default() }).await);
    keeper.execute(Command::Thaw).await;
    assert_eq!(keeper.ask(update(2, 3, "b")).await, Reply::Done);
    assert_eq!(on_disk(folder.path()), (keeper.told(), 3));
}

#[tokio::test]
async fn no_change_is_taken_while_a_successor_takes_over_and_it_is_once_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = start(folder.path(), Start::default()).await;
    let (answer, frozen) = oneshot::channel();
    keeper.execute(Command::Freeze { with_tunnel: true, answer }).await;
    assert!(frozen.await.unwrap().is_some());
    assert!(matches!(keeper.ask(Request::PutZones(zones())).await, Reply::Refused { retry: true, .. }));
    let (answer, second) = oneshot::channel();
    keeper.execute(Command::Freeze { with_tunnel: true, answer }).await;
    assert!(second.await.unwrap().is_none());
    keeper.execute(Command::Thaw).await;
    assert_eq!(keeper.ask(Request::PutZones(zones())).await, Reply::Done);
}
