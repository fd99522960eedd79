//! What containers may do, asked for with the stock docker CLI and seen from inside them.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use skep_tests::{Lab, eventually, images};

/// Output of a plain container that runs a script; its errors too.
fn run(lab: &Lab, options: &[&str], script: &str) -> String {
    let command = [&["run", "--rm"], options, &["busybox:test", "sh", "-c", script]].concat();
    let output = lab.docker_output("m1", &command);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
#[ignore = "needs root"]
fn containers_and_tasks_may_do_what_they_were_given_and_nothing_else() {
    let lab = Lab::up(1, 0, &[]);
    images::load_busybox(&lab);
    plain_containers(&lab);
    tasks(&lab);
    tasks_are_privileged_where_the_node_allows_it(&lab);
}

fn plain_containers(lab: &Lab) {
    let effective = "busybox awk '/CapEff/ {print $2}' /proc/self/status";
    assert_eq!(run(lab, &[], effective), "00000000a80425fb\n");
    assert_eq!(run(lab, &["--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN"], effective), "00000000a80435fa\n");
    assert_eq!(run(lab, &["--cap-drop", "ALL"], effective), "0000000000000000\n");
    assert!(run(lab, &["--cap-add", "FLY"], "true").contains("invalid capability"));

    let may_mount = "busybox mount -t tmpfs x /tmp && echo may";
    assert!(!run(lab, &[], may_mount).contains("may\n"));
    assert!(run(lab, &["--privileged"], may_mount).contains("may\n"));

    let limits = run(
        lab,
        &["--ulimit", "nofile=100:200", "--sysctl", "net.core.somaxconn=777"],
        "ulimit -Sn; ulimit -Hn; cat /proc/sys/net/core/somaxconn",
    );
    assert_eq!(limits, "100\n200\n777\n");
    assert!(run(lab, &["--sysctl", "kernel.core_pattern=x"], "true").contains("not"));

    let status = "busybox grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let strict = run(lab, &["--security-opt", "no-new-privileges"], status);
    assert_eq!(strict, "NoNewPrivs:\t1\nSeccomp:\t2\n");
    assert_eq!(run(lab, &["--security-opt", "seccomp=unconfined"], status), "NoNewPrivs:\t0\nSeccomp:\t0\n");

    let shm = "busybox df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'";
    assert_eq!(run(lab, &["--shm-size", "1m"], shm), "1024\n");
    let tmpfs =
        run(lab, &["--tmpfs", "/t:size=1m,mode=0700", "--read-only"], "echo x > /t/f && echo x > /f; ls -ld /t");
    assert!(tmpfs.contains("Read-only file system") && tmpfs.contains("drwx------"), "{tmpfs}");

    let namespace = |options: &[&str], kind: &str| run(lab, options, &format!("busybox readlink /proc/self/ns/{kind}"));
    for (flag, kind) in [("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts"), ("--cgroupns", "cgroup")] {
        let of_the_node = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(namespace(&[&format!("{flag}=host")], kind).trim(), of_the_node.to_str().unwrap(), "{flag}");
        let own = if flag == "--cgroupns" { namespace(&["--cgroupns=private"], kind) } else { namespace(&[], kind) };
        assert_ne!(own.trim(), of_the_node.to_str().unwrap(), "{flag}");
    }
    let read = "busybox head -c 1 /dev/given | busybox wc -c; (echo x > /dev/given) 2>&1";
    let device = run(lab, &["--device", "/dev/kmsg:/dev/given:r", "--cap-add", "SYSLOG"], read);
    assert!(device.starts_with("1\n") && device.contains("not permitted"), "{device}");
    assert!(run(lab, &["--device", "/dev/none"], "true").contains("error gathering device information"));

    let options = ["--security-opt", "no-new-privileges", "--shm-size", "1m", "--pid", "host", "--device", "/dev/kmsg"];
    lab.docker("m1", &[&["create", "--name", "shown"], &options[..], &["busybox:test", "true"]].concat()).unwrap();
    let format = "{{json .HostConfig.SecurityOpt}} {{.HostConfig.ShmSize}} {{.HostConfig.PidMode}} {{(index .HostConfig.Devices 0).PathOnHost}}";
    let shown = lab.docker("m1", &["inspect", "--format", format, "shown"]).unwrap();
    assert_eq!(shown, "[\"no-new-privileges\"] 1048576 host /dev/kmsg\n");
    lab.docker("m1", &["rm", "shown"]).unwrap();
}

fn tasks(lab: &Lab) {
    let script = "busybox grep CapEff /proc/self/status; busybox id; ulimit -n; cat /proc/sys/net/core/somaxconn; \
                  echo x > /f; sleep 1000000";
    let create = [
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name",
        "given",
        "--cap-add",
        "NET_ADMIN",
        "--cap-drop",
        "CHOWN",
        "--ulimit",
        "nofile=100",
        "--sysctl",
        "net.core.somaxconn=777",
        "--user",
        "33:34",
        "--group",
        "7",
        "--read-only",
        "busybox:test",
        "sh",
        "-c",
        script,
    ];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "given", 1);
    eventually("the task tells what it may do", || {
        let told = lab.docker_output("m1", &["service", "logs", "--raw", "given"]);
        let told = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        // A user that is not root has no effective capabilities.
        let wanted =
            ["CapEff:\t0000000000000000", "uid=33 gid=34 groups=7,34", "\n100\n777\n", "Read-only file system"];
        ensure!(wanted.iter().all(|words| told.contains(words)), "{told}");
        Ok(())
    });
    // As root it has what was added, and cannot do what was dropped.
    lab.docker("m1", &["service", "update", "-d", "--user", "0", "--args", "sleep 1000000", "given"]).unwrap();
    eventually("the capabilities are those asked for", || {
        let task = lab.running("m1", "given").first().cloned().unwrap_or_default();
        let task = task.split(' ').next().unwrap_or_default().to_owned();
        let id = lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", &task])?;
        let inside = |script: &str| lab.docker("m1", &["exec", id.trim(), "busybox", "sh", "-c", script]);
        let status = inside("busybox grep CapEff /proc/1/status")?;
        ensure!(status.contains("00000000a80435fa"), "{status}");
        inside("busybox ip link set lo mtu 1400")?;
        ensure!(inside("busybox chown 1 /tmp").is_err(), "chown is allowed");
        Ok(())
    });
    // One that the node would have to give up is refused, and says so.
    let create =
        ["service", "create", "-d", "--no-resolve-image", "--name", "bad", "--sysctl", "kernel.core_pattern=x"];
    lab.docker("m1", &[&create[..], &["busybox:test", "true"]].concat()).unwrap();
    eventually("the task is rejected", || {
        let told = lab.docker("m1", &["service", "ps", "--no-trunc", "bad"])?;
        ensure!(told.contains("kernel.core_pattern") && told.contains("Rejected"), "{told}");
        Ok(())
    });
}

