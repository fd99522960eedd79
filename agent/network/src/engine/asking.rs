//! Questions that `skep doctor` asks in containers' namespaces, as a container would.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::doctor::SOON;
use super::{Inner, blocking};
use crate::dns::forward::frame;
use crate::dns::message::Transport;
use crate::dns::resolve::{Found, find};
use crate::dns::server::ADDRESS;
use crate::dns::zone::{ZoneKey, Zones};
use crate::doctor::{Asked, Reply};
use crate::error::{NetworkError, Step};
use crate::names::DnsPorts;
use crate::plan::names::{Book, LocalName};
use crate::spec::SandboxId;
use crate::sys::netns::Netns;

/// Containers that are asked at most: the name server is one for all, their rules are compared beside that.
const MOST: usize = 32;
/// How long an answer is waited for. It comes from this host.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where containers ask.
const PORT: u16 = 53;

/// Where to ask what.
struct Place {
    id: SandboxId,
    netns: Netns,
    ports: DnsPorts,
    names: Vec<(String, Wanted)>,
}

/// The answer that should come, and to which type of question.
#[derive(Clone)]
struct Wanted {
    kind: RecordType,
    reply: Reply,
}

/// What came of asking.
#[derive(Default)]
pub(super) struct Answers {
    pub asked: Vec<Asked>,
    /// Containers that were asked, and those that might have been.
    pub containers: usize,
    pub of: usize,
}

impl Inner {
    /// Asks in up to [`MOST`] containers, in all at once: a service's name, its tasks' name, one that nobody has; the first of
    /// them over TCP, too. Takes three seconds at most.
    pub(super) async fn ask_in_sandboxes(self: &Arc<Self>) -> Result<Answers, NetworkError> {
        let mut there = Vec::new();
        let until = Instant::now() + SOON;
        for (id, cell) in self.live_cells() {
            // One without zones does not ask here.
            let Ok(live) = timeout_at(until, cell.lock()).await else { continue };
            let zones = self.state().records.get(&id).map(|record| record.dns(&self.config).zones);
            if let (Some(live), Some(zones)) = (live.as_ref(), zones.filter(|zones| !zones.is_empty())) {
                there.push((id, live.netns.clone(), live.dns, zones));
            }
        }
        let of = there.len();
        // Spread over all, and others each time.
        let first = usize::from(rand::random::<u16>());
        let chosen: Vec<_> = (0..of.min(MOST)).map(|n| there[(first + n * of / of.min(MOST)) % of].clone()).collect();
        let inner = self.clone();
        let places = blocking(move || {
            let sources = inner.state().name_sources();
            let (view, local) = (sources.view.clone(), sources.local.values().flatten().cloned().collect::<Vec<_>>());
            let book = Book::of(sources);
            let place = |(turn, (id, netns, ports, order)): (usize, (SandboxId, Netns, DnsPorts, Vec<ZoneKey>))| {
                let services = view.services.values().map(|service| service.name.as_str());
                let names = names(services, &local, &order, book.zones(), first + turn);
                Place { id, netns, ports, names }
            };
            Ok(chosen.into_iter().enumerate().map(place).collect::<Vec<_>>())
        });
        let places = places.await?;
        let containers = places.len();
        let mut asking = JoinSet::new();
        for place in places {
            for (at, (name, wanted)) in place.names.into_iter().enumerate() {
                for transport in [Transport::Udp, Transport::Tcp] {
                    if transport == Transport::Tcp && at > 0 {
                        continue;
                    }
                    let (netns, ports) = (place.netns.clone(), place.ports);
                    let (sandbox, name, wanted) = (place.id.to_string(), name.clone(), wanted.clone());
                    asking.spawn(ask(netns, ports, sandbox, name, wanted, transport));
                }
            }
        }
        let mut asked = Vec::new();
        while let Some(done) = asking.join_next().await {
            asked.push(done.unwrap_or(Err(NetworkError::Stopped))?);
        }
        // In an order that does not depend on who answered first.
        asked.sort_by(|a, b| (&a.sandbox, &a.name).cmp(&(&b.sandbox, &b.name)));
        Ok(Answers { asked, containers, of })
    }
}

