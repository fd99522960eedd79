//! What a sandbox's question is answered with: its zones in order, or a server outside.

use std::net::IpAddr;

use hickory_proto::rr::{DNSClass, RecordType};
use ipnet::IpNet;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::dns::message::Request;
use crate::dns::zone::{Known, Zone, ZoneKey, Zones, is_ours_alone};

/// The end of names that Kubernetes gives to Services.
const CLUSTER_DOMAIN: &str = ".svc.cluster.local";

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// The name of the address asked for.
    Pointer(String),
    /// The name exists, but has nothing of the type asked for.
    Nothing,
    /// The name does not exist.
    NoSuchName,
    /// A server outside has to say.
    Forward,
}

/// What zones say of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// It is one of theirs, perhaps without any address.
    Known(Known<'a>),
    /// Nobody has it, nor can have it outside.
    NoSuchName,
    /// A server outside has to say.
    Elsewhere,
}

/// Decides on a question of a sandbox with these zones. The first zone that knows the name answers. Several addresses
/// come in a random order, so that clients which take the first one spread over them.
pub fn decide(request: &Request, order: &[ZoneKey], zones: &Zones, rng: &mut impl Rng) -> Decision {
    let kind = request.query.query_type;
    if request.query.query_class != DNSClass::IN {
        return Decision::Forward;
    }
    if kind == RecordType::PTR {
        let mut known = order.iter().filter_map(|key| zones.get(key));
        let address = asked_address(request);
        let pointer = address.and_then(|address| known.find_map(|zone| zone.reverse(address)));
        return pointer.map_or(Decision::Forward, Decision::Pointer);
    }
    match find(&request.name, request.labels, order, zones) {
        Found::Known(known) => {
            let mut addresses = Vec::new();
            choose(known, kind, rng, &mut addresses);
            if addresses.is_empty() { Decision::Nothing } else { Decision::Addresses(addresses) }
        }
        Found::NoSuchName => Decision::NoSuchName,
        Found::Elsewhere => Decision::Forward,
    }
}

/// Looks for a name in lower case, of so many labels, in these zones in order.
pub fn find<'a>(name: &str, labels: usize, order: &[ZoneKey], zones: &'a Zones) -> Found<'a> {
    let own = order.iter().filter_map(|key| zones.get(key));
    // A zone that has the name with an address comes before one that has it without.
    let mut found = own.clone().filter_map(|zone| zone.resolve(name));
    let first = found.next();
    let found = first.filter(|known| !known.is_empty()).or_else(|| found.find(|known| !known.is_empty())).or(first);
    match found {
        Some(known) => Found::Known(known),
        // Names without a dot are names of the cluster: no server outside should hear of them, nor delay the answer.
        None if labels == 1 => Found::NoSuchName,
        None if is_of_the_cluster(name, own) => Found::NoSuchName,
        // As are those of Kubernetes' own domain.
        None if name.ends_with(CLUSTER_DOMAIN) => Found::NoSuchName,
        None => Found::Elsewhere,
    }
}

/// The addresses that a question of that type gets, in a random order, in place of what is there.
pub fn choose(known: Known<'_>, kind: RecordType, rng: &mut impl Rng, chosen: &mut Vec<IpAddr>) {
    let v4 = known.v4.iter().filter(|_| matches!(kind, RecordType::A | RecordType::ANY));
    let v6 = known.v6.iter().filter(|_| matches!(kind, RecordType::AAAA | RecordType::ANY));
    chosen.clear();
    chosen.extend(v4.copied().map(IpAddr::V4).chain(v6.copied().map(IpAddr::V6)));
    chosen.shuffle(rng);
}

/// Whether a name that no zone has can only be one of the cluster.
fn is_of_the_cluster<'a>(name: &str, mut zones: impl Iterator<Item = &'a Zone>) -> bool {
    let of_tasks = name.strip_prefix("tasks.").is_some_and(|service| !service.contains('.') && is_ours_alone(service));
    of_tasks || zones.any(|zone| zone.owns(name))
}

