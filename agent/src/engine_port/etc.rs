//! Content of `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` in containers. Pure.

use std::net::IpAddr;

use skep_engine::containers::EtcContents;
use skep_proto::model::container::DnsConfig;

use super::sandboxes::{LinkTo, Sandbox};

/// The node's own files, for containers that use its network or none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeEtc {
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
}

/// Files of a container in a sandbox.
pub fn of_sandbox(hostname: &str, extra: &[String], sandbox: &Sandbox) -> EtcContents {
    let own = sandbox.links.iter().filter(|link| link.to != LinkTo::Node);
    let addresses: Vec<IpAddr> = own.flat_map(|link| link.addresses.iter().map(ipnet::IpNet::addr)).collect();
    EtcContents {
        hostname: format!("{hostname}\n"),
        hosts: hosts(hostname, extra, &addresses),
        resolv_conf: sandbox.resolv_conf.clone(),
    }
}

/// Files of a container without a network.
pub fn of_nothing(hostname: &str, extra: &[String], dns: &DnsConfig, node: &NodeEtc) -> EtcContents {
    EtcContents {
        hostname: format!("{hostname}\n"),
        hosts: hosts(hostname, extra, &[]),
        resolv_conf: resolv_conf(&node.resolv_conf, dns),
    }
}

/// Files of a container on the node's own network: the node's, with what was asked for besides.
pub fn of_host(hostname: &str, extra: &[String], dns: &DnsConfig, node: &NodeEtc) -> EtcContents {
    let mut hosts = node.hosts.clone();
    if !hosts.is_empty() && !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    push_extra(&mut hosts, extra);
    EtcContents { hostname: format!("{hostname}\n"), hosts, resolv_conf: resolv_conf(&node.resolv_conf, dns) }
}

/// `/etc/hosts` as Docker writes it: local names, the operator's lines (`IP NAME…`), then the container itself.
pub fn hosts(hostname: &str, extra: &[String], addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    push_extra(&mut text, extra);
    for address in addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    text
}

/// `/etc/hosts` after the container's own addresses changed: lines of addresses that are gone are left out, new ones follow.
pub fn move_hosts(text: &str, hostname: &str, before: &[IpAddr], after: &[IpAddr]) -> String {
    let line = |address: &IpAddr| format!("{address}\t{hostname}");
    let gone: Vec<String> = before.iter().filter(|address| !after.contains(address)).map(line).collect();
    let new = after.iter().filter(|address| !before.contains(address)).map(line);
    let kept = text.lines().filter(|old| !gone.iter().any(|gone| gone == old)).map(str::to_owned);
    kept.chain(new).map(|line| line + "\n").collect()
}

fn push_extra(text: &mut String, extra: &[String]) {
    for line in extra {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [address, names @ ..] = &words[..] {
            text.push_str(&format!("{address}\t{}\n", names.join(" ")));
        }
    }
}

/// The node's `/etc/resolv.conf`, each kind of line replaced when something was asked for.
fn resolv_conf(node: &str, dns: &DnsConfig) -> String {
    let replaced = [
        ("nameserver", !dns.nameservers.is_empty()),
        ("search", !dns.search.is_empty()),
        // The older word for one search domain.
        ("domain", !dns.search.is_empty()),
        ("options", !dns.options.is_empty()),
    ];
    let mut text = String::new();
    for line in node.lines() {
        let word = line.split_whitespace().next().unwrap_or_default();
        if !replaced.iter().any(|(key, is_replaced)| *is_replaced && *key == word) {
            text.push_str(line);
            text.push('\n');
        }
    }
    for server in &dns.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for (key, values) in [("search", &dns.search), ("options", &dns.options)] {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine_port::sandboxes::Link;

    fn node() -> NodeEtc {
        NodeEtc {
            hosts: "127.0.0.1 localhost\n10.0.0.1 node1".into(),
            resolv_conf: "# here\nnameserver 10.0.0.53\nsearch lan\n".into(),
        }
    }

    fn link(to: LinkTo, address: &str) -> Link {
        Link { to, addresses: vec![address.parse().unwrap()], gateways: Vec::new(), mac: [2, 0, 0, 0, 0, 1] }
    }

    #[test]
    fn a_container_finds_itself_by_the_addresses_that_others_reach() {
        let sandbox = Sandbox {
            links: vec![link(LinkTo::Bridge("b".into()), "172.18.0.2/16"), link(LinkTo::Node, "172.17.0.9/16")],
            resolv_conf: "nameserver 127.0.0.11\n".into(),
            ..Sandbox::default()
        };
        let etc = of_sandbox("box", &["10.1.1.1 db database".into()], &sandbox);
        assert!(etc.hosts.starts_with("127.0.0.1\tlocalhost\n"), "{}", etc.hosts);
        assert!(etc.hosts.ends_with("10.1.1.1\tdb database\n172.18.0.2\tbox\n"), "{}", etc.hosts);
        assert_eq!((etc.hostname.as_str(), etc.resolv_conf.as_str()), ("box\n", "nameserver 127.0.0.11\n"));
    }

    #[test]
    fn on_the_nodes_network_the_nodes_files_are_given() {
        let etc = of_host("node1", &["10.1.1.1 db".into()], &DnsConfig::default(), &node());
        assert_eq!(etc.hosts, "127.0.0.1 localhost\n10.0.0.1 node1\n10.1.1.1\tdb\n");
        assert_eq!(etc.resolv_conf, node().resolv_conf);
    }

    #[test]
    fn resolver_settings_replace_the_nodes_of_their_kind() {
        let dns = DnsConfig { nameservers: vec!["1.1.1.1".parse().unwrap()], ..DnsConfig::default() };
        assert_eq!(of_nothing("a", &[], &dns, &node()).resolv_conf, "# here\nsearch lan\nnameserver 1.1.1.1\n");
        let dns = DnsConfig { search: vec!["a".into(), "b".into()], options: vec!["ndots:2".into()], ..dns };
        let want = "# here\nnameserver 1.1.1.1\nsearch a b\noptions ndots:2\n";
        assert_eq!(of_nothing("a", &[], &dns, &node()).resolv_conf, want);
    }
}