/// What to ask in a container with these zones, and what should be answered.
fn names<'a>(
    services: impl Iterator<Item = &'a str>,
    local: &[LocalName],
    order: &[ZoneKey],
    zones: &Zones,
    turn: usize,
) -> Vec<(String, Wanted)> {
    let wanted = |name: &str| {
        let lower = name.to_ascii_lowercase();
        match find(&lower, lower.split('.').count(), order, zones) {
            Found::Known(known) if known.v4.is_empty() && !known.v6.is_empty() => {
                let all = known.v6.iter().copied().map(IpAddr::V6).collect();
                Some(Wanted { kind: RecordType::AAAA, reply: Reply::Addresses { all, cut: false } })
            }
            Found::Known(known) => {
                let all = known.v4.iter().copied().map(IpAddr::V4).collect();
                Some(Wanted { kind: RecordType::A, reply: Reply::Addresses { all, cut: false } })
            }
            Found::NoSuchName => Some(Wanted { kind: RecordType::A, reply: Reply::NoSuchName }),
            Found::Elsewhere => None,
        }
    };
    let is_known = |name: &&str| {
        wanted(name).is_some_and(|wanted| matches!(wanted.reply, Reply::Addresses { all, .. } if !all.is_empty()))
    };
    let services: Vec<&str> = services.filter(is_known).collect();
    let own = local.iter().filter(|own| order.contains(&own.zone)).flat_map(|own| own.names.iter().map(String::as_str));
    let mut names = Vec::new();
    match services.is_empty() {
        false => {
            let service = services[turn % services.len()];
            names.extend([service.to_owned(), format!("tasks.{service}")]);
        }
        true => names.extend(own.filter(is_known).take(1).map(str::to_owned)),
    }
    names.push(format!("skep-doctor-{:08x}", rand::random::<u32>()));
    names.into_iter().filter_map(|name| wanted(&name).map(|wanted| (name, wanted))).collect()
}

/// Asks as a container does, and the name server at its own port when that is not answered rightly.
async fn ask(
    netns: Netns,
    ports: DnsPorts,
    sandbox: String,
    name: String,
    wanted: Wanted,
    transport: Transport,
) -> Result<Asked, NetworkError> {
    let port = match transport {
        Transport::Udp => ports.udp,
        Transport::Tcp => ports.tcp,
    };
    let heard = ask_at(&netns, PORT, &name, wanted.kind, transport).await?;
    let mut asked = Asked { sandbox, name, transport, ports, wanted: wanted.reply, heard, own: None };
    if !asked.is_right() {
        asked.own = Some(ask_at(&netns, port, &asked.name, wanted.kind, transport).await?);
    }
    Ok(asked)
}

async fn ask_at(
    netns: &Netns,
    port: u16,
    name: &str,
    kind: RecordType,
    transport: Transport,
) -> Result<Reply, NetworkError> {
    let id: u16 = rand::random();
    let question = question(name, kind, id).step("write a question")?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let sort = match transport {
        Transport::Udp => SocketType::DGRAM,
        Transport::Tcp => SocketType::STREAM,
    };
    let socket = netns.enter(|| socket_with(AddressFamily::INET, sort, flags, None).map_err(io::Error::from));
    let socket = socket.flatten().step("open a socket in a sandbox")?;
    let to = SocketAddrV4::new(ADDRESS, port);
    let answer = async {
        match transport {
            Transport::Udp => over_udp(socket, to, &question, id).await,
            Transport::Tcp => over_tcp(socket, to, &question).await,
        }
    };
    let heard = match timeout(PATIENCE, answer).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => return Ok(Reply::Silence(error.kind().to_string())),
        Err(_) => return Ok(Reply::Silence(format!("none within {} s", PATIENCE.as_secs()))),
    };
    Ok(read(&heard, id))
}

