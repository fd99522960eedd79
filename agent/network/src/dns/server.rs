//! The sockets of one sandbox and the loops that serve them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::forward::{Forwarder, frame};
use crate::dns::message::{Parsed, Request, Transport, parse};
use crate::dns::resolve::{Decision, decide};
use crate::dns::usual::Question;
use crate::dns::zone::{ZoneKey, Zones};
use crate::names::DnsPorts;
use crate::sys::datagrams::{self, Inbox, Outbox};

/// Where sandboxes find their name server, as with Docker.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Streams that a sandbox may have open.
const MAX_STREAMS: usize = 64;
/// How long a stream may stay without a question (RFC 7766 section 6.2.3 asks for seconds).
pub const IDLE: Duration = Duration::from_secs(10);
/// Questions of one sandbox under way outside: a quarter of the node's, so that none takes them all.
const MAX_FORWARDS: usize = 256;
/// Calls for datagrams in a row before other tasks get their turn.
const CALLS: usize = 8;
/// Longest datagram read; a question that is longer is no question of a stub resolver.
const MAX_QUESTION: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The sockets of a sandbox.
#[derive(Debug)]
pub struct Sockets {
    /// Watched for what comes alone: each reply that leaves makes room, which nobody wants to hear of.
    udp: AsyncFd<UdpSocket>,
    tcp: TcpListener,
}

/// Opens the sockets in the calling thread's network namespace; random ports when none are given. The loopback link
/// may still be down.
///
/// # Errors
/// Those of bind(2): the ports may be taken.
pub fn open(ports: Option<DnsPorts>) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let udp = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    let tcp = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    // A predecessor's closed streams must not keep its port from us.
    sockopt::set_socket_reuseaddr(&tcp, true)?;
    for (socket, port) in [(&udp, ports.map(|p| p.udp)), (&tcp, ports.map(|p| p.tcp))] {
        sockopt::set_ip_freebind(socket, true)?;
        bind(socket, &SocketAddrV4::new(ADDRESS, port.unwrap_or(0)))?;
    }
    listen(&tcp, BACKLOG)?;
    Ok((udp, tcp))
}

impl Sockets {
    /// Takes open sockets into the current runtime.
    ///
    /// # Errors
    /// When they are not what they should be, or cannot be watched.
    pub fn new(udp: OwnedFd, tcp: OwnedFd) -> io::Result<Self> {
        let (udp, tcp) = (UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let udp = datagrams::watch(udp, Interest::READABLE)?;
        Ok(Self { udp, tcp: TcpListener::from_std(tcp)? })
    }

    /// Their ports.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn ports(&self) -> io::Result<DnsPorts> {
        Ok(DnsPorts { udp: self.udp.get_ref().local_addr()?.port(), tcp: self.tcp.local_addr()?.port() })
    }
}

/// What a sandbox's questions are answered from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Zones in order.
    pub zones: Vec<ZoneKey>,
    /// Servers for other names; empty for the node's.
    pub servers: Vec<IpAddr>,
}

/// A running name server of one sandbox. Dropping it ends everything at once, so that it keeps no namespace alive.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    settings: watch::Sender<Arc<Settings>>,
    ports: DnsPorts,
    /// What is under way may go on after this is dropped.
    draining: bool,
}

#[derive(Debug)]
struct Shared {
    sockets: Sockets,
    settings: watch::Receiver<Arc<Settings>>,
    zones: watch::Receiver<Arc<Zones>>,
    forwarder: Arc<Forwarder>,
    forwards: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Take no more questions.
    stop: CancellationToken,
    /// Nor answer those taken.
    close: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Starts to serve. `tasks` gets every task, so that its owner can wait for what is under way.
    ///
    /// # Errors
    /// When the sockets' ports cannot be read.
    pub fn start(
        sockets: Sockets,
        settings: Settings,
        zones: watch::Receiver<Arc<Zones>>,
        forwarder: Arc<Forwarder>,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        let ports = sockets.ports()?;
        let (sender, receiver) = watch::channel(Arc::new(settings));
        let shared = Arc::new(Shared {
            sockets,
            settings: receiver,
            zones,
            forwarder,
            forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            stop: CancellationToken::new(),
            close: CancellationToken::new(),
            tasks: tasks.clone(),
        });
        tasks.spawn(until(shared.stop.clone(), serve_udp(shared.clone())));
        tasks.spawn(until(shared.stop.clone(), serve_tcp(shared.clone())));
        Ok(Self { shared, settings: sender, ports, draining: false })
    }

