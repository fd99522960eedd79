use skep_proto::model::container::TmpfsOptions;
use skep_proto::model::engine::{ContainerRestart, NetworkMode};
use skep_proto::model::task::{Limits, Resources};
use skep_proto::model::{ContainerId, ContainerSpec};

use super::super::capabilities::DEFAULT_CAPABILITIES;
use super::*;

fn config() -> ContainerConfig {
    ContainerConfig {
        id: ContainerId([0xab; 32]),
        name: "web".into(),
        spec: ContainerSpec { image: "busybox".into(), ..ContainerSpec::default() },
        resources: Resources::default(),
        network: NetworkMode::None,
        ports: Vec::new(),
        auto_remove: false,
        restart: ContainerRestart::No,
        privileged: false,
        isolation: Default::default(),
        stdin_once: false,
        attach: (false, false, false),
        log: None,
        task: None,
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        command: vec!["serve".into()],
        env: vec!["PATH=/bin".into(), "A=image".into()],
        dir: "/srv".into(),
        ..ImageConfig::default()
    }
}

fn words(config: &ContainerConfig) -> Vec<String> {
    let p = resolve_process(config, &image()).unwrap();
    std::iter::once(p.path).chain(p.args).collect()
}

fn spec_of(config: &ContainerConfig, mounts: &[ResolvedMount], netns: &Netns) -> Value {
    let process = resolve_process(config, &image()).unwrap();
    let etc = EtcFiles { hosts: "/node/hosts".into(), ..EtcFiles::default() };
    let user = User { uid: 3, gid: 4, groups: vec![4], home: "/home".into() };
    oci_spec(&Input {
        config,
        process: &process,
        user: &user,
        mounts,
        files: &[],
        devices: &[],
        init: None,
        etc: &etc,
        netns,
        ipc: None,
        cgroup: "/skep/x",
        unified: false,
        rootfs: Path::new("/r"),
    })
    .unwrap()
}

#[test]
fn a_given_entry_point_takes_the_images_command_away() {
    let mut c = config();
    assert_eq!(words(&c), ["/entry", "serve"]);
    c.spec.args = vec!["other".into()];
    assert_eq!(words(&c), ["/entry", "other"]);
    c.spec.command = vec!["sh".into(), "-c".into()];
    assert_eq!(words(&c), ["sh", "-c", "other"]);
    c.spec.args.clear();
    assert_eq!(words(&c), ["sh", "-c"]);
    assert_eq!(resolve_process(&config(), &ImageConfig::default()), Err(SpecError::NoCommand));
}

#[test]
fn the_environment_is_dockers_own_then_the_given_then_the_images() {
    let mut c = config();
    c.spec.env = vec!["B=1".into(), "A=given".into(), "B=2".into()];
    let process = resolve_process(&c, &image()).unwrap();
    assert_eq!(process.env, ["B=2", "A=given", "PATH=/bin"]);
    let env = process_env(&process, true, "/root", &["C=exec".into()]);
    assert_eq!(env, ["HOSTNAME=abababababab", "TERM=xterm", "HOME=/root", "C=exec", "B=2", "A=given", "PATH=/bin"]);
}