fn question(name: &str, kind: RecordType, id: u16) -> io::Result<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).map_err(io::Error::other)?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    message.to_vec().map_err(io::Error::other)
}

async fn over_udp(socket: OwnedFd, to: SocketAddrV4, question: &[u8], id: u16) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(socket.into())?;
    socket.connect(to).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer[..length].starts_with(&id.to_be_bytes()) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(socket: OwnedFd, to: SocketAddrV4, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpSocket::from_std_stream(socket.into()).connect(to.into()).await?;
    stream.write_all(&frame(question)).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

fn read(bytes: &[u8], id: u16) -> Reply {
    let Ok(message) = Message::from_vec(bytes) else { return Reply::Refusal("no message of DNS".into()) };
    if message.metadata.id != id || message.metadata.message_type != MessageType::Response {
        return Reply::Refusal("no reply to the question".into());
    }
    match message.metadata.response_code {
        ResponseCode::NoError => {
            let all: BTreeSet<IpAddr> = message.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
            Reply::Addresses { all, cut: message.metadata.truncation }
        }
        ResponseCode::NXDomain => Reply::NoSuchName,
        code => Reply::Refusal(format!("refused: {code}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Zone;

    #[test]
    fn what_zones_know_is_asked_with_the_answer_that_they_give() {
        let (net, bridge) = (ZoneKey::Bridge("net".into()), ZoneKey::Bridge("bridge".into()));
        let mut zone = Zone::new("net");
        for (name, last) in [("Web", 2), ("tasks.web", 10), ("tasks.web", 11), ("six", 0)] {
            match last {
                0 => zone.add(name, std::net::Ipv6Addr::LOCALHOST),
                last => zone.add(name, std::net::Ipv4Addr::new(10, 0, 1, last)),
            }
        }
        let mut other = Zone::new("bridge");
        other.add("own", std::net::Ipv4Addr::new(172, 20, 0, 2));
        let zones = Zones::from([(net.clone(), zone), (bridge.clone(), other)]);
        let own = LocalName { zone: bridge.clone(), names: vec!["own".into()], addresses: Vec::new() };
        let asked = |services: &[&str], order: &ZoneKey, turn| {
            let all =
                names(services.iter().copied(), std::slice::from_ref(&own), std::slice::from_ref(order), &zones, turn);
            let texts = all.iter().map(|(name, wanted)| match &wanted.reply {
                Reply::Addresses { all, .. } => format!("{name} {} {}", wanted.kind, all.len()),
                _ => "nobody".to_owned(),
            });
            texts.collect::<Vec<_>>()
        };
        assert_eq!(asked(&["gone", "Web"], &net, 0), ["Web A 1", "tasks.Web A 2", "nobody"]);
        assert_eq!(asked(&["Web", "six"], &net, 1), ["six AAAA 1", "nobody"]);
        assert_eq!(asked(&["Web"], &bridge, 0), ["own A 1", "nobody"]);
        assert_eq!(asked(&[], &net, 3), ["nobody"]);
    }

    #[test]
    fn what_comes_back_is_told_apart() {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        let bytes = |message: &Message| message.to_vec().unwrap();
        assert_eq!(read(&bytes(&message), 7), Reply::Addresses { all: BTreeSet::new(), cut: false });
        assert!(matches!(read(&bytes(&message), 8), Reply::Refusal(_)));
        message.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(read(&bytes(&message), 7), Reply::NoSuchName);
        message.metadata.response_code = ResponseCode::ServFail;
        assert!(matches!(read(&bytes(&message), 7), Reply::Refusal(_)));
        assert!(matches!(read(b"x", 7), Reply::Refusal(_)));
        assert!(matches!(read(&question("web", RecordType::A, 7).unwrap(), 7), Reply::Refusal(_)));
    }
}
