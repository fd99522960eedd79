//! What the network needs of the kernel.

use skep_proto::model::doctor::Check;

use crate::engine::Encryption;

/// Connections of the kernel's table that are too many: in hundredths of what it holds.
const CROWDED: u64 = 80;
const FULL: u64 = 97;

/// What the kernel was seen to have. `Err` holds why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// nf_tables.
    pub nf_tables: Result<(), String>,
    /// VXLAN.
    pub vxlan: Result<(), String>,
    /// `/dev/net/tun`.
    pub tun: Result<(), String>,
    /// Connections that are tracked, and how many may be; `None` where the kernel tracks none.
    pub tracked: Option<(u64, u64)>,
    /// The node passes packets on.
    pub forwards: bool,
    /// The same of IPv6; `None` where the host has none.
    pub forwards6: Option<bool>,
    /// Whether anything of this node speaks IPv6 with others: it is in a cluster, or a bridge has it.
    pub wants6: bool,
    /// How traffic between nodes is protected.
    pub encryption: Encryption,
    /// Whether the node is in a cluster.
    pub in_cluster: bool,
}

/// Judges them.
pub fn judge(seen: &Features) -> Vec<Check> {
    let has = |name: &str, result: &Result<(), String>, module: &str, purpose: &str| match result {
        Ok(()) => Check::ok(name, "the kernel has it"),
        Err(why) => Check::failed(
            name,
            format!("the kernel does not have it ({why})"),
            format!("{purpose} need it: load the module (modprobe {module}) or run a kernel with it"),
        ),
    };
    let mut checks = vec![
        has("nf_tables", &seen.nf_tables, "nf_tables", "published ports, virtual addresses and isolation"),
        has("VXLAN", &seen.vxlan, "vxlan", "networks of the cluster"),
        tracking(seen.tracked),
        tun(seen),
    ];
    checks.push(if seen.forwards {
        Check::ok("forwarding", "the node passes packets on")
    } else {
        Check::failed(
            "forwarding",
            "net.ipv4.ip_forward is 0: containers reach nothing outside",
            "another program set it after the daemon did: find it (sysctl.d, a firewall), then sysctl net.ipv4.ip_forward=1",
        )
    });
    checks.push(ipv6(seen));
    if seen.in_cluster {
        checks.push(encryption(&seen.encryption));
    }
    checks
}

fn ipv6(seen: &Features) -> Check {
    match (seen.forwards6, seen.wants6) {
        (None, _) => Check::ok("IPv6", "turned off on this host: containers and published ports have IPv4 alone"),
        (Some(false), true) => Check::failed(
            "IPv6",
            "net.ipv6.conf.all.forwarding is 0: containers reach nothing outside over IPv6",
            "another program set it after the daemon did: find it (sysctl.d, a firewall), then sysctl net.ipv6.conf.all.forwarding=1",
        ),
        (Some(true), true) => Check::ok("IPv6", "the host has it, and the node passes packets on"),
        (Some(_), false) => Check::ok("IPv6", "the host has it"),
    }
}

fn tracking(tracked: Option<(u64, u64)>) -> Check {
    let Some((now, most)) = tracked else {
        let advice = "published ports and virtual addresses need it: load the module (modprobe nf_conntrack)";
        return Check::failed("conntrack", "the kernel tracks no connections", advice);
    };
    let text = format!("{now} of {most} connections");
    let advice = "new connections are refused when the table is full: raise net.netfilter.nf_conntrack_max";
    match now.saturating_mul(100).checked_div(most).unwrap_or(0) {
        share if share >= FULL => Check::failed("conntrack", text, advice),
        share if share >= CROWDED => Check::warning("conntrack", text, advice),
        _ => Check::ok("conntrack", text),
    }
}

