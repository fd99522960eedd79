//! The owner of the node's WireGuard link: makes it, keeps it as wanted, follows nodes that go over to another key.
//!
//! It works in the network namespace of the calling thread, which is the node's. The link is up and has its routes before
//! a call returns; without the process it is gone, and the rules of the daemon let nothing pass that it would have carried.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net};
use skep_wireguard::{Config, Device, Handover, Options, Peer, PublicKey, Status};

use super::kernel::Kernel;
use crate::keys;
use crate::netlink::{Requests, Rtnl, Via};
use crate::plan::encryption::key_in_use;
use crate::sys::netns::Netns;
use crate::tunnel::{Key, Tunnel, TunnelPath, TunnelPeer, TunnelPeerStatus, TunnelStatus};

/// How often it is looked whether a node has gone over to its next key. What it sends meanwhile is lost.
pub const FOLLOW: Duration = Duration::from_millis(20);
/// The main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;
/// Where packets go that only bring about a handshake (discard, RFC 863); the other side drops them.
const DISCARD: u16 = 9;

/// What encrypts: the kernel, or ourselves.
enum Link {
    Userspace(Device),
    Kernel(Kernel),
}

/// The owner of the link.
#[derive(Default)]
pub struct Owner {
    open: Option<Open>,
}

struct Open {
    wanted: Tunnel,
    link: Link,
    /// The key that speaks for each peer.
    speaking: Vec<Key>,
}

/// What a successor gets: what is wanted, and the device where it is in this process.
pub struct Given {
    /// Wanted.
    pub wanted: Tunnel,
    /// The device.
    pub device: Option<Handover>,
}

impl Owner {
    /// Takes over from a predecessor.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn adopt(given: Given) -> io::Result<Self> {
        let link = match given.device {
            Some(device) => Link::Userspace(Device::adopt(device).map_err(io::Error::other)?),
            None => Link::Kernel(Kernel::find(&given.wanted.link)?),
        };
        let mut open = Open { speaking: Vec::new(), wanted: given.wanted, link };
        open.configure()?;
        Ok(Self { open: Some(open) })
    }

    /// Brings the link to that state.
    ///
    /// # Errors
    /// When the host cannot; then there is no link, or it is as before.
    pub fn put(&mut self, wanted: Tunnel) -> io::Result<TunnelStatus> {
        // Another port, address or size makes another link; keys and peers change under it.
        let kept = self.open.take().filter(|open| {
            let (a, b) = (&open.wanted, &wanted);
            (&a.link, a.listen, a.mtu, a.address, a.range) == (&b.link, b.listen, b.mtu, b.address, b.range)
                && open.is_there()
        });
        let mut open = match kept {
            Some(open) => open,
            None => Open::new(&wanted)?,
        };
        let is_new = open.wanted.key != wanted.key || open.speaking.is_empty();
        let before = std::mem::replace(&mut open.wanted, wanted);
        let configured = open.configure();
        if configured.is_err() {
            open.wanted = before;
        } else {
            let known: BTreeSet<Key> = before.peers.iter().filter(|_| !is_new).map(|peer| peer.key).collect();
            open.greet(&known);
        }
        let open = self.open.insert(open);
        configured?;
        open.status()
    }

    /// Removes the link.
    pub fn remove(&mut self) {
        if let Some(open) = self.open.take() {
            open.close();
        }
    }

    /// Whether [`Owner::follow`] has something to look for.
    pub fn is_following(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.wanted.peers.iter().any(|peer| peer.next.is_some()))
    }

    /// Gives the address of each node that has gone over to its next key to that key.
    ///
    /// # Errors
    /// When the device cannot be configured.
    pub fn follow(&mut self) -> io::Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.choose()? != open.speaking { open.configure() } else { Ok(()) }
    }

    /// The link as it is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn status(&self) -> io::Result<Option<TunnelStatus>> {
        self.open.as_ref().map(Open::status).transpose()
    }

    /// What is wanted.
    pub fn wanted(&self) -> Option<&Tunnel> {
        self.open.as_ref().map(|open| &open.wanted)
    }

    /// Whether the link that should be there is there.
    pub fn is_there(&self) -> bool {
        self.open.as_ref().is_some_and(Open::is_there)
    }

    /// Brings back what somebody took from a link that is there: that it is up, its address, its route. A link that is set
    /// down loses its routes for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mend(&self) -> io::Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let mut rtnl = Netns::current().and_then(|netns| Rtnl::open(&netns))?;
        match rtnl.link(&open.wanted.link)? {
            Some(link) => rtnl.send(bring_up(&mut Requests::new(), link.index, &open.wanted)),
            None => Ok(()),
        }
    }

    /// All that a successor needs. The link goes on here until [`Owner::let_go`].
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn give(&self) -> io::Result<Option<Given>> {
        let Some(open) = &self.open else { return Ok(None) };
        let device = match &open.link {
            Link::Userspace(device) => Some(device.handover().map_err(io::Error::other)?),
            Link::Kernel(_) => None,
        };
        Ok(Some(Given { wanted: open.wanted.clone(), device }))
    }

    /// A successor has it: the link stays.
    pub fn let_go(&mut self) {
        if let Some(Open { link: Link::Userspace(device), .. }) = self.open.take() {
            device.stop();
        }
    }
}

