//! The owner of all that is served: takes changes one at a time, opens and closes sockets, keeps the records.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use crate::dns::forward::Forwarder;
use crate::dns::server::{OwnedFdRef, Server, Settings, Sockets, open};
use crate::dns::zone::{self, Zones, Zones6};
use crate::error::NetworkError;
use crate::names::{DnsPorts, SandboxDns};
use crate::netd::NetdError;
use crate::netd::protocol::{DeviceState, GivenTunnel, Reply, Request, Served};
use crate::netd::wireguard::{FOLLOW, Given, Owner};
use crate::record;
use crate::spec::SandboxId;
use crate::sys::netns::Netns;
use crate::tunnel::Tunnel;

/// How often sockets that could not be opened are tried again, and zones that could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// How often gone namespaces are looked for, in retries: nobody waits for it.
const SWEEP: u32 = 10;

/// What the keeper is asked; the answer goes back by the sender.
pub enum Command {
    /// A request of a client.
    Ask(Request, oneshot::Sender<Reply>),
    /// Everything, for a successor. No change is taken from then on.
    Freeze {
        /// The successor takes the WireGuard link too.
        with_tunnel: bool,
        /// Where the answer goes; `None` when another successor is taking over.
        answer: oneshot::Sender<Option<Frozen>>,
    },
    /// The successor failed: changes are taken again.
    Thaw,
    /// The successor serves.
    Finish(oneshot::Sender<Reply>),
}

/// What a successor gets.
pub struct Frozen {
    /// The first part.
    pub reply: Reply,
    /// The sockets named in it.
    pub sockets: Vec<OwnedFdRef>,
    /// The descriptors of the WireGuard link.
    pub device: Vec<OwnedFd>,
}

/// What a process starts from.
#[derive(Default)]
pub struct Start {
    /// All zones.
    pub zones: Zones,
    /// All sandboxes.
    pub sandboxes: Vec<Served>,
    /// Open sockets of a predecessor.
    pub sockets: BTreeMap<SandboxId, (OwnedFd, OwnedFd)>,
    /// The WireGuard link of a predecessor, or none yet.
    pub tunnel: Owner,
}

/// The records of a folder.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// Serves until it is told to stop.
pub struct Keeper {
    records: Records,
    zones: watch::Sender<Arc<Zones>>,
    /// They could not be written.
    zones_dirty: bool,
    sandboxes: BTreeMap<SandboxId, Entry>,
    forwarder: Arc<Forwarder>,
    tasks: TaskTracker,
    frozen: bool,
    tunnel: Owner,
    /// The link while a successor takes it over: only one of the two reads from it.
    given: Option<Given>,
    /// What a link that is not there should be: tried again from time to time.
    missing: Option<Tunnel>,
}

struct Entry {
    dns: SandboxDns,
    ports: DnsPorts,
    /// `None` while they cannot be opened.
    open: Option<Open>,
}

struct Open {
    server: Server,
    /// The namespace that they are in.
    netns: (u64, u64),
}

impl Records {
    /// Those in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn zones(&self) -> PathBuf {
        self.dir.join("zones")
    }

    fn sandboxes(&self) -> PathBuf {
        self.dir.join("sandboxes")
    }

    /// What was written last. A damaged record is set aside: the daemon tells all again.
    pub fn load(&self) -> Start {
        Start {
            zones: self.load_zones(),
            sandboxes: read_or_set_aside(&self.sandboxes()),
            sockets: BTreeMap::new(),
            tunnel: Owner::default(),
        }
    }

    fn tunnel(&self) -> PathBuf {
        self.dir.join("tunnel")
    }

    /// The WireGuard link of before, unless the host was started anew: then the daemon's rules come first.
    fn load_tunnel(&self) -> Option<Tunnel> {
        let kept: Option<KeptTunnel> = read_or_set_aside(&self.tunnel());
        kept.filter(|kept| kept.boot == boot()).map(|kept| kept.tunnel)
    }

    fn write_tunnel(&self, tunnel: Option<Tunnel>) -> Result<(), NetworkError> {
        match tunnel {
            Some(tunnel) => record::write(&self.tunnel(), &Some(KeptTunnel { boot: boot(), tunnel })),
            None => record::delete(&self.tunnel()),
        }
    }

    fn load_zones(&self) -> Zones {
        let (mut zones, ipv6) = read_parts_or_set_aside::<Zones, Zones6>(&self.zones());
        zone::complete(&mut zones, ipv6);
        zones
    }

    fn write_zones(&self, zones: &Zones) -> Result<(), NetworkError> {
        record::write(&self.zones(), &(zones, zone::ipv6_of(zones)))
    }

    fn write_sandboxes(&self, sandboxes: &[Served]) -> Result<(), NetworkError> {
        record::write(&self.sandboxes(), &sandboxes)
    }
}

