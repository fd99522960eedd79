use proptest::prelude::*;
use prost::Message as _;

use super::strategies::Arb;
use super::*;
use crate::model::session::{AssignmentChange, Assignments, ManagerMessage};
use crate::model::{Annotations, Meta, SecretId, ServiceId, ServiceMode, TaskId, TaskState};

macro_rules! crosses_unchanged {
    ($($test:ident: $type:ty;)+) => {
        proptest! {
            #![proptest_config(ProptestConfig::with_cases(64))]
            $(
                #[test]
                fn $test(value in <$type>::arb()) {
                    let bytes = encode(&value);
                    prop_assert_eq!(decode::<$type>(&bytes).unwrap(), value);
                }
            )+
        }

        proptest! {
            #[test]
            fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
                $(let _ = decode::<$type>(&bytes);)+
            }
        }
    };
}

crosses_unchanged! {
    a_service_crosses_unchanged: Service;
    a_service_spec_crosses_unchanged: ServiceSpec;
    a_task_spec_crosses_unchanged: TaskSpec;
    a_node_crosses_unchanged: Node;
    a_node_description_crosses_unchanged: NodeDescription;
    a_network_crosses_unchanged: Network;
    a_cluster_crosses_unchanged: Cluster;
    a_secret_crosses_unchanged: Secret;
    a_config_crosses_unchanged: Config;
    an_agents_message_crosses_unchanged: AgentMessage;
    an_assigned_spec_crosses_unchanged: AssignedSpec;
    an_assigned_task_crosses_unchanged: AssignedTask;
    a_status_report_crosses_unchanged: StatusReport;
    a_manager_crosses_unchanged: ManagerPeer;
    a_peer_crosses_unchanged: Peer;
    an_overlay_network_crosses_unchanged: OverlayNetwork;
    a_service_view_crosses_unchanged: ServiceView;
    an_endpoint_view_crosses_unchanged: EndpointView;
}

/// What a manager's message becomes on its way through bytes.
fn cross(message: &ManagerMessage) -> ManagerMessage {
    let mut assembler = Assembler::default();
    let mut whole: Vec<_> = into_messages(message)
        .iter()
        .map(|part| session_wire::ManagerMessage::decode(&part.encode_to_vec()[..]).unwrap())
        .filter_map(|part| assembler.push(part).unwrap())
        .collect();
    assert_eq!(whole.len(), 1);
    whole.remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_managers_message_crosses_unchanged(message in ManagerMessage::arb()) {
        prop_assert_eq!(cross(&message), message);
    }

    /// Damage that keeps most of the structure reaches further into the checks than noise does.
    #[test]
    fn a_damaged_service_never_panics(value in Service::arb(), at: prop::sample::Index, byte: u8) {
        let mut bytes = encode(&value).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode::<Service>(&bytes);
    }

    #[test]
    fn arbitrary_messages_of_a_manager_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = session_wire::ManagerMessage::decode(&bytes[..]) {
            let _ = Assembler::default().push(message);
        }
    }
}

fn large_set() -> ManagerMessage {
    let changes = (0..200_000).map(|id| AssignmentChange::RemoveTask(TaskId(id))).collect();
    ManagerMessage::Assignments(Assignments { index: 7, complete: true, changes })
}

#[test]
fn a_large_set_travels_in_bounded_parts_and_arrives_whole() {
    let message = large_set();
    let parts = into_messages(&message);
    assert!(parts.len() > 1);
    assert!(parts.iter().all(|part| part.encoded_len() <= PART_BYTES * 2));
    assert_eq!(cross(&message), message);
}

#[test]
fn another_message_between_two_parts_is_refused() {
    let mut assembler = Assembler::default();
    assert_eq!(assembler.push(into_messages(&large_set()).remove(0)), Ok(None));
    let redirect = into_messages(&ManagerMessage::Redirect { to: None }).remove(0);
    assert_eq!(
        assembler.push(redirect).unwrap_err().to_string(),
        "assignments: the parts of one set do not follow each other"
    );
}

