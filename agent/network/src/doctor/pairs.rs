//! What a node's way to another one is judged by.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use skep_proto::model::doctor::Check;

use super::echo::Echo;

/// Round trips that take longer are told of: a cluster's nodes are within a region.
const SLOW: Duration = Duration::from_millis(100);

/// What was seen of the way to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The other node's name.
    pub peer: String,
    /// Where it is reached on the underlay: over IPv4 if both nodes have it, else over IPv6.
    pub underlay: IpAddr,
    /// Where its WireGuard is reached; `None` while it has told no key.
    pub endpoint: Option<SocketAddr>,
    /// How this node's link knows it; `None` when it does not.
    pub link: Option<Link>,
    /// MTU of the underlay in bytes, as this node has it.
    pub mtu: u32,
    /// MTU of the tunnel in bytes.
    pub tunnel_mtu: u32,
    /// Small packets through the tunnel.
    pub tunnel: Echo,
    /// The largest packets of the tunnel.
    pub tunnel_full: Echo,
    /// Small packets beside it.
    pub beside: Echo,
    /// The largest packets of the underlay.
    pub beside_full: Echo,
    /// Its IPv6 address, where both nodes have that beside IPv4.
    pub second: Option<Second>,
}

/// The way to another node over IPv6, where it is not the one that the tunnel takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Second {
    /// The other node's address.
    pub address: IpAddr,
    /// Small packets.
    pub small: Echo,
    /// The largest packets of the underlay.
    pub full: Echo,
    /// Some other node answers over IPv6.
    pub in_use: bool,
}

/// Another node on this node's WireGuard link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Where it was heard last.
    pub heard_at: Option<SocketAddr>,
    /// Since the last handshake.
    pub handshake: Option<Duration>,
    /// Bytes that came from it.
    pub received: u64,
    /// Bytes that went to it.
    pub sent: u64,
}

/// Judges the way to another node.
pub fn judge(seen: &Seen) -> Vec<Check> {
    let mut checks = match (seen.endpoint, &seen.link) {
        (None, _) => vec![Check::warning(
            "tunnel",
            "it has told no WireGuard key, so nothing encrypted passes between the two",
            "look for \"WireGuard\" in that node's log; it tells its key once it can make a link",
        )],
        (Some(_), None) => vec![Check::failed(
            "tunnel",
            "this node's WireGuard link does not know it, though the managers do",
            "look for \"WireGuard\" in this node's log",
        )],
        (Some(endpoint), Some(link)) => {
            let mut checks = vec![tunnel(seen, endpoint, link)];
            if !seen.tunnel.is_silent() {
                checks.push(size(seen));
            }
            checks
        }
    };
    checks.extend(seen.second.as_ref().map(|second| over_ipv6(seen, second)));
    checks.into_iter().map(|check| check.with(&seen.peer)).collect()
}

fn over_ipv6(seen: &Seen, second: &Second) -> Check {
    let (address, of) = (second.address, second.small.asked);
    let back = second.small.times.len();
    let why = |echo: &Echo| echo.refused.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    if second.small.is_silent() && !second.in_use {
        // Hosts may have addresses that nobody routes between them, and need none.
        return Check::ok("IPv6 path", format!("no node answers over it, {address} neither; all goes over IPv4"));
    }
    // Where echo requests are filtered beside the tunnel, nothing is concluded from that.
    if second.small.is_silent() && !seen.beside.is_silent() {
        let text = format!("0 of {of} packets came back from {address}{}, those over IPv4 did", why(&second.small));
        let advice = format!(
            "the two nodes do not reach each other over IPv6, though both have it: check routes and firewalls for {address}; \
             networks between them go over IPv4 meanwhile"
        );
        return Check::warning("IPv6 path", text, advice);
    }
    if second.full.is_silent() && !second.small.is_silent() {
        let known =
            second.full.limit.map(|limit| format!("; a router on the way passes {limit} bytes")).unwrap_or_default();
        let text =
            format!("packets of {} bytes are lost on the way to {address}{}{known}", seen.mtu, why(&second.full));
        let advice =
            format!("make the whole way carry {} bytes over IPv6, too; routers never cut its packets", seen.mtu);
        return Check::warning("IPv6 path", text, advice);
    }
    Check::ok("IPv6 path", format!("{back} of {of} packets came back from {address}"))
}

