//! Every flag of `docker service create` and `update`: it is kept and shown, or refused with a sentence.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::bail;
use serde_json::{Value, json};
use skep_tests::{Lab, docker_program, eventually};

const IMAGE: &str = "skep/whoami:latest";

/// What a flag leads to.
enum Then {
    /// The spec has this value there.
    Shows(&'static str, Value),
    /// It is refused, and this is said.
    Refused(&'static str),
    /// It changes what the client does, or only how it prints.
    Client,
}
use Then::{Client, Refused, Shows};

const SECOND: i64 = 1_000_000_000;

/// Flags that other tests have: health checks, secrets, configs, and what a process may do.
const ELSEWHERE: [&str; 30] = [
    "--cap-add",
    "--cap-drop",
    "--config",
    "--config-add",
    "--config-rm",
    "--credential-spec",
    "--health-cmd",
    "--health-interval",
    "--health-retries",
    "--health-start-interval",
    "--health-start-period",
    "--health-timeout",
    "--no-healthcheck",
    "--secret",
    "--secret-add",
    "--secret-rm",
    "--sysctl",
    "--sysctl-add",
    "--sysctl-rm",
    "--ulimit",
    "--ulimit-add",
    "--ulimit-rm",
    "--generic-resource",
    "--generic-resource-add",
    "--generic-resource-rm",
    "--mount",
    "--mount-add",
    "--mount-rm",
    "--help",
    "--oom-score-adj",
];

/// Flags that `create` and `update` share: the words, and what comes of them.
fn common() -> Vec<(Vec<&'static str>, Then)> {
    vec![
        (vec!["--detach"], Client),
        (vec!["--quiet"], Client),
        (vec!["--no-resolve-image"], Client),
        (vec!["--with-registry-auth"], Client),
        (vec!["--endpoint-mode", "dnsrr"], Shows("/EndpointSpec/Mode", json!("dnsrr"))),
        (vec!["--entrypoint", "/a b"], Shows("/TaskTemplate/ContainerSpec/Command", json!(["/a", "b"]))),
        (vec!["--hostname", "h"], Shows("/TaskTemplate/ContainerSpec/Hostname", json!("h"))),
        (vec!["--init"], Shows("/TaskTemplate/ContainerSpec/Init", json!(true))),
        (vec!["--isolation", "default"], Shows("/TaskTemplate/ContainerSpec/Isolation", json!("default"))),
        (vec!["--isolation", "hyperv"], Refused("invalid isolation")),
        (vec!["--limit-cpu", "0.5"], Shows("/TaskTemplate/Resources/Limits/NanoCPUs", json!(SECOND / 2))),
        (vec!["--limit-memory", "64M"], Shows("/TaskTemplate/Resources/Limits/MemoryBytes", json!(64 << 20))),
        (vec!["--limit-memory", "1M"], Refused("Must be at least 4MiB")),
        (vec!["--limit-pids", "7"], Shows("/TaskTemplate/Resources/Limits/Pids", json!(7))),
        (vec!["--log-driver", "json-file"], Shows("/TaskTemplate/LogDriver/Name", json!("json-file"))),
        (
            vec!["--log-driver", "json-file", "--log-opt", "max-size=1m"],
            Shows("/TaskTemplate/LogDriver/Options", json!({"max-size": "1m"})),
        ),
        (vec!["--read-only"], Shows("/TaskTemplate/ContainerSpec/ReadOnly", json!(true))),
        (vec!["--replicas", "0"], Shows("/Mode/Replicated/Replicas", json!(0))),
        (vec!["--replicas-max-per-node", "3"], Shows("/TaskTemplate/Placement/MaxReplicas", json!(3))),
        (vec!["--reserve-cpu", "0.25"], Shows("/TaskTemplate/Resources/Reservations/NanoCPUs", json!(SECOND / 4))),
        (vec!["--reserve-memory", "32M"], Shows("/TaskTemplate/Resources/Reservations/MemoryBytes", json!(32 << 20))),
        (
            vec!["--restart-condition", "on-failure"],
            Shows("/TaskTemplate/RestartPolicy/Condition", json!("on-failure")),
        ),
        (vec!["--restart-condition", "often"], Refused("invalid RestartCondition")),
        (vec!["--restart-delay", "3s"], Shows("/TaskTemplate/RestartPolicy/Delay", json!(3 * SECOND))),
        (vec!["--restart-max-attempts", "4"], Shows("/TaskTemplate/RestartPolicy/MaxAttempts", json!(4))),
        (vec!["--restart-window", "9s"], Shows("/TaskTemplate/RestartPolicy/Window", json!(9 * SECOND))),
        (vec!["--rollback-delay", "3s"], Shows("/RollbackConfig/Delay", json!(3 * SECOND))),
        (vec!["--rollback-failure-action", "continue"], Shows("/RollbackConfig/FailureAction", json!("continue"))),
        (vec!["--rollback-max-failure-ratio", "0.5"], Shows("/RollbackConfig/MaxFailureRatio", json!(0.5))),
        (vec!["--rollback-monitor", "8s"], Shows("/RollbackConfig/Monitor", json!(8 * SECOND))),
        (vec!["--rollback-order", "start-first"], Shows("/RollbackConfig/Order", json!("start-first"))),
        (vec!["--rollback-parallelism", "2"], Shows("/RollbackConfig/Parallelism", json!(2))),
        (vec!["--stop-grace-period", "2s"], Shows("/TaskTemplate/ContainerSpec/StopGracePeriod", json!(2 * SECOND))),
        (vec!["--stop-signal", "SIGINT"], Shows("/TaskTemplate/ContainerSpec/StopSignal", json!("SIGINT"))),
        (vec!["--stop-signal", "SIGNONE"], Refused("invalid stop signal")),
        (vec!["--tty"], Shows("/TaskTemplate/ContainerSpec/TTY", json!(true))),
        (vec!["--update-delay", "3s"], Shows("/UpdateConfig/Delay", json!(3 * SECOND))),
        (vec!["--update-failure-action", "rollback"], Shows("/UpdateConfig/FailureAction", json!("rollback"))),
        (vec!["--update-max-failure-ratio", "0.5"], Shows("/UpdateConfig/MaxFailureRatio", json!(0.5))),
        (vec!["--update-monitor", "8s"], Shows("/UpdateConfig/Monitor", json!(8 * SECOND))),
        (vec!["--update-order", "start-first"], Shows("/UpdateConfig/Order", json!("start-first"))),
        (vec!["--update-parallelism", "2"], Shows("/UpdateConfig/Parallelism", json!(2))),
        (vec!["--user", "7:8"], Shows("/TaskTemplate/ContainerSpec/User", json!("7:8"))),
        (vec!["--workdir", "/w"], Shows("/TaskTemplate/ContainerSpec/Dir", json!("/w"))),
    ]
}

fn of_create() -> Vec<(Vec<&'static str>, Then)> {
    let mut table = common();
    table.extend([
        (vec!["--max-concurrent", "2"], Refused("max-concurrent can only be used with replicated-job mode")),
        (
            vec!["--constraint", "node.role==manager"],
            Shows("/TaskTemplate/Placement/Constraints", json!(["node.role==manager"])),
        ),
        (vec!["--constraint", "node.role=manager"], Refused("constraint expected one operator from ==, !=")),
        (vec!["--container-label", "a=b"], Shows("/TaskTemplate/ContainerSpec/Labels", json!({"a": "b"}))),
        (vec!["--dns", "1.1.1.1"], Shows("/TaskTemplate/ContainerSpec/DNSConfig/Nameservers", json!(["1.1.1.1"]))),
        (vec!["--dns-option", "ndots:2"], Shows("/TaskTemplate/ContainerSpec/DNSConfig/Options", json!(["ndots:2"]))),
        (vec!["--dns-search", "x.org"], Shows("/TaskTemplate/ContainerSpec/DNSConfig/Search", json!(["x.org"]))),
        (vec!["--env", "A=1"], Shows("/TaskTemplate/ContainerSpec/Env", json!(["A=1"]))),
        (vec!["--env-file", "/dev/null"], Client),
        (vec!["--group", "users"], Shows("/TaskTemplate/ContainerSpec/Groups", json!(["users"]))),
        (vec!["--host", "h:1.2.3.4"], Shows("/TaskTemplate/ContainerSpec/Hosts", json!(["1.2.3.4 h"]))),
        (vec!["--label", "a=b"], Shows("/Labels", json!({"a": "b"}))),
        (vec!["--mode", "global"], Shows("/Mode", json!({"Global": {}}))),
        (vec!["--name", "named"], Shows("/Name", json!("named"))),
        (vec!["--network", "host"], Shows("/TaskTemplate/Networks", json!([{"Target": "host"}]))),
        (vec!["--network", "nowhere"], Refused("network nowhere not found")),
        (
            vec!["--placement-pref", "spread=engine.labels.x"],
            Shows("/TaskTemplate/Placement/Preferences", json!([{"Spread": {"SpreadDescriptor": "engine.labels.x"}}])),
        ),
        (
            vec!["--publish", "published=8080,target=80,mode=host"],
            Shows(
                "/EndpointSpec/Ports",
                json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "host"}]),
            ),
        ),
    ]);
    table
}

