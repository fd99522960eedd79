//! Names as containers see them, while what the managers say changes and those who serve it die.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use skep_network::dns::patch::{NamePatch, ZonePatch, ZonesPatch};
use skep_network::dns::zone::{Zone, ZoneKey, Zones};
use skep_network::netd::{Client, ClientConfig};
use skep_network::{NodeNetwork, Place, SandboxDns, SandboxId};
use skep_proto::model::view::{EndpointAddress, EndpointView};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};

use crate::world::{self, World, eventually, within};

/// The name server's process in the namespace of a node, ended when dropped.
struct Netd {
    dir: tempfile::TempDir,
    exe: PathBuf,
}

impl Netd {
    fn new(netns: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let test = std::env::current_exe().unwrap();
        let program = test.parent().unwrap().parent().unwrap().join("examples/netd");
        let exe = dir.path().join("netd-in-node");
        let text = format!("#!/bin/sh\nexec nsenter --net={} {} \"$@\"\n", netns.display(), program.display());
        fs::write(&exe, text).unwrap();
        fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, exe }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("netd").join(name)
    }

    async fn client(&self) -> Arc<Client> {
        let config = ClientConfig::new(self.dir.path().join("netd"), &self.exe);
        Arc::new(Client::start(config).await.unwrap())
    }

    /// Starts the process as nobody but a person would: without a daemon.
    fn start(&self) -> Child {
        let (dir, log) = (self.path(""), fs::File::create(self.dir.path().join("log")).unwrap());
        let mut command = Command::new(&self.exe);
        command.arg("net").arg("--dir").arg(dir).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    fn processes(&self) -> Vec<i32> {
        let dir = self.dir.path().to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_ours = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(dir)
        };
        pids.filter(is_ours).collect()
    }

    fn kill(&self) {
        for pid in self.processes() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        // One may have been on its way.
        while !self.processes().is_empty() {
            self.kill();
        }
    }
}

