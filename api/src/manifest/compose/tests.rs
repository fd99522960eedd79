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
    assert_eq!(lines, [3, 4, 5, 6, 7], "{found:#?}");
    assert_eq!(found[0], (3, 5, "a service has no key \"imag\" that skep supports; did you mean image?".into()));
}

#[test]
fn the_default_network_may_be_configured() {
    let stack = stack("services: {web: {image: x}}\nnetworks: {default: {attachable: true, name: shared}}\n");
    assert!(stack.parts.networks[0].attachable);
    assert_eq!(service(&stack, "demo_web").task.networks[0].target, "shared");
}

#[test]
fn a_network_may_have_ipv6_with_subnets_of_both_families() {
    let stack = stack(
        "services: {web: {image: x, networks: [a, b]}}\nnetworks:\n  a: {enable_ipv6: true}\n  b:\n    enable_ipv4: true\n    enable_ipv6: true\n    \
         ipam:\n      config:\n      - {subnet: 10.9.0.0/24}\n      - {subnet: 'fd01::/64', ip_range: 'fd01::/80', gateway: 'fd01::9', aux_addresses: {r: 'fd01::7'}}\n",
    );
    let [a, b] = &stack.parts.networks[..] else { panic!("two networks") };
    assert_eq!((a.ipv6, a.ipam.len(), b.ipv6), (true, 0, true));
    assert_eq!(
        crate::docker::requests::network_create(b)["IPAM"]["Config"],
        serde_json::json!([{"Subnet": "10.9.0.0/24"},
            {"Subnet": "fd01::/64", "IPRange": "fd01::/80", "Gateway": "fd01::9", "AuxiliaryAddresses": {"r": "fd01::7"}}])
    );
    let one = |text: &str| {
        let found = problems(&format!("services: {{web: {{image: x, networks: [a]}}}}\nnetworks:\n  a: {text}\n"));
        assert_eq!((found.len(), found[0].0), (1, 3), "{found:#?}");
        found[0].2.clone()
    };
    assert!(one("{ipam: {config: [{subnet: 'fd01::/64'}]}}").contains("add enable_ipv6: true"));
    assert!(one("{enable_ipv4: false}").contains("without IPv4 is not supported"));
    let outside = one("{enable_ipv6: true, ipam: {config: [{subnet: 'fd01::/64', gateway: 'fd02::1'}]}}");
    assert!(outside.contains("invalid gateway fd02::1"), "{outside}");
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

#[test]
fn variables_come_from_files_and_the_caller_and_the_section_wins() {
    let mut options = fake::options();
    options.environment.insert("CALLER".into(), "c".into());
    let disk = FakeDisk::with(&[("a.env", "A=1\nB=1\n"), ("b.env", "B='2'\n"), ("raw.env", "Q='x'\n")]);
    let content = "services:\n  web:\n    image: x\n    env_file: [a.env, {path: b.env}, {path: raw.env, format: raw}, {path: none, required: false}]\n    environment: {A: 3, CALLER: , NOT_SET: }\n";
    let stack = fake::read(&[("stack.yml", content)], &options, &disk).unwrap();
    assert_eq!(service(&stack, "demo_web").task.containers[0].env, ["A=3", "B=2", "CALLER=c", "Q='x'"]);
    assert_eq!(stack.warnings.len(), 1);
    let wrong = problems("services: {web: {image: x, env_file: none}}\n");
    assert!(wrong[0].2.contains("/project/none cannot be read"), "{wrong:?}");
}

#[test]
fn dependencies_and_schedules_become_labels_of_the_service() {
    let stack = stack(
        "services:\n  db: {image: x}\n  migrate: {image: x}\n  web:\n    image: x\n    depends_on:\n      db: {condition: service_healthy}\n      migrate: {condition: service_completed_successfully}\n      gone: {required: false}\n\
         \x20 night:\n    image: x\n    depends_on: [db]\n    deploy: {mode: replicated-job, x-schedule: {times: '0 3 * * *', timezone: Europe/Berlin, deadline: 1h}}\n",
    );
    let labels = |key: &str| {
        let service = stack.parts.services.iter().find(|s| s.key == key).unwrap();
        service.whole_spec().annotations.labels
    };
    assert_eq!(labels("web")["skep.depends-on"], "demo_db:service_healthy,demo_migrate:service_completed_successfully");
    assert_eq!(labels("night")["skep.depends-on"], "demo_db:service_started");
    assert_eq!(labels("night")["skep.schedule"], "0 3 * * *");
    assert_eq!(labels("night")["skep.schedule.deadline-seconds"], "3600");
    let restart = service(&stack, "demo_migrate").task.restart.as_ref().unwrap();
    assert_eq!(restart.condition, skep_proto::model::task::RestartCondition::OnFailure, "it is to complete");
}

#[test]
fn what_can_never_start_or_run_is_refused() {
    for (services, because) in [
        ("{a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}", "waits for itself"),
        ("{a: {image: x, depends_on: [a]}}", "waits for itself"),
        ("{a: {image: x, depends_on: [c]}}", "the service c is not declared"),
        ("{a: {image: x, depends_on: {b: {condition: done}}}, b: {image: x}}", "a condition is service_started"),
        (
            "{a: {image: x, depends_on: {b: {condition: service_completed_successfully}}}, b: {image: x, deploy: {restart_policy: {condition: any}}}}",
            "is restarted whenever it ends",
        ),
        ("{a: {image: x, deploy: {x-schedule: '* * * * *'}}}", "a schedule is for jobs"),
        ("{a: {image: x, deploy: {mode: global-job, x-schedule: '61 * * * *'}}}", "the minute of a schedule"),
    ] {
        let found = problems(&format!("services: {services}\n"));
        assert!(found.iter().any(|p| p.2.contains(because)), "{services}: {found:?}");
    }
}

#[test]
fn keys_made_for_one_host_become_what_they_mean_in_a_cluster() {
    let stack = stack(
        "services:\n  web:\n    image: x\n    restart: on-failure:3\n    scale: 4\n    cpus: 0.5\n    mem_limit: 64M\n    mem_reservation: 32M\n    pids_limit: 9\n\
         \x20   platform: linux/arm64\n    dns: 10.0.0.1\n    dns_search: [a, b]\n    shm_size: 1M\n    tmpfs: '/t:size=1k,mode=700'\n    security_opt: ['no-new-privileges:true']\n\
         \x20   logging: {driver: json-file, options: {max-size: 1m}}\n    container_name: n\n    links: [b]\n    network_mode: host\n    pull_policy: missing\n",
    );
    let spec = service(&stack, "demo_web");
    let container = &spec.task.containers[0];
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 4 });
    assert_eq!(spec.task.restart.as_ref().unwrap().max_attempts, Some(3));
    let limits = spec.task.resources.limits.as_ref().unwrap();
    assert_eq!((limits.nano_cpus, limits.memory, limits.pids), (500_000_000, 64 << 20, 9));
    assert_eq!(spec.task.placement.platforms[0].architecture, "arm64");
    assert_eq!(spec.task.networks[0].target, "host");
    assert_eq!(container.dns.as_ref().unwrap().search, ["a", "b"]);
    let mounts: Vec<_> = container.mounts.iter().map(|m| (m.target.as_str(), m.tmpfs.unwrap().size)).collect();
    assert_eq!(mounts, [("/dev/shm", 1 << 20), ("/t", 1 << 10)]);
    assert!(container.privileges.as_ref().unwrap().no_new_privileges);
    assert_eq!(spec.task.log_driver.as_ref().unwrap().name, "json-file");
    assert_eq!(stack.warnings.len(), 2, "{:?}", stack.warnings);
}