fn tasks_are_privileged_where_the_node_allows_it(lab: &Lab) {
    let create = [
        "service",
        "create",
        "-d",
        "--name",
        "all",
        "--privileged",
        "--device",
        "/dev/kmsg:/dev/given:r",
        "busybox:test",
        "sleep",
        "1000000",
    ];
    lab.skep("m1", &create).unwrap();
    let waits_for = |words: &str| {
        eventually("the task says what its node does not allow", || {
            let told = lab.docker("m1", &["service", "ps", "--no-trunc", "all"])?;
            ensure!(told.contains(words), "{told}");
            Ok(())
        });
    };
    waits_for("1 node does not allow privileged containers");
    assert_eq!(lab.skep("m1", &["node", "policy", "m1", "--allow", "privileged"]).unwrap(), "privileged\n");
    waits_for("1 node does not allow devices in tasks");
    assert_eq!(lab.skep("m1", &["node", "policy", "m1", "--allow", "device"]).unwrap(), "privileged,device\n");
    lab.wait_for_running("m1", "all", 1);
    let task = lab.running("m1", "all")[0].split(' ').next().unwrap().to_owned();
    let id = lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", &task]).unwrap();
    let script = "busybox mount -t tmpfs x /tmp && ls -l /dev/given";
    let told = lab.docker("m1", &["exec", id.trim(), "busybox", "sh", "-c", script]).unwrap();
    assert!(told.starts_with('c'), "{told}");
    let denied = lab.skep("m1", &["node", "policy", "m1", "--deny", "device,privileged"]).unwrap();
    assert_eq!(denied, "nothing more is allowed\n");
}