/// The WireGuard link on disk; its private key is elsewhere.
#[derive(Debug, Serialize, Deserialize)]
struct KeptTunnel {
    boot: String,
    tunnel: Tunnel,
}

/// Names the time since the host was started (proc_sys_kernel(5), `random`).
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn read_or_set_aside<T: DeserializeOwned + Default>(path: &Path) -> T {
    read_parts_or_set_aside::<T, ()>(path).0
}

fn read_parts_or_set_aside<T: DeserializeOwned + Default, U: DeserializeOwned + Default>(path: &Path) -> (T, U) {
    match record::read_with(path) {
        Ok(value) => value.unwrap_or_default(),
        Err(error) => {
            let aside = path.with_extension("damaged");
            tracing::error!(%error, source = ?std::error::Error::source(&error), aside = %aside.display(),
                "a record of the name server cannot be read and is set aside");
            if let Err(error) = fs::rename(path, &aside) {
                tracing::warn!(%error, "cannot set the record aside");
            }
            Default::default()
        }
    }
}

impl Keeper {
    /// Opens what `start` names. Sandboxes whose namespace is gone are left out.
    ///
    /// # Errors
    /// When the records cannot be written.
    pub async fn start(
        records: Records,
        start: Start,
        forwarder: Arc<Forwarder>,
        tasks: TaskTracker,
    ) -> Result<Self, NetdError> {
        let zones = watch::Sender::new(Arc::new(start.zones));
        let mut keeper = Self {
            records,
            zones,
            zones_dirty: false,
            sandboxes: BTreeMap::new(),
            forwarder,
            tasks,
            frozen: false,
            tunnel: start.tunnel,
            given: None,
            missing: None,
        };
        if keeper.tunnel.wanted().is_none() {
            keeper.missing = keeper.records.load_tunnel();
            keeper.mend_tunnel();
        }
        let mut sockets = start.sockets;
        for Served { dns, ports } in start.sandboxes {
            let inherited = sockets.remove(&dns.id);
            let opened = match inherited {
                Some(pair) => keeper.adopt(&dns, pair),
                None => keeper.open(&dns, Some(ports)).await,
            };
            let open = match opened {
                Ok(open) => Some(open),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::info!(sandbox.id = %dns.id, "the sandbox is gone");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(sandbox.id = %dns.id, %error, "cannot open the name server's ports yet");
                    None
                }
            };
            keeper.sandboxes.insert(dns.id.clone(), Entry { dns, ports, open });
        }
        keeper.write_zones().await?;
        keeper.write_sandboxes().await?;
        Ok(keeper)
    }

    /// Works off commands until one ends it or all senders are gone.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Ask(Request::Stop, answer)) => {
                        let _ = answer.send(Reply::Done);
                        break;
                    }
                    Some(Command::Finish(answer)) if self.frozen => {
                        let _ = answer.send(Reply::Done);
                        break;
                    }
                    Some(command) => self.execute(command).await,
                    None => break,
                },
                () = sleep(FOLLOW), if self.tunnel.is_following() && !self.frozen => {
                    if let Err(error) = self.tunnel.follow() {
                        tracing::warn!(%error, "cannot follow a node to its next key");
                    }
                }
                // While frozen a successor has all in its own hands.
                _ = retry.tick(), if !self.frozen => {
                    ticks = ticks.wrapping_add(1);
                    self.mend_tunnel();
                    self.sweep(ticks.is_multiple_of(SWEEP)).await;
                    if self.zones_dirty {
                        self.flush().await;
                    }
                }
            }
        }
        for open in std::mem::take(&mut self.sandboxes).into_values().filter_map(|entry| entry.open) {
            open.server.drain();
        }
    }

    async fn execute(&mut self, command: Command) {
        // A sender that went away needs no answer.
        match command {
            Command::Ask(request, answer) => {
                let reply = self.ask(request).await;
                let _ = answer.send(reply);
            }
            Command::Freeze { with_tunnel, answer } => {
                let frozen = (!self.frozen).then(|| self.freeze(with_tunnel)).and_then(|frozen| {
                    frozen.inspect_err(|error| tracing::warn!(%error, "cannot hand the WireGuard link over")).ok()
                });
                let is_frozen = frozen.is_some();
                self.frozen |= answer.send(frozen).is_ok() && is_frozen;
            }
            Command::Thaw => {
                self.frozen = false;
                if let Some(given) = self.given.take() {
                    self.missing = Some(given.wanted.clone());
                    match Owner::adopt(given) {
                        Ok(owner) => (self.tunnel, self.missing) = (owner, None),
                        Err(error) => tracing::warn!(%error, "the WireGuard link is made anew"),
                    }
                }
            }
            Command::Finish(answer) => {
                let _ = answer.send(refused("there was no hand-over"));
            }
        }
    }

    async fn ask(&mut self, request: Request) -> Reply {
        if self.frozen && !matches!(request, Request::Sandboxes) {
            return Reply::Refused { retry: true, reason: "a successor is taking over".into() };
        }
        let done = |result: Result<(), NetdError>| match result {
            Ok(()) => Reply::Done,
            Err(error) => refused(chain(&error)),
        };
        match request {
            Request::PutSandbox(dns) => match self.put(dns).await {
                Ok(ports) => Reply::Ports(ports),
                Err(error) => refused(chain(&error)),
            },
            Request::RemoveSandbox(id) => match self.sandboxes.remove(&id) {
                Some(_) => done(self.write_sandboxes().await),
                None => Reply::Done,
            },
            Request::PutZones(zones) => {
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
                Reply::Done
            }
            Request::Sandboxes => Reply::Sandboxes(self.served()),
            Request::PutTunnel(tunnel) => self.put_tunnel(tunnel).await,
            Request::RemoveTunnel => {
                self.tunnel.remove();
                self.missing = None;
                match self.write_tunnel(None).await {
                    Ok(()) => Reply::Tunnel(None),
                    Err(error) => refused(chain(&error)),
                }
            }
            Request::Tunnel => match self.tunnel.status() {
                Ok(status) => Reply::Tunnel(status),
                Err(error) => refused(chain(&error)),
            },
            Request::Watch | Request::Handover | Request::HandoverAll | Request::Finish | Request::Stop => {
                refused("not asked of the keeper")
            }
        }
    }

    async fn put_tunnel(&mut self, tunnel: Tunnel) -> Reply {
        let is_known = self.tunnel.wanted() == Some(&tunnel);
        match self.tunnel.put(tunnel.clone()) {
            Ok(status) => {
                self.missing = None;
                // Before the answer: after a crash the link must be what the daemon believes it to be.
                match if is_known { Ok(()) } else { self.write_tunnel(Some(tunnel)).await } {
                    Ok(()) => Reply::Tunnel(Some(status)),
                    Err(error) => refused(chain(&error)),
                }
            }
            Err(error) => {
                if self.tunnel.wanted().is_none() {
                    self.missing = Some(tunnel);
                }
                refused(chain(&error))
            }
        }
    }

    /// Makes the link that should be there and is not: somebody deleted it, or it could not be made. One that is there is
    /// brought up again.
    fn mend_tunnel(&mut self) {
        let lost = self.tunnel.wanted().filter(|_| !self.tunnel.is_there()).cloned();
        let Some(wanted) = lost.or_else(|| self.missing.clone()) else {
            if let Err(error) = self.tunnel.mend() {
                tracing::debug!(%error, "the WireGuard link cannot be brought up");
            }
            return;
        };
        match self.tunnel.put(wanted.clone()) {
            Ok(_) => {
                tracing::info!(link = wanted.link, "the WireGuard link is there again");
                self.missing = None;
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), link = wanted.link, "the WireGuard link cannot be made");
                self.missing = Some(wanted);
            }
        }
    }

    async fn put(&mut self, dns: SandboxDns) -> Result<DnsPorts, NetdError> {
        let id = dns.id.clone();
        let failed = |source| NetdError::Io { step: "open sockets in", path: dns.netns.display().to_string(), source };
        let here = Netns::open(&dns.netns).and_then(|netns| identity(&netns)).map_err(failed)?;
        let ports = match self.sandboxes.get_mut(&id) {
            Some(Entry { dns: known, ports, open: Some(open) }) if open.netns == here => {
                if *known == dns {
                    return Ok(*ports);
                }
                open.server.set(settings(&dns));
                *known = dns;
                *ports
            }
            _ => {
                let open = self.open(&dns, None).await.map_err(failed)?;
                let ports = open.server.ports();
                self.sandboxes.insert(id, Entry { dns, ports, open: Some(open) });
                ports
            }
        };
        // Before the answer: the caller directs port 53 to these ports, so they must be the same after a crash.
        self.write_sandboxes().await?;
        Ok(ports)
    }

    async fn open(&self, dns: &SandboxDns, ports: Option<DnsPorts>) -> io::Result<Open> {
        let path = dns.netns.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let netns = Netns::open(&path)?;
            let (udp, tcp) = netns.enter(|| open(ports))??;
            Ok::<_, io::Error>((identity(&netns)?, udp, tcp))
        });
        let (netns, udp, tcp) = opened.await.map_err(io::Error::other)??;
        self.serve(dns, netns, (udp, tcp))
    }

    fn adopt(&self, dns: &SandboxDns, pair: (OwnedFd, OwnedFd)) -> io::Result<Open> {
        self.serve(dns, identity(&Netns::open(&dns.netns)?)?, pair)
    }

    fn serve(&self, dns: &SandboxDns, netns: (u64, u64), (udp, tcp): (OwnedFd, OwnedFd)) -> io::Result<Open> {
        let sockets = Sockets::new(udp, tcp)?;
        let server =
            Server::start(sockets, settings(dns), self.zones.subscribe(), self.forwarder.clone(), &self.tasks)?;
        Ok(Open { server, netns })
    }

    fn freeze(&mut self, with_tunnel: bool) -> io::Result<Frozen> {
        let kept = self.tunnel.give()?;
        let open: Vec<(&SandboxId, &Open)> =
            self.sandboxes.iter().filter_map(|(id, entry)| Some((id, entry.open.as_ref()?))).collect();
        let (zones, sandboxes) = ((**self.zones.borrow()).clone(), self.served());
        let sockets = open.iter().flat_map(|(_, open)| open.server.fds()).collect();
        let open = open.iter().map(|(id, _)| (*id).clone()).collect();
        if !with_tunnel {
            return Ok(Frozen { reply: Reply::Handover { zones, sandboxes, open }, sockets, device: Vec::new() });
        }
        let mut device = Vec::new();
        let tunnel = self.tunnel.give()?.map(|given| {
            let state = given.device.map(|handover| {
                device = handover.fds;
                (u32::try_from(device.len()).unwrap_or(u32::MAX), DeviceState(handover.state))
            });
            GivenTunnel { wanted: given.wanted, device: state }
        });
        self.tunnel.let_go();
        self.given = kept;
        Ok(Frozen { reply: Reply::HandoverAll { zones, sandboxes, open, tunnel }, sockets, device })
    }

    /// Tries again to open what could not be opened. If `all`, lets go of sandboxes whose namespace is gone.
    async fn sweep(&mut self, all: bool) {
        let known: Vec<SandboxId> = self.sandboxes.keys().cloned().collect();
        let count = known.len();
        for id in known {
            let Some(entry) = self.sandboxes.get(&id) else { continue };
            let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            let result = match entry.open {
                Some(_) if !all => continue,
                Some(_) => Netns::open(&entry.dns.netns).map(|_| None),
                None => self.open(&entry.dns, Some(entry.ports)).await.map(Some),
            };
            match result {
                Ok(None) => (),
                Ok(Some(open)) => {
                    if let Some(entry) = self.sandboxes.get_mut(&id) {
                        entry.open = Some(open);
                    }
                }
                Err(error) if gone(&error) => {
                    self.sandboxes.remove(&id);
                }
                Err(error) => tracing::debug!(sandbox.id = %id, %error, "the sandbox is not served yet"),
            }
        }
        if self.sandboxes.len() != count
            && let Err(error) = self.write_sandboxes().await
        {
            tracing::warn!(error = chain(&error), "will be written with the next change");
        }
    }

    fn served(&self) -> Vec<Served> {
        self.sandboxes.values().map(|entry| Served { dns: entry.dns.clone(), ports: entry.ports }).collect()
    }

    async fn write_sandboxes(&self) -> Result<(), NetdError> {
        let (records, served) = (self.records.clone(), self.served());
        write(move || records.write_sandboxes(&served)).await
    }

    async fn write_tunnel(&self, tunnel: Option<Tunnel>) -> Result<(), NetdError> {
        let records = self.records.clone();
        write(move || records.write_tunnel(tunnel)).await
    }

    async fn write_zones(&self) -> Result<(), NetdError> {
        let (records, zones) = (self.records.clone(), self.zones.borrow().clone());
        write(move || records.write_zones(&zones)).await
    }

    /// Writes the zones. They are served also when that fails.
    async fn flush(&mut self) {
        let written = self.write_zones().await;
        self.zones_dirty = written.is_err();
        if let Err(error) = written {
            tracing::warn!(error = chain(&error), "zones are served but would not survive a crash; will try again");
        }
    }
}

/// Writes beside the loop that answers questions: to replace a file may wait for the disk.
async fn write(act: impl FnOnce() -> Result<(), NetworkError> + Send + 'static) -> Result<(), NetdError> {
    let failed =
        |error| NetworkError::Record { step: "write", path: "a record".into(), source: io::Error::other(error) };
    let written = tokio::task::spawn_blocking(act).await.map_err(failed).flatten();
    written.map_err(|source| NetdError::Record { source })
}

/// Device and inode: equal for the same namespace. Ours stay taken as long as our sockets are in it.
fn identity(netns: &Netns) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(netns)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn settings(dns: &SandboxDns) -> Settings {
    Settings { zones: dns.zones.clone(), servers: dns.servers.clone() }
}

fn refused(reason: impl Into<String>) -> Reply {
    Reply::Refused { retry: false, reason: reason.into() }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::server::ADDRESS;
    use crate::dns::upstream::NodeServers;
    use crate::dns::zone::{Zone, ZoneKey};

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
}
