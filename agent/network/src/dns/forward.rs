//! Asking servers outside the cluster for a sandbox.
//!
//! A question goes out as it came, EDNS and all, but under a random id and from a fresh port, and a reply counts only
//! when id, sender and question fit (RFC 5452): a neighbour on the wire cannot guess its way in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::dns::message::{ReplyHeader, Request, Transport, check_reply};
use crate::dns::resolve::servers;
use crate::dns::upstream::NodeServers;

/// How long one server may take, TCP retry included.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions under way for the whole node.
const MAX_IN_FLIGHT: usize = 1024;
/// Largest datagram taken. The question's own EDNS size bounds what an honest server sends.
const MAX_DATAGRAM: usize = 4096;

/// Asks servers outside.
#[derive(Debug)]
pub struct Forwarder {
    node: NodeServers,
    /// Port of all servers.
    port: u16,
    in_flight: Semaphore,
}

impl Forwarder {
    /// Sandboxes without servers of their own ask those of `node`, all on `port`.
    pub fn new(node: NodeServers, port: u16) -> Self {
        Self { node, port, in_flight: Semaphore::new(MAX_IN_FLIGHT) }
    }

    /// The reply for the client: the first useful one of the servers in order, else their last complaint, else ours.
    pub async fn ask(&self, request: &Request, packet: &[u8], own: &[IpAddr], transport: Transport) -> Vec<u8> {
        let Ok(_permit) = self.in_flight.try_acquire() else { return request.status(ResponseCode::ServFail) };
        let node = self.node.get(Instant::now());
        let mut complaint = None;
        for server in servers(own, &node) {
            match timeout(SERVER_TIMEOUT, self.ask_one(SocketAddr::new(server, self.port), request, packet)).await {
                Ok(Ok((header, reply))) if !header.try_next => return request.relay(reply, transport),
                Ok(Ok((_, reply))) => complaint = Some(reply),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a name server did not answer in time"),
            }
        }
        match complaint {
            Some(reply) => request.relay(reply, transport),
            None => request.status(ResponseCode::ServFail),
        }
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        request: &Request,
        packet: &[u8],
    ) -> io::Result<(ReplyHeader, Vec<u8>)> {
        let id: u16 = rand::random();
        let mut question = packet.to_vec();
        if let Some(place) = question.first_chunk_mut::<2>() {
            *place = id.to_be_bytes();
        }
        let (header, reply) = ask_udp(server, request, id, &question).await?;
        if !header.truncated {
            return Ok((header, reply));
        }
        // A server without TCP has at least given us something: the client sees that it is cut.
        Ok(ask_tcp(server, request, id, &question).await.unwrap_or((header, reply)))
    }
}

async fn ask_udp(
    server: SocketAddr,
    request: &Request,
    id: u16,
    question: &[u8],
) -> io::Result<(ReplyHeader, Vec<u8>)> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel drops what comes from elsewhere, and a closed port is an error at once.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_DATAGRAM + 1];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(mut header) = check_reply(&buffer[..length], id, &request.query) {
            buffer.truncate(length);
            // What did not fit the buffer is gone.
            header.truncated |= length > MAX_DATAGRAM;
            return Ok((header, buffer));
        }
    }
}

async fn ask_tcp(
    server: SocketAddr,
    request: &Request,
    id: u16,
    question: &[u8],
) -> io::Result<(ReplyHeader, Vec<u8>)> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&frame(question)).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    check_reply(&reply, id, &request.query)
        .map(|header| (header, reply))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the reply is to another question"))
}

/// A message with its length before it, as streams carry it (RFC 1035 section 4.2.2). In one piece, so that it is sent
/// as one packet. Longer messages than 65,535 bytes do not exist.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(2 + usize::from(length));
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message[..usize::from(length)]);
    framed
}

#[cfg(test)]
mod tests;
