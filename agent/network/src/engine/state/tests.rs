use super::*;
use crate::spec::BridgeAttachment;
use proptest::prelude::*;
use skep_proto::model::service::Protocol;

pub fn config() -> Config {
    Config {
        state_dir: "/state".into(),
        run_dir: "/run".into(),
        vxlan_port: 4789,
        wireguard_port: 51820,
        prefix: "sk".into(),
        bridge_subnet: "172.17.0.0/28".parse().unwrap(),
        infra: "100.64.0.0/10".parse().unwrap(),
        netd_exe: "/bin/skep".into(),
    }
}

pub fn state() -> State {
    let name = DEFAULT_BRIDGE.to_owned();
    let subnet = "172.17.0.0/28".parse().unwrap();
    let bridges = BTreeMap::from([(
        name.clone(),
        Bridge { name, number: 0, subnet, internal: false, addressing: Addressing::default(), ipv6: None },
    )]);
    State { bridges, ..State::default() }
}

pub fn spec(id: u32) -> SandboxSpec {
    let mut spec = SandboxSpec::new(SandboxId::new(format!("s{id}")).unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec
}

#[test]
fn an_address_is_given_again_as_late_as_possible() {
    let (mut state, config) = (state(), config());
    let mut given = Vec::new();
    for id in 0..14 {
        let record = state.reserve(spec(id), &config, |_| true).unwrap();
        given.push(record.links[0].address.addr().octets()[3]);
        state.records.remove(&record.spec.id);
    }
    assert_eq!(given, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 2]);
}

#[test]
fn a_port_on_an_ipv6_address_is_refused_without_ipv6_and_not_opened_elsewhere() {
    let bind = Some("2001:db8::1".parse().unwrap());
    let port = HostPort { bind, published: Some(80), target: 80, protocol: Protocol::Tcp };
    let spec = SandboxSpec { host_ports: vec![port], ..spec(1) };
    let error = state().reserve(spec, &config(), |_| true).unwrap_err();
    assert_eq!(error.to_string(), "address 2001:db8::1 is not available: this node has no IPv6");
}

#[test]
fn a_full_subnet_is_an_error_and_takes_nothing() {
    let (mut state, config) = (state(), config());
    for id in 0..13 {
        state.reserve(spec(id), &config, |_| true).unwrap();
    }
    let error = state.reserve(spec(13), &config, |_| true).unwrap_err();
    assert_eq!(error.to_string(), "no free address is left in 172.17.0.0/28");
    assert_eq!(state.records.len(), 13);
}

#[test]
fn a_port_on_one_address_clashes_with_the_same_on_all_but_not_on_another() {
    let (mut state, config) = (state(), config());
    let port = |bind: Option<&str>| HostPort {
        bind: bind.map(|b| b.parse().unwrap()),
        published: Some(80),
        target: 80,
        protocol: Protocol::Tcp,
    };
    let mut ask = |id, bind| {
        let spec = SandboxSpec { host_ports: vec![port(bind)], ..spec(id) };
        state.reserve(spec, &config, |_| true).is_ok()
    };
    assert!(ask(1, Some("192.0.2.1")));
    assert!(ask(2, Some("192.0.2.2")));
    assert!(!ask(3, Some("192.0.2.1")));
    assert!(!ask(4, None));
}

#[test]
fn nothing_is_lost_of_a_subnet_after_many_containers_came_and_went() {
    let (mut state, config) = (state(), config());
    // Two stay, the others come and go; a seeded choice of who.
    let mut seed = 7u32;
    for _ in 0..100_000 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let wanted = spec(seed >> 29);
        if state.records.remove(&wanted.id).is_none() {
            state.reserve(wanted, &config, |_| true).unwrap();
        }
    }
    state.records.clear();
    let all: BTreeSet<Ipv4Addr> =
        (0..13).map(|id| state.reserve(spec(id), &config, |_| true).unwrap().links[0].address.addr()).collect();
    assert_eq!(all.len(), 13);
}

#[test]
fn addresses_are_chosen_from_the_range_and_never_the_gateways() {
    let (mut state, config) = (state(), config());
    let bridge = state.bridges.get_mut(DEFAULT_BRIDGE).unwrap();
    let gateway = Some(Ipv4Addr::new(172, 17, 0, 9));
    bridge.addressing = Addressing { gateway, range: Some("172.17.0.8/30".parse().unwrap()) };
    let mut last = |id: u32, asked: Option<[u8; 4]>| {
        let mut spec = spec(id);
        spec.bridges[0].address = asked.map(Ipv4Addr::from);
        let record = state.reserve(spec, &config, |_| true)?;
        assert_eq!(record.links[0].gateway, gateway);
        Ok::<_, NetworkError>(record.links[0].address.addr().octets()[3])
    };
    assert_eq!((last(1, None).unwrap(), last(2, None).unwrap(), last(3, None).unwrap()), (8, 10, 11));
    assert_eq!(last(4, None).unwrap_err().to_string(), "no free address is left in 172.17.0.8/30");
    assert_eq!(last(4, Some([172, 17, 0, 1])).unwrap(), 1);
    assert!(last(5, Some([172, 17, 0, 9])).is_err() && last(5, Some([172, 17, 0, 15])).is_err());
}

proptest! {
    #[test]
    fn no_two_sandboxes_share_an_address_or_a_slot(steps in proptest::collection::vec((0u32..8, any::<bool>()), 1..60)) {
        let (mut state, config) = (state(), config());
        for (id, create) in steps {
            let spec = spec(id);
            if create && !state.records.contains_key(&spec.id) {
                state.reserve(spec, &config, |_| true).unwrap();
            } else {
                state.records.remove(&spec.id);
            }
            let addresses: BTreeSet<_> = state.records.values().map(|r| r.links[0].address).collect();
            let slots: BTreeSet<_> = state.records.values().map(|r| r.slot).collect();
            prop_assert_eq!((addresses.len(), slots.len()), (state.records.len(), state.records.len()));
        }
    }
}
