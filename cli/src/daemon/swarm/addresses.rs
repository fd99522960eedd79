//! Which addresses a node listens on and tells others.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use skep_api::ports::control::ControlError;

use crate::daemon::config::CLUSTER_PORT;
use crate::daemon::sys;

/// The addresses of a node, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Where a manager listens.
    pub listen: SocketAddr,
    /// What others are told.
    pub advertise: SocketAddr,
    /// Where the data path is.
    pub data_path: IpAddr,
}

/// What was asked for, empty where nothing was.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// `ADDRESS[:PORT]`, `INTERFACE[:PORT]` or `:PORT`.
    pub listen: &'a str,
    /// The same.
    pub advertise: &'a str,
    /// Without a port.
    pub data_path: &'a str,
}

/// An address of this node and its interface.
pub type Local = (String, IpAddr);

/// Finds the addresses. `towards` is the address that the system uses on its way to other hosts, when it has one.
///
/// # Errors
/// [`ControlError::InvalidArgument`], which says what to name.
pub fn resolve(asked: Asked<'_>, locals: &[Local], towards: Option<IpAddr>) -> Result<Addresses, ControlError> {
    let any = IpAddr::from([0, 0, 0, 0]);
    let listen = endpoint("listen", asked.listen, locals)?.unwrap_or(SocketAddr::new(any, CLUSTER_PORT));
    let advertise = match endpoint("advertise", asked.advertise, locals)? {
        Some(address) if !asked.advertise.contains(':') => SocketAddr::new(address.ip(), listen.port()),
        Some(address) => address,
        None if !listen.ip().is_unspecified() => listen,
        None => SocketAddr::new(only_choice(locals, towards)?, listen.port()),
    };
    if advertise.ip().is_unspecified() {
        return Err(invalid(
            "advertise address must be a non-zero IP address or network interface (with optional port number)",
        ));
    }
    let data_path = endpoint("data path", asked.data_path, locals)?.map_or(advertise.ip(), |address| address.ip());
    Ok(Addresses { listen, advertise, data_path })
}

fn invalid(text: impl Into<String>) -> ControlError {
    ControlError::InvalidArgument(text.into())
}

/// The one address that others can reach, where there is only one.
fn only_choice(locals: &[Local], towards: Option<IpAddr>) -> Result<IpAddr, ControlError> {
    let outside: Vec<&Local> = locals.iter().filter(|(_, ip)| ip.is_ipv4() && !ip.is_loopback()).collect();
    match outside.as_slice() {
        [] => Err(invalid("could not find the system's IP address - specify one with --advertise-addr")),
        [(_, only)] => Ok(*only),
        several => towards.filter(|ip| several.iter().any(|(_, have)| have == ip)).ok_or_else(|| {
            let shown: Vec<String> = several.iter().map(|(name, ip)| format!("{ip} on {name}")).collect();
            invalid(format!(
                "could not choose an IP address to advertise since this system has multiple addresses ({}) - specify one with --advertise-addr",
                shown.join(", ")
            ))
        }),
    }
}

/// Reads one of the forms; `None` for an empty text.
fn endpoint(what: &str, text: &str, locals: &[Local]) -> Result<Option<SocketAddr>, ControlError> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Some(address));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Some(SocketAddr::new(ip, CLUSTER_PORT)));
    }
    let wrong = || invalid(format!("invalid {what} address {text:?}: write ADDRESS[:PORT] or INTERFACE[:PORT]"));
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?),
        None => (text, CLUSTER_PORT),
    };
    if name.is_empty() {
        return Ok(Some(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)));
    }
    let on_interface: Vec<IpAddr> =
        locals.iter().filter(|(i, ip)| i == name && ip.is_ipv4()).map(|(_, ip)| *ip).collect();
    match on_interface.as_slice() {
        [ip] => Ok(Some(SocketAddr::new(*ip, port))),
        [] => Err(wrong()),
        [_, ..] => Err(invalid(format!("the interface {name} has several addresses: name one of them"))),
    }
}

/// Resolves the managers to ask, `HOST[:PORT]`.
///
/// # Errors
/// When one of them cannot be resolved.
pub fn managers(remotes: &[String]) -> Result<Vec<SocketAddr>, ControlError> {
    let mut found = Vec::new();
    for remote in remotes.iter().filter(|r| !r.is_empty()) {
        let with_port = remote.parse::<SocketAddr>().is_ok()
            || remote.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let name = if with_port { remote.clone() } else { format!("{remote}:{CLUSTER_PORT}") };
        let resolved = name.to_socket_addrs();
        found.extend(
            resolved.map_err(|error| invalid(format!("cannot resolve the manager's address {remote}: {error}")))?,
        );
    }
    if found.is_empty() {
        return Err(invalid("at least 1 RemoteAddr is required to join"));
    }
    Ok(found)
}

/// The addresses of this network namespace, and the one used towards other hosts.
pub fn of_this_host() -> (Vec<Local>, Option<IpAddr>) {
    // Connecting a datagram socket sends nothing; it only asks the kernel for the route. TEST-NET-3, RFC 5737.
    let towards = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("203.0.113.1:9")?;
        Ok(socket.local_addr()?.ip())
    });
    let locals = sys::ipv4_addresses().into_iter().map(|(name, ip)| (name, IpAddr::V4(ip))).collect();
    (locals, towards.ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locals() -> Vec<Local> {
        [("lo", "127.0.0.1"), ("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")]
            .map(|(n, ip)| (n.to_owned(), ip.parse().unwrap()))
            .to_vec()
    }

    fn ask<'a>(listen: &'a str, advertise: &'a str) -> Asked<'a> {
        Asked { listen, advertise, data_path: "" }
    }

    #[test]
    fn interfaces_and_ports_are_understood() {
        let found = resolve(ask("0.0.0.0:2378", "eth1"), &locals(), None).unwrap();
        assert_eq!((found.listen.port(), found.advertise.to_string()), (2378, "10.1.0.1:2378".into()));
        let found = resolve(ask(":4000", "10.0.0.1:5000"), &locals(), None).unwrap();
        assert_eq!((found.listen.to_string(), found.advertise.port()), ("0.0.0.0:4000".into(), 5000));
        let found = resolve(ask("10.0.0.1", ""), &locals(), None).unwrap();
        assert_eq!(found.advertise.to_string(), "10.0.0.1:2377");
    }

    #[test]
    fn several_addresses_need_a_choice_unless_the_route_makes_it() {
        assert!(resolve(ask("", ""), &locals(), None).unwrap_err().to_string().contains("multiple addresses"));
        let found = resolve(ask("", ""), &locals(), Some("10.1.0.1".parse().unwrap())).unwrap();
        assert_eq!(found.advertise.ip().to_string(), "10.1.0.1");
        assert!(resolve(ask("", "eth9"), &locals(), None).is_err());
        assert!(resolve(ask("", "0.0.0.0"), &locals(), None).is_err());
        assert!(resolve(ask("x:y", ""), &locals(), None).is_err());
    }
}
