//! Which addresses a node listens on and tells others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

use skep_api::ports::control::ControlError;

use crate::daemon::config::CLUSTER_PORT;
use crate::daemon::sys;

/// All addresses of a family.
const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Documentation addresses: RFC 5737 and RFC 3849.
const OUTSIDE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// Where nothing is sent to (RFC 863).
const DISCARD_PORT: u16 = 9;

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

/// Finds the addresses. `towards` is the address that the system uses on its way to other hosts, when it has one. Where
/// nobody chose, it is an IPv4 address, and an IPv6 one only on a node without IPv4.
///
/// # Errors
/// [`ControlError::InvalidArgument`], which says what to name.
pub fn resolve(asked: Asked<'_>, locals: &[Local], towards: Option<IpAddr>) -> Result<Addresses, ControlError> {
    let listen = endpoint("listen", asked.listen, locals)?.unwrap_or(Endpoint { ip: ANY4, port: None });
    let listen = SocketAddr::new(listen.ip, listen.port.unwrap_or(CLUSTER_PORT));
    let advertise = match endpoint("advertise", asked.advertise, locals)? {
        Some(Endpoint { ip, port }) => SocketAddr::new(ip, port.unwrap_or(listen.port())),
        None if !listen.ip().is_unspecified() => listen,
        None => SocketAddr::new(only_choice(locals, towards)?, listen.port()),
    };
    if advertise.ip().is_unspecified() {
        return Err(invalid(
            "advertise address must be a non-zero IP address or network interface (with optional port number)",
        ));
    }
    let listen = reached_by(listen, advertise.ip());
    if !listen.ip().is_unspecified() && listen.is_ipv4() != advertise.is_ipv4() {
        let text = format!("nobody reaches {listen} by {advertise}: name a listen address of the same family");
        return Err(invalid(text));
    }
    // swarmkit's words. Its port is the cluster's.
    let wrong = || invalid("data path address must be a non-zero IP address or network interface");
    let data_path = match endpoint("data path", asked.data_path, locals) {
        Ok(None) => advertise.ip(),
        Ok(Some(Endpoint { ip, port: None })) if !ip.is_unspecified() => ip,
        Err(error) if is_interface(asked.data_path, locals) => return Err(error),
        Ok(Some(_)) | Err(_) => return Err(wrong()),
    };
    Ok(Addresses { listen, advertise, data_path })
}

/// Where to listen so that the advertised address is answered: all addresses of IPv4 are all addresses of both families
/// where an IPv6 one is advertised. Clients send `0.0.0.0` when their user names nothing.
pub fn reached_by(listen: SocketAddr, advertise: IpAddr) -> SocketAddr {
    if listen.ip() == ANY4 && advertise.is_ipv6() { SocketAddr::new(ANY6, listen.port()) } else { listen }
}

fn invalid(text: impl Into<String>) -> ControlError {
    ControlError::InvalidArgument(text.into())
}

/// The one address that others can reach, where there is only one.
fn only_choice(locals: &[Local], towards: Option<IpAddr>) -> Result<IpAddr, ControlError> {
    let outside =
        |v4: bool| -> Vec<&Local> { locals.iter().filter(|(_, ip)| ip.is_ipv4() == v4 && !ip.is_loopback()).collect() };
    let outside = Some(outside(true)).filter(|v4| !v4.is_empty()).unwrap_or_else(|| outside(false));
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

/// An address, and the port if one was named.
struct Endpoint {
    ip: IpAddr,
    port: Option<u16>,
}

/// Reads one of the forms; `None` for an empty text.
fn endpoint(what: &str, text: &str, locals: &[Local]) -> Result<Option<Endpoint>, ControlError> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Some(Endpoint { ip: address.ip(), port: Some(address.port()) }));
    }
    if let Some(ip) = address(text) {
        return Ok(Some(Endpoint { ip, port: None }));
    }
    let wrong = || invalid(format!("invalid {what} address {text:?}: write ADDRESS[:PORT] or INTERFACE[:PORT]"));
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?)),
        None => (text, None),
    };
    if name.is_empty() {
        return Ok(Some(Endpoint { ip: ANY4, port }));
    }
    let of = |v4: bool| -> Vec<IpAddr> {
        locals.iter().filter(|(i, ip)| i == name && ip.is_ipv4() == v4).map(|(_, ip)| *ip).collect()
    };
    let on_interface = Some(of(true)).filter(|v4| !v4.is_empty()).unwrap_or_else(|| of(false));
    match on_interface.as_slice() {
        [ip] => Ok(Some(Endpoint { ip: *ip, port })),
        [] => Err(wrong()),
        [_, ..] => Err(invalid(format!("the interface {name} has several addresses: name one of them"))),
    }
}

fn is_interface(name: &str, locals: &[Local]) -> bool {
    locals.iter().any(|(interface, _)| interface == name)
}