/// What comes before an update, and the update.
fn of_update() -> Vec<(Vec<&'static str>, Vec<&'static str>, Then)> {
    let mut table: Vec<_> = common().into_iter().map(|(words, then)| (vec![], words, then)).collect();
    table.extend([
        // The client takes it and sends nothing of it (28.2.2).
        (vec!["--mode", "replicated-job"], vec!["--max-concurrent", "2"], Client),
        (vec![], vec!["--args", "--name x"], Shows("/TaskTemplate/ContainerSpec/Args", json!(["--name", "x"]))),
        (
            vec![],
            vec!["--constraint-add", "node.role==manager"],
            Shows("/TaskTemplate/Placement/Constraints", json!(["node.role==manager"])),
        ),
        (
            vec!["--constraint", "node.role==manager"],
            vec!["--constraint-rm", "node.role==manager"],
            Shows("/TaskTemplate/Placement/Constraints", Value::Null),
        ),
        (vec![], vec!["--container-label-add", "a=b"], Shows("/TaskTemplate/ContainerSpec/Labels", json!({"a": "b"}))),
        (
            vec!["--container-label", "a=b"],
            vec!["--container-label-rm", "a"],
            Shows("/TaskTemplate/ContainerSpec/Labels", Value::Null),
        ),
        (
            vec![],
            vec!["--dns-add", "1.1.1.1"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Nameservers", json!(["1.1.1.1"])),
        ),
        (
            vec!["--dns", "1.1.1.1"],
            vec!["--dns-rm", "1.1.1.1"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Nameservers", Value::Null),
        ),
        (
            vec![],
            vec!["--dns-option-add", "ndots:2"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Options", json!(["ndots:2"])),
        ),
        (
            vec!["--dns-option", "ndots:2"],
            vec!["--dns-option-rm", "ndots:2"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Options", Value::Null),
        ),
        (
            vec![],
            vec!["--dns-search-add", "x.org"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Search", json!(["x.org"])),
        ),
        (
            vec!["--dns-search", "x.org"],
            vec!["--dns-search-rm", "x.org"],
            Shows("/TaskTemplate/ContainerSpec/DNSConfig/Search", Value::Null),
        ),
        (vec![], vec!["--env-add", "A=1"], Shows("/TaskTemplate/ContainerSpec/Env", json!(["A=1"]))),
        (vec!["--env", "A=1"], vec!["--env-rm", "A"], Shows("/TaskTemplate/ContainerSpec/Env", Value::Null)),
        (vec![], vec!["--force"], Shows("/TaskTemplate/ForceUpdate", json!(1))),
        (vec![], vec!["--group-add", "users"], Shows("/TaskTemplate/ContainerSpec/Groups", json!(["users"]))),
        (
            vec!["--group", "users"],
            vec!["--group-rm", "users"],
            Shows("/TaskTemplate/ContainerSpec/Groups", Value::Null),
        ),
        (vec![], vec!["--host-add", "h:1.2.3.4"], Shows("/TaskTemplate/ContainerSpec/Hosts", json!(["1.2.3.4 h"]))),
        (
            vec!["--host", "h:1.2.3.4"],
            vec!["--host-rm", "h:1.2.3.4"],
            Shows("/TaskTemplate/ContainerSpec/Hosts", Value::Null),
        ),
        (vec![], vec!["--image", "skep/whoami:1"], Shows("/TaskTemplate/ContainerSpec/Image", json!("skep/whoami:1"))),
        (vec![], vec!["--label-add", "a=b"], Shows("/Labels", json!({"a": "b"}))),
        (vec!["--label", "a=b"], vec!["--label-rm", "a"], Shows("/Labels", json!({}))),
        (vec![], vec!["--network-add", "nowhere"], Refused("network nowhere not found")),
        (vec!["--network", "host"], vec!["--network-rm", "host"], Shows("/TaskTemplate/Networks", Value::Null)),
        (
            vec![],
            vec!["--placement-pref-add", "spread=node.labels.x"],
            Shows("/TaskTemplate/Placement/Preferences", json!([{"Spread": {"SpreadDescriptor": "node.labels.x"}}])),
        ),
        (
            vec!["--placement-pref", "spread=node.labels.x"],
            vec!["--placement-pref-rm", "spread=node.labels.x"],
            Shows("/TaskTemplate/Placement/Preferences", Value::Null),
        ),
        (
            vec![],
            vec!["--publish-add", "published=8081,target=80,mode=host"],
            Shows("/EndpointSpec/Ports/0/PublishedPort", json!(8081)),
        ),
        (vec!["--publish", "8082:80"], vec!["--publish-rm", "80"], Shows("/EndpointSpec/Ports", Value::Null)),
        (vec![], vec!["--rollback"], Refused("does not have a previous spec")),
    ]);
    table
}

/// Flags that the client has.
fn flags_of(verb: &str) -> BTreeSet<String> {
    let help = Command::new(docker_program()).args(["service", verb, "--help"]).output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    let names = text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| line.split_whitespace().take(2).find(|w| w.starts_with("--")));
    // A wrapped line may begin with the name of another flag.
    names.filter(|name| !name.ends_with(')')).map(str::to_owned).collect()
}

fn is_covered<'a>(verb: &str, table: impl Iterator<Item = &'a str>) {
    let covered: BTreeSet<String> = table.map(str::to_owned).collect();
    let missing: Vec<String> = flags_of(verb)
        .into_iter()
        .filter(|flag| !covered.contains(flag) && !ELSEWHERE.contains(&flag.as_str()))
        .collect();
    assert!(missing.is_empty(), "no row for {missing:?} of service {verb}");
}

/// `None` when what was done led to what it should.
fn fault(lab: &Lab, service: &str, words: &[&str], then: &Then, done: anyhow::Result<String>) -> Option<String> {
    match (then, done) {
        (Refused(text), Err(error)) if error.to_string().contains(text) => None,
        (_, Err(error)) => Some(format!("{words:?}: {error}")),
        (Refused(_), Ok(_)) => Some(format!("{words:?} is not refused")),
        (Client, Ok(_)) => None,
        (Shows(pointer, wanted), Ok(_)) => {
            let spec = lab.docker("m1", &["service", "inspect", "--format", "{{json .Spec}}", service]).unwrap();
            let spec: Value = serde_json::from_str(&spec).unwrap();
            let found = spec.pointer(pointer).cloned().unwrap_or(Value::Null);
            (found != *wanted).then(|| format!("{words:?}: {pointer} is {found}, not {wanted}"))
        }
    }
}

#[test]
#[ignore = "needs root"]
fn every_flag_is_kept_and_shown_or_refused_with_a_sentence() {
    let lab = Lab::up(1, 0, &[]);
    let create = |words: &[&str]| {
        // Nothing needs to run for it.
        let still: &[&str] =
            if words.iter().any(|w| ["global", "--replicas"].contains(w)) { &[] } else { &["--replicas", "0"] };
        let made = lab.docker("m1", &[&["service", "create", "-d"], still, words, &[IMAGE]].concat());
        made.map(|id| id.trim().to_owned())
    };
    let mut faults = Vec::new();
    let table = of_create();
    is_covered("create", table.iter().flat_map(|(words, _)| words.iter().copied()));
    for (words, then) in &table {
        let made = create(words);
        let id = made.as_ref().map(Clone::clone).unwrap_or_default();
        faults.extend(fault(&lab, &id, words, then, made));
        if !id.is_empty() {
            lab.docker("m1", &["service", "rm", &id]).unwrap();
        }
    }
    let table = of_update();
    is_covered("update", table.iter().flat_map(|(_, words, _)| words.iter().copied()));
    for (before, words, then) in &table {
        let id = create(before).unwrap();
        let update = || lab.docker("m1", &[&["service", "update", "-d"], &words[..], &[&id]].concat());
        // The client reads the service and names the version it read. When the managers noted something of it in between,
        // such as its ports, it is to be read again.
        let mut done = update();
        eventually("a request in sequence", || {
            if done.as_ref().is_err_and(|error| error.to_string().contains("update out of sequence")) {
                done = update();
                bail!("{words:?}: {done:?}");
            }
            Ok(())
        });
        faults.extend(fault(&lab, &id, words, then, done));
        lab.docker("m1", &["service", "rm", &id]).unwrap();
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
