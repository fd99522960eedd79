use std::fs;
use std::path::Path;

use super::*;
use crate::dns::server::ADDRESS;
use crate::dns::upstream::NodeServers;
use crate::dns::zone::{Zone, ZoneKey};
use crate::names::{DnsPorts, SandboxDns};

fn id(text: &str) -> SandboxId {
    SandboxId::new(text).unwrap()
}

async fn start(dir: &Path, start: Start) -> Keeper {
    let forwarder = Arc::new(Forwarder::new(NodeServers::new("/nonexistent".into()), 53));
    Keeper::start(Records::new(dir.into()), start, forwarder, TaskTracker::new()).await.unwrap()
}

fn zones() -> Zones {
    let mut zone = Zone::new("back");
    zone.add("web", ADDRESS);
    Zones::from([(ZoneKey::Bridge("back".into()), zone)])
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
    assert!(Records::new(folder.path().into()).load().zones.is_empty());
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
