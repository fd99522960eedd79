//! Whether a port of the node is free for publishing.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use skep_proto::model::service::Protocol;

use crate::spec::HostPort;

/// Whether no program in the calling thread's namespace listens on the port: publishing it would take its clients away
/// without a word. Also false for an address that the node does not have.
pub fn is_free(port: &HostPort) -> bool {
    let Some(number) = port.published else { return false };
    let address = (port.bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), number);
    let bound = match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        // No socket of the standard library speaks it, and hardly a program listens.
        Protocol::Sctp => Ok(()),
    };
    match bound {
        Ok(()) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable),
    }
}