#[test]
fn capabilities_are_dockers_fourteen_unless_told_otherwise() {
    let caps = |add: &[&str], drop: &[&str]| {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        capabilities(&ContainerSpec { cap_add: list(add), cap_drop: list(drop), ..ContainerSpec::default() }, false)
    };
    let mut default = caps(&[], &[]).unwrap();
    default.sort();
    let mut docker = DEFAULT_CAPABILITIES.map(str::to_owned).to_vec();
    docker.sort();
    assert_eq!(default, docker);
    assert_eq!(caps(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
    assert_eq!(caps(&["ALL"], &["CAP_SYS_ADMIN"]).unwrap().len(), 40);
    assert_eq!(caps(&["FLY"], &[]), Err(SpecError::Capability("FLY".into())));
}

#[test]
fn limits_reach_the_kernels_units() {
    let mut c = config();
    let limits = Limits { nano_cpus: 1_500_000_000, memory: 64 << 20, pids: 20 };
    c.resources = Resources { limits: Some(limits), reservations: None };
    let spec = spec_of(&c, &[], &Netns::New);
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({"quota": 150_000, "period": 100_000}));
    assert_eq!(resources["memory"], json!({"limit": 67_108_864}));
    assert_eq!(resources["pids"], json!({"limit": 20}));
    assert_eq!(resources["devices"][0], json!({"allow": false, "access": "rwm"}));
}

#[test]
fn the_process_is_who_the_users_file_says_and_lacks_no_new_privileges() {
    let spec = spec_of(&config(), &[], &Netns::New);
    assert_eq!(spec["process"]["user"], json!({"uid": 3, "gid": 4, "additionalGids": [4]}));
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert_eq!(spec["process"].get("noNewPrivileges"), None);
    assert_eq!(spec["process"]["rlimits"], json!([]));
    assert_eq!(spec["linux"]["maskedPaths"].as_array().unwrap().len(), 12);
}

#[test]
fn a_given_namespace_is_joined_and_the_nodes_own_is_left_alone() {
    let types = |netns: Netns| -> Vec<String> {
        let spec = spec_of(&config(), &[], &netns);
        spec["linux"]["namespaces"].as_array().unwrap().iter().map(ToString::to_string).collect()
    };
    assert!(types(Netns::Path("/run/ns".into())).contains(&json!({"type": "network", "path": "/run/ns"}).to_string()));
    assert!(!types(Netns::Host).iter().any(|t| t.contains("network")));
    assert_eq!(spec_of(&config(), &[], &Netns::Host)["linux"]["sysctl"], json!({}));
}

#[test]
fn mounts_are_ordered_by_depth_and_carry_their_options() {
    let mut c = config();
    c.spec.mounts = vec![Mount {
        kind: MountKind::Tmpfs,
        source: String::new(),
        target: "/t".into(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: Some(TmpfsOptions { size: 4096, mode: 0o700 }),
    }];
    let mount = |kind, target: &str, writable| ResolvedMount {
        kind,
        name: String::new(),
        source: "/src".into(),
        target: target.into(),
        writable,
        propagation: String::new(),
    };
    let given = [mount("bind", "/a/b", false), mount("volume", "/a", true), mount("tmpfs", "/t", true)];
    let spec = spec_of(&c, &given, &Netns::New);
    let got: Vec<&Value> = spec["mounts"].as_array().unwrap().iter().skip(6).collect();
    assert_eq!(
        got[0],
        &json!({"destination": "/etc/hosts", "type": "bind", "source": "/node/hosts", "options": ["rbind", "rprivate"]})
    );
    assert_eq!(got[1]["destination"], "/a");
    assert_eq!(got[2]["options"], json!(["nosuid", "nodev", "noexec", "size=4096", "mode=700"]));
    assert_eq!(got[3]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn ulimits_have_the_kernels_names_and_no_end_at_minus_one() {
    let mut c = config();
    c.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }];
    let want = json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": u64::MAX}]);
    assert_eq!(spec_of(&c, &[], &Netns::New)["process"]["rlimits"], want);
    assert_eq!(limits(&[Ulimit { name: "wings".into(), soft: 1, hard: 1 }]), Err(SpecError::Ulimit("wings".into())));
}

#[test]
fn signals_are_names_or_numbers() {
    let n = |s: &str| parse_signal(s).ok();
    assert_eq!([n("SIGTERM"), n("term"), n("9"), n("SIGRTMIN+3"), n("WINCH")], [15, 15, 9, 37, 28].map(Some));
    assert_eq!([n("0"), n("65"), n("SIGNOPE"), n("")], [None; 4]);
}

#[test]
fn a_limit_above_the_daemons_own_is_refused_unless_it_may_raise_it() {
    let given = limits(&[Ulimit { name: "nofile".into(), soft: 10, hard: 100 }]).unwrap();
    let own = |number| (number == 7).then_some(99);
    let refused = can_be_set(&given, false, own).unwrap_err().to_string();
    assert!(refused.starts_with("the ulimit nofile of 100 is above the 99 of the daemon"), "{refused}");
    assert_eq!(can_be_set(&given, true, own), Ok(()));
    assert_eq!(can_be_set(&given, false, |_| Some(100)), Ok(()));
    assert_eq!(can_be_set(&given, false, |_| None), Ok(()));
}