/// An address without a port; an IPv6 one may stand in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// Resolves the managers to ask, `HOST[:PORT]`.
///
/// # Errors
/// When one of them cannot be resolved.
pub fn managers(remotes: &[String]) -> Result<Vec<SocketAddr>, ControlError> {
    let mut found = Vec::new();
    for remote in remotes.iter().filter(|r| !r.is_empty()) {
        if let Some(ip) = address(remote) {
            found.push(SocketAddr::new(ip, CLUSTER_PORT));
            continue;
        }
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
    let towards = OUTSIDE.into_iter().find_map(source_towards);
    (sys::addresses(), towards)
}

/// Whether an address is this host's. A few microseconds, where a list of all takes some 20 ms with a thousand containers.
/// With `net.ipv4.ip_nonlocal_bind`, or that of IPv6, each is.
pub fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// The address that the system uses on its way to another one.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((if to.is_ipv4() { ANY4 } else { ANY6 }, 0)).ok()?;
    // Connecting a datagram socket sends nothing; it only asks the kernel for the route.
    socket.connect((to, DISCARD_PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
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
    fn an_address_is_here_or_not() {
        for (address, here) in
            [("127.0.0.1", true), ("127.0.0.77", true), ("203.0.113.1", false), ("2001:db8::1", false)]
        {
            assert_eq!(is_here(address.parse().unwrap()), here, "{address}");
        }
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
    fn ipv6_addresses_are_understood_with_and_without_a_port() {
        let mut locals = locals();
        locals.push(("eth0".to_owned(), "2001:db8::5".parse().unwrap()));
        locals.push(("eth2".to_owned(), "2001:db8:2::5".parse().unwrap()));
        let shown = |listen, advertise| {
            let found = resolve(ask(listen, advertise), &locals, None).unwrap();
            (found.listen.to_string(), found.advertise.to_string(), found.data_path.to_string())
        };
        let all = |listen: &str, advertise: &str, data_path: &str| {
            (listen.to_owned(), advertise.to_owned(), data_path.to_owned())
        };
        let own = all("[::]:2377", "[2001:db8::5]:2377", "2001:db8::5");
        assert_eq!(shown("[::]:2377", "2001:db8::5"), own);
        assert_eq!(shown("", "[2001:db8::5]"), own, "IPv4 alone would not be reached");
        assert_eq!(shown("0.0.0.0:2377", "[2001:db8::5]:2377"), own);
        assert_eq!(shown("[::]:4000", "2001:db8::5"), all("[::]:4000", "[2001:db8::5]:4000", "2001:db8::5"));
        assert_eq!(shown("[::]:4000", "10.0.0.1"), all("[::]:4000", "10.0.0.1:4000", "10.0.0.1"));
        assert_eq!(shown("2001:db8::5", ""), all("[2001:db8::5]:2377", "[2001:db8::5]:2377", "2001:db8::5"));
        // An interface stands for its IPv4 address where it has one.
        assert_eq!(shown("", "eth0").1, "10.0.0.1:2377");
        assert_eq!(shown("", "eth2:5000").1, "[2001:db8:2::5]:5000");
        assert!(resolve(ask("10.0.0.1:2377", "2001:db8::5"), &locals, None).is_err());
        assert!(resolve(ask("", "::"), &locals, None).is_err());
        let data_path = Asked { listen: "", advertise: "10.0.0.1", data_path: "2001:db8::5" };
        assert_eq!(resolve(data_path, &locals, None).unwrap().data_path.to_string(), "2001:db8::5");
        let by = |data_path| {
            resolve(Asked { data_path, ..ask("", "10.0.0.1") }, &locals, None).map(|a| a.data_path.to_string())
        };
        assert_eq!((by("eth0").unwrap(), by("eth2").unwrap()), ("10.0.0.1".into(), "2001:db8:2::5".into()));
        for wrong in ["eth9", "10.0.0.1:4789", "0.0.0.0", ":99", "eth0:4789"] {
            assert!(by(wrong).unwrap_err().to_string().contains("must be a non-zero IP address"), "{wrong}");
        }
        let only = [("lo".to_owned(), "::1".parse().unwrap()), locals[4].clone()];
        assert_eq!(resolve(ask("", ""), &only, None).unwrap().advertise.to_string(), "[2001:db8:2::5]:2377");
    }

    #[test]
    fn managers_are_found_at_ipv6_addresses() {
        let of = |remote: &str| managers(&[remote.to_owned()]).map(|found| found[0].to_string()).ok();
        assert_eq!(of("[2001:db8::5]:2400").as_deref(), Some("[2001:db8::5]:2400"));
        assert_eq!(of("[2001:db8::5]").as_deref(), Some("[2001:db8::5]:2377"));
        assert_eq!(of("2001:db8::5").as_deref(), Some("[2001:db8::5]:2377"));
        assert_eq!(of("10.0.0.1").as_deref(), Some("10.0.0.1:2377"));
        assert_eq!(of("10.0.0.1:99").as_deref(), Some("10.0.0.1:99"));
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