/// Each key of a service that the Compose Specification knows is read, has no effect and says so, or is refused with advice.
#[test]
fn every_key_of_the_specification_is_known() {
    let all = "annotations attach build blkio_config cpu_count cpu_percent cpu_shares cpu_period cpu_quota cpu_rt_runtime cpu_rt_period cpus cpuset \
        cap_add cap_drop cgroup cgroup_parent command configs container_name credential_spec depends_on deploy develop device_cgroup_rules \
        devices dns dns_opt dns_search domainname driver_opts entrypoint env_file environment expose extends external_links extra_hosts gpus \
        group_add healthcheck hostname image init ipc isolation labels label_file links logging mac_address mem_limit mem_reservation \
        mem_swappiness memswap_limit models network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform ports post_start \
        pre_stop privileged profiles provider pull_policy read_only restart runtime scale secrets security_opt shm_size stdin_open \
        stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user userns_mode uts volumes volumes_from working_dir";
    for key in all.split_whitespace().filter(|k| !matches!(*k, "image" | "driver_opts")) {
        let content = format!("services:\n  web:\n    image: x\n    {key}: \n");
        let found = fake::read(&[("f", &content)], &fake::options(), &FakeDisk::default());
        let message = found.map(|_| String::new()).unwrap_or_else(|p| p.to_string());
        assert!(!message.contains("has no key"), "{key}: {message}");
    }
}
