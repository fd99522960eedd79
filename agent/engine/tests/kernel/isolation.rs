//! What a container sees and may do, on a real kernel.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::path::PathBuf;

use skep_engine::containers::{EventKind, NewContainer};
use skep_engine::runtime::rootfs::OverlayApi;
use skep_proto::model::container::{Mount, MountKind, TmpfsOptions, Ulimit, VolumeOptions};
use skep_proto::model::engine::{ExecConfig, ResolvedMount};
use skep_proto::model::isolation::{DeviceMapping, Isolation};
use skep_proto::model::task::{Limits, Resources};

use crate::support::{Node, read, within};

#[tokio::test]
#[ignore = "needs root"]
async fn the_file_system_and_the_kernels_files_look_as_in_docker() {
    let node = Node::new().await;
    let script = "hostname; cat /etc/hostname; df -k /dev/shm | tail -1 | awk '{print $2}'; wc -c < /proc/interrupts; \
                  (echo x > /proc/sys/kernel/hostname) 2>&1 | grep -ci read-only; ls /dev | tr '\\n' ' '; cat /proc/self/oom_score_adj; \
                  ls -A /sys/firmware | wc -l; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr show lo | grep -c UP";
    let (_, out, err) = node.sh(script).await;
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0].len(), 12, "{out}{err}");
    assert_eq!(lines[0], lines[1]);
    let devices = "console fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ";
    let devices = if lines[5].starts_with("console") { devices } else { &devices["console ".len()..] };
    assert_eq!(lines[2..5], ["65536", "0", "1"], "{out}{err}");
    assert_eq!(lines[5], format!("{devices}0"), "{out}{err}");
    assert_eq!(lines[6..], ["0", "0", "1"], "{out}{err}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn users_directories_limits_and_read_only_roots_are_as_asked() {
    let node = Node::new().await;
    let script = "id -u; id -g; id -G; pwd; echo $HOME; ulimit -n; ulimit -Hn; cat /proc/sys/kernel/shm_rmid_forced; \
                  touch /x 2>/dev/null || echo read-only; touch /t/x && echo tmpfs";
    let mut config = node.config(&["sh", "-c", script]);
    config.spec.user = "web".into();
    config.spec.groups = vec!["7".into()];
    config.spec.dir = "/made/for/me".into();
    config.spec.read_only = true;
    config.spec.sysctls = [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into();
    config.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 100, hard: 200 }];
    config.spec.mounts = vec![Mount {
        kind: MountKind::Tmpfs,
        source: String::new(),
        target: "/t".into(),
        read_only: false,
        consistency: String::new(),
        bind: None,
        volume: None,
        tmpfs: Some(TmpfsOptions { size: 1 << 20, mode: 0 }),
    }];
    let id = config.id;
    let tmpfs = ResolvedMount {
        kind: "tmpfs",
        name: String::new(),
        source: PathBuf::new(),
        target: "/t".into(),
        writable: true,
        propagation: String::new(),
    };
    let new = NewContainer { config, image: node.image.clone(), mounts: vec![tmpfs] };
    node.containers.create(new).await.unwrap();
    let both = skep_engine::containers::Wanted { stdin: false, stdout: true, stderr: true };
    let attached = node.containers.attach(id, both).await.unwrap();
    node.start(id).await;
    let (out, err) = read(attached).await;
    let want = "33\n34\n34 7 29\n/made/for/me\n/home/web\n100\n200\n1\nread-only\ntmpfs\n";
    assert_eq!(out, want, "{err}");
    node.wait(id).await;
    node.containers.remove(id, false).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn memory_processes_and_cpu_are_limited_and_a_kill_for_memory_is_told() {
    let node = Node::new().await;
    let mut events = node.containers.events();
    let mut config =
        node.config(&["sh", "-c", "cat /dev/zero | head -c 200m | tail -c 150m > /dev/null; sleep 1; exit 137"]);
    config.resources =
        Resources { limits: Some(Limits { nano_cpus: 500_000_000, memory: 32 << 20, pids: 20 }), reservations: None };
    let id = node.create(config).await;
    node.start(id).await;
    let dirs = node.cgroups().dirs(&id.to_string());
    let read = |file: &str| dirs.iter().find_map(|d| std::fs::read_to_string(d.join(file)).ok());
    if node.cgroups().version() == 1 {
        assert_eq!(read("memory.limit_in_bytes").unwrap().trim(), (32 << 20).to_string());
        assert_eq!(read("cpu.cfs_quota_us").unwrap().trim(), "50000");
    }
    assert_eq!(read("pids.max").unwrap().trim(), "20");
    assert_eq!(node.wait(id).await, 137);
    assert!(node.containers.inspect(id).unwrap().state.oom_killed);
    node.containers.remove(id, false).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&EventKind::Destroy) {
        kinds.push(within(events.recv()).await.unwrap().kind);
    }
    use EventKind::{Create, Destroy, Die, Oom, Start};
    assert_eq!(kinds, [Create, Start, Oom, Die { exit_code: 137 }, Destroy]);
}