fn tun(seen: &Features) -> Check {
    match (&seen.tun, seen.encryption.path) {
        (Ok(()), _) => Check::ok("TUN", "/dev/net/tun can be opened"),
        (Err(why), Some(crate::TunnelPath::Kernel)) => {
            Check::ok("TUN", format!("not there ({why}), and not needed: the kernel has WireGuard"))
        }
        (Err(why), Some(crate::TunnelPath::Userspace) | None) => Check::failed(
            "TUN",
            format!("/dev/net/tun cannot be opened: {why}"),
            "encryption needs it where the kernel has no WireGuard: modprobe tun, and give the daemon's container the device",
        ),
    }
}

fn encryption(seen: &Encryption) -> Check {
    match (&seen.failure, seen.path) {
        (Some(why), _) => Check::failed(
            "encryption",
            format!("there is no WireGuard link: {why}"),
            "mend what the reason names; the link is made again by itself",
        ),
        (None, None) => Check::failed(
            "encryption",
            "there is no WireGuard link",
            "the managers have not told of this node yet, or skep net is not there: look in this node's log",
        ),
        (None, Some(path)) if !seen.plain.is_empty() => Check::warning(
            "encryption",
            format!("WireGuard ({}), but not on: {}", path.as_str(), seen.plain.join(", ")),
            "make these networks again without --opt encrypted=false, unless the wire between the nodes is trusted",
        ),
        (None, Some(path)) => Check::ok("encryption", format!("WireGuard ({})", path.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TunnelPath;
    use skep_proto::model::doctor::Outcome;

    fn well() -> Features {
        Features {
            nf_tables: Ok(()),
            vxlan: Ok(()),
            tun: Ok(()),
            tracked: Some((10, 1000)),
            forwards: true,
            forwards6: Some(true),
            wants6: true,
            encryption: Encryption { path: Some(TunnelPath::Userspace), ..Encryption::default() },
            in_cluster: true,
        }
    }

    fn bad(seen: &Features) -> Vec<(String, Outcome)> {
        let checks = judge(seen);
        assert!(checks.iter().all(|check| check.advice.is_empty() == (check.outcome == Outcome::Ok)));
        let bad = checks.into_iter().filter(|check| check.outcome != Outcome::Ok);
        bad.map(|check| (check.name, check.outcome)).collect()
    }

    #[test]
    fn each_missing_feature_is_named() {
        assert_eq!(bad(&well()), []);
        let missing = || Err("not supported".to_owned());
        assert_eq!(bad(&Features { nf_tables: missing(), ..well() }), [("nf_tables".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { vxlan: missing(), ..well() }), [("VXLAN".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { tun: missing(), ..well() }), [("TUN".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { tracked: None, ..well() }), [("conntrack".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { tracked: Some((90, 100)), ..well() }), [("conntrack".into(), Outcome::Warning)]);
        assert_eq!(bad(&Features { tracked: Some((99, 100)), ..well() }), [("conntrack".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { forwards: false, ..well() }), [("forwarding".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { forwards6: Some(false), ..well() }), [("IPv6".into(), Outcome::Failed)]);
        assert_eq!(bad(&Features { forwards6: Some(false), wants6: false, ..well() }), []);
        assert_eq!(bad(&Features { forwards6: None, ..well() }), []);
    }

    #[test]
    fn a_kernel_with_wireguard_needs_no_tun_and_a_node_alone_no_link() {
        let kernel = Encryption { path: Some(TunnelPath::Kernel), ..Encryption::default() };
        assert_eq!(bad(&Features { tun: Err("gone".into()), encryption: kernel, ..well() }), []);
        let none = Encryption::default();
        assert_eq!(bad(&Features { encryption: none.clone(), in_cluster: false, ..well() }), []);
        assert_eq!(bad(&Features { encryption: none, ..well() }), [("encryption".into(), Outcome::Failed)]);
        let plain = Encryption { plain: vec!["open".into()], ..well().encryption };
        assert_eq!(bad(&Features { encryption: plain, ..well() }), [("encryption".into(), Outcome::Warning)]);
    }
}
