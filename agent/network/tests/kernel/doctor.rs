//! What `skep doctor` finds is made, one after the other, where nothing brings it back: nobody watches. Each finding names
//! the broken link and what to do.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test")]

use std::io::Write;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use skep_network::dns::zone::{Zone, ZoneKey, Zones};
use skep_network::{BridgeAttachment, HostPort, NodeNetwork, SandboxId, SandboxSpec};
use skep_proto::model::doctor::{Check, Outcome};
use skep_proto::model::service::Protocol;
use skep_proto::model::{NetworkId, NodeId};

use crate::world::served::Served;
use crate::world::{World, eventually, pings, run};

fn find<'a>(checks: &'a [Check], name: &str) -> Vec<&'a Check> {
    checks.iter().filter(|check| check.name == name && check.outcome != Outcome::Ok).collect()
}

fn is_well(checks: &[Check]) {
    let bad: Vec<_> = checks.iter().filter(|check| check.outcome != Outcome::Ok).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

/// The only problem of that name has these words, and that advice.
fn told(checks: &[Check], name: &str, outcome: Outcome, words: &[&str], advice: &str) {
    let [check] = find(checks, name)[..] else { panic!("not one problem of {name}: {checks:?}") };
    assert_eq!(check.outcome, outcome, "{check:?}");
    assert!(words.iter().all(|word| check.seen.contains(word)), "{words:?} in {check:?}");
    assert!(check.advice.contains(advice), "{advice:?} in {check:?}");
}

/// Of `a`, which is on a network with a service of two tasks, and of the default bridge.
async fn one_node(folder: &Path, exe: &Path) -> (World, NetworkId, skep_network::Sandbox, std::sync::Arc<Served>) {
    let mut w = World::new(1);
    let served = Served::start(&mut w, 0, folder, exe).await;
    let net = w.network(1);
    let service = w.service(1, net, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80)]);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    w.task(2, 0, Some(service), net, "10.0.1.20/24").await;
    w.task(3, 0, Some(service), net, "10.0.1.21/24").await;
    w.apply().await;
    (w, net, a, served)
}