    /// Its ports.
    pub fn ports(&self) -> DnsPorts {
        self.ports
    }

    /// Answers from these settings from now on.
    pub fn set(&self, settings: Settings) {
        self.settings.send_replace(Arc::new(settings));
    }

    /// Takes no more questions, but answers those taken, and serves open streams until they fall silent.
    pub fn drain(mut self) {
        self.draining = true;
    }

    /// The sockets, to be passed to a successor.
    pub fn fds(&self) -> [OwnedFdRef; 2] {
        [OwnedFdRef(self.shared.clone(), Transport::Udp), OwnedFdRef(self.shared.clone(), Transport::Tcp)]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if !self.draining {
            self.shared.close.cancel();
        }
    }
}

/// A socket of a server, kept open while this is held.
#[derive(Debug, Clone)]
pub struct OwnedFdRef(Arc<Shared>, Transport);

impl AsFd for OwnedFdRef {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self.1 {
            Transport::Udp => self.0.sockets.udp.as_fd(),
            Transport::Tcp => self.0.sockets.tcp.as_fd(),
        }
    }
}

async fn until(end: CancellationToken, serve: impl Future<Output = ()>) {
    tokio::select! {
        () = end.cancelled() => (),
        () = serve => (),
    }
}

/// What follows from a packet. A reply is in the buffer then.
enum Next {
    Nothing,
    Send,
    Forward(Box<Request>),
}

/// What is needed to answer questions, but not between them.
struct Desk<'a> {
    rng: &'a mut SmallRng,
    addresses: Vec<IpAddr>,
}

impl Shared {
    /// Puts the reply behind what is in `reply`, if there is one already.
    fn next(&self, packet: &[u8], transport: Transport, desk: &mut Desk<'_>, reply: &mut Vec<u8>) -> Next {
        let (settings, zones) = (self.settings.borrow(), self.zones.borrow());
        let known = (&settings.zones[..], &**zones);
        if let Some(question) = Question::read(packet)
            && question.answer(known, transport, desk.rng, &mut desk.addresses, reply)
        {
            return Next::Send;
        }
        let request = match parse(packet) {
            Parsed::Ignore => return Next::Nothing,
            Parsed::Reply(refusal) => {
                reply.extend(refusal);
                return Next::Send;
            }
            Parsed::Request(request) => request,
        };
        reply.extend(match decide(&request, known.0, known.1, desk.rng) {
            Decision::Addresses(addresses) => request.addresses(&addresses, transport),
            Decision::Pointer(name) => request.pointer(&name, transport),
            Decision::Nothing => request.status(ResponseCode::NoError),
            Decision::NoSuchName => request.status(ResponseCode::NXDomain),
            Decision::Forward => return Next::Forward(request),
        });
        Next::Send
    }

    async fn forward(&self, request: &Request, packet: &[u8], transport: Transport) -> Vec<u8> {
        let settings = self.settings.borrow().clone();
        self.forwarder.ask(request, packet, &settings.servers, transport).await
    }

    async fn send(&self, reply: &[u8], client: SocketAddrV4) {
        if reply.is_empty() {
            return;
        }
        let udp = self.sockets.udp.get_ref();
        let sent = match udp.send_to(reply, client) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => send_later(udp, reply, client).await,
            sent => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(%client, %error, "a reply could not be sent");
        }
    }
}

/// Waits until there is room for it.
async fn send_later(udp: &UdpSocket, reply: &[u8], client: SocketAddrV4) -> io::Result<usize> {
    let udp = datagrams::watch(udp.try_clone()?, Interest::WRITABLE)?;
    udp.async_io(Interest::WRITABLE, |udp| udp.send_to(reply, client)).await
}