fn tunnel(seen: &Seen, endpoint: SocketAddr, link: &Link) -> Check {
    let Echo { asked, times, .. } = &seen.tunnel;
    let handshake = match link.handshake {
        Some(ago) => format!("last handshake {} s ago", ago.as_secs()),
        None => "never a handshake".to_owned(),
    };
    let heard = match link.heard_at {
        Some(at) if at != endpoint => format!(", heard at {at} instead of {endpoint}"),
        _ => String::new(),
    };
    let bytes = format!("{handshake}, {} bytes received, {} sent{heard}", link.received, link.sent);
    if times.is_empty() {
        let (port, address) = (endpoint.port(), seen.underlay);
        let told = seen.tunnel.refused.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        if seen.tunnel.refused.is_some() && !seen.beside.is_silent() {
            let text = format!("this node cannot send into the tunnel{told}, and can beside it; {bytes}");
            let advice = "another program changed the WireGuard link or its route (ip link, ip route), or a firewall here \
                          forbids it: end that; then end the process skep net: \
                          the daemon starts another, which makes the link again";
            return Check::failed("tunnel", text, advice);
        }
        let of = seen.beside.asked;
        return if seen.beside.is_silent() {
            let text = format!(
                "nothing passes: 0 of {asked} packets came back through the tunnel{told}, 0 of {of} from {address} \
                 beside it; {bytes}"
            );
            let advice = format!(
                "the link between the two nodes is cut, or {address} is not its address: check cables, routes and \
                 firewalls in between; UDP {port} and VXLAN must pass both ways"
            );
            Check::failed("tunnel", text, advice)
        } else {
            let text = format!(
                "0 of {asked} packets came back through the tunnel{told}, but {} of {of} from {address} beside it; {bytes}",
                seen.beside.times.len()
            );
            Check::failed(
                "tunnel",
                text,
                format!("let UDP {port} pass between the two nodes, both ways, in every firewall"),
            )
        };
    }
    let mean = times.iter().sum::<Duration>() / u32::try_from(times.len()).unwrap_or(1);
    let most = times.iter().max().copied().unwrap_or_default();
    let text = format!(
        "{} of {asked} packets came back, {:.2} ms on average, {:.2} ms at most; {bytes}",
        times.len(),
        millis(mean),
        millis(most)
    );
    if seen.tunnel.lost() > 0 {
        let beside = format!("; {} of {} beside the tunnel", seen.beside.times.len(), seen.beside.asked);
        let advice = "packets are lost on the way: check the link, its errors (ip -s link) and the load of both nodes";
        return Check::warning("tunnel", text + &beside, advice);
    }
    if mean > SLOW {
        let advice = "managers and tasks wait for each round trip: keep managers within a region, 10 ms or less apart";
        return Check::warning("tunnel", text, advice);
    }
    Check::ok("tunnel", text)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Whether packets of the full size pass.
fn size(seen: &Seen) -> Check {
    let largest = seen.tunnel_mtu;
    let limit = [&seen.beside_full, &seen.tunnel_full].into_iter().find_map(|echo| echo.limit).filter(|l| *l > 0);
    let known = limit.map(|limit| format!("; a router on the way passes {limit} bytes")).unwrap_or_default();
    let advice = format!(
        "make the whole way carry {} bytes, or set the MTU of the link towards {} on every node to what it carries{}",
        seen.mtu,
        seen.underlay,
        limit.map(|limit| format!(" ({limit})")).unwrap_or_default()
    );
    let refused = seen.tunnel_full.refused.as_ref().or(seen.beside_full.refused.as_ref());
    let refused = refused.map(|why| format!(" ({why})")).unwrap_or_default();
    let beside_fails = !seen.beside.is_silent() && seen.beside_full.is_silent() && seen.beside_full.asked > 0;
    if seen.tunnel_full.is_silent() && seen.tunnel_full.asked > 0 {
        let text = format!("packets of {largest} bytes are lost in the tunnel, small ones pass{refused}{known}");
        return Check::failed("path MTU", text, advice);
    }
    if beside_fails {
        let text = format!(
            "packets of {} bytes do not pass whole{refused}{known}; the tunnel's still do, in pieces or by luck",
            seen.mtu
        );
        return Check::warning("path MTU", text, advice);
    }
    let beside = if seen.beside_full.is_silent() { "" } else { " and of the full size beside it" };
    Check::ok("path MTU", format!("packets of {largest} bytes pass in the tunnel{beside}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::model::doctor::Outcome;

    fn echo(asked: u16, back: usize, ms: u64) -> Echo {
        Echo { asked, times: vec![Duration::from_millis(ms); back], ..Echo::default() }
    }

    fn well() -> Seen {
        let endpoint = Some("192.0.2.7:51820".parse().unwrap());
        let link = Link { heard_at: endpoint, handshake: Some(Duration::from_secs(3)), received: 10, sent: 20 };
        Seen {
            peer: "w1".into(),
            underlay: "192.0.2.7".parse().unwrap(),
            endpoint,
            link: Some(link),
            mtu: 1500,
            tunnel_mtu: 1440,
            tunnel: echo(5, 5, 1),
            tunnel_full: echo(3, 3, 1),
            beside: echo(3, 3, 1),
            beside_full: echo(3, 3, 1),
            second: None,
        }
    }

    fn outcomes(seen: &Seen) -> Vec<(String, Outcome)> {
        let checks = judge(seen);
        assert!(checks.iter().all(|check| check.peer == "w1"));
        assert!(checks.iter().all(|check| check.advice.is_empty() == (check.outcome == Outcome::Ok)));
        checks.into_iter().map(|check| (check.name, check.outcome)).collect()
    }

    #[test]
    fn a_pair_that_works_is_well() {
        let all = [("tunnel".to_owned(), Outcome::Ok), ("path MTU".to_owned(), Outcome::Ok)];
        assert_eq!(outcomes(&well()), all);
        // Where echo requests are filtered beside the tunnel, nothing is concluded from that.
        assert_eq!(outcomes(&Seen { beside: echo(3, 0, 0), beside_full: echo(3, 0, 0), ..well() }), all);
    }

    #[test]
    fn a_cut_pair_is_told_from_a_firewall() {
        let cut = Seen { tunnel: echo(5, 0, 0), tunnel_full: echo(3, 0, 0), beside: echo(3, 0, 0), ..well() };
        let check = &judge(&cut)[0];
        assert!(check.outcome == Outcome::Failed && check.advice.contains("is cut"), "{check:?}");
        let filtered = Seen { tunnel: echo(5, 0, 0), tunnel_full: echo(3, 0, 0), ..well() };
        let check = &judge(&filtered)[0];
        assert!(check.outcome == Outcome::Failed && check.advice.contains("let UDP 51820 pass"), "{check:?}");
        let own = Seen { tunnel: Echo { refused: Some("no route".into()), ..echo(5, 0, 0) }, ..filtered };
        let check = &judge(&own)[0];
        assert!(check.outcome == Outcome::Failed && check.advice.contains("another program"), "{check:?}");
        assert_eq!(outcomes(&cut).len(), 1, "of a path that carries nothing the size is not judged");
    }

    #[test]
    fn loss_and_long_ways_are_warned_of() {
        assert_eq!(outcomes(&Seen { tunnel: echo(5, 4, 1), ..well() })[0].1, Outcome::Warning);
        assert_eq!(outcomes(&Seen { tunnel: echo(5, 5, 150), ..well() })[0].1, Outcome::Warning);
    }

    #[test]
    fn a_path_that_does_not_carry_full_packets_is_named_with_what_it_carries() {
        let limited = Echo { limit: Some(1400), ..echo(3, 0, 0) };
        let pieces = Seen { beside_full: limited.clone(), ..well() };
        assert_eq!(outcomes(&pieces)[1].1, Outcome::Warning);
        let lost = Seen { beside_full: limited, tunnel_full: echo(3, 0, 0), ..well() };
        let check = &judge(&lost)[1];
        assert!(check.outcome == Outcome::Failed && check.advice.contains("(1400)"), "{check:?}");
    }

    #[test]
    fn a_second_way_over_ipv6_is_judged_beside_the_first() {
        let address = "2001:db8::7".parse().unwrap();
        let of_use =
            |small, full, in_use| Some(Second { address, small: echo(3, small, 1), full: echo(3, full, 1), in_use });
        let second = |small, full| of_use(small, full, true);
        let of = |second| outcomes(&Seen { second, ..well() }).remove(2);
        assert_eq!(of(second(3, 3)), ("IPv6 path".to_owned(), Outcome::Ok));
        assert_eq!(of(second(0, 0)), ("IPv6 path".to_owned(), Outcome::Warning));
        assert_eq!(of(second(3, 0)), ("IPv6 path".to_owned(), Outcome::Warning));
        assert_eq!(of(of_use(0, 0, false)), ("IPv6 path".to_owned(), Outcome::Ok), "nobody routes it");
        let filtered = Seen { beside: echo(3, 0, 0), beside_full: echo(3, 0, 0), second: second(0, 0), ..well() };
        assert_eq!(outcomes(&filtered)[2].1, Outcome::Ok);
    }

    #[test]
    fn nodes_without_keys_and_unknown_ones_are_told_apart() {
        assert_eq!(outcomes(&Seen { endpoint: None, ..well() }), [("tunnel".to_owned(), Outcome::Warning)]);
        assert_eq!(outcomes(&Seen { link: None, ..well() }), [("tunnel".to_owned(), Outcome::Failed)]);
    }
}