/// The addresses that a name has where it is asked for; `None` while nobody answers.
fn ask(netns: &Path, port: u16, name: &str) -> Option<BTreeSet<IpAddr>> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_str(&format!("{name}.")).unwrap(), RecordType::A));
    let question = message.to_vec().unwrap();
    let answer = within(netns, move || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(SocketAddr::from(([127, 0, 0, 11], port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.send(&question).ok()?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).ok()?;
        Some(Message::from_vec(&buffer[..length]).unwrap())
    });
    let answer = answer.join().unwrap()?;
    Some(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
}

fn answers(netns: &Path, name: &str, lasts: &[u8]) -> bool {
    let wanted = lasts.iter().map(|last| IpAddr::from([10, 0, 1, *last])).collect();
    ask(netns, 53, name) == Some(wanted)
}

/// A task of another node.
fn elsewhere(number: u8, service: ServiceId, network: NetworkId) -> EndpointView {
    let address = format!("10.0.1.{number}/24").parse().unwrap();
    EndpointView {
        task: TaskId(number.into()),
        service: Some(service),
        node: NodeId(9),
        name: format!("task{number}"),
        addresses: vec![EndpointAddress { network, address, aliases: Vec::new(), names: Vec::new() }],
        mesh: None,
        serving: true,
    }
}

fn start(w: &World, names: &Arc<Client>) -> NodeNetwork {
    let node = &w.nodes[0];
    let place = Place { node: Some(node.id), data_path: vec![IpAddr::V4(node.address)] };
    let (config, names) = (node.config.clone(), names.clone());
    within(&node.netns, move || NodeNetwork::start(config, place, names)).join().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn names_follow_what_changes_and_survive_whoever_serves_and_tells_them() {
    // Dropped last: who tells it names would start it again.
    let netd;
    let mut w = World::new(1);
    netd = Netd::new(&w.nodes[0].netns);
    let client = netd.client().await;
    w.nodes[0].network = start(&w, &client);
    let net = w.plain_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    for number in 20..22 {
        w.view.endpoints.insert(TaskId(number.into()), elsewhere(number, service, net));
    }
    w.apply().await;
    let inside = w.task(1, 0, None, net, "10.0.1.10/24").await.netns;
    w.apply().await;
    assert!(answers(&inside, "service1", &[200]) && answers(&inside, "tasks.service1", &[20, 21]));

    // What differs is appended, and the rest is left as it is.
    let step = |w: &mut World, old: u8, new: u8| {
        w.view.endpoints.remove(&TaskId(old.into()));
        w.view.endpoints.insert(TaskId(new.into()), elsewhere(new, service, net));
    };
    let record = || fs::read(netd.path("zones")).unwrap();
    let whole = record();
    step(&mut w, 20, 22);
    w.apply().await;
    assert!(answers(&inside, "tasks.service1", &[21, 22]) && answers(&inside, "task20", &[]));
    assert_eq!(record(), whole);

    // It dies between two changes, and is back as it was: nobody tells it anything.
    netd.kill();
    eventually("names after a crash", || answers(&inside, "tasks.service1", &[21, 22]));
    assert!(answers(&inside, "task22", &[22]) && answers(&inside, "task20", &[]));
    client.process_id().await.unwrap();
    let whole = record();
    step(&mut w, 21, 23);
    w.apply().await;
    assert!(answers(&inside, "tasks.service1", &[22, 23]));
    assert_eq!(record(), whole, "the process knew what the change rests on");

    // No daemon is there either.
    w.restart(0);
    eventually("the end of the daemon", || Arc::strong_count(&client) == 1);
    drop(client);
    netd.kill();
    eventually("the end of the process", || netd.processes().is_empty());
    assert_eq!(ask(&inside, 53, "service1"), None);
    let mut by_hand = netd.start();
    eventually("names without a daemon", || answers(&inside, "tasks.service1", &[22, 23]));

    // A daemon that starts tells it what it missed.
    let client = netd.client().await;
    w.nodes[0].network = start(&w, &client);
    // Before it has heard the managers, it has other work.
    w.nodes[0].network.create_bridge(world::bridge("mine", None, false)).await.unwrap();
    assert!(answers(&inside, "tasks.service1", &[22, 23]));
    step(&mut w, 22, 24);
    w.apply().await;
    assert!(answers(&inside, "tasks.service1", &[23, 24]) && answers(&inside, "service1", &[200]));

    // It loses what it kept. The same view again brings it back.
    for name in ["zones", "zones.journal"] {
        fs::remove_file(netd.path(name)).unwrap();
    }
    netd.kill();
    by_hand.wait().unwrap();
    eventually("the process without names", || ask(&inside, 53, "service1").is_some_and(|found| found.is_empty()));
    w.apply().await;
    assert!(answers(&inside, "tasks.service1", &[23, 24]) && answers(&inside, "service1", &[200]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn all_names_are_told_once_and_again_to_who_has_others() {
    let mut w = World::new(1);
    let net = w.plain_network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[]);
    w.apply().await;
    let names = w.nodes[0].names.clone();
    assert_eq!(names.told(), (1, 0));
    let has = |lasts: &[u8]| {
        let wanted: Vec<Ipv4Addr> = lasts.iter().map(|last| Ipv4Addr::new(10, 0, 1, *last)).collect();
        let zones = names.zones();
        zones.get(&ZoneKey::Overlay(net)).and_then(|zone| zone.resolve("tasks.service1")).map(|known| known.v4.to_vec())
            == Some(wanted)
    };
    for number in 20..25 {
        w.view.endpoints.insert(TaskId(number.into()), elsewhere(number, service, net));
        w.apply().await;
    }
    assert!(has(&[20, 21, 22, 23, 24]));
    assert_eq!(names.told(), (1, 5));
    // Nothing of the names differs.
    w.view.endpoints.get_mut(&TaskId(20)).unwrap().node = NodeId(8);
    w.apply().await;
    assert_eq!(names.told(), (1, 5));
    // A bridge and a sandbox of this node.
    w.nodes[0].network.create_bridge(world::bridge("mine", None, false)).await.unwrap();
    w.task(1, 0, Some(service), net, "10.0.1.10/24").await;
    assert_eq!(names.told(), (1, 6));
    assert_eq!(names.zones()[&ZoneKey::Bridge("mine".into())], Zone::new("mine"));

    names.forget_zones();
    w.view.endpoints.remove(&TaskId(20));
    w.apply().await;
    assert!(has(&[10, 21, 22, 23, 24]));
    // All without the task that is gone, and then the one that is new.
    assert_eq!(names.told(), (2, 7));
    // The same view again asks who has forgotten.
    names.forget_zones();
    w.apply().await;
    assert!(has(&[10, 21, 22, 23, 24]));
    assert_eq!(names.told(), (3, 7));
    w.apply().await;
    assert_eq!(names.told(), (3, 8));
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + number).into()
}

/// The name has another address.
fn patch(number: u32) -> ZonesPatch {
    let names = NamePatch { known: true, gone: vec![address(number - 1)], new: vec![address(number)] };
    let names = BTreeMap::from([("web".to_owned(), names)]);
    let there = ZonePatch::There { network: "back".into(), names, pointers: BTreeMap::new() };
    ZonesPatch(BTreeMap::from([(ZoneKey::Bridge("back".into()), there)]))
}

/// Has a process serve the name in the node's namespace; gives the port there.
async fn serve(w: &World, client: &Client) -> u16 {
    let key = ZoneKey::Bridge("back".into());
    let mut zone = Zone::new("back");
    zone.add("web", address(0));
    client.put_zones(Zones::from([(key.clone(), zone)])).await.unwrap();
    let id = SandboxId::new("one").unwrap();
    let sandbox = SandboxDns { id, netns: w.nodes[0].netns.clone(), zones: vec![key], servers: Vec::new() };
    client.put_sandbox(sandbox).await.unwrap().udp
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs root"]
async fn no_change_is_lost_while_one_process_takes_over_from_another() {
    let w = World::new(1);
    let netd = Netd::new(&w.nodes[0].netns);
    let client = netd.client().await;
    let port = serve(&w, &client).await;
    let replacing = client.clone();
    let taking_over = tokio::spawn(async move {
        for _ in 0..8 {
            replacing.replace().await.unwrap();
        }
    });
    let mut number = 0;
    while !taking_over.is_finished() {
        number += 1;
        assert!(client.patch_zones(patch(number)).await.unwrap(), "change {number} was not taken");
        // The one that goes may answer once more.
        eventually("the change", || ask(&w.nodes[0].netns, port, "web") == Some([address(number)].into()));
    }
    taking_over.await.unwrap();
    println!("{number} changes");
    assert!(number > 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
#[ignore = "needs root"]
async fn every_change_that_was_answered_is_there_after_a_crash() {
    let w = World::new(1);
    let netd = Netd::new(&w.nodes[0].netns);
    let client = netd.client().await;
    let port = serve(&w, &client).await;
    for number in 1..=10 {
        assert!(client.patch_zones(patch(number)).await.unwrap(), "change {number} was not taken");
        netd.kill();
        eventually("the change", || ask(&w.nodes[0].netns, port, "web") == Some([address(number)].into()));
    }
}
