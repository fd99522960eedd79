//! Every recorded stack, whoever wrote it, comes back from its export as it was.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::manifest::export::ExportedFile;
use crate::manifest::fake;
use crate::manifest::plan::{FileSeen, How, NetworkSeen, Observed, Plan, Prune, ServiceSeen, plan};
use crate::manifest::stack::{STACK_LABEL, Stack};
use crate::manifest::{compose, kube};

/// What the cluster would have of a stack. Secrets and configs have a number, as they get with their second content.
fn cluster<'a>(stack: &'a Stack, number: &str) -> (Export<'a>, Observed) {
    let wanted = Wanted::from(stack);
    let in_cluster: InCluster = wanted
        .files
        .iter()
        .map(|file| {
            let number = if file.has_content { number } else { "" };
            ((file.kind, file.name.clone()), format!("{}{number}", file.name))
        })
        .collect();
    let services: BTreeMap<String, Value> =
        wanted.services.iter().map(|(name, spec)| (name.clone(), with_names(spec, &in_cluster))).collect();
    let own = stack.parts.files.iter().filter(|file| file.content.is_some());
    let files = own.map(|file| {
        let seen = ExportedFile {
            key: Some(file.key.clone()),
            content: file.content.clone().filter(|_| file.kind == FileKind::Config),
            is_template: file.template_driver.is_some(),
        };
        ((file.kind, in_cluster[&(file.kind, file.name.clone())].clone()), seen)
    });
    let export = Export { stack: &stack.name, services, networks: wanted.networks.clone(), files: files.collect() };
    let service = |spec: &Value| ServiceSeen { id: "s".into(), version: 1, spec: spec.clone() };
    let network = |shown: &Value| NetworkSeen { id: "n".into(), shown: shown.clone() };
    let observed = Observed {
        services: export.services.iter().map(|(name, spec)| (name.clone(), service(spec))).collect(),
        networks: export.networks.iter().map(|(name, shown)| (name.clone(), network(shown))).collect(),
        ..Observed::default()
    };
    (export, observed)
}

/// The plan that the export leads to, which finds contents that are the same.
fn plan_again(stack: &Stack, number: &str) -> (String, Plan) {
    let (from, mut observed) = cluster(stack, number);
    let text = export(&from).unwrap_or_else(|problems| panic!("{problems}")).text;
    let options = reader::Options { stack: Some(stack.name.clone()), ..fake::options() };
    let again = fake::read(&[("export.yml", &text)], &options, &fake::FakeDisk::default());
    let again = again.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    for ((kind, name), file) in &from.files {
        let same = again
            .parts
            .files
            .iter()
            .find(|read| read.kind == *kind && read.content.is_some() && read.content == file.content);
        observed.files.push(FileSeen {
            kind: *kind,
            id: "f".into(),
            name: name.clone(),
            same_as: same.map(|file| file.name.clone()),
            is_ours: true,
        });
    }
    observed.last = Some(Wanted::from(stack));
    (text, plan(&Wanted::from(&again), &observed, How { prune: Prune::Owned, ..How::default() }))
}

#[test]
fn an_exported_stack_applies_to_no_changes() {
    let of_kube = kube::recorded::MANIFESTS.map(|name| (name, kube::recorded::read(name)));
    let of_compose = compose::recorded::STACKS.map(|name| (name, compose::recorded::read(name)));
    for (name, stack) in of_kube.into_iter().chain(of_compose) {
        for number in ["", "-2"] {
            let (text, plan) = plan_again(&stack, number);
            let nothing = plan.is_empty() && plan.notes.is_empty() && plan.drift.is_empty() && plan.refusals.is_empty();
            assert!(nothing, "{name}{number}: {plan}\n{text}");
        }
    }
}

/// Texts of exports, as checked-in files; `SKEP_RECORD=1` writes them anew.
#[test]
fn exports_are_those_recorded() {
    let of_kube = ["redis-cluster", "web-probes", "pod-sidecar"].map(|name| (name, kube::recorded::read(name)));
    let of_compose = ["wordpress-mysql", "traefik", "kafka"].map(|name| (name, compose::recorded::read(name)));
    let records = std::env::var_os("SKEP_RECORD").is_some();
    for (name, stack) in of_kube.into_iter().chain(of_compose) {
        let text = export(&cluster(&stack, "").0).unwrap().text;
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manifest/kube/export/testdata").join(format!("{name}.yml"));
        if records {
            std::fs::write(&path, &text).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == expected, "{name} differs from {}; if that is meant, record it anew: {text}", path.display());
    }
}

