//! Specs go in and out unchanged.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn shown(posted: &Value) -> Value {
    let spec: json::ServiceSpec = serde_json::from_value(posted.clone()).unwrap();
    serde_json::to_value(show(&read(spec).unwrap())).unwrap()
}

prop_compose! {
    fn posted()(
        name in "[a-z]{1,8}",
        labels in prop::collection::btree_map("[a-z.]{1,6}", "[ -~]{0,6}", 0..3),
        words in prop::collection::vec("[ -~]{1,8}", 1..4),
        init in prop::option::of(any::<bool>()),
        grace in prop::option::of(0i64..100_000_000_000),
        replicas in 0u64..1000,
        ports in prop::collection::vec((1u32..65536, 1u32..65536, 0usize..3, 0usize..2), 1..4),
        (delay, attempts) in (prop::option::of(0i64..1_000_000_000_000), prop::option::of(0u64..9)),
        (cpus, memory) in (1i64..1_000_000_000, 1i64..1_000_000_000),
        ratio in 0u8..=4,
    ) -> Value {
        let given = |object: &mut Value, key: &str, value: Option<Value>| {
            if let (Some(map), Some(value)) = (object.as_object_mut(), value) {
                map.insert(key.into(), value);
            }
        };
        let mut container = json!({
            "Image": "bb:1", "Args": words, "Env": words, "Labels": {"k": "v"}, "Isolation": "default",
            "DNSConfig": {"Nameservers": ["1.1.1.1"]}, "Hosts": ["1.2.3.4 h"],
            "Mounts": [
                {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"NoCopy": true, "Subpath": "s"}},
                {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true, "BindOptions": {"Propagation": "rslave"}},
                {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": memory, "Mode": 511}},
            ],
        });
        given(&mut container, "Init", init.map(Value::from));
        given(&mut container, "StopGracePeriod", grace.map(Value::from));
        let mut restart = json!({"Condition": "on-failure"});
        given(&mut restart, "Delay", delay.map(Value::from));
        given(&mut restart, "MaxAttempts", attempts.map(Value::from));
        let ports: Vec<_> = ports.iter().map(|(target, published, protocol, mode)| json!({
            "TargetPort": target, "PublishedPort": published,
            "Protocol": (["tcp", "udp", "sctp"][*protocol]), "PublishMode": (["ingress", "host"][*mode]),
        })).collect();
        let ratio = if ratio == 0 { json!(0) } else { json!(f32::from(ratio) / 4.0) };
        json!({
            "Name": name, "Labels": labels,
            "TaskTemplate": {
                "ContainerSpec": container, "RestartPolicy": restart, "ForceUpdate": 3, "Runtime": "container",
                "Resources": {
                    "Limits": {"NanoCPUs": cpus, "MemoryBytes": memory, "Pids": 7},
                    "Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}]},
                },
                "Placement": {
                    "Constraints": ["node.role==manager"], "MaxReplicas": 2,
                    "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                },
                "Networks": [{"Target": "n", "Aliases": ["a"]}],
                "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": {
                "Parallelism": 2, "Delay": 5, "FailureAction": "rollback", "Monitor": 7, "MaxFailureRatio": ratio,
                "Order": "start-first",
            },
            "EndpointSpec": {"Mode": "dnsrr", "Ports": ports},
        })
    }
}

proptest! {
    #[test]
    fn inspection_shows_what_was_posted(posted in posted()) {
        prop_assert_eq!(shown(&posted), posted);
    }
}

#[test]
fn defaults_are_inserted_only_where_nothing_was_given() {
    let spec =
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "bb"}, "RestartPolicy": {"Delay": 1}}});
    let mut spec: json::ServiceSpec = serde_json::from_value(shown(&spec)).unwrap();
    insert_defaults(&mut spec);
    let shown = serde_json::to_value(&spec).unwrap();
    let restart = json!({"Condition": "any", "Delay": 1, "MaxAttempts": 0});
    assert_eq!(shown["TaskTemplate"]["RestartPolicy"], restart);
    assert_eq!(shown["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    assert_eq!(shown["RollbackConfig"]["FailureAction"], "pause");
    assert_eq!(shown["EndpointSpec"]["Mode"], "vip");
}

#[test]
fn only_one_mode_can_be_given() {
    let mode = json::ServiceMode { global: Some(Empty {}), global_job: Some(Empty {}), ..Default::default() };
    assert_eq!(read_mode(mode).unwrap_err().message(), "must specify only one service mode");
}
