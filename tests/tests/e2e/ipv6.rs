//! Networks of two families: the addresses that the cluster gives and shows, traffic by them, and nodes that reach each
//! other by IPv6.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually, images};

const BUSYBOX: &str = "busybox:test";
const WHOAMI: &str = "skep/whoami:latest";
const REPLICAS: usize = 3;
/// Addresses of the two nodes on the lab's link.
const M1: &str = "fd42::1";
const W1: &str = "fd42::2";
/// Somebody on the same link who is no node.
const CLIENT: &str = "fd42::100";

fn json(lab: &Lab, node: &str, arguments: &[&str]) -> Value {
    let text = lab.docker(node, arguments).unwrap();
    let shown: Value = serde_json::from_str(&text).unwrap();
    shown[0].clone()
}

/// Addresses of `10.0.0.2/24` and the like, without their prefix.
fn parsed(shown: &Value) -> IpAddr {
    let text = shown.as_str().unwrap_or_default();
    text.split('/').next().unwrap_or_default().parse().unwrap_or_else(|_| panic!("{shown} is not an address"))
}

fn refused(lab: &Lab, arguments: &[&str], text: &str) {
    let error = lab.docker("m1", arguments).unwrap_err().to_string();
    assert!(error.contains(text), "{arguments:?}: {error}");
}

/// The endpoint of a plain container on a network.
fn endpoint(lab: &Lab, node: &str, container: &str, network: &str) -> Value {
    json(lab, node, &["inspect", container])["NetworkSettings"]["Networks"][network].clone()
}

/// Gives a node another IPv6 address on the lab's link.
fn add_address(lab: &Lab, node: &str, address: &str) {
    lab.lab(&["exec", node, "--", "ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"]).unwrap();
    let add = ["exec", node, "--", "ip", "-6", "addr", "add", &format!("{address}/64"), "dev", "eth0", "nodad"];
    lab.lab(&add).unwrap();
}