/// Docker tells more names apart than Kubernetes does.
#[test]
fn services_whose_names_are_one_to_kubernetes_stay_apart() {
    let service = |name: &str| {
        let container = json!({"Image": "x:1"});
        let ports = json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8000 + name.len(), "PublishMode": "ingress"}]);
        let spec = json!({
            "Name": name, "Labels": {STACK_LABEL: "demo", IMAGE_LABEL: "x:1"}, "Mode": {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ContainerSpec": container, "Networks": [{"Target": "demo_default", "Aliases": [name.trim_start_matches("demo_")]}]},
            "EndpointSpec": {"Mode": "vip", "Ports": ports},
        });
        (name.to_owned(), spec)
    };
    let services = ["demo_b", "demo__b", "demo_b__", "demo_b-2--"].map(service).into();
    let text = export(&Export { stack: "demo", services, ..Export::default() }).unwrap().text;
    for name in ["name: b\n", "name: b-2\n", "name: b-3\n", "name: b-2-2\n"] {
        assert_eq!(text.matches(&format!("  {name}")).count(), 2, "a Service and a workload have the {name}{text}");
    }
}

/// A text that may have anything in it that has a meaning somewhere on the way.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z]{1,4}",
        Just("$".to_owned()),
        Just("$$".to_owned()),
        Just("$(A)".to_owned()),
        Just("{{.Task.Name}}".to_owned()),
        Just("{{".to_owned()),
        Just("\"".to_owned()),
        Just("'".to_owned()),
        Just(": ".to_owned()),
        Just("\n".to_owned()),
        Just("#".to_owned()),
        Just("é".to_owned()),
        Just("null".to_owned()),
        Just("0".to_owned()),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.concat())
}

