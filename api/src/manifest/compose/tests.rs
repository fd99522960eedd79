use proptest::prelude::*;
use skep_proto::model::container::MountKind;
use skep_proto::model::service::PublishMode;
use skep_proto::model::{ServiceMode, ServiceSpec};

use crate::manifest::fake::{self, FakeDisk};
use crate::manifest::stack::{Content, IMAGE_LABEL, STACK_LABEL, Stack};

fn stack(content: &str) -> Stack {
    let disk = FakeDisk::with(&[("own.key", "key")]);
    fake::read(&[("stack.yml", content)], &fake::options(), &disk).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(content: &str) -> Vec<(usize, usize, String)> {
    let problems = fake::read(&[("stack.yml", content)], &fake::options(), &FakeDisk::default()).unwrap_err();
    problems.all().iter().map(|p| (p.place.line, p.place.column, p.message.clone())).collect()
}

fn service<'a>(stack: &'a Stack, name: &str) -> &'a ServiceSpec {
    &stack.parts.services.iter().find(|s| s.spec.annotations.name == name).expect("the service is there").spec
}

#[test]
fn a_stack_is_named_and_labelled_as_docker_stack_deploy_does() {
    let stack =
        stack("services:\n  web:\n    image: nginx\n    ports: ['8080:80', {target: 53, protocol: udp, mode: host}]\n");
    let web = service(&stack, "demo_web");
    assert_eq!(web.annotations.labels[STACK_LABEL], "demo");
    assert_eq!(web.annotations.labels[IMAGE_LABEL], "nginx");
    assert_eq!(web.mode, ServiceMode::Replicated { replicas: 1 });
    assert_eq!(web.task.networks[0].target, "demo_default");
    assert_eq!(web.task.networks[0].aliases, ["web"]);
    let ports = &web.endpoint.as_ref().unwrap().ports;
    assert_eq!((ports[0].published, ports[0].target, ports[1].mode), (Some(8080), 80, PublishMode::Host));
    assert_eq!(stack.parts.networks.iter().map(|n| n.annotations.name.as_str()).collect::<Vec<_>>(), ["demo_default"]);
}

#[test]
fn volumes_and_networks_are_resolved_to_their_names_in_the_cluster() {
    let stack = stack(
        "services:\n  db:\n    image: x\n    volumes: ['data:/var', '/srv:/srv:ro']\n    networks: {back: {aliases: [sql]}, out: }\n\
         networks:\n  back:\n  unused:\n  out: {external: true}\nvolumes:\n  data:\n",
    );
    let db = service(&stack, "demo_db");
    let mounts: Vec<_> =
        db.task.containers[0].mounts.iter().map(|m| (m.kind, m.source.as_str(), m.read_only)).collect();
    assert_eq!(mounts, [(MountKind::Volume, "demo_data", false), (MountKind::Bind, "/srv", true)]);
    assert_eq!(db.task.networks.iter().map(|n| n.target.as_str()).collect::<Vec<_>>(), ["demo_back", "out"]);
    assert_eq!(db.task.networks[0].aliases, ["db", "sql"]);
    assert_eq!((stack.parts.networks.len(), stack.parts.external_networks), (1, vec!["out".to_owned()]));
}

#[test]
fn every_problem_of_a_file_is_told_with_its_place() {
    let found = problems(
        "services:\n  web:\n    imag: nginx\n    build: .\n    deploy: {replicas: many}\n    volumes: ['nowhere:/x']\n    environment: {A: $1}\n",
    );
    let lines: Vec<usize> = found.iter().map(|p| p.0).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6, 7], "{found:#?}");
    assert_eq!(found[1], (3, 5, "a service has no key \"imag\" that skep supports; did you mean image?".into()));
}

#[test]
fn the_default_network_may_be_configured() {
    let stack = stack("services: {web: {image: x}}\nnetworks: {default: {attachable: true, name: shared}}\n");
    assert!(stack.parts.networks[0].attachable);
    assert_eq!(service(&stack, "demo_web").task.networks[0].target, "shared");
}

proptest! {
    #[test]
    fn arbitrary_mutations_never_panic(at in 0usize..200, with in "[ -~\\n]{0,6}") {
        let content = "name: a\nservices:\n  web:\n    image: x\n    ports: [\"80:80\"]\n    deploy:\n      replicas: 2\n      resources: {limits: {cpus: '0.5', memory: 64M}}\n";
        let at = at.min(content.len());
        let mutated = format!("{}{with}{}", &content[..at], &content[at..]);
        let _ = fake::read(&[("f", &mutated)], &fake::options(), &FakeDisk::default()).map_err(|e| e.to_string());
    }
}

#[test]
fn secrets_and_configs_are_declared_once_and_used_in_the_short_and_the_long_form() {
    let stack = stack(
        "services:\n  web:\n    image: x\n    cap_drop: [all]\n    ulimits: {nofile: {soft: 1, hard: 2}, nproc: 3}\n\
         \x20   secrets: [own, {source: shared, target: /k, uid: '1', mode: 0440}]\n    configs: [conf]\n\
         secrets:\n  own: {file: ./own.key}\n  shared: {external: true}\n  unused: {environment: X}\n\
         configs:\n  conf: {content: hello, name: conf-1, template_driver: golang}\n",
    );
    let container = &service(&stack, "demo_web").task.containers[0];
    let seen: Vec<_> = container
        .secrets
        .iter()
        .map(|s| (s.name.as_str(), s.file.as_ref().unwrap()))
        .map(|(name, file)| (name, file.name.as_str(), file.uid.as_str(), file.mode))
        .collect();
    assert_eq!(seen, [("demo_own", "own", "0", 0o444), ("shared", "/k", "1", 0o440)]);
    assert_eq!(container.configs[0].file.as_ref().unwrap().name, "/conf");
    assert_eq!(container.cap_drop, ["ALL"]);
    let limits: Vec<_> = container.ulimits.iter().map(|l| (l.name.as_str(), l.soft, l.hard)).collect();
    assert_eq!(limits, [("nofile", 1, 2), ("nproc", 3, 3)]);
    let files: Vec<_> = stack.parts.files.iter().map(|f| (f.name.as_str(), f.content.clone())).collect();
    let expected =
        [("demo_own", Some(Content(b"key".to_vec()))), ("shared", None), ("conf-1", Some(Content(b"hello".to_vec())))];
    assert_eq!(files, expected);
}

#[test]
fn a_secret_without_content_or_declaration_is_a_problem_at_its_place() {
    let wrong = problems("services:\n  web:\n    image: x\n    secrets: [none]\nsecrets:\n  empty: {}\n");
    assert_eq!(
        wrong,
        [
            (4, 15, "the secret none is not declared: add it under secrets".to_owned()),
            (6, 3, "the secret empty has no content: give one of file, environment or external".to_owned()),
        ]
    );
}