/// Nothing is awaited between receiving datagrams and answering them, or giving them to tasks of their own: to stop this
/// loop at an await loses no question.
async fn serve_udp(shared: Arc<Shared>) {
    let mut rng = SmallRng::from_os_rng();
    while shared.sockets.udp.readable().await.is_ok() {
        if answer_datagrams(&shared, &mut rng) {
            tokio::task::yield_now().await;
        }
    }
}

/// Answers what is there, up to a limit; true when there may be more. All room that this takes is given back: thousands of
/// idle sandboxes hold no buffers.
fn answer_datagrams(shared: &Arc<Shared>, rng: &mut SmallRng) -> bool {
    let mut desk = Desk { rng, addresses: Vec::new() };
    let (mut inbox, mut outbox) = (Inbox::new(MAX_QUESTION), Outbox::default());
    let udp = &shared.sockets.udp;
    for _ in 0..CALLS {
        let received = udp.try_io(Interest::READABLE, |udp| match inbox.receive(udp.as_fd())? {
            // All that was there is taken: what comes next is told of, and need not be looked for before.
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(()),
        });
        for (packet, client) in inbox.iter() {
            match shared.next(packet, Transport::Udp, &mut desk, &mut outbox.room) {
                Next::Nothing => (),
                Next::Send => outbox.push(client),
                Next::Forward(request) => match shared.forwards.clone().try_acquire_owned() {
                    Err(_) => {
                        outbox.room.extend(request.status(ResponseCode::ServFail));
                        outbox.push(client);
                    }
                    Ok(permit) => {
                        let (task, packet) = (shared.clone(), packet.to_vec());
                        let forward = async move {
                            let reply = task.forward(&request, &packet, Transport::Udp).await;
                            task.send(&reply, client).await;
                            drop(permit);
                        };
                        shared.tasks.spawn(until(shared.close.clone(), forward));
                    }
                },
            }
        }
        send_now(shared, &outbox);
        // Whatever the next call does: nothing is answered twice.
        inbox.clear();
        outbox.clear();
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            // Any other is of one datagram: an ICMP error to an earlier reply, say.
            Ok(()) | Err(_) => (),
        }
    }
    true
}

fn send_now(shared: &Arc<Shared>, outbox: &Outbox) {
    let mut next = 0;
    while next < outbox.len() {
        match outbox.send(shared.sockets.udp.as_fd(), next) {
            Ok(sent) => next += sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let own = |(reply, client): (&[u8], _)| (reply.to_vec(), client);
                let rest: Vec<_> = (next..outbox.len()).map(|at| own(outbox.get(at))).collect();
                let task = shared.clone();
                shared.tasks.spawn(async move {
                    for (reply, client) in rest {
                        task.send(&reply, client).await;
                    }
                });
                return;
            }
            // The client is gone.
            Err(_) => next += 1,
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>) {
    loop {
        let Ok(permit) = shared.streams.clone().acquire_owned().await else { return };
        match shared.sockets.tcp.accept().await {
            Ok((stream, _)) => {
                let task = shared.clone();
                let serve = async move {
                    if let Err(error) = serve_stream(&task, stream).await {
                        tracing::debug!(%error, "a stream ended early");
                    }
                    drop(permit);
                };
                shared.tasks.spawn(until(shared.close.clone(), serve));
            }
            // No descriptor left, say. Waiting is all that helps.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_stream(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut rng = SmallRng::from_os_rng();
    loop {
        let packet = async {
            let mut packet = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut packet).await?;
            Ok::<_, io::Error>(packet)
        };
        let packet = match timeout(IDLE, packet).await {
            Ok(Ok(packet)) => packet,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let mut reply = Vec::new();
        let mut desk = Desk { rng: &mut rng, addresses: Vec::new() };
        let reply = match shared.next(&packet, Transport::Tcp, &mut desk, &mut reply) {
            Next::Nothing => return Ok(()),
            Next::Send => reply,
            Next::Forward(request) => match shared.forwards.try_acquire() {
                Ok(_permit) => shared.forward(&request, &packet, Transport::Tcp).await,
                Err(_) => request.status(ResponseCode::ServFail),
            },
        };
        // A client that reads nothing holds its stream no longer than one that asks nothing.
        timeout(IDLE, stream.write_all(&frame(&reply))).await??;
    }
}