/// The address in `d.c.b.a.in-addr.arpa` (RFC 1035 section 3.5) or in 32 digits below `ip6.arpa` (RFC 3596 section 2.5).
fn asked_address(request: &Request) -> Option<IpAddr> {
    let net: IpNet = request.query.name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Servers to ask for a sandbox: its own or the node's, without our own address, which would go in circles.
pub fn servers<'a>(own: &'a [IpAddr], node: &'a [IpAddr]) -> impl Iterator<Item = IpAddr> + 'a {
    let chosen = if own.is_empty() { node } else { own };
    chosen.iter().copied().filter(|address| *address != IpAddr::V4(super::server::ADDRESS))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::Name;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::dns::message::{Parsed, parse};

    fn ask(name: &str, kind: RecordType, zones: &Zones, seed: u64) -> Decision {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        let Parsed::Request(request) = parse(&message.to_vec().unwrap()) else { panic!("not read") };
        let order = [ZoneKey::Bridge("front".into()), ZoneKey::Bridge("back".into()), ZoneKey::Bridge("gone".into())];
        decide(&request, &order, zones, &mut SmallRng::seed_from_u64(seed))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 1, last])
    }

    fn address6(last: u16) -> IpAddr {
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])
    }

    fn world() -> Zones {
        let mut front = Zone::new("front");
        front.add("web", address(1));
        let mut back = Zone::new("back");
        back.add("web", address(2));
        for last in 10..18 {
            back.add("tasks.db", address(last));
        }
        let mut other = Zone::new("other");
        other.add("secret", address(99));
        Zones::from([
            (ZoneKey::Bridge("front".into()), front),
            (ZoneKey::Bridge("back".into()), back),
            (ZoneKey::Bridge("other".into()), other),
        ])
    }

    #[test]
    fn the_first_zone_of_the_sandbox_that_knows_the_name_answers() {
        let zones = world();
        assert_eq!(ask("web.", RecordType::A, &zones, 1), Decision::Addresses(vec![address(1)]));
        assert_eq!(ask("WEB.back.", RecordType::A, &zones, 1), Decision::Addresses(vec![address(2)]));
        assert_eq!(ask("secret.", RecordType::A, &zones, 1), Decision::NoSuchName);
    }

    #[test]
    fn known_names_have_no_other_types_and_unknown_ones_go_outside_only_with_a_dot() {
        let zones = world();
        assert_eq!(ask("web.", RecordType::AAAA, &zones, 1), Decision::Nothing);
        assert_eq!(ask("web.", RecordType::MX, &zones, 1), Decision::Nothing);
        assert_eq!(ask("nobody.", RecordType::AAAA, &zones, 1), Decision::NoSuchName);
        assert_eq!(ask("example.org.", RecordType::A, &zones, 1), Decision::Forward);
        assert_eq!(ask("nobody.default.svc.cluster.local.", RecordType::A, &zones, 1), Decision::NoSuchName);
        assert_eq!(ask(".", RecordType::NS, &zones, 1), Decision::Forward);
    }

    #[test]
    fn names_that_only_the_cluster_can_have_are_not_asked_outside() {
        let mut zones = world();
        zones.insert(ZoneKey::Bridge("gone".into()), Zone::new("shop_gone"));
        for name in ["nobody.shop_gone.", "a.b.shop_gone.", "tasks.shop_nobody."] {
            assert_eq!(ask(name, RecordType::A, &zones, 1), Decision::NoSuchName, "{name}");
        }
        for name in ["nobody.back.", "tasks.org.", "tasks.example.org.", "shop_gone.org."] {
            assert_eq!(ask(name, RecordType::A, &zones, 1), Decision::Forward, "{name}");
        }
    }

    #[test]
    fn a_name_without_addresses_is_known_and_gives_way_to_a_zone_that_has_some() {
        let mut zones = world();
        let front = zones.get_mut(&ZoneKey::Bridge("front".into())).unwrap();
        front.declare("tasks.db");
        front.declare("tasks.empty");
        assert_eq!(ask("tasks.empty.", RecordType::A, &zones, 1), Decision::Nothing);
        assert!(matches!(ask("tasks.db.", RecordType::A, &zones, 1), Decision::Addresses(found) if found.len() == 8));
    }

    #[test]
    fn a_name_answers_with_the_family_that_is_asked_for_and_exists_without_it() {
        let mut zones = world();
        let back = zones.get_mut(&ZoneKey::Bridge("back".into())).unwrap();
        back.add("both", address(3));
        back.add("both", address6(3));
        back.add("six", address6(6));
        assert_eq!(ask("both.", RecordType::A, &zones, 1), Decision::Addresses(vec![address(3)]));
        assert_eq!(ask("both.", RecordType::AAAA, &zones, 1), Decision::Addresses(vec![address6(3)]));
        assert!(matches!(ask("both.", RecordType::ANY, &zones, 1), Decision::Addresses(all) if all.len() == 2));
        assert_eq!(ask("six.", RecordType::A, &zones, 1), Decision::Nothing);
        assert_eq!(ask("web.", RecordType::AAAA, &zones, 1), Decision::Nothing);
        let reverse = |last: &str| format!("{last}.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
        assert_eq!(ask(&reverse("3"), RecordType::PTR, &zones, 1), Decision::Pointer("both.back".into()));
        assert_eq!(ask(&reverse("9"), RecordType::PTR, &zones, 1), Decision::Forward);
        assert_eq!(ask("0.0.d.f.ip6.arpa.", RecordType::PTR, &zones, 1), Decision::Forward);
    }

    #[test]
    fn addresses_come_in_changing_order() {
        let zones = world();
        let firsts: std::collections::BTreeSet<_> = (0..64)
            .map(|seed| match ask("tasks.db.", RecordType::A, &zones, seed) {
                Decision::Addresses(addresses) if addresses.len() == 8 => addresses[0],
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(firsts.len(), 8);
    }

    #[test]
    fn addresses_of_the_cluster_have_names_and_others_are_asked_outside() {
        let zones = world();
        let pointer = |name| ask(name, RecordType::PTR, &zones, 1);
        assert_eq!(pointer("2.1.0.10.in-addr.arpa."), Decision::Pointer("web.back".into()));
        assert_eq!(pointer("99.1.0.10.in-addr.arpa."), Decision::Forward);
        assert_eq!(pointer("1.0.10.in-addr.arpa."), Decision::Forward);
    }

    #[test]
    fn our_own_address_is_never_a_server() {
        let own = [IpAddr::from([127, 0, 0, 11]), IpAddr::from([9, 9, 9, 9])];
        assert_eq!(servers(&own, &[]).collect::<Vec<_>>(), [IpAddr::from([9, 9, 9, 9])]);
        assert_eq!(servers(&[], &own).collect::<Vec<_>>(), [IpAddr::from([9, 9, 9, 9])]);
    }
}