impl Open {
    fn new(wanted: &Tunnel) -> io::Result<Self> {
        let netns = Netns::current()?;
        let mut rtnl = Rtnl::open(&netns)?;
        rtnl.send(Requests::new().delete_link(&wanted.link))?;
        let link = match Kernel::make(wanted) {
            Ok(kernel) => Link::Kernel(kernel),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Link::Userspace(open_device(wanted)?),
            Err(error) => return Err(error),
        };
        let open = Self { wanted: wanted.clone(), link, speaking: Vec::new() };
        set_up(&mut rtnl, wanted)?;
        Ok(open)
    }

    fn close(self) {
        match self.link {
            Link::Userspace(device) => device.stop(),
            Link::Kernel(_) => {
                let removed = Netns::current().and_then(|netns| Rtnl::open(&netns));
                let removed = removed.and_then(|mut rtnl| rtnl.send(Requests::new().delete_link(&self.wanted.link)));
                if let Err(error) = removed {
                    tracing::warn!(%error, link = self.wanted.link, "cannot delete the WireGuard link");
                }
            }
        }
    }

    fn is_there(&self) -> bool {
        let found = Netns::current().and_then(|netns| Rtnl::open(&netns)?.link(&self.wanted.link));
        found.is_ok_and(|link| link.is_some())
    }

    /// The key that speaks for each peer now.
    fn choose(&self) -> io::Result<Vec<Key>> {
        let changing = self.wanted.peers.iter().any(|peer| peer.next.is_some());
        let seen = if changing { self.status()?.peers } else { Vec::new() };
        let handshake = |key: &Key| seen.iter().find(|peer| peer.key == *key)?.handshake_ms;
        Ok(self.wanted.peers.iter().map(|peer| key_in_use(peer, handshake)).collect())
    }

    fn configure(&mut self) -> io::Result<()> {
        let speaking = self.choose()?;
        let private_key = keys::load(&self.wanted.keys, self.wanted.key)?;
        let config = Config { private_key, peers: peers(&self.wanted.peers, &speaking) };
        match &mut self.link {
            Link::Userspace(device) => device.configure(config).map_err(io::Error::other)?,
            Link::Kernel(kernel) => kernel.configure(&self.wanted, &config)?,
        }
        self.speaking = speaking;
        Ok(())
    }

    fn status(&self) -> io::Result<TunnelStatus> {
        match &self.link {
            Link::Userspace(device) => Ok(status(self.wanted.key, &device.status())),
            Link::Kernel(kernel) => kernel.status(self.wanted.key),
        }
    }