#[test]
#[ignore = "needs root"]
fn tasks_and_containers_have_addresses_of_both_families_and_reach_each_other_by_them() {
    let lab = Lab::up(1, 1, &[]);
    add_address(&lab, "m1", M1);
    add_address(&lab, "w1", W1);
    outside(&lab, &["ip", "-6", "addr", "add", &format!("{CLIENT}/64"), "dev", "br0", "nodad"]).unwrap();
    images::load_busybox(&lab);
    let overlay = ["network", "create", "-d", "overlay", "--attachable"];
    lab.docker("m1", &[&overlay[..], &["--ipv6", "dual"]].concat()).unwrap();
    let asked = ["--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "--ip-range", "fd77::1:0/112", "asked"];
    lab.docker("m1", &[&overlay[..], &asked[..]].concat()).unwrap();
    lab.docker("m1", &[&overlay[..], &["plain"]].concat()).unwrap();
    what_cannot_be_is_refused(&lab);
    let subnet = the_networks_are_shown(&lab);

    let replicas = REPLICAS.to_string();
    let create = ["service", "create", "-d", "--name", "web", "--replicas", &replicas, "-p", "8080:80"];
    lab.docker("m1", &[&create[..], &["--network", "dual", "--network", "plain", WHOAMI]].concat()).unwrap();
    lab.wait_for_running("m1", "web", REPLICAS);
    let (vip, tasks) = a_service_has_both(&lab, &subnet);
    containers_have_what_they_asked_for(&lab);
    who_is_on_a_network_is_told(&lab, &tasks);
    traffic(&lab, vip, &tasks);
    a_restart_changes_nothing(&lab, vip);
    a_service_joins_a_network_of_two_families(&lab);

    lab.docker("m1", &["service", "rm", "web"]).unwrap();
    for (node, name) in [("m1", "near"), ("w1", "far")] {
        lab.docker(node, &["rm", "-f", name]).unwrap();
    }
    eventually("the networks can go", || {
        lab.docker("m1", &["network", "rm", "dual", "asked", "plain"]).map(drop).or_else(|error| {
            ensure!(
                lab.docker("m1", &["network", "ls", "-q", "-f", "driver=overlay", "-f", "type=custom"])?.is_empty(),
                "{error}"
            );
            Ok(())
        })
    });
}

fn what_cannot_be_is_refused(lab: &Lab) {
    let overlay = ["network", "create", "-d", "overlay"];
    let wrong = |flags: &[&str], text| refused(lab, &[&overlay[..], flags, &["bad"]].concat(), text);
    wrong(&["--subnet", "fd78::/64"], "add --ipv6");
    wrong(&["--ipv6", "--subnet", "fd77:0:0:0:8000::/65"], "Pool overlaps with other one on this address space");
    wrong(&["--ipv6", "--subnet", "fd78::/64", "--subnet", "fd79::/64"], "more than one IPv6 subnet");
    wrong(&["--ipv6", "--subnet", "fe80::/64"], "link-local");
    let ask = |network: &str, address: &str, text| {
        refused(lab, &["run", "--rm", "--network", network, "--ip6", address, BUSYBOX, "true"], text);
    };
    ask("asked", "fd77::1", "Address already in use");
    ask("asked", "fd78::1", "no configured subnet or ip-range contain the IP address fd78::1");
    ask("plain", "fd77::9", "no configured subnet or ip-range contain the IP address fd77::9");
    ask("asked", "10.77.0.9", "invalid IPv6 address: 10.77.0.9");
}

/// The IPv6 subnet that was chosen.
fn the_networks_are_shown(lab: &Lab) -> String {
    let dual = json(lab, "m1", &["network", "inspect", "dual"]);
    assert_eq!(dual["EnableIPv6"], true);
    let configs = dual["IPAM"]["Config"].as_array().unwrap();
    let (v4, v6) = (parsed(&configs[0]["Subnet"]), parsed(&configs[1]["Subnet"]));
    assert!(v4.is_ipv4() && v6.to_string().starts_with("fd"), "{dual:#}");
    assert_eq!(configs[1]["Gateway"].as_str().unwrap(), format!("{v6}1"));
    let asked = json(lab, "m1", &["network", "inspect", "asked"]);
    let config = &asked["IPAM"]["Config"][1];
    assert_eq!((&config["Subnet"], &config["IPRange"]), (&"fd77::/64".into(), &"fd77::1:0/112".into()));
    assert_eq!(json(lab, "m1", &["network", "inspect", "plain"])["EnableIPv6"], false);
    let listed = lab.docker("m1", &["network", "ls", "--format", "{{.Name}} {{.IPv6}}"]).unwrap();
    assert!(listed.contains("dual true") && listed.contains("plain false"), "{listed}");
    configs[1]["Subnet"].as_str().unwrap().trim_end_matches(":/64").to_owned()
}

/// The service's IPv6 virtual address, and the tasks' IPv6 addresses.
fn a_service_has_both(lab: &Lab, subnet: &str) -> (IpAddr, Vec<IpAddr>) {
    let id = json(lab, "m1", &["network", "inspect", "dual"])["Id"].clone();
    let service = json(lab, "m1", &["service", "inspect", "web"]);
    let all = service["Endpoint"]["VirtualIPs"].as_array().unwrap().clone();
    let vips: Vec<IpAddr> = all.iter().filter(|v| v["NetworkID"] == id).map(|v| parsed(&v["Addr"])).collect();
    assert_eq!((all.len(), vips.len(), vips[0].is_ipv4(), vips[1].is_ipv6()), (3, 2, true, true), "{all:?}");
    let mut given = BTreeSet::from([vips[1]]);
    for line in lab.running("m1", "web") {
        let task = json(lab, "m1", &["inspect", line.split(' ').next().unwrap()]);
        let attachments = task["NetworksAttachments"].as_array().unwrap();
        let dual = attachments.iter().find(|a| a["Network"]["ID"] == id).unwrap();
        let addresses: Vec<IpAddr> = dual["Addresses"].as_array().unwrap().iter().map(parsed).collect();
        assert_eq!((addresses.len(), addresses[0].is_ipv4(), addresses[1].is_ipv6()), (2, true, true), "{dual:#}");
        given.insert(addresses[1]);
        let plain = attachments.iter().find(|a| a["Network"]["ID"] != id).unwrap();
        assert_eq!(plain["Addresses"].as_array().unwrap().len(), 1, "{plain:#}");
    }
    assert_eq!(given.len(), REPLICAS + 1);
    assert!(given.iter().all(|address| address.to_string().starts_with(subnet)), "{given:?}");
    (vips[1], given.into_iter().filter(|address| *address != vips[1]).collect())
}

fn containers_have_what_they_asked_for(lab: &Lab) {
    let run = ["run", "-d", "--network"];
    let serve = [BUSYBOX, "nc", "-ll", "-p", "7", "-e", "cat"];
    lab.docker("m1", &[&run[..], &["dual", "--name", "near"], &serve[..]].concat()).unwrap();
    lab.docker("w1", &[&run[..], &["asked", "--ip6", "fd77::42", "--name", "far"], &serve[..]].concat()).unwrap();
    lab.docker("m1", &["network", "connect", "--ip6", "fd77::43", "--ip", "10.77.0.43", "asked", "near"]).unwrap();
    refused(
        lab,
        &["run", "--rm", "--network", "asked", "--ip6", "fd77::42", BUSYBOX, "true"],
        "Address already in use",
    );
    let far = endpoint(lab, "w1", "far", "asked");
    assert_eq!((&far["GlobalIPv6Address"], &far["GlobalIPv6PrefixLen"]), (&"fd77::42".into(), &64.into()), "{far:#}");
    assert_eq!(far["IPAMConfig"]["IPv6Address"], "fd77::42");
    assert!(parsed(&far["IPAddress"]).is_ipv4());
    let near = endpoint(lab, "m1", "near", "asked");
    assert_eq!((&near["GlobalIPv6Address"], &near["IPAddress"]), (&"fd77::43".into(), &"10.77.0.43".into()));
    let chosen = endpoint(lab, "m1", "near", "dual");
    assert!(parsed(&chosen["GlobalIPv6Address"]).is_ipv6(), "{chosen:#}");
}

fn who_is_on_a_network_is_told(lab: &Lab, tasks: &[IpAddr]) {
    let shown = json(lab, "m1", &["network", "inspect", "--verbose", "dual"]);
    let peers: BTreeSet<&str> = shown["Peers"].as_array().unwrap().iter().filter_map(|p| p["IP"].as_str()).collect();
    let nodes = [lab.address("m1"), lab.address("w1")];
    assert_eq!(peers, nodes.iter().map(String::as_str).collect(), "{shown:#}");
    let web = &shown["Services"]["web"];
    assert_eq!(web["Ports"][0], "Target: 80, Publish: 8080");
    let told: BTreeSet<IpAddr> =
        web["Tasks"].as_array().unwrap().iter().map(|t| parsed(&t["Info"]["Endpoint IPv6"])).collect();
    assert_eq!(told, tasks.iter().copied().collect());
    assert_eq!(shown["Services"][""]["Tasks"][0]["Name"], "near");
}

fn traffic(lab: &Lab, vip: IpAddr, tasks: &[IpAddr]) {
    let exec =
        |node: &str, container: &str, command: &[&str]| lab.docker(node, &[&["exec", container], command].concat());
    // Names answer in both families.
    for (name, wanted) in [("web", &[vip][..]), ("tasks.web", tasks)] {
        eventually("the service's name is resolved to its IPv6 addresses", || {
            let said = exec("m1", "near", &["nslookup", name, "127.0.0.11"])?;
            let missing: Vec<_> = wanted.iter().filter(|ip| !said.contains(&ip.to_string())).collect();
            ensure!(missing.is_empty(), "{missing:?} not in {said}");
            Ok(())
        });
    }
    // Tasks of both nodes see who asks, by their own addresses and by the service's.
    let near = endpoint(lab, "m1", "near", "dual")["GlobalIPv6Address"].as_str().unwrap().to_owned();
    let mut hosts = BTreeSet::new();
    for address in tasks.iter().chain([&vip, &vip, &vip, &vip, &vip, &vip, &vip, &vip]) {
        eventually("it answers by IPv6", || {
            let said = exec("m1", "near", &["wget", "-qO-", &format!("http://[{address}]/")])?;
            ensure!(said.contains(&format!("RemoteAddr: [{near}]:")), "{address}: {said}");
            hosts.extend(said.lines().filter(|line| line.starts_with("Hostname: ")).map(str::to_owned));
            Ok(())
        });
    }
    assert_eq!(hosts.len(), REPLICAS);
    eventually("containers of two nodes talk by IPv6", || {
        let said = exec("m1", "near", &["sh", "-c", "echo hello | nc -w 3 fd77::42 7"])?;
        ensure!(said == "hello\n", "{said}");
        let said = exec("w1", "far", &["sh", "-c", "echo hello | nc -w 3 fd77::43 7"])?;
        ensure!(said == "hello\n", "{said}");
        Ok(())
    });
    published(lab);
}

fn a_restart_changes_nothing(lab: &Lab, vip: IpAddr) {
    let places = ["dual", "asked"].map(|network| endpoint(lab, "m1", "near", network)["GlobalIPv6Address"].clone());
    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    eventually("the daemon is back", || lab.docker("m1", &["ps"]).map(drop));
    let after = ["dual", "asked"].map(|network| endpoint(lab, "m1", "near", network)["GlobalIPv6Address"].clone());
    assert_eq!(places, after);
    eventually("the service answers by IPv6", || {
        lab.docker("m1", &["exec", "near", "wget", "-qO-", &format!("http://[{vip}]/")]).map(drop)
    });
    let run = ["run", "--rm", "--network", "asked", "--ip6", "fd77::43", BUSYBOX, "true"];
    eventually("its addresses are its own still", || {
        let error = lab.docker("m1", &run).map_or_else(|error| error.to_string(), |_| "it was given again".into());
        ensure!(error.contains("Address already in use"), "{error}");
        Ok(())
    });
}

fn a_service_joins_a_network_of_two_families(lab: &Lab) {
    lab.docker("m1", &["service", "create", "-d", "--name", "late", "--network", "plain", WHOAMI]).unwrap();
    lab.wait_for_running("m1", "late", 1);
    lab.docker("m1", &["service", "update", "-d", "--network-add", "dual", "late"]).unwrap();
    let vips =
        || json(lab, "m1", &["service", "inspect", "late"])["Endpoint"]["VirtualIPs"].as_array().map_or(0, Vec::len);
    eventually("it has virtual addresses of both families", || {
        ensure!(vips() == 3, "{}", vips());
        Ok(())
    });
    eventually("it answers by name, by either family", || {
        for name in ["late", "tasks.late"] {
            let said = lab.docker("m1", &["exec", "near", "nslookup", name, "127.0.0.11"])?;
            ensure!(said.contains("Address: 10.") && said.contains("Address: fd"), "{said}");
        }
        Ok(())
    });
    lab.docker("m1", &["service", "rm", "late"]).unwrap();
}

/// Asks a port of a node by IPv6 from outside of the cluster; the answer names who asked.
fn asked_by_ipv6(lab: &Lab, node: &str, port: u16) -> anyhow::Result<()> {
    let url = format!("http://[{node}]:{port}/");
    let said = outside(lab, &["busybox", "timeout", "5", "busybox", "wget", "-qO-", &url])?;
    ensure!(said.contains(&format!("RemoteAddr: [{CLIENT}]:")), "{said}");
    Ok(())
}

/// Runs a program beside the nodes, on their link.
fn outside(lab: &Lab, command: &[&str]) -> anyhow::Result<String> {
    let namespace = format!("--net={}", lab.namespace("bridge").display());
    let output = Command::new("nsenter").arg(namespace).args(command).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn published(lab: &Lab) {
    // A service without an IPv6 network is reached by the nodes' IPv6 addresses all the same.
    let old = ["service", "create", "-d", "--name", "old", "-p", "8081:80", "--network", "plain", WHOAMI];
    lab.docker("m1", &old).unwrap();
    lab.wait_for_running("m1", "old", 1);
    // As often as there are tasks, and more: each is asked, through each node.
    for (node, port) in [(M1, 8080), (W1, 8080), (M1, 8081), (W1, 8081)] {
        for _ in 0..2 * REPLICAS {
            let what = "a published port answers by IPv6 and tells the client's address";
            eventually(what, || asked_by_ipv6(lab, node, port));
        }
    }
    lab.docker("m1", &["service", "rm", "old"]).unwrap();
    // A node is a client, too, also of a task of its own by way of another node.
    let mut hosts = BTreeSet::new();
    eventually("a node reaches every task by another node's port", || {
        let url = format!("http://[{M1}]:8080/");
        let said = lab.lab(&["exec", "w1", "--", "busybox", "timeout", "2", "busybox", "wget", "-qO-", &url])?;
        hosts.extend(said.lines().filter(|line| line.starts_with("Hostname: ")).map(str::to_owned));
        ensure!(hosts.len() == REPLICAS, "{hosts:?}");
        Ok(())
    });

    // Nor is a container whose network has no IPv6 out of reach.
    lab.docker("m1", &["run", "-d", "--name", "only4", "-p", "8093:80", "-p", "127.0.0.1:8094:80", WHOAMI]).unwrap();
    eventually("a container's port answers by IPv6 on a network without it", || asked_by_ipv6(lab, M1, 8093));
    let said = lab.lab(&["exec", "m1", "--", "busybox", "wget", "-qO-", "http://[::1]:8093/"]).unwrap();
    assert!(said.contains("RemoteAddr: "), "{said}");
    let shown = json(lab, "m1", &["inspect", "only4"]);
    let open: Vec<(&str, &str)> = shown["NetworkSettings"]["Ports"]["80/tcp"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["HostIp"].as_str().unwrap(), b["HostPort"].as_str().unwrap()))
        .collect();
    assert_eq!(open, [("0.0.0.0", "8093"), ("::", "8093"), ("127.0.0.1", "8094")]);
    let bridge = &shown["NetworkSettings"]["Networks"]["bridge"];
    assert_eq!((&bridge["GlobalIPv6Address"], &bridge["IPv6Gateway"]), (&"".into(), &"".into()), "{bridge:#}");
    let hosts = lab.docker("m1", &["inspect", "-f", "{{.HostsPath}}", "only4"]).unwrap();
    let hosts = std::fs::read_to_string(hosts.trim()).unwrap();
    assert!(!hosts.contains("fd73:"), "{hosts}");
    lab.docker("m1", &["rm", "-f", "only4"]).unwrap();

    lab.docker("m1", &["network", "create", "--ipv6", "--subnet", "fd79::/64", "side"]).unwrap();
    let run = ["run", "-d", "--name", "shown", "--network", "side", "--ip6", "fd79::9"];
    let ports = ["-p", "8090:80", "-p", "[fd42::1]:8091:80", "-p", "0.0.0.0:8092:80"];
    lab.docker("m1", &[&run[..], &ports[..], &[WHOAMI]].concat()).unwrap();
    let shown = json(lab, "m1", &["inspect", "shown"]);
    let endpoint = &shown["NetworkSettings"]["Networks"]["side"];
    assert_eq!((&endpoint["GlobalIPv6Address"], &endpoint["IPv6Gateway"]), (&"fd79::9".into(), &"fd79::1".into()));
    let open: BTreeSet<(&str, &str)> = shown["NetworkSettings"]["Ports"]["80/tcp"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| (b["HostIp"].as_str().unwrap(), b["HostPort"].as_str().unwrap()))
        .collect();
    let wanted = [("0.0.0.0", "8090"), ("0.0.0.0", "8092"), ("::", "8090"), ("fd42::1", "8091")];
    assert_eq!(open, wanted.into());
    for port in [8090, 8091] {
        let what = "a container's port answers by IPv6 and tells the client's address";
        eventually(what, || asked_by_ipv6(lab, M1, port));
    }
    assert!(asked_by_ipv6(lab, M1, 8092).is_err(), "it is published on IPv4 alone");
    assert!(lab.http("m1", 8091, "/").is_err(), "it is published on one IPv6 address alone");
    assert!(lab.http("m1", 8092, "/").unwrap().contains("RemoteAddr: "));
    let beside = ["run", "--rm", "--network", "side", BUSYBOX, "wget", "-qO-", "http://[fd79::9]/"];
    let said = lab.docker("m1", &beside).unwrap();
    assert!(said.contains("RemoteAddr: [fd79::"), "{said}");
    refused(
        lab,
        &["run", "--rm", "--network", "side", "--ip6", "fd80::9", BUSYBOX, "true"],
        "no configured subnet or ip-range",
    );
    refused(
        lab,
        &["run", "--rm", "--network", "side", "--ip6", "fd79::9", BUSYBOX, "true"],
        "fd79::9 is not available",
    );
    lab.docker("m1", &["rm", "-f", "shown"]).unwrap();
    let inspected = json(lab, "m1", &["network", "inspect", "side"]);
    assert_eq!(
        (&inspected["EnableIPv6"], &inspected["IPAM"]["Config"][1]["Gateway"]),
        (&true.into(), &"fd79::1".into())
    );
    lab.docker("m1", &["network", "rm", "side"]).unwrap();
}

#[test]
#[ignore = "needs root"]
fn nodes_form_a_cluster_by_ipv6_addresses() {
    let lab = Lab::up(1, 1, &[]);
    add_address(&lab, "m1", M1);
    add_address(&lab, "w1", W1);
    lab.docker("w1", &["swarm", "leave"]).unwrap();
    lab.docker("m1", &["swarm", "leave", "--force"]).unwrap();
    let pools = ["--default-addr-pool", "10.88.0.0/16", "--default-addr-pool", "fd88::/56"];
    let init = ["swarm", "init", "--advertise-addr", M1, "--listen-addr", "[::]:2377"];
    let size = ["--default-addr-pool-mask-length", "26"];
    refused(&lab, &[&init[..], &["--default-addr-pool", "fd88::/65"]].concat(), "no room for a subnet of /64");
    lab.docker("m1", &[&init[..], &pools[..], &size[..]].concat()).unwrap();
    let join = lab.docker("m1", &["swarm", "join-token", "worker"]).unwrap();
    assert!(join.contains("[fd42::1]:2377"), "{join}");
    let token = lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap();
    lab.docker(
        "w1",
        &[
            "swarm",
            "join",
            "--token",
            token.trim(),
            "--advertise-addr",
            W1,
            "--listen-addr",
            "[::]:2377",
            "[fd42::1]:2377",
        ],
    )
    .unwrap();
    eventually("both nodes are ready", || {
        let ready = lab.docker("m1", &["node", "ls", "--format", "{{.Status}}"])?;
        ensure!(ready == "Ready\nReady\n", "{ready}");
        Ok(())
    });
    let worker = json(&lab, "m1", &["node", "inspect", "w1"]);
    assert_eq!(worker["Status"]["Addr"], W1, "{worker:#}");
    let info = lab.docker("m1", &["info"]).unwrap();
    for line in
        ["Node Address: fd42::1", "[fd42::1]:2377", "Default Address Pool: 10.88.0.0/16  fd88::/56", "SubnetSize: 26"]
    {
        assert!(info.contains(line), "{line} is not in {info}");
    }
    lab.docker("m1", &["network", "create", "-d", "overlay", "--ipv6", "dual"]).unwrap();
    let shown = json(&lab, "m1", &["network", "inspect", "dual"]);
    let subnet = |at: usize| shown["IPAM"]["Config"][at]["Subnet"].as_str().unwrap_or_default();
    assert_eq!((subnet(0), subnet(1)), ("10.88.0.0/26", "fd88::/64"));
    assert!("fd88::".parse::<Ipv6Addr>().is_ok_and(|first| parsed(&shown["IPAM"]["Config"][1]["Subnet"]) == first));
    // The second manager speaks Raft by IPv6.
    lab.docker("m1", &["node", "promote", "w1"]).unwrap();
    eventually("the promoted node answers as a manager", || {
        let listed = lab.docker("w1", &["node", "ls", "--format", "{{.ManagerStatus}}"])?;
        ensure!(listed.contains("Reachable") && listed.contains("Leader"), "{listed}");
        Ok(())
    });
}