fn service() -> objects::Service {
    let service = Service {
        id: ServiceId(1),
        meta: Meta::default(),
        spec: ServiceSpec {
            annotations: Annotations::default(),
            task: TaskSpec { containers: vec![Default::default()], ..TaskSpec::default() },
            mode: ServiceMode::Global,
            update: None,
            rollback: None,
            endpoint: None,
        },
        spec_version: 1,
        previous: None,
        endpoint: Default::default(),
        update_status: None,
        pending_delete: false,
        runs: None,
    };
    (&service).into()
}

fn refusal(damage: impl FnOnce(&mut objects::Service)) -> String {
    let mut message = service();
    damage(&mut message);
    Service::try_from(message).unwrap_err().to_string()
}

#[test]
fn an_error_names_the_path_and_the_reason() {
    fn container(service: &mut objects::Service) -> &mut objects::ContainerSpec {
        &mut service.spec.as_mut().unwrap().task.as_mut().unwrap().containers[0]
    }
    assert_eq!(refusal(|s| s.spec = None), "spec: is missing");
    assert_eq!(refusal(|s| s.id = Bytes::from_static(b"short")), "id: has 5 bytes instead of 16");
    assert_eq!(
        refusal(|s| s.spec.as_mut().unwrap().mode = Some(objects::ServiceMode { mode: None })),
        "spec.mode: is missing"
    );
    assert_eq!(
        refusal(|s| container(s).mounts = vec![objects::Mount { kind: 9, ..Default::default() }]),
        "spec.task.containers[0].mounts[0].kind: 9 is no value of MountKind that this release knows"
    );
    assert_eq!(
        refusal(|s| container(s).stop_grace = Some(objects::Duration { seconds: 1, nanos: 1_000_000_000 })),
        "spec.task.containers[0].stop_grace.nanos: 1000000000 is not between 0 and 999999999"
    );
    assert_eq!(
        refusal(|s| container(s).image = "x".repeat(300_000)),
        "spec.task.containers[0].image: has 300000 bytes, the limit is 262144"
    );
    assert_eq!(
        refusal(|s| s.endpoint.as_mut().unwrap().ports =
            vec![objects::PortConfig { target: 70_000, protocol: 1, mode: 1, ..Default::default() }]),
        "endpoint.ports[0].target: 70000 is not between 0 and 65535"
    );
}

#[test]
fn a_failure_ratio_that_is_no_number_is_refused() {
    let update = objects::UpdateConfig {
        delay: Some(Default::default()),
        monitor: Some(Default::default()),
        failure_action: 1,
        order: 1,
        max_failure_ratio: f32::NAN,
        ..Default::default()
    };
    assert_eq!(
        refusal(|s| s.spec.as_mut().unwrap().update = Some(update)),
        "spec.update.max_failure_ratio: NaN is not a share between 0 and 1"
    );
}

#[test]
fn more_bytes_than_a_kind_allows_are_refused_before_they_are_read() {
    let error = decode::<Secret>(&vec![0; Secret::MAX_BYTES + 1]).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { kind: "secret", bytes: 1_048_577, limit: 1_048_576 });
}

#[test]
fn messages_with_secrets_print_nothing_of_them() {
    let secret = Secret {
        id: SecretId(1),
        meta: Meta::default(),
        spec: crate::model::SecretSpec {
            data: crate::model::secret::SecretData(Bytes::from_static(b"hunter2")),
            ..Default::default()
        },
    };
    let message = objects::Secret::from(&secret);
    assert!(format!("{message:?}").contains("SecretData(…)"), "{message:?}");
}

/// The enum's numbers are on disks: they follow the order of the states and never change.
#[test]
fn every_task_state_has_its_number() {
    for (number, state) in (1..).zip(TaskState::ALL) {
        assert_eq!(field::Field::<i32>::to_wire(&state), number);
    }
}