    /// Has a handshake made with every node but the known ones: what they hold of an earlier key or process of this node is
    /// of no use any more, and until then they would send into nothing.
    fn greet(&self, known: &BTreeSet<Key>) {
        let Ok(socket) = UdpSocket::bind((self.wanted.address, 0)) else { return };
        // Never waits: what does not fit the queue is brought about by the first packet that somebody sends.
        let _ = socket.set_nonblocking(true);
        for peer in self.wanted.peers.iter().filter(|peer| !known.contains(&peer.key)) {
            let _ = socket.send_to(&[0], (peer.address, DISCARD));
        }
    }
}

/// The peers as the device knows them. A node that goes over to another key is two of them, and has its address by one.
fn peers(wanted: &[TunnelPeer], speaking: &[Key]) -> Vec<Peer> {
    let mut all = Vec::new();
    for (peer, speaks) in wanted.iter().zip(speaking) {
        for key in std::iter::once(peer.key).chain(peer.next) {
            let address = IpNet::V4(Ipv4Net::from(peer.address));
            all.push(Peer {
                public_key: PublicKey::from_bytes(key),
                preshared_key: None,
                endpoint: Some(peer.endpoint),
                allowed_ips: if key == *speaks { vec![address] } else { Vec::new() },
                keepalive: None,
            });
        }
    }
    all
}

fn open_device(wanted: &Tunnel) -> io::Result<Device> {
    let options = |listen| Options { name: wanted.link.clone(), listen, mtu: wanted.mtu };
    let opened = Device::open(&options(wanted.listen)).or_else(|error| {
        // Behind address translation the data path's address is none of the host's.
        tracing::debug!(%error, "listening on all addresses");
        let all = match wanted.listen {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Device::open(&options(SocketAddr::new(all, wanted.listen.port())))
    });
    opened.map_err(io::Error::other)
}

/// Address, routes and parameters of a new link.
fn set_up(rtnl: &mut Rtnl, wanted: &Tunnel) -> io::Result<()> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the link is gone");
    // A kernel without IPv6 has no such parameter.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", wanted.link), "1");
    let index = rtnl.link(&wanted.link)?.ok_or_else(gone)?.index;
    rtnl.send(bring_up(Requests::new().set_mtu(index, wanted.mtu), index, wanted))
}

/// What has no effect on a link that is up and has its address and route.
fn bring_up<'a>(requests: &'a mut Requests, index: u32, wanted: &Tunnel) -> &'a Requests {
    requests.add_address(index, wanted.address, 32).set_up(index);
    requests.replace_route(wanted.range, Via::Link(index), MAIN_TABLE)
}

fn status(key: Key, device: &Status) -> TunnelStatus {
    let peers = device.peers.iter().map(|peer| TunnelPeerStatus {
        key: peer.public_key.to_bytes(),
        endpoint: peer.endpoint,
        handshake_ms: peer.latest_handshake.and_then(|at| {
            let since = at.duration_since(UNIX_EPOCH).ok()?;
            u64::try_from(since.as_millis()).ok()
        }),
        received: peer.received_bytes,
        sent: peer.sent_bytes,
    });
    TunnelStatus { path: TunnelPath::Userspace, key, peers: peers.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_changes_its_key_is_two_peers_and_has_its_address_by_the_one_that_speaks() {
        let one = |last: u8, next: Option<u8>| TunnelPeer {
            key: [last; 32],
            next: next.map(|next| [next; 32]),
            endpoint: SocketAddr::from(([192, 0, 2, last], 51820)),
            address: Ipv4Addr::new(100, 127, 192, last),
        };
        let seen = |speaking: &[u8]| {
            let speaking: Vec<Key> = speaking.iter().map(|key| [*key; 32]).collect();
            let all = peers(&[one(1, None), one(2, Some(22))], &speaking);
            all.iter().map(|p| (p.public_key.to_bytes()[0], p.allowed_ips.len())).collect::<Vec<_>>()
        };
        assert_eq!(seen(&[1, 2]), [(1, 1), (2, 1), (22, 0)]);
        assert_eq!(seen(&[1, 22]), [(1, 1), (2, 0), (22, 1)]);
    }
}
