//! What becomes of a node whose host gets other addresses while it is in a cluster. Pure.
//!
//! A node is known by an address of one of its interfaces. When that is gone from the host, the node goes over to another
//! of the same interface and version of IP: DHCP gave another one. An address that moves to another interface stays
//! the node's, and so does one that no interface ever had (behind address translation): nobody knows what to replace it by.

use std::net::{IpAddr, Ipv4Addr};

use super::addresses::Local;
use super::saved::Saved;

/// What an interface says of the addresses that a node is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// They are there, or there is nothing to replace them by.
    Same,
    /// The same, and the node should remember where they are.
    Noted(Saved),
    /// The node is known by others from now on.
    Moved(Saved),
}

/// Looks for the node's addresses among those of its host. `configured` are those that the daemon was started with: such
/// a one is not taken up again at the next start, unless the host has it.
pub fn look(saved: &Saved, locals: &[Local], configured: &[IpAddr]) -> Look {
    let mut next = saved.clone();
    let (advertise, link) = follow(saved.advertise.ip(), saved.advertise_link.as_deref(), locals);
    next.advertise_link = link;
    let (data_path, link) = follow(saved.data_path, saved.data_path_link.as_deref(), locals);
    next.data_path_link = link;
    next.speak_from(advertise, data_path);
    if next.advertise == saved.advertise && next.data_path == saved.data_path {
        return if next == *saved { Look::Same } else { Look::Noted(next) };
    }
    let former = [saved.advertise.ip(), saved.data_path];
    next.left.extend(former.into_iter().filter(|ip| configured.contains(ip)));
    next.left.retain(|ip| configured.contains(ip) && *ip != advertise && *ip != data_path);
    next.left.sort_unstable();
    next.left.dedup();
    Look::Moved(next)
}

/// The address to be known by, and its interface, of a node that was known by `old` on `link`.
fn follow(old: IpAddr, link: Option<&str>, locals: &[Local]) -> (IpAddr, Option<String>) {
    if let Some((name, _)) = locals.iter().find(|(_, ip)| *ip == old) {
        return (old, Some(interface(name).to_owned()));
    }
    let on_link = locals.iter().filter(|(name, _)| Some(interface(name)) == link).map(|(_, ip)| *ip);
    let mut usable: Vec<IpAddr> = on_link.filter(|ip| ip.is_ipv4() == old.is_ipv4() && is_usable(*ip)).collect();
    // The nearest one first: an interface may have addresses of several subnets.
    usable.sort_by_key(|ip| std::cmp::Reverse(common_bits(*ip, old)));
    (usable.first().copied().unwrap_or(old), link.map(str::to_owned))
}

/// The C library gives IPv4 addresses by their label (`eth0:1`).
fn interface(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

fn is_usable(ip: IpAddr) -> bool {
    let is_link_local = |v4: Ipv4Addr| v4.is_link_local();
    !ip.is_loopback() && !ip.is_unspecified() && !matches!(ip, IpAddr::V4(v4) if is_link_local(v4))
}

fn common_bits(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn locals(list: &[(&str, &str)]) -> Vec<Local> {
        list.iter().map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap())).collect()
    }

    fn known_by(address: &str, data_path: &str, here: &[(&str, &str)]) -> Saved {
        let address: SocketAddr = address.parse().unwrap();
        let saved = Saved::new(address, address, ip(data_path), Some(1), vec![address]);
        match look(&saved, &locals(here), &[]) {
            Look::Noted(noted) => noted,
            Look::Same | Look::Moved(_) => saved,
        }
    }

    #[test]
    fn a_node_goes_over_to_another_address_of_its_interface_once_its_own_is_gone() {
        let saved = known_by("10.0.0.1:2377", "10.0.0.1", &[("eth0", "10.0.0.1"), ("eth1", "10.9.0.1")]);
        assert_eq!(saved.advertise_link.as_deref(), Some("eth0"));
        let seen = |here: &[(&str, &str)]| look(&saved, &locals(here), &[]);
        assert_eq!(seen(&[("eth0", "10.0.0.2"), ("eth0", "10.0.0.1")]), Look::Same, "both are there");
        assert_eq!(seen(&[("eth1", "10.9.0.1"), ("eth0", "169.254.3.4"), ("eth0", "2001:db8::1")]), Look::Same);
        let Look::Moved(moved) = seen(&[("eth0", "192.168.7.7"), ("eth0:1", "10.0.0.2"), ("eth1", "10.0.0.3")]) else {
            panic!("it has moved")
        };
        let new: SocketAddr = "10.0.0.2:2377".parse().unwrap();
        assert_eq!((moved.listen, moved.advertise, moved.data_path), (new, new, new.ip()));
        assert_eq!((moved.managers.as_slice(), moved.left.as_slice()), ([new].as_slice(), [].as_slice()));
        assert_eq!(look(&moved, &locals(&[("eth0", "10.0.0.2"), ("eth0", "10.0.0.1")]), &[]), Look::Same, "it stays");
    }

    #[test]
    fn an_address_on_another_interface_is_still_the_node_s_and_one_behind_translation_always_is() {
        let saved = known_by("10.0.0.1:2377", "10.0.0.1", &[("eth0", "10.0.0.1")]);
        let here = locals(&[("bond0", "10.0.0.1"), ("eth0", "10.0.0.2")]);
        let Look::Noted(noted) = look(&saved, &here, &[]) else { panic!("it is on another interface") };
        assert_eq!((noted.advertise, noted.advertise_link.as_deref()), (saved.advertise, Some("bond0")));
        let outside = known_by("203.0.113.9:2377", "203.0.113.9", &[("eth0", "10.0.0.1")]);
        assert_eq!(outside.advertise_link, None);
        assert_eq!(look(&outside, &locals(&[("eth0", "10.0.0.2")]), &[]), Look::Same);
    }

    #[test]
    fn the_data_path_moves_by_itself_in_either_version_of_ip() {
        let here = [("eth0", "10.0.0.1"), ("eth1", "2001:db8::1")];
        let saved = known_by("10.0.0.1:2377", "2001:db8::1", &here);
        let now = locals(&[("eth0", "10.0.0.1"), ("eth1", "2001:db8:7::2"), ("eth1", "2001:db8::2")]);
        let configured = [ip("2001:db8::1")];
        let Look::Moved(moved) = look(&saved, &now, &configured) else { panic!("it has moved") };
        assert_eq!((moved.advertise, moved.data_path), (saved.advertise, ip("2001:db8::2")));
        assert_eq!(moved.left, configured);
        let back = locals(&here);
        let Look::Moved(back) = look(&moved, &back, &configured) else { panic!("it has moved back") };
        assert_eq!((back.data_path, back.left.as_slice()), (ip("2001:db8::1"), [].as_slice()));
    }
}