prop_compose! {
    fn container()(
        words in prop::collection::vec(text(), 0..3),
        env in prop::collection::btree_map("[AB]", prop::option::of(text()), 0..3),
        labels in prop::collection::btree_map("[a-z ./]{1,5}", text(), 0..3),
        user in prop_oneof![Just(""), Just("postgres"), Just("1000"), Just("1000:50"), Just("0:x")],
        groups in prop::collection::vec(prop_oneof![Just("10"), Just("video")], 0..3),
        mounts in prop::collection::btree_map("/[a-c]{1,2}", 0usize..7, 0..3),
        secret in prop::option::of((prop_oneof![Just("key"), Just("/etc/key")], 0u32..0o1000, prop_oneof![Just("0"), Just("me")])),
        (tty, init, grace) in (any::<bool>(), prop::option::of(any::<bool>()), prop::option::of(0u64..100_000_000_000)),
        (caps, privileged) in (prop::collection::vec(prop_oneof![Just("CAP_NET_ADMIN"), Just("ALL")], 0..2), any::<bool>()),
    ) -> Value {
        let mount = |(target, kind): (&String, &usize)| match kind {
            0 => json!({"Type": "tmpfs", "Target": target, "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}}),
            1 => json!({"Type": "bind", "Target": target, "Source": "/srv/x.sock", "BindOptions": {"Propagation": "rshared"}}),
            2 => json!({"Type": "bind", "Target": target, "Source": "/", "ReadOnly": true, "BindOptions": {"Propagation": "private", "CreateMountpoint": true}}),
            3 => json!({"Type": "volume", "Target": target}),
            4 => json!({"Type": "volume", "Target": target, "Source": "demo_data", "VolumeOptions": {"Labels": {STACK_LABEL: "demo"}, "Subpath": "a/b"}}),
            5 => json!({"Type": "volume", "Target": target, "Source": "Other_X", "VolumeOptions": {"Pinned": true, "GID": 5}}),
            _ => json!({"Type": "volume", "Target": target, "Source": "mem", "VolumeOptions": {"Scratch": true, "NoCopy": true}}),
        };
        let lines = env.iter().map(|(name, value)| value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")));
        let mut container = json!({
            "Image": "x:1", "Command": words, "Args": words, "Env": lines.collect::<Vec<_>>(), "Labels": labels, "User": user,
            "Groups": groups, "Mounts": mounts.iter().map(mount).collect::<Vec<_>>(), "TTY": tty, "StopGracePeriod": grace,
            "Init": init, "CapabilityAdd": caps, "Privileges": {"Privileged": privileged},
        });
        if let Some((name, mode, owner)) = secret {
            container["Secrets"] = json!([{"SecretID": "0000000000000000000000000", "SecretName": "demo_key-2", "File": {"Name": name, "UID": owner, "GID": "0", "Mode": mode}}]);
        }
        container
    }
}

prop_compose! {
    fn spec()(
        name in "[a-zA-Z_.0-9-]{1,6}",
        container in container(),
        labels in prop::collection::btree_map("[a-z ./]{1,5}", text(), 0..3),
        mode in 0usize..5,
        ports in prop::collection::btree_map((0u32..9, 0usize..3), (1u32..4, 0usize..2), 0..4),
        (aliases, networks) in (prop::collection::vec("[a-z_.]{1,3}", 0..3), 0usize..4),
        constraints in prop::collection::vec(prop_oneof![
            Just("node.role == manager"), Just("node.role!=manager"), Just("node.labels.zone==a"), Just("node.labels.zone!=b"),
            Just("engine.labels.x==1"), Just("node.id==x"), Just("node.hostname==h")], 0..3),
        (preference, most) in (prop::option::of(prop_oneof![Just("node.labels.zone"), Just("engine.labels.x")]), 0u64..3),
        (parallelism, first, delay, monitor) in (0u64..3, any::<bool>(), 0u64..2, 0u64..90_000_000_000),
        (cpus, memory, gpus) in (0i64..3_000_000_000, 0i64..1_000_000_000, 0i64..3),
        restart in prop::option::of((prop_oneof![Just("any"), Just("none"), Just("on-failure")], prop::option::of(0u64..3))),
        dnsrr in any::<bool>(),
    ) -> Value {
        let mode = match mode {
            0 => json!({"Global": {}}),
            1 => json!({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 3}}),
            2 => json!({"GlobalJob": {}}),
            _ => json!({"Replicated": {"Replicas": most}}),
        };
        let port = |((published, protocol), (target, publish)): (&(u32, usize), &(u32, usize))| json!({
            "PublishedPort": published, "TargetPort": target, "Protocol": (["tcp", "udp", "sctp"][*protocol]), "PublishMode": (["ingress", "host"][*publish]),
        });
        let targets = [&["demo_default"][..], &["demo_front", "proxy"], &["host"], &[]][networks];
        let mut labels = labels;
        labels.insert(STACK_LABEL.to_owned(), "demo".to_owned());
        labels.insert(IMAGE_LABEL.to_owned(), "x:1".to_owned());
        let mut spec = json!({
            "Name": format!("demo_{name}"), "Labels": labels, "Mode": mode,
            "TaskTemplate": {
                "ContainerSpec": container,
                "Networks": targets.iter().map(|target| json!({"Target": target, "Aliases": aliases})).collect::<Vec<_>>(),
                "Placement": {"Constraints": constraints, "MaxReplicas": most, "Preferences": preference.map_or(json!([]), |p| json!([{"Spread": {"SpreadDescriptor": p}}]))},
                "Resources": {"Limits": {"NanoCPUs": cpus, "MemoryBytes": memory}, "Reservations": {"MemoryBytes": memory / 2, "GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": gpus}}]}},
            },
            "UpdateConfig": {"Parallelism": parallelism, "Order": if first { "start-first" } else { "stop-first" }, "Delay": delay, "Monitor": monitor},
            "EndpointSpec": {"Mode": if dnsrr { "dnsrr" } else { "vip" }, "Ports": ports.iter().map(port).collect::<Vec<_>>()},
        });
        if let Some((condition, attempts)) = restart {
            spec["TaskTemplate"]["RestartPolicy"] = json!({"Condition": condition, "MaxAttempts": attempts});
        }
        spec
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    /// The export itself refuses what does not come back.
    #[test]
    fn whatever_a_service_is_like_it_comes_back(specs in prop::collection::vec(spec(), 1..3)) {
        let services = specs.into_iter().map(|spec| (spec["Name"].as_str().unwrap().to_owned(), spec)).collect();
        let networks = [("demo_front".to_owned(), json!({"Name": "demo_front", "Internal": true, "Options": {"encrypted": ""}}))].into();
        let from = Export { stack: "demo", services, networks, ..Export::default() };
        let exported = export(&from);
        prop_assert!(exported.is_ok(), "{}", exported.unwrap_err());
    }
}