#[tokio::test]
#[ignore = "needs root"]
async fn only_the_default_devices_can_be_opened() {
    let node = Node::new().await;
    let script = "mknod /tmp/kmsg c 1 11 && echo made; head -c 1 /tmp/kmsg 2>&1 | grep -c 'not permitted'; \
                  head -c 1 /dev/zero | wc -c; mknod /tmp/disk b 254 0 && echo made; head -c 1 /tmp/disk 2>&1 | grep -c 'not permitted'";
    let (_, out, err) = node.sh(script).await;
    assert_eq!(out, "made\n1\n1\nmade\n1\n", "{err}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_privileged_container_has_everything_and_no_filter() {
    let node = Node::new().await;
    let script = "grep Seccomp: /proc/self/status; unshare -m true && echo may";
    let mut config = node.config(&["sh", "-c", script]);
    config.privileged = true;
    let (_, out, err) = node.run(config).await;
    assert_eq!(out, "Seccomp:\t0\nmay\n", "{err}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_empty_volume_gets_the_images_content_unless_told_not_to() {
    let node = Node::new().await;
    for (no_copy, want) in [(false, "from the image\n"), (true, "")] {
        let volume = node.dir.path().join(format!("volume-{no_copy}"));
        std::fs::create_dir(&volume).unwrap();
        let mut config = node.config(&["cat", "/srv/data/seed"]);
        config.spec.mounts = vec![Mount {
            kind: MountKind::Volume,
            source: "v".into(),
            target: "/srv/data".into(),
            read_only: false,
            consistency: String::new(),
            bind: None,
            volume: Some(VolumeOptions { no_copy, ..VolumeOptions::default() }),
            tmpfs: None,
        }];
        let mount = ResolvedMount {
            kind: "volume",
            name: "v".into(),
            source: volume.clone(),
            target: "/srv/data".into(),
            writable: true,
            propagation: String::new(),
        };
        let id = config.id;
        let new = NewContainer { config, image: node.image.clone(), mounts: vec![mount] };
        node.containers.create(new).await.unwrap();
        let both = skep_engine::containers::Wanted { stdin: false, stdout: true, stderr: false };
        let attached = node.containers.attach(id, both).await.unwrap();
        node.start(id).await;
        assert_eq!(read(attached).await.0, want);
        assert_eq!(volume.join("seed").exists(), !no_copy);
        node.wait(id).await;
        node.containers.remove(id, false).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn overlays_are_mounted_the_old_way_too_with_many_layers_on_long_paths() {
    for api in [OverlayApi::Newest, OverlayApi::Mount] {
        let mut node = Node::with(api).await;
        let deep = node.dir.path().join("d".repeat(200)).join("e".repeat(200));
        for n in 0..60 {
            let layer = deep.join(format!("with:colon-{n}"));
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join("layer"), n.to_string()).unwrap();
            node.image.layers.push(layer);
        }
        let (code, out, err) = node.sh("cat /layer; echo changed > /layer; cat /layer").await;
        assert_eq!((code, out.as_str()), (0, "59changed\n"), "{api:?} {err}");
    }
}

#[tokio::test]
#[ignore = "needs root"]
async fn capabilities_are_those_asked_for_and_without_one_its_deed_is_refused() {
    let node = Node::new().await;
    let effective = async |add: &[&str], drop: &[&str], script: &str| {
        let script = format!("awk '/CapEff/ {{print $2}}' /proc/self/status; {script}");
        let mut config = node.config(&["sh", "-c", &script]);
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        (config.spec.cap_add, config.spec.cap_drop) = (list(add), list(drop));
        let (_, out, err) = node.run(config).await;
        format!("{out}{err}")
    };
    // Docker's fourteen, in the kernel's bits.
    let chown = "touch /f; chown 1 /f && echo may";
    let usual = effective(&[], &[], chown).await;
    assert_eq!(usual, "00000000a80425fb\nmay\n");
    let without = effective(&[], &["CHOWN"], chown).await;
    assert!(without.starts_with("00000000a80425fa\n") && without.contains("not permitted"), "{without}");
    let nothing = effective(&[], &["ALL"], chown).await;
    assert!(nothing.starts_with("0000000000000000\n") && nothing.contains("not permitted"), "{nothing}");
    let link = "ip link add x type dummy 2>/dev/null; ip link set lo mtu 1400 && echo may";
    assert!(!effective(&[], &[], link).await.contains("may"));
    assert!(effective(&["NET_ADMIN"], &[], link).await.contains("may"));
}

#[tokio::test]
#[ignore = "needs root"]
async fn namespaces_of_the_node_are_shared_only_when_asked_for() {
    let node = Node::new().await;
    let here = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let script = "for n in pid ipc uts cgroup; do readlink /proc/self/ns/$n; done; hostname; \
                  df -k /dev/shm | tail -1 | awk '{print $2}'";
    let run = async |isolation: Isolation| {
        let mut config = node.config(&["sh", "-c", script]);
        config.isolation = isolation;
        let (_, out, err) = node.run(config).await;
        let lines: Vec<String> = out.lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 6, "{out}{err}");
        lines
    };
    let own = run(Isolation { host_cgroups: Some(false), shm_size: 1 << 20, ..Isolation::default() }).await;
    for (at, kind) in ["pid", "ipc", "uts", "cgroup"].iter().enumerate() {
        assert_ne!(own[at], here(kind), "{kind}");
    }
    assert_eq!(own[5], "1024");
    let shared =
        Isolation { host_pid: true, host_ipc: true, host_uts: true, host_cgroups: Some(true), ..Isolation::default() };
    let shared = run(shared).await;
    for (at, kind) in ["pid", "ipc", "uts", "cgroup"].iter().enumerate() {
        assert_eq!(shared[at], here(kind), "{kind}");
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(shared[4], name.trim(), "a container must not rename its node");
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_device_that_was_given_can_be_opened_as_allowed_and_no_other() {
    let node = Node::new().await;
    let script = "head -c 1 /dev/log | wc -c; (echo x > /dev/log) 2>&1 | grep -c 'not permitted'; \
                  mknod /tmp/mem c 1 1; head -c 1 /tmp/mem 2>&1 | grep -c 'not permitted'";
    let mut config = node.config(&["sh", "-c", script]);
    config.isolation.devices =
        vec![DeviceMapping { host: "/dev/kmsg".into(), container: "/dev/log".into(), access: "r".into() }];
    // Reading the kernel's log also takes the capability.
    config.spec.cap_add = vec!["SYSLOG".into()];
    let (_, out, err) = node.run(config).await;
    assert_eq!(out, "1\n1\n1\n", "{err}");
    let mut config =
        node.config(&["sh", "-c", "ls -l /dev/kmsg | cut -c1; mknod /tmp/z c 1 2; grep CapEff /proc/self/status"]);
    config.privileged = true;
    let (_, out, err) = node.run(config).await;
    assert!(out.starts_with("c\n"), "a privileged container sees the node's devices: {out}{err}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn security_options_reach_the_first_and_every_further_process() {
    let node = Node::new().await;
    let script = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\n'; ls -A /proc/acpi /sys/firmware 2>/dev/null | wc -l";
    let run = async |isolation: Isolation| {
        let mut config = node.config(&["sh", "-c", script]);
        config.isolation = isolation;
        node.run(config).await.1
    };
    assert!(run(Isolation::default()).await.starts_with("NoNewPrivs:\t0Seccomp:\t2"));
    let strict = run(Isolation { no_new_privileges: true, ..Isolation::default() }).await;
    assert!(strict.starts_with("NoNewPrivs:\t1Seccomp:\t2"), "{strict}");
    let loose = run(Isolation { seccomp_unconfined: true, ..Isolation::default() }).await;
    assert!(loose.starts_with("NoNewPrivs:\t0Seccomp:\t0"), "{loose}");
    let mut config = node.config(&["sleep", "1000"]);
    config.isolation.no_new_privileges = true;
    let id = node.create(config).await;
    node.start(id).await;
    let (_, out, err) = {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let exec = ExecConfig { command, attach_stdout: true, attach_stderr: true, ..ExecConfig::default() };
        node.exec(id, exec).await
    };
    assert!(out.starts_with("NoNewPrivs:\t1Seccomp:\t2"), "{out}{err}");
    node.containers.remove(id, true).await.unwrap();
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_kernel_parameter_of_the_node_is_refused_and_one_of_the_container_is_set() {
    let node = Node::new().await;
    let mut config = node.config(&["cat", "/proc/sys/net/core/somaxconn"]);
    config.spec.sysctls = [("net.core.somaxconn".to_owned(), "777".to_owned())].into();
    assert_eq!(node.run(config).await.1, "777\n");
    let mut config = node.config(&["true"]);
    config.spec.sysctls = [("kernel.core_pattern".to_owned(), "|/x".to_owned())].into();
    let new = NewContainer { config, image: node.image.clone(), mounts: Vec::new() };
    let error = node.containers.create(new).await.unwrap_err().to_string();
    assert!(error.contains("sysctl \"kernel.core_pattern\" is not allowed"), "{error}");
}

#[tokio::test]
#[ignore = "needs root"]
async fn an_init_reaps_orphans_hands_signals_on_and_ends_as_its_program_does() {
    let node = Node::new().await;
    let with_init = |script: &str| {
        let mut config = node.config(&["sh", "-c", script]);
        config.spec.init = Some(true);
        config
    };
    let orphan = "(sleep 0.1 &) ; sleep 0.5; cat /proc/1/comm; ps -o stat | grep -c Z; exit 7";
    let (code, out, err) = node.run(with_init(orphan)).await;
    assert_eq!((code, out.as_str()), (7, "docker-init\n0\n"), "{err}");
    let id = node.create(with_init("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")).await;
    node.start(id).await;
    node.has_logged(id, 1).await;
    node.containers.stop(id, None, Some(std::time::Duration::from_secs(60))).await.unwrap();
    assert_eq!(node.wait(id).await, 9);
    node.containers.remove(id, false).await.unwrap();
    // Without a handler it ends by the signal itself, which as pid 1 it would not.
    let id = node.create(with_init("echo ready; exec sleep 1000")).await;
    node.start(id).await;
    node.has_logged(id, 1).await;
    node.containers.stop(id, None, Some(std::time::Duration::from_secs(60))).await.unwrap();
    assert_eq!(node.wait(id).await, 143);
    node.containers.remove(id, false).await.unwrap();
    let mut config = node.config(&["nosuch"]);
    config.spec.init = Some(true);
    assert_eq!(node.run(config).await.0, 127);
}

#[tokio::test]
#[ignore = "needs root"]
async fn a_container_may_have_huge_pages_though_its_daemon_does_without() {
    let node = Node::new().await;
    // As the daemon does for itself.
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    assert!(rustix::thread::transparent_huge_pages_are_disabled().unwrap());
    // proc_pid_status(5), since Linux 5.0.
    let (_, out, err) = node.sh("grep THP_enabled /proc/self/status").await;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["THP_enabled:", "1"], "{err}");
}
