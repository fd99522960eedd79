//! The sandboxes that are served: their sockets, and the ports that stay the same.

use std::io;
use std::os::fd::OwnedFd;

use super::{Keeper, chain, write};
use crate::dns::server::{Server, Settings, Sockets, open};
use crate::names::{DnsPorts, SandboxDns};
use crate::netd::NetdError;
use crate::netd::protocol::Served;
use crate::spec::SandboxId;
use crate::sys::netns::Netns;

/// A sandbox.
pub(super) struct Entry {
    pub dns: SandboxDns,
    pub ports: DnsPorts,
    /// `None` while they cannot be opened.
    pub open: Option<Open>,
}

/// Its sockets.
pub(super) struct Open {
    pub server: Server,
    /// The namespace that they are in.
    netns: (u64, u64),
}

impl Keeper {
    pub(super) async fn put(&mut self, dns: SandboxDns) -> Result<DnsPorts, NetdError> {
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

    pub(super) async fn open(&self, dns: &SandboxDns, ports: Option<DnsPorts>) -> io::Result<Open> {
        let path = dns.netns.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let netns = Netns::open(&path)?;
            let (udp, tcp) = netns.enter(|| open(ports))??;
            Ok::<_, io::Error>((identity(&netns)?, udp, tcp))
        });
        let (netns, udp, tcp) = opened.await.map_err(io::Error::other)??;
        self.serve(dns, netns, (udp, tcp))
    }

    pub(super) fn adopt(&self, dns: &SandboxDns, pair: (OwnedFd, OwnedFd)) -> io::Result<Open> {
        self.serve(dns, identity(&Netns::open(&dns.netns)?)?, pair)
    }

    fn serve(&self, dns: &SandboxDns, netns: (u64, u64), (udp, tcp): (OwnedFd, OwnedFd)) -> io::Result<Open> {
        let sockets = Sockets::new(udp, tcp)?;
        let server =
            Server::start(sockets, settings(dns), self.zones.subscribe(), self.forwarder.clone(), &self.tasks)?;
        Ok(Open { server, netns })
    }

    /// Tries again to open what could not be opened. If `all`, lets go of sandboxes whose namespace is gone.
    pub(super) async fn sweep(&mut self, all: bool) {
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

    pub(super) fn served(&self) -> Vec<Served> {
        self.sandboxes.values().map(|entry| Served { dns: entry.dns.clone(), ports: entry.ports }).collect()
    }

    pub(super) async fn write_sandboxes(&self) -> Result<(), NetdError> {
        let (records, served) = (self.records.clone(), self.served());
        write(move || records.write_sandboxes(&served)).await
    }
}

/// Device and inode: equal for the same namespace. Ours stay taken as long as our sockets are in it.
fn identity(netns: &Netns) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(netns)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn settings(dns: &SandboxDns) -> Settings {
    Settings { zones: dns.zones.clone(), servers: dns.servers.clone() }
}
