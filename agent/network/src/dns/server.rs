//! The sockets of one sandbox and the loops that serve them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::forward::{Forwarder, frame};
use crate::dns::message::{Parsed, Request, Transport, parse};
use crate::dns::resolve::{Decision, decide};
use crate::dns::zone::{ZoneKey, Zones};
use crate::names::DnsPorts;

/// Where sandboxes find their name server, as with Docker.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Streams that a sandbox may have open.
const MAX_STREAMS: usize = 64;
/// How long a stream may stay without a question (RFC 7766 section 6.2.3 asks for seconds).
pub const IDLE: Duration = Duration::from_secs(10);
/// Questions of one sandbox under way outside: a quarter of the node's, so that none takes them all.
const MAX_FORWARDS: usize = 256;
/// Datagrams answered in a row before other tasks get their turn.
const BATCH: usize = 64;
/// Longest datagram read; a question that is longer is no question of a stub resolver.
const MAX_QUESTION: usize = 4096;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The sockets of a sandbox.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
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
        let (udp, tcp) = (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp));
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)? })
    }

    /// Their ports.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn ports(&self) -> io::Result<DnsPorts> {
        Ok(DnsPorts { udp: self.udp.local_addr()?.port(), tcp: self.tcp.local_addr()?.port() })
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

/// What follows from a packet.
enum Next {
    Nothing,
    Send(Vec<u8>),
    Forward(Box<Request>),
}

impl Shared {
    fn next(&self, packet: &[u8], transport: Transport, rng: &mut SmallRng) -> Next {
        let request = match parse(packet) {
            Parsed::Ignore => return Next::Nothing,
            Parsed::Reply(reply) => return Next::Send(reply),
            Parsed::Request(request) => request,
        };
        let decision = decide(&request, &self.settings.borrow().zones, &self.zones.borrow(), rng);
        Next::Send(match decision {
            Decision::Addresses(addresses) => request.addresses(&addresses, transport),
            Decision::Pointer(name) => request.pointer(&name, transport),
            Decision::Nothing => request.status(ResponseCode::NoError),
            Decision::NoSuchName => request.status(ResponseCode::NXDomain),
            Decision::Forward => return Next::Forward(request),
        })
    }

    async fn forward(&self, request: &Request, packet: &[u8], transport: Transport) -> Vec<u8> {
        let settings = self.settings.borrow().clone();
        self.forwarder.ask(request, packet, &settings.servers, transport).await
    }

    async fn send(&self, reply: &[u8], client: SocketAddr) {
        let sockets = &self.sockets;
        if reply.is_empty() {
            return;
        }
        let sent = match sockets.udp.try_send_to(reply, client) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sockets.udp.send_to(reply, client).await,
            sent => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(%client, %error, "a reply could not be sent");
        }
    }
}

/// Nothing is awaited between receiving a datagram and answering it, or giving it to a task of its own: to stop this
/// loop at an await loses no question.
async fn serve_udp(shared: Arc<Shared>) {
    let mut rng = SmallRng::from_os_rng();
    while shared.sockets.udp.readable().await.is_ok() {
        for _ in 0..BATCH {
            // On the stack and not kept over an await: thousands of idle sandboxes hold no buffers.
            let mut buffer = [0; MAX_QUESTION];
            let (packet, client) = match shared.sockets.udp.try_recv_from(&mut buffer) {
                Ok((length, client)) => (&buffer[..length], client),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error to an earlier reply, say: the client is gone.
                Err(_) => continue,
            };
            match shared.next(packet, Transport::Udp, &mut rng) {
                Next::Nothing => (),
                Next::Send(reply) => send_now(&shared, reply, client),
                Next::Forward(request) => match shared.forwards.clone().try_acquire_owned() {
                    Err(_) => send_now(&shared, request.status(ResponseCode::ServFail), client),
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
        tokio::task::yield_now().await;
    }
}

fn send_now(shared: &Arc<Shared>, reply: Vec<u8>, client: SocketAddr) {
    match shared.sockets.udp.try_send_to(&reply, client) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let task = shared.clone();
            shared.tasks.spawn(async move { task.send(&reply, client).await });
        }
        Ok(_) | Err(_) => (),
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
        let reply = match shared.next(&packet, Transport::Tcp, &mut rng) {
            Next::Nothing => return Ok(()),
            Next::Send(reply) => reply,
            Next::Forward(request) => match shared.forwards.try_acquire() {
                Ok(_permit) => shared.forward(&request, &packet, Transport::Tcp).await,
                Err(_) => request.status(ResponseCode::ServFail),
            },
        };
        // A client that reads nothing holds its stream no longer than one that asks nothing.
        timeout(IDLE, stream.write_all(&frame(&reply))).await??;
    }
}
