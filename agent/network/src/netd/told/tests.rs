use std::net::Ipv4Addr;

use super::*;

fn zone(with_ipv6: bool) -> Zone {
    let mut zone = Zone::new("back");
    zone.add("web", Ipv4Addr::new(10, 0, 1, 5));
    zone.declare("nobody");
    if with_ipv6 {
        zone.add("web", Ipv6Addr::LOCALHOST);
        zone.add("six", "fd00::5".parse::<Ipv6Addr>().unwrap());
    }
    zone
}

fn told(with_ipv6: bool, edition: Option<Edition>) -> Told {
    let key = |name: &str| ZoneKey::Bridge(name.into());
    let zones = Zones::from([(key("back"), zone(with_ipv6)), (key("other"), zone(false))]);
    Told { zones, edition }
}

fn written(told: &Told) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(told).unwrap();
    bytes.extend(told.behind().unwrap());
    bytes
}

const EDITION: Edition = Edition { by: 7, number: 9 };

#[test]
fn zones_are_read_back_with_their_ipv6_and_their_edition() {
    for with_ipv6 in [false, true] {
        for edition in [None, Some(EDITION)] {
            let told = told(with_ipv6, edition);
            assert_eq!(Told::parse(&written(&told)).unwrap(), told);
        }
    }
}

/// Zones as processes before editions had them.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Former {
    network: String,
    names: BTreeMap<String, Vec<Ipv4Addr>>,
    addresses: BTreeMap<Ipv4Addr, String>,
}

/// What those had of IPv6, behind all zones.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Former6 {
    names: BTreeMap<String, Vec<Ipv6Addr>>,
    addresses: BTreeMap<Ipv6Addr, String>,
}

#[test]
fn older_processes_read_what_is_written_and_what_they_write_is_read() {
    let told = told(true, Some(EDITION));
    let bytes = written(&told);
    let (zones, rest) = postcard::take_from_bytes::<BTreeMap<ZoneKey, Former>>(&bytes).unwrap();
    let back = &zones[&ZoneKey::Bridge("back".into())];
    assert_eq!(back.network, "back");
    assert_eq!(back.names["web"], [Ipv4Addr::new(10, 0, 1, 5)]);
    assert_eq!((back.names["nobody"].len(), back.names["six"].len()), (0, 0));
    assert_eq!(back.addresses[&Ipv4Addr::new(10, 0, 1, 5)], "web");
    // They do not look behind it.
    let ipv6: BTreeMap<ZoneKey, Former6> = postcard::from_bytes(rest).unwrap();
    assert_eq!(ipv6[&ZoneKey::Bridge("back".into())].names["six"], ["fd00::5".parse::<Ipv6Addr>().unwrap()]);

    let mut former = postcard::to_stdvec(&zones).unwrap();
    former.extend(postcard::to_stdvec(&ipv6).unwrap());
    assert_eq!(Told::parse(&former).unwrap(), Told { edition: None, ..told.clone() });
    // As before there was IPv6.
    let oldest = Told::parse(&postcard::to_stdvec(&zones).unwrap()).unwrap();
    assert_eq!(oldest.zones[&ZoneKey::Bridge("other".into())], told.zones[&ZoneKey::Bridge("other".into())]);
}

#[test]
fn an_update_is_taken_by_the_zones_that_it_rests_on_alone() {
    let gone = crate::dns::patch::ZonePatch::Gone;
    let patch = ZonesPatch(BTreeMap::from([(ZoneKey::Bridge("other".into()), gone)]));
    let next = Edition { by: 7, number: 10 };
    let update = Update { base: EDITION, next, patch };
    for edition in [None, Some(next), Some(Edition { by: 8, number: 9 })] {
        let mut others = told(false, edition);
        assert!(!others.follow(&update));
        assert_eq!(others, told(false, edition));
    }
    let mut ours = told(false, Some(EDITION));
    assert!(ours.follow(&update));
    assert_eq!((ours.edition, ours.zones.len()), (Some(next), 1));
}