fn netd() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/netd")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn what_containers_are_answered_is_asked_there() {
    let folder = tempfile::tempdir().unwrap();
    // A name of its own for the program, so that it can be taken away.
    let exe = folder.path().join("netd");
    std::os::unix::fs::symlink(netd(), &exe).unwrap();
    let (w, net, a, served) = one_node(folder.path(), &exe).await;
    let network = &w.nodes[0].network;
    let examine = async || network.examine_truth().await;
    let checks = examine().await;
    is_well(&checks);
    let answers = checks.iter().find(|check| check.name == "answers").unwrap();
    assert_eq!(answers.seen, "12 questions in 3 of 3 containers answered rightly");

    // The redirect of port 53 is gone, with all other rules.
    let inside = format!("nsenter --net={}", a.netns.display());
    run(&format!("{inside} nft flush ruleset"));
    let checks = examine().await;
    let nowhere = ["in 1 of 3 containers asked", "at 127.0.0.11:53 is no answer (connection refused)", "own port"];
    told(&checks, "answers", Outcome::Failed, &nowhere, "the rules that lead port 53 to the name server are gone");
    w.apply().await;
    is_well(&examine().await);

    // Somebody leads it elsewhere, and answers there.
    let elsewhere = "add table ip other { chain out { type nat hook output priority -150; \
                     ip daddr 127.0.0.11 udp dport 53 redirect to :9; }; }";
    run(&format!("{inside} nft '{elsewhere}'"));
    told(&examine().await, "answers", Outcome::Failed, &["asked by UDP", "own port"], "find what changes rules there");
    run(&format!("{inside} nft delete table ip other"));
    is_well(&examine().await);

    // The name server was told something else than the managers say.
    let mut other = Zone::new("net1");
    for (name, last) in [("service1", 99), ("tasks.service1", 20), ("tasks.service1", 21), ("nobody", 1)] {
        other.add(name, std::net::Ipv4Addr::new(10, 0, 1, last));
    }
    let right = Zones::from([(ZoneKey::Overlay(net), other)]);
    served.client().put_zones(right).await.unwrap();
    let stale = ["in 3 of 3 containers asked", "service1 asked by", "is 10.0.1.99 instead of 10.0.1.200"];
    told(&examine().await, "answers", Outcome::Failed, &stale, "was not told the managers' last word");

    // It is stopped, then there no more, and cannot be started.
    let pid = Pid::from_raw(served.client().process_id().await.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let checks = examine().await;
    let hangs = ["in 3 of 3 containers asked", "none within 1 s", "nothing answers at the name server's own port"];
    told(&checks, "answers", Outcome::Failed, &hangs, "state T is stopped");
    told(&checks, "names", Outcome::Failed, &["the name server does not answer within 2 s"], "the process skep net");
    std::fs::remove_file(&exe).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    eventually("it is gone", || rustix::process::test_kill_process(pid).is_err());
    let checks = examine().await;
    let dead = ["connection refused", "nothing answers at the name server's own port"];
    told(&checks, "answers", Outcome::Failed, &dead, "the process skep net");
    told(&checks, "names", Outcome::Failed, &["the name server does not answer"], "look in this node's log");

    // Started again, it answers from what it kept; told again, as it should.
    std::os::unix::fs::symlink(netd(), &exe).unwrap();
    eventually("it is back", || find_process(folder.path()));
    served.client().put_zones(Zones::new()).await.unwrap();
    assert!(!find(&examine().await, "answers").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn a_node_with_many_containers_asks_in_some_and_is_not_held_up() {
    let folder = tempfile::tempdir().unwrap();
    let (mut w, net, _, served) = one_node(folder.path(), &netd()).await;
    for number in 4..=40 {
        w.task(number, 0, None, net, &format!("10.0.1.{}/24", 100 + number)).await;
    }
    w.apply().await;
    let network = &w.nodes[0].network;
    let checks = network.examine_truth().await;
    is_well(&checks);
    let answers = checks.iter().find(|check| check.name == "answers").unwrap();
    assert_eq!(answers.seen, "128 questions in 32 of 40 containers answered rightly");
    let pid = Pid::from_raw(served.client().process_id().await.unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = std::time::Instant::now();
    let checks = network.examine_truth().await;
    let took = began.elapsed();
    kill_process(pid, Signal::CONT).unwrap();
    // Each of two looks waits two seconds, and 1.5 pass between them.
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    told(&checks, "answers", Outcome::Failed, &["in 32 of 32 containers asked", "and 29 more"], "state T is stopped");
}

fn find_process(folder: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(folder.join("netd.sock")).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn rules_elements_and_links_that_others_change_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (w, _, a, _served) = one_node(folder.path(), &netd()).await;
    let network = &w.nodes[0].network;
    is_well(&network.examine_truth().await);
    let (node, inside) =
        (format!("nsenter --net={}", w.nodes[0].netns.display()), format!("nsenter --net={}", a.netns.display()));
    let sandbox = format!("sandbox {}", skep_network::SandboxId::of_task(skep_proto::model::TaskId(1)));
    // A set of addresses in its table, whatever it is called.
    let listed = run(&format!("{inside} nft list sets ip"));
    let set = listed.lines().find_map(|line| line.trim().strip_prefix("set ")?.strip_suffix(" {")).unwrap().to_owned();
    let maps = run(&format!("{inside} nft list maps ip"));
    let named = maps.lines().filter_map(|line| line.trim().strip_prefix("map ")?.strip_suffix(" {"));
    let map = named.into_iter().find(|name| !name.starts_with("__")).unwrap().to_owned();
    let again = "find it (a firewall's reload, nft flush ruleset)";
    for (harm, kind, words) in [
        (format!("{inside} nft flush ruleset"), "rules", vec![sandbox.as_str(), "rules instead of"]),
        (
            format!("{inside} nft add element ip skep {set} '{{ 10.9.9.9 }}'"),
            "rules",
            vec![&sandbox, &set, "1 are not ours"],
        ),
        (format!("{inside} nft flush map ip skep {map}"), "rules", vec![&sandbox, &map, "missing or other"]),
        (format!("{node} nft flush ruleset"), "rules", vec!["rules instead of", "table skep-skep"]),
        (format!("{node} ip link set skep-mesh down"), "links", vec!["link skep-mesh is down"]),
        (format!("{node} ip link del skep-mesh"), "links", vec!["link skep-mesh is gone"]),
        (format!("{node} ip link set skep-br0 down"), "links", vec!["link skep-br0 is down"]),
    ] {
        run(&harm);
        told(&network.examine_truth().await, kind, Outcome::Failed, &words, again);
        repair(&w).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn rules_of_others_are_no_difference_and_one_in_the_place_of_ours_is() {
    let mut w = World::new(2);
    // Rules of all kinds: both versions of IP, several tasks behind an address, a network that is not encrypted, ports.
    let (sealed, open) = (w.dual_network(1), w.plain_network(2));
    let service = w.service(1, sealed, "10.0.1.200/24", &[(Protocol::Tcp, 8080, 80), (Protocol::Udp, 8081, 81)]);
    w.add_vip(service, sealed, "fd00:1::c8/64");
    w.apply().await;
    let a = w.task_at(1, 0, Some(service), sealed, &["10.0.1.10/24", "fd00:1::a/64"]).await;
    w.task_at(2, 0, Some(service), sealed, &["10.0.1.11/24", "fd00:1::b/64"]).await;
    w.task_at(3, 1, Some(service), sealed, &["10.0.1.12/24", "fd00:1::c/64"]).await;
    w.task(4, 0, None, open, "10.0.2.10/24").await;
    let mut spec = SandboxSpec::new(SandboxId::new("plain").unwrap());
    spec.bridges.push(BridgeAttachment::default_bridge());
    spec.host_ports = vec![HostPort { bind: None, published: Some(8082), target: 80, protocol: Protocol::Tcp }];
    w.nodes[0].network.create_sandbox(spec).await.unwrap();
    w.apply().await;
    let rules = async || {
        let checks = w.nodes[0].network.examine_truth().await;
        checks.into_iter().find(|check| check.name == "rules").unwrap()
    };
    let well = rules().await;
    assert_eq!(well.outcome, Outcome::Ok, "{well:?}");

    let config = &w.nodes[0].config;
    let switches = [sealed, open].map(|network| config.switch_dir().join(network.to_string()));
    for netns in [&w.nodes[0].netns, &a.netns].into_iter().chain(&switches) {
        run(&format!("nsenter --net={} nft add table inet others", netns.display()));
        let rules = rules().await;
        assert_eq!(rules, well, "{}", netns.display());
    }

    let inside = format!("nsenter --net={}", a.netns.display());
    let listed = run(&format!("{inside} nft -a list table ip skep"));
    let (mut chain, mut redirect) = ("", None);
    for line in listed.lines().map(str::trim) {
        chain = line.strip_prefix("chain ").and_then(|rest| rest.split(' ').next()).unwrap_or(chain);
        if line.contains("udp dport 53") {
            redirect = line.rsplit(' ').next().map(|handle| (chain, handle));
        }
    }
    let (chain, handle) = redirect.unwrap();
    run(&format!("{inside} nft replace rule ip skep {chain} handle {handle} udp dport 53 accept"));
    let told = rules().await;
    assert_eq!(told.outcome, Outcome::Failed, "{told:?}");
    assert!(told.seen.contains(&format!("rule 1 of chain {chain} of table skep is not ours")), "{told:?}");
}

/// Who owns a table keeps all others from it, as long as it lives (nft(8), `owner`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn what_the_watch_cannot_bring_back_stays_named_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (w, _, a, _served) = one_node(folder.path(), &netd()).await;
    let (network, stop) = (w.nodes[0].network.clone(), tokio_util::sync::CancellationToken::new());
    let watching = tokio::spawn({
        let (network, stop) = (network.clone(), stop.clone());
        async move { network.watch(stop).await }
    });
    let mut owner = std::process::Command::new("nsenter")
        .args([&format!("--net={}", a.netns.display()), "nft", "-i"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut input = owner.stdin.take().unwrap();
    input.write_all(b"flush ruleset; add table ip skep { flags owner; }\n").unwrap();
    let owned = || run(&format!("nsenter --net={} nft list tables", a.netns.display())).trim() == "table ip skep";
    let is_empty = || !run(&format!("nsenter --net={} nft list ruleset", a.netns.display())).contains("chain");
    eventually("the table is somebody else's", || owned() && is_empty());
    let checks = network.examine_truth().await;
    let [rules] = find(&checks, "rules")[..] else { panic!("{checks:?}") };
    assert!(rules.seen.contains("rules instead of") && rules.advice.contains("this node's log says why"), "{rules:?}");
    assert!(!find(&checks, "answers").is_empty(), "{checks:?}");
    drop(input);
    owner.wait().unwrap();
    settle(&network).await;
    stop.cancel();
    watching.await.unwrap();
}

/// Looks until all is well.
async fn settle(network: &NodeNetwork) {
    let began = std::time::Instant::now();
    loop {
        let checks = network.examine_truth().await;
        if checks.iter().all(|check| check.outcome == Outcome::Ok) {
            return;
        }
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{checks:?}");
    }
}

/// Has the node look at everything once, as it does all the time where it is not a test.
async fn repair(w: &World) {
    let (network, stop) = (w.nodes[0].network.clone(), tokio_util::sync::CancellationToken::new());
    let watching = tokio::spawn({
        let stop = stop.clone();
        async move { network.watch(stop).await }
    });
    settle(&w.nodes[0].network).await;
    stop.cancel();
    watching.await.unwrap();
}

async fn pairs(network: &NodeNetwork) -> Vec<Check> {
    network.examine_pairs(|node: NodeId| format!("n{}", node.0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root"]
async fn ways_to_other_nodes_that_are_cut_narrow_or_closed_are_named() {
    let mut w = World::new(3);
    // The first has both versions of IP, the second IPv4 and an address that others were told of, the third IPv6 alone.
    let both = w.view.peers[&w.nodes[0].id].data_path.clone();
    w.enter_with(0, both).await;
    w.leave_ipv6_alone(2);
    let net = w.network(1);
    w.apply().await;
    let a = w.task(1, 0, None, net, "10.0.1.10/24").await;
    w.task(2, 1, None, net, "10.0.1.20/24").await;
    w.task(3, 2, None, net, "10.0.1.30/24").await;
    w.apply().await;
    eventually("traffic passes", || pings(&a.netns, "10.0.1.20") && pings(&a.netns, "10.0.1.30"));
    let network = &w.nodes[0].network;
    let checks = pairs(network).await;
    is_well(&checks);
    let of = |peer: &str| checks.iter().filter(|c| c.peer == peer).map(|c| c.name.as_str()).collect::<Vec<_>>();
    assert_eq!(of("n2"), ["tunnel", "path MTU", "IPv6 path"]);
    assert_eq!(of("n3"), ["tunnel", "path MTU"]);

    let hub = format!("nsenter --net={}", w.hub().display());
    let to = async |peer: &str| pairs(network).await.into_iter().filter(|c| c.peer == peer).collect::<Vec<_>>();
    let block = |what: &str| {
        let table =
            format!("add table bridge f {{ chain c {{ type filter hook forward priority 0; {what} drop; }}; }}");
        run(&format!("{hub} nft '{table}'"));
    };
    let unblock = || run(&format!("{hub} nft delete table bridge f"));
    for (peer, port) in [("n2", "n2"), ("n3", "n3")] {
        block(&format!("oifname \"{port}\" udp dport 51820"));
        let seen = ["0 of 5 packets came back through the tunnel", "but 3 of 3 from"];
        told(&to(peer).await, "tunnel", Outcome::Failed, &seen, "let UDP 51820 pass between the two nodes");
        unblock();

        // What is larger is lost, and nobody says so.
        block(&format!("oifname \"{port}\" meta length > 1400"));
        let advice = "make the whole way carry 1500 bytes";
        told(&to(peer).await, "path MTU", Outcome::Failed, &["are lost in the tunnel, small ones pass"], advice);
        unblock();

        run(&format!("{hub} ip link set {port} down"));
        let seen = ["nothing passes: 0 of 5 packets came back through the tunnel", "0 of 3 from"];
        told(&to(peer).await, "tunnel", Outcome::Failed, &seen, "the link between the two nodes is cut");
        run(&format!("{hub} ip link set {port} up"));
        eventually("traffic passes again", || pings(&a.netns, "10.0.1.20") && pings(&a.netns, "10.0.1.30"));
    }

    block("ether type ip6 oifname \"n2\"");
    let seen = ["0 of 3 packets came back from 2001:db8:99::12", "those over IPv4 did"];
    told(&to("n2").await, "IPv6 path", Outcome::Warning, &seen, "do not reach each other over IPv6");
    unblock();
    block("ether type ip6 oifname \"n2\" meta length > 1400");
    let seen = ["packets of 1500 bytes are lost on the way to 2001:db8:99::12"];
    told(&to("n2").await, "IPv6 path", Outcome::Warning, &seen, "make the whole way carry 1500 bytes over IPv6");
    unblock();
    is_well(&pairs(network).await);
}
