//! The stock docker CLI against the face. Without a docker CLI on the PATH these tests say so and count as passed.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::fake::{World, eventually};

const IMAGE: &str = "10.99.0.1:5055/bb:1";

/// A face on a socket of its own.
struct Socket {
    folder: tempfile::TempDir,
    stop: CancellationToken,
    world: Arc<World>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Socket {
    /// `None`, with a line that says so, when there is no docker CLI.
    async fn open(world: Arc<World>) -> Option<Self> {
        if std::process::Command::new("docker").arg("--version").output().is_err() {
            eprintln!("SKIPPED 1: there is no docker CLI on the PATH");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let listener = skep_api::docker::bind_unix(&folder.path().join("docker.sock")).await.unwrap();
        let stop = CancellationToken::new();
        let router = skep_api::docker::router(world.ports());
        tokio::spawn(skep_api::docker::serve(listener, router, stop.clone(), Duration::from_secs(1)));
        Some(Self { folder, stop, world })
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("docker");
        command
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.folder.path().join("docker.sock").display()))
            .env("DOCKER_CONFIG", self.folder.path().join("config"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "").await
    }

    async fn run_with(&self, args: &[&str], stdin: &str) -> Ran {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(stdin.as_bytes()).await.unwrap();
        drop(input);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("docker {args:?} did not end within a minute"))
            .unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs what must work; gives its output.
    async fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args).await;
        assert_eq!(ran.code, 0, "docker {args:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn two_nodes() -> Option<Socket> {
    Socket::open(World::ready(&["nodeA", "nodeB"]).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_shows_version_info_nodes_and_networks() {
    let Some(docker) = two_nodes().await else { return };
    assert!(docker.ok(&["version"]).await.contains("API version:      1.50 (minimum version 1.24)"));
    let info = docker.ok(&["info"]).await;
    assert!(info.contains("Swarm: active") && info.contains("Managers: 1") && info.contains("Nodes: 2"), "{info}");
    let nodes = docker.ok(&["node", "ls"]).await;
    assert!(nodes.contains("nodeA") && nodes.contains("Leader") && nodes.contains("nodeB"), "{nodes}");
    docker.ok(&["node", "update", "--label-add", "zone=a", "--availability", "drain", "nodeB"]).await;
    let shown =
        docker.ok(&["node", "inspect", "--format", "{{.Spec.Availability}} {{.Spec.Labels.zone}}", "nodeB"]).await;
    assert_eq!(shown, "drain a\n");
    docker.ok(&["node", "inspect", "--pretty", "self"]).await;

    docker.ok(&["network", "create", "-d", "overlay", "--attachable", "--subnet", "10.77.0.0/24", "ov1"]).await;
    let networks = docker.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]).await;
    for line in ["ov1 overlay swarm", "ingress overlay swarm", "bridge bridge local", "host host local"] {
        assert!(networks.contains(line), "{line} is not in {networks}");
    }
    let again = docker.run(&["network", "create", "-d", "overlay", "ov1"]).await;
    assert_eq!(again.stderr.trim(), "Error response from daemon: network with name ov1 already exists");
    docker.ok(&["network", "rm", "ov1"]).await;
    assert_eq!(docker.run(&["inspect", "nosuch"]).await.stderr.trim(), "Error: No such object: nosuch");
    docker.ok(&["swarm", "join-token", "worker"]).await;
    docker.ok(&["swarm", "update", "--task-history-limit", "3"]).await;
    assert!(docker.run(&["swarm", "leave"]).await.stderr.contains("You are attempting to leave the swarm"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_makes_changes_and_removes_a_service() {
    let Some(docker) = two_nodes().await else { return };
    docker.ok(&["network", "create", "-d", "overlay", "ov1"]).await;
    let created = docker
        .ok(&[
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "3",
            "-p",
            "8080:80",
            "--network",
            "ov1",
            "--env",
            "A=1",
            "--mount",
            "type=volume,source=vv,target=/v",
            "--constraint",
            "node.labels.zone!=b",
            IMAGE,
            "sleep",
            "1000",
        ])
        .await;
    assert!(created.contains("verify: Service"), "{created}");
    let list = docker.ok(&["service", "ls"]).await;
    assert!(list.contains("web") && list.contains("3/3") && list.contains("*:8080->80/tcp"), "{list}");
    let tasks = docker.ok(&["service", "ps", "web"]).await;
    assert!(tasks.contains("web.1") && tasks.contains("nodeB") && tasks.contains("Running"), "{tasks}");
    let pretty = docker.ok(&["service", "inspect", "--pretty", "web"]).await;
    assert!(pretty.contains("Replicas:\t3") && pretty.contains("On failure:\tpause"), "{pretty}");

    docker.ok(&["service", "scale", "-d", "web=1"]).await;
    docker.ok(&["service", "update", "-d", "--env-add", "B=2", "--image", IMAGE, "web"]).await;
    let env = docker.ok(&["service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"]).await;
    // The CLI itself gathers the variables in a map, whose order is chance.
    assert!(matches!(env.as_str(), "[A=1 B=2]\n" | "[B=2 A=1]\n"), "{env}");
    docker.ok(&["service", "rollback", "-d", "web"]).await;
    let env = docker.ok(&["service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web"]).await;
    assert_eq!(env, "[A=1]\n");
    let clash = docker.run(&["service", "create", "-d", "--name", "web", IMAGE]).await;
    assert!(clash.stderr.contains("name conflicts with an existing object: service web already exists"));
    let wrong =
        docker.run(&["service", "create", "-d", "--name", "x", "--constraint", "node.role=worker", IMAGE]).await;
    assert!(wrong.stderr.contains("constraint expected one operator from ==, !="), "{}", wrong.stderr);
    docker.ok(&["service", "rm", "web"]).await;
    assert_eq!(docker.ok(&["service", "ls", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_deploys_and_removes_a_stack() {
    let Some(docker) = two_nodes().await else { return };
    let stack = format!(
        "version: '3.8'\nservices:\n  web:\n    image: {IMAGE}\n    command: [sleep, '1000']\n    deploy: {{replicas: 2}}\n    \
         ports: ['8088:80']\n    secrets: [sec]\n    configs: [cfg]\n  db:\n    image: {IMAGE}\n    command: [sleep, '1000']\n\
         secrets: {{sec: {{file: ./sec}}}}\nconfigs: {{cfg: {{file: ./sec}}}}\n"
    );
    docker.write("sec", "hidden");
    let file = docker.write("stack.yml", &stack);
    let file = file.to_str().unwrap();
    docker.ok(&["stack", "deploy", "-c", file, "st"]).await;
    docker.ok(&["stack", "deploy", "--prune", "-c", file, "st"]).await;
    let list = docker.ok(&["stack", "ls"]).await;
    assert!(list.lines().any(|l| l.starts_with("st ") && l.trim_end().ends_with('2')), "{list}");
    let services = docker.ok(&["stack", "services", "st"]).await;
    assert!(services.contains("st_web") && services.contains("2/2") && services.contains("st_db"), "{services}");
    let tasks = docker.ok(&["stack", "ps", "st"]).await;
    assert_eq!(tasks.lines().count(), 4, "a heading and three tasks: {tasks}");
    docker.ok(&["stack", "rm", "st"]).await;
    assert_eq!(docker.ok(&["service", "ls", "-q"]).await, "");
    assert!(!docker.ok(&["network", "ls"]).await.contains("st_default"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_reaches_containers_of_tasks_on_other_nodes() {
    let Some(docker) = two_nodes().await else { return };
    docker
        .ok(&[
            "service",
            "create",
            "-d",
            "--name",
            "web",
            "--replicas",
            "2",
            IMAGE,
            "sh",
            "-c",
            "echo hello; echo wrong >&2; sleep 1000",
        ])
        .await;
    let lines = docker.ok(&["service", "logs", "--raw", "web"]).await;
    assert_eq!(lines.matches("hello").count(), 2, "{lines}");
    let named = docker.run(&["service", "logs", "web"]).await;
    assert!(
        named.stdout.contains("@nodeA    | hello") && named.stdout.contains("@nodeB    | hello"),
        "{}",
        named.stdout
    );
    assert_eq!(named.stderr.matches("| wrong").count(), 2, "{}", named.stderr);

    let remote = {
        use skep_api::ports::Engine;
        docker.world.engine("nodeB").containers(true).await.unwrap()[0].config.clone()
    };
    let (id, name) = (remote.id.to_string(), remote.name.as_str());
    assert_eq!(docker.ok(&["logs", name]).await, "hello\n");
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", &id[..12]]).await, "running\n");
    let ran = docker.run(&["exec", name, "sh", "-c", "echo o; echo e >&2; exit 4"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (4, "o\n", "e\n"));
    let ran = docker.run_with(&["exec", "-i", name, "cat"], "through\nthe proxy\n").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "through\nthe proxy\n"));
    let ran = docker.run(&["exec", name, "nosuch"]).await;
    assert_eq!(ran.code, 127);
    assert!(ran.stdout.contains("executable file not found in $PATH"), "{}", ran.stdout);
    assert_eq!(
        docker.run(&["exec", "nosuch", "true"]).await.stderr.trim(),
        "Error response from daemon: No such container: nosuch"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_follows_logs_of_tasks_that_start_later() {
    let Some(docker) = two_nodes().await else { return };
    let script = "echo hello; sleep 1000";
    docker.ok(&["service", "create", "-d", "--name", "web", "--replicas", "1", IMAGE, "sh", "-c", script]).await;
    let path = docker.folder.path().join("followed");
    let mut follower = docker
        .command(&["service", "logs", "-f", "--raw", "web"])
        .stdout(std::fs::File::create(&path).unwrap())
        .spawn()
        .unwrap();
    let count = async |n: usize| std::fs::read_to_string(&path).unwrap().matches("hello").count() == n;
    eventually("the first task's line", async || count(1).await).await;
    docker.ok(&["service", "scale", "-d", "web=2"]).await;
    eventually("the second task's line", async || count(2).await).await;
    follower.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_runs_plain_containers() {
    let Some(docker) = two_nodes().await else { return };
    assert_eq!(docker.ok(&["run", "--rm", "bb:1", "echo", "hi"]).await, "hi\n");
    let ran = docker.run(&["run", "bb:1", "sh", "-c", "echo o; echo e >&2; exit 3"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (3, "o\n", "e\n"));
    let ran = docker.run_with(&["run", "-i", "--rm", "bb:1", "cat"], "one\ntwo\n").await;
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "one\ntwo\n"));
    // With a terminal the bytes are not framed.
    assert_eq!(docker.ok(&["run", "--rm", "-t", "bb:1", "echo", "hi"]).await, "hi\n");
    let ran = docker.run(&["run", "--rm", "bb:1", "nosuchcmd"]).await;
    assert_eq!(ran.code, 127, "{}", ran.stderr);
    let ran = docker.run(&["run", "--rm", "nosuch:1", "true"]).await;
    assert_eq!(ran.code, 125, "{}", ran.stderr);

    docker
        .ok(&[
            "run",
            "-d",
            "--name",
            "c1",
            "-p",
            "127.0.0.1:8081:80",
            "-v",
            "data:/d",
            "-e",
            "A=1",
            "bb:1",
            "sleep",
            "9",
        ])
        .await;
    let list = docker.ok(&["ps", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.Ports}}"]).await;
    assert_eq!(list, "c1 bb:1 \"sleep 9\" 127.0.0.1:8081->80/tcp\n");
    let clash = docker.run(&["run", "-d", "--name", "c1", "bb:1", "true"]).await;
    assert!(clash.stderr.contains("The container name \"/c1\" is already in use"), "{}", clash.stderr);
    let refused = docker.run(&["run", "-d", "--cpu-shares", "5", "bb:1", "true"]).await;
    assert!(refused.stderr.contains("HostConfig.CpuShares is not supported by skep yet"), "{}", refused.stderr);
    assert!(docker.run(&["rm", "c1"]).await.stderr.contains("You cannot remove a running container"));
    docker.ok(&["top", "c1"]).await;
    docker.ok(&["stop", "c1"]).await;
    docker.ok(&["start", "c1"]).await;
    docker.ok(&["rm", "-f", "c1"]).await;
    docker.ok(&["container", "prune", "-f"]).await;
    assert_eq!(docker.ok(&["ps", "-aq"]).await.lines().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_handles_images_volumes_secrets_and_configs() {
    let Some(docker) = two_nodes().await else { return };
    assert!(docker.ok(&["images"]).await.contains("1.99MB"));
    docker.ok(&["image", "inspect", "bb:1"]).await;
    docker.ok(&["tag", "bb:1", "cc:2"]).await;
    docker.ok(&["rmi", "cc:2"]).await;
    assert!(docker.ok(&["pull", "bb:1"]).await.contains("Status: Image is up to date"));
    assert!(docker.run(&["pull", "nosuch:1"]).await.stderr.contains("manifest unknown"));
    assert!(docker.run_with(&["load"], "not really a tar").await.stdout.contains("Loaded image: bb:16"));
    docker.ok(&["login", "-u", "u", "-p", "p", "10.99.0.1:5055"]).await;
    docker.ok(&["system", "df", "-v"]).await;

    docker.ok(&["volume", "create", "--label", "a=b", "vol1"]).await;
    assert_eq!(docker.ok(&["volume", "ls", "-q", "-f", "label=a=b"]).await, "vol1\n");
    docker.ok(&["volume", "inspect", "vol1"]).await;
    docker.ok(&["volume", "rm", "vol1"]).await;
    assert!(docker.run(&["volume", "inspect", "vol1"]).await.stderr.contains("get vol1: no such volume"));

    docker.ok(&["plugin", "ls"]).await;
    let file = docker.write("content", "conf");
    docker.ok(&["config", "create", "c1", file.to_str().unwrap()]).await;
    assert_eq!(docker.ok(&["config", "inspect", "-f", "{{printf \"%s\" .Spec.Data}}", "c1"]).await, "conf\n");
    docker.ok(&["secret", "create", "s1", file.to_str().unwrap()]).await;
    assert!(!docker.ok(&["secret", "inspect", "s1"]).await.contains("Data"));
    docker.ok(&["secret", "rm", "s1"]).await;
    assert!(docker.run(&["secret", "rm", "s1"]).await.stderr.contains("secret s1 not found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cli_makes_networks_of_two_families_and_shows_who_is_on_them() {
    let Some(docker) = two_nodes().await else { return };
    docker
        .ok(&[
            "network",
            "create",
            "-d",
            "overlay",
            "--ipv6",
            "--subnet",
            "10.9.0.0/24",
            "--subnet",
            "fd01::/64",
            "dual",
        ])
        .await;
    assert_eq!(docker.ok(&["network", "inspect", "-f", "{{.EnableIPv6}}", "dual"]).await, "true\n");
    let wrong = [
        (vec!["--subnet", "fd01::/64"], "add --ipv6"),
        (vec!["--ipv6", "--subnet", "fd01::/64", "--subnet", "fd02::/64"], "more than one IPv6 subnet"),
        (vec!["--ipv6", "--subnet", "fd01::/64", "--gateway", "fd01::/64"], "invalid"),
    ];
    for (flags, text) in wrong {
        let ran = docker.run(&[&["network", "create", "-d", "overlay"], &flags[..], &["bad"]].concat()).await;
        assert!(ran.code != 0 && ran.stderr.contains(text), "{flags:?}: {}", ran.stderr);
    }
    let show = ["network", "inspect", "-v", "-f", "{{len .Peers}} {{len .Services}}", "dual"];
    assert_eq!(docker.ok(&show).await, "0 0\n");
    docker.ok(&["service", "create", "-d", "--name", "web", "--network", "dual", "-p", "8080:80", "bb:1"]).await;
    assert!(!docker.ok(&["network", "inspect", "dual"]).await.contains("\"Services\""));
    let verbose = docker.ok(&["network", "inspect", "-v", "-f", "{{json .Services.web}}", "dual"]).await;
    for part in [
        "\"VIP\":\"10.0.0.4\"",
        "\"Ports\":[\"Target: 80, Publish: 8080\"]",
        "\"EndpointIP\":\"10.0.0.9\"",
        "\"Host IP\":\"10.1.0.1\"",
        "\"Endpoint IPv6\":\"fd01::9\"",
    ] {
        assert!(verbose.contains(part), "{part} is not in {verbose}");
    }
    assert!(
        docker.ok(&["network", "inspect", "-f", "{{range .Peers}}{{.Name}} {{end}}", "dual"]).await.contains("nodeA")
    );
}
