use serde_json::{Value, json};

use super::*;

fn asked(body: Value) -> Result<NewNetwork, String> {
    read(serde_json::from_value(body).unwrap()).map_err(|error| error.message().to_owned())
}

fn cluster(body: Value) -> NetworkSpec {
    match asked(body) {
        Ok(NewNetwork::Cluster(spec)) => spec,
        other => panic!("{other:?}"),
    }
}

fn local(body: Value) -> LocalNetwork {
    match asked(body) {
        Ok(NewNetwork::Local(network)) => network,
        other => panic!("{other:?}"),
    }
}

/// As `docker network create --ipv6 --subnet … --gateway …` sends it.
fn body(driver: &str, ipv6: bool, config: Value) -> Value {
    json!({"Name": "n", "Driver": driver, "EnableIPv6": ipv6, "IPAM": {"Driver": "default", "Config": config}})
}

#[test]
fn both_families_may_be_asked_for_or_left_to_the_pools() {
    let spec = cluster(body("overlay", true, json!([{}])));
    assert_eq!((spec.ipv6, spec.ipam.len()), (true, 0));
    let both = json!([{"Subnet": "fd01::5/64", "IPRange": "fd01::/80", "Gateway": "fd01::9", "AuxiliaryAddresses": {"r": "fd01::7"}},
        {"Subnet": "10.9.0.0/24"}]);
    let spec = cluster(body("overlay", true, both.clone()));
    assert_eq!(spec.ipam[0].subnet.map(|s| s.to_string()).as_deref(), Some("fd01::/64"));
    assert_eq!(spec.ipam[0].reserved["r"].to_string(), "fd01::7");
    let mut here = both.clone();
    here[0].as_object_mut().unwrap().remove("AuxiliaryAddresses");
    let network = local(body("bridge", true, here));
    assert!(network.ipv6);
    assert_eq!(network.subnets[0].gateway.to_string(), "fd01::9");
    assert_eq!(network.subnets[1].gateway.to_string(), "10.9.0.1");
    let plain = local(body("bridge", true, json!([{"Subnet": "fd01::/64"}])));
    assert_eq!(plain.subnets[0].gateway.to_string(), "fd01::1");
    assert!(local(body("", true, json!([]))).ipv6 && !local(body("", false, json!([]))).ipv6);
}

#[test]
fn what_cannot_be_is_told_for_both_drivers() {
    for driver in ["overlay", "bridge"] {
        let says = |ipv6, config, text: &str| {
            let error = asked(body(driver, ipv6, config)).unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        says(false, json!([{"Subnet": "fd01::/64"}]), "add --ipv6 (EnableIPv6)");
        says(true, json!([{"Subnet": "fd01::/64"}, {"Subnet": "fd02::/64"}]), "more than one IPv6 subnet");
        says(false, json!([{"Subnet": "10.1.0.0/24"}, {"Subnet": "10.2.0.0/24"}]), "more than one IPv4 subnet");
        says(true, json!([{"Subnet": "fd01::/64", "Gateway": "10.1.0.1"}]), "parent subnet is an IPv6 block");
        says(true, json!([{"Subnet": "fd01::/64", "Gateway": "fd02::1"}]), "doesn't contain this address");
        says(true, json!([{"Subnet": "fe80::/64"}]), "link-local");
        says(true, json!([{"Subnet": "fd01::/64x"}]), "invalid subnet fd01::/64x");
        let none = json!({"Name": "n", "Driver": driver, "EnableIPv4": false, "EnableIPv6": true});
        let error = asked(none).unwrap_err();
        assert!(error.contains("a network without IPv4 is not supported"), "{error}");
    }
}

fn dual() -> Network {
    let spec = cluster(body(
        "overlay",
        true,
        json!([{"Subnet": "10.9.0.0/24"}, {"Subnet": "fd01::/64", "AuxiliaryAddresses": {"r": "fd01::7"}}]),
    ));
    let subnets = ["10.9.0.0/24", "fd01::/64"].map(|s| s.parse::<IpNet>().unwrap());
    let subnet = |s: IpNet| Subnet { subnet: s, range: None, gateway: addressing::first_host(s).unwrap() };
    let (id, meta) = (NetworkId(7), Meta::default());
    Network { id, meta, spec, vni: Some(4097), subnets: subnets.map(subnet).to_vec(), pending_delete: false }
}

#[test]
fn both_subnets_are_shown() {
    let network = dual();
    let shown = serde_json::to_value(show_cluster(&network, &[])).unwrap();
    assert_eq!(shown["EnableIPv6"], true);
    assert_eq!(
        shown["IPAM"]["Config"],
        json!([{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"},
            {"Subnet": "fd01::/64", "Gateway": "fd01::1", "AuxiliaryAddresses": {"r": "fd01::7"}}])
    );
    let inside = serde_json::to_value(show_inside_task(&network)).unwrap();
    assert_eq!(inside["Spec"]["IPv6Enabled"], true);
    assert_eq!(inside["IPAMOptions"]["Configs"][1]["Subnet"], "fd01::/64");
}
