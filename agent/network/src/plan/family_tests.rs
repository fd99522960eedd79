//! What holds for the tables of both versions of IP, whatever is in them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::prelude::*;
use skep_proto::model::NetworkId;
use skep_proto::model::pod::PortRedirect;
use skep_proto::model::service::Protocol;

use super::ingress::Published;
use super::node::{BridgeFacts, Ends, NodeFacts, node_tables};
use super::overlay::switch_table;
use super::senders::Sender;
use super::vip::{Behind, sandbox_tables};
use crate::config::{LinkNames, Underlay, twin};
use crate::names::DnsPorts;
use crate::nft::expr::{Expr, Verdict};
use crate::nft::rule::Rule;
use crate::nft::table::{Family, Field, MapTo, Table, Value};

fn width(fields: &[Field]) -> usize {
    match fields {
        [only] => only.len(),
        several => several.iter().map(|field| field.len().next_multiple_of(4)).sum(),
    }
}

/// Each element is as long as its set declares, and each set that a rule could name is there under its name.
fn fits(table: &Table) -> Result<(), TestCaseError> {
    let exprs = table.chains.values().flat_map(|chain| &chain.rules).flat_map(Rule::exprs);
    for expr in exprs {
        if let Expr::InSet { set, .. } | Expr::Map { set, .. } | Expr::VerdictMap { set, .. } = expr {
            prop_assert!(table.sets.contains_key(set), "a rule names {}", set);
        }
    }
    for (name, set) in &table.sets {
        for (key, value) in &set.elements {
            prop_assert_eq!(key.len(), width(&set.key), "a key of {}", name);
            match (&set.to, value) {
                (Some(MapTo::Fields(fields)), Value::Bytes(bytes)) => {
                    prop_assert_eq!(bytes.len(), width(fields), "a value of {}", name);
                }
                (Some(MapTo::Verdict), Value::Verdict(Verdict::Goto(chain))) => {
                    prop_assert!(table.chains.contains_key(chain), "{} leads to {}", name, chain);
                }
                (Some(MapTo::Verdict), Value::Verdict(_)) | (None, Value::None) => {}
                (to, value) => prop_assert!(false, "{name} maps to {to:?} and holds {value:?}"),
            }
        }
    }
    Ok(())
}

fn ends() -> impl Strategy<Value = Ends> {
    (any::<Ipv4Addr>(), any::<Option<Ipv6Addr>>()).prop_map(|(v4, v6)| Ends { v4: Some(v4), v6 })
}

fn underlay() -> impl Strategy<Value = Underlay> {
    (any::<Option<Ipv4Addr>>(), any::<Option<Ipv6Addr>>()).prop_map(|(v4, v6)| Underlay { v4, v6 })
}

fn sender() -> impl Strategy<Value = Sender> {
    (any::<Ipv4Addr>(), any::<Option<Ipv6Addr>>()).prop_map(|(v4, v6)| Sender { v4, v6 })
}

prop_compose! {
    fn facts()(
        ipv6: bool,
        mesh: bool,
        peers in proptest::collection::btree_map(any::<u16>(), underlay(), 0..4),
        ports in proptest::collection::btree_map("sk-p[0-9]{1,3}", sender(), 0..4),
        tasks in proptest::collection::btree_set(any::<Ipv4Addr>(), 0..4),
        host_ports in proptest::collection::btree_map(
            (Just(Protocol::Tcp), any::<Option<IpAddr>>(), any::<u16>()), (ends(), any::<u16>()), 0..4),
        ingress in proptest::collection::btree_map(
            (Just(Protocol::Udp), any::<u16>()),
            (any::<u16>(), proptest::collection::vec(any::<Ipv4Addr>(), 1..14)), 0..4),
        subnet6: Option<u64>,
    ) -> NodeFacts {
        let bridge = BridgeFacts {
            link: "sk-br0".into(),
            subnet: "172.17.0.0/16".parse().unwrap(),
            subnet6: subnet6.map(|bits| ipnet::Ipv6Net::new_assert(Ipv6Addr::from_bits(u128::from(bits) << 64), 64)),
            internal: false,
        };
        let published = |(port, (target, tasks)): (_, (_, Vec<Ipv4Addr>))| (port, Arc::new(Published { target, twins: tasks.clone(), tasks }));
        NodeFacts {
            names: LinkNames::new("sk"),
            vxlan_ports: BTreeSet::from([4789]),
            tunnels: Some("100.127.192.0/18".parse().unwrap()),
            mesh, ipv6, peers, ipv4_only: BTreeSet::new(), bridges: vec![bridge], ports, tasks, host_ports,
            ingress: ingress.into_iter().map(published).collect(),
        }
    }
}

proptest! {
    #[test]
    fn the_tables_of_a_node_fit_and_are_alike_for_both(facts in facts()) {
        let tables = node_tables(&facts);
        for table in &tables {
            fits(table)?;
        }
        let of = |family| tables.iter().find(|table| table.family == family);
        let v4 = of(Family::Ipv4).expect("IPv4 is always there");
        prop_assert_eq!(of(Family::Ipv6).is_some(), facts.ipv6);
        if let Some(v6) = of(Family::Ipv6) {
            prop_assert_eq!(v4.sets.keys().collect::<Vec<_>>(), v6.sets.keys().collect::<Vec<_>>());
            let own: Vec<_> = v6.chains.keys().filter(|name| !v4.chains.contains_key(*name)).collect();
            prop_assert_eq!(own, ["loopback"]);
            prop_assert!(v4.chains.keys().all(|name| v6.chains.contains_key(name)));
        }
        // Without IPv6 nothing of IPv4 is other.
        let without = node_tables(&NodeFacts { ipv6: false, ..facts.clone() });
        prop_assert_eq!(without.iter().find(|table| table.family == Family::Ipv4), Some(v4));
    }

    #[test]
    fn the_tables_of_switches_and_sandboxes_fit(
        ports in proptest::collection::vec((any::<u32>(), sender()), 0..5),
        vips in proptest::collection::btree_map(any::<IpAddr>(), (0u8..14, any::<bool>()), 0..5),
    ) {
        let table = switch_table(&ports);
        fits(&table)?;
        let v6 = ports.iter().any(|(_, sender)| sender.v6.is_some());
        prop_assert_eq!(table.sets.contains_key("senders6"), v6);
        let behind = |(vip, (count, has_redirect)): (&IpAddr, &(u8, bool))| {
            let task = |last| match vip {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(last.into())),
            };
            let led = PortRedirect { protocol: Protocol::Udp, port: 53, target: 5353 };
            let redirects = has_redirect.then_some(led).into_iter().collect();
            ((NetworkId(1), *vip), Arc::new(Behind { tasks: (0..*count).map(task).collect(), redirects }))
        };
        let all_vips = vips.iter().map(behind).collect();
        let tables = sandbox_tables(&all_vips, &[NetworkId(1)].into(), DnsPorts { udp: 1, tcp: 2 });
        let all: usize = tables.iter().map(|table| table.sets["vip-addresses"].elements.len()).sum();
        prop_assert_eq!(all, vips.len());
        prop_assert_eq!(tables.len() == 2, vips.keys().any(IpAddr::is_ipv6));
        for table in &tables {
            fits(table)?;
        }
    }

    #[test]
    fn twins_are_as_many_as_addresses(a: Ipv4Addr, b: Ipv4Addr) {
        prop_assert_eq!(twin(a) == twin(b), a == b);
        prop_assert_eq!(&twin(a).octets()[12..], &a.octets());
    }
}
