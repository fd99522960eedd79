use skep_proto::model::engine::{ContainerConfig, ImageConfig, NetworkMode, ResolvedProcess};
use skep_proto::model::task::Resources;
use skep_proto::model::{ContainerSpec, Timestamp};

use super::*;
use crate::containers::ImageRef;

fn record(restart: ContainerRestart) -> Record {
    let config = ContainerConfig {
        id: ContainerId([1; 32]),
        name: "c".into(),
        spec: ContainerSpec::default(),
        resources: Resources::default(),
        network: NetworkMode::None,
        ports: Vec::new(),
        auto_remove: false,
        restart,
        privileged: false,
        isolation: Default::default(),
        stdin_once: false,
        attach: (false, false, false),
        log: None,
        task: None,
    };
    let image = ImageRef { id: String::new(), layers: Vec::new(), config: ImageConfig::default() };
    Record::new(config, ResolvedProcess::default(), &image, &[], Timestamp(0))
}

fn again(record: &Record, code: i32) -> bool {
    decide(record, code, Duration::ZERO, 0).is_some()
}

#[test]
fn policies_restart_after_what_they_say() {
    assert!(!again(&record(ContainerRestart::No), 1));
    assert!(again(&record(ContainerRestart::Always), 0));
    assert!(!again(&record(ContainerRestart::OnFailure(0)), 0));
    assert!(again(&record(ContainerRestart::OnFailure(0)), 1));
    let mut limited = record(ContainerRestart::OnFailure(2));
    limited.restart_count = 1;
    assert!(again(&limited, 1));
    limited.restart_count = 2;
    assert!(!again(&limited, 1));
}

#[test]
fn a_container_stopped_by_hand_stays_stopped() {
    let mut stopped = record(ContainerRestart::Always);
    stopped.stopped_by_hand = true;
    assert!(!again(&stopped, 137));
}

#[test]
fn the_pause_doubles_up_to_a_minute_and_a_long_run_resets_it() {
    let always = record(ContainerRestart::Always);
    let pause = |ran, failures| decide(&always, 1, Duration::from_secs(ran), failures).unwrap().delay.as_millis();
    assert_eq!([pause(0, 0), pause(0, 1), pause(0, 5), pause(0, 40), pause(10, 40)], [100, 200, 3200, 60_000, 100]);
}
