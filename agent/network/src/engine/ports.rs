//! Whether a port of the node is free for publishing.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use skep_proto::model::service::Protocol;

use crate::error::NetworkError;
use crate::plan::node::protocol_name;
use crate::spec::HostPort;

/// Whether no program in the calling thread's namespace listens on the port: publishing it would take its clients away
/// without a word. Also false for an address that the node does not have.
pub fn is_free(port: &HostPort) -> bool {
    port.published.is_some_and(|number| refusal(port.bind, number, port.protocol).is_none())
}

/// Why the system gives the port to nobody in the calling thread's namespace; `None` where it does.
pub fn refusal(bind: Option<IpAddr>, number: u16, protocol: Protocol) -> Option<NetworkError> {
    let bindings = match bind {
        Some(address) => vec![address],
        None => vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
    };
    bindings.into_iter().map(|address| SocketAddr::new(address, number)).find_map(|at| {
        let reason = match try_bind(protocol, at).err()?.kind() {
            ErrorKind::AddrInUse => "address already in use",
            ErrorKind::AddrNotAvailable => "cannot assign requested address",
            // A host without IPv6 has no programs that listen there.
            _ => return None,
        };
        Some(NetworkError::PortUnusable { at, protocol: protocol_name(protocol), reason })
    })
}

/// Binds as a program would that wants this version of IP alone.
fn try_bind(protocol: Protocol, address: SocketAddr) -> std::io::Result<()> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        // Hardly a program listens.
        Protocol::Sctp => return Ok(()),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if kind == SocketType::STREAM {
        // Connections that ended a moment ago are in nobody's way.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if kind == SocketType::STREAM { Ok(listen(&socket, 1)?) } else { Ok(()) }
}
