//! Secrets, configs, templates, and a stack that uses them, driven by the stock docker CLI.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use skep_tests::{Lab, eventually, images};

const SECRET: &str = "a-secret-that-no-disk-may-hold";

/// A file with that content, for commands that read one.
fn file(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// The container of the only running task of a service.
fn container(lab: &Lab, service: &str) -> anyhow::Result<String> {
    let running = lab.running("m1", service);
    let task = running.first().and_then(|line| line.split(' ').next()).context("no task runs")?.to_owned();
    let id = lab.docker("m1", &["inspect", "--format", "{{.Status.ContainerStatus.ContainerID}}", &task])?;
    Ok(id.trim().to_owned())
}

/// Output of a command in that container, asked for at `node`.
fn inside(lab: &Lab, node: &str, container: &str, command: &[&str]) -> anyhow::Result<String> {
    lab.docker(node, &[&["exec", container], command].concat())
}

/// Waits until a file in the service's container has that content.
fn reads(lab: &Lab, service: &str, path: &str, content: &str) {
    eventually(&format!("{service} reads {content:?} in {path}"), || {
        let found = inside(lab, "m1", &container(lab, service)?, &["cat", path])?;
        ensure!(found == content, "{found:?}");
        Ok(())
    });
}

/// Files below `dir`, on its own file system, that hold `needle`. File systems in memory are others.
fn on_disk(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let device = std::fs::metadata(dir).unwrap().dev();
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.dev() == device && meta.is_dir() {
                open.push(entry.path());
            } else if meta.dev() == device
                && meta.is_file()
                && std::fs::read(entry.path()).is_ok_and(|b| b.windows(needle.len()).any(|w| w == needle.as_bytes()))
            {
                found.push(entry.path());
            }
        }
    }
    found
}

fn refused(lab: &Lab, arguments: &[&str], words: &str) {
    let error = lab.docker("m1", arguments).expect_err("it was not refused").to_string();
    assert!(error.contains(words), "{error}");
}

#[test]
#[ignore = "needs root"]
#[allow(clippy::too_many_lines, reason = "one story, step by step")]
fn secrets_and_configs_are_files_of_the_tasks_that_use_them_and_are_nowhere_else() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let dir = tempfile::tempdir().unwrap();
    let create = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    create(&["secret", "create", "-l", "a=b", "key", &file(dir.path(), "key", SECRET)]);
    create(&["secret", "create", "key2", &file(dir.path(), "key2", "another")]);
    let large = "0123456789abcdef".repeat(60_000);
    create(&["config", "create", "large", &file(dir.path(), "large", &large)]);
    let template = "{{.Service.Name}}.{{.Task.Slot}} {{env \"PORT\"}} {{secret \"short\"}}";
    create(&["config", "create", "--template-driver", "golang", "made", &file(dir.path(), "made", template)]);
    refused(&lab, &["secret", "create", "big", &file(dir.path(), "big", &"x".repeat(512_000))], "512000 bytes");
    refused(&lab, &["config", "create", "big", &file(dir.path(), "big", &"x".repeat(1_024_000))], "1024000 bytes");
    let wrong = file(dir.path(), "wrong", "a{{range .}}");
    refused(
        &lab,
        &["config", "create", "--template-driver", "golang", "w", &wrong],
        "range is not supported at offset 1",
    );
    assert!(!lab.docker("m1", &["secret", "inspect", "key"]).unwrap().contains("Data"));

    create(&[
        "service",
        "create",
        "-d",
        "--no-resolve-image",
        "--name",
        "web",
        "--constraint",
        "node.hostname==w1",
        "--secret",
        "key",
        "--secret",
        "source=key,target=short,uid=33,gid=34,mode=0400",
        "--config",
        "large",
        "--config",
        "source=made,target=/etc/made.conf",
        "--env",
        "PORT=80",
        "--env",
        "WHO={{.Service.Name}}-{{.Task.Slot}}@{{.Node.Hostname}}",
        "--hostname",
        "h{{.Task.Slot}}",
        "busybox:test",
        "sleep",
        "1000000",
    ]);
    lab.wait_for_running("m1", "web", 1);
    reads(&lab, "web", "/run/secrets/key", SECRET);
    reads(&lab, "web", "/run/secrets/short", SECRET);
    reads(&lab, "web", "/large", &large);
    reads(&lab, "web", "/etc/made.conf", &format!("web.1 80 {SECRET}"));
    let id = container(&lab, "web").unwrap();
    let listed = inside(&lab, "m1", &id, &["ls", "-ln", "/run/secrets"]).unwrap();
    let has = |words: &[&str]| {
        listed.lines().any(|line| words.iter().all(|word| line.split_whitespace().any(|w| w == *word)))
    };
    assert!(has(&["-r--r--r--", "0", "key"]) && has(&["-r--------", "33", "34", "short"]), "{listed}");
    let env = inside(&lab, "m1", &id, &["sh", "-c", "echo $WHO; hostname"]).unwrap();
    assert_eq!(env, "web-1@w1\nh1\n");
    let written = inside(&lab, "m1", &id, &["sh", "-c", "echo x > /run/secrets/key"]).unwrap_err().to_string();
    assert!(written.contains("Read-only file system"), "{written}");
    for node in ["m1", "w1"] {
        assert_eq!(on_disk(&lab.root(node), SECRET), Vec::<PathBuf>::new());
    }

    refused(
        &lab,
        &["secret", "rm", "key"],
        "rpc error: code = InvalidArgument desc = secret 'key' is in use by the following service: web",
    );
    refused(&lab, &["service", "create", "--secret", "none", "busybox:test"], "secret not found: none");
    refused(
        &lab,
        &["service", "create", "-d", "--no-resolve-image", "--env", "A={{.Nope}}", "busybox:test"],
        "expanding env failed",
    );

    daemons_without_managers_keep_the_files_of_containers(&lab, &id);

    // The config is a template that names the secret by its target: without it, the task is refused with a sentence.
    create(&["service", "update", "-d", "--secret-rm", "key", "--secret-add", "source=key2,target=key", "web"]);
    eventually("the task is rejected", || {
        let told = lab.docker("m1", &["service", "ps", "--no-trunc", "web"])?;
        let words = "expanding config made failed: secret: secret target short not found";
        ensure!(told.contains("Rejected") && told.contains(words), "{told}");
        Ok(())
    });
    create(&["service", "update", "-d", "--secret-add", "source=key2,target=short", "web"]);
    reads(&lab, "web", "/run/secrets/key", "another");
    reads(&lab, "web", "/etc/made.conf", "web.1 80 another");
    create(&["secret", "rm", "key"]);
    assert_eq!(lab.docker("m1", &["secret", "ls", "--format", "{{.Name}}"]).unwrap(), "key2\n");
    create(&["service", "rm", "web"]);
    create(&["secret", "rm", "key2"]);
}

fn daemons_without_managers_keep_the_files_of_containers(lab: &Lab, id: &str) {
    for node in ["w1", "m1"] {
        lab.lab(&["kill", node]).unwrap();
    }
    lab.lab(&["start", "w1"]).unwrap();
    eventually("the worker's daemon answers, and the container still has its secret", || {
        let found = inside(lab, "w1", id, &["cat", "/run/secrets/key"])?;
        ensure!(found == SECRET, "{found:?}");
        Ok(())
    });
    lab.lab(&["start", "m1"]).unwrap();
    lab.wait_for_running("m1", "web", 1);
    eventually("the task is the one that it was", || {
        let now = container(lab, "web")?;
        ensure!(now == id, "its container is {now}");
        Ok(())
    });
}

/// A file as people have them: first of a format before 3.8, then of 3.8, where configs may be templates.
fn stack(dir: &Path, version: u32, worker: bool) -> String {
    let worker = if worker {
        "  worker:\n    image: busybox:test\n    stop_grace_period: 0s\n    command: sleep 1000000\n    networks: [back]\n    deploy: {mode: global}\n"
    } else {
        ""
    };
    let (format, template) = if version == 1 { ("3.7", "") } else { ("3.8", ", template_driver: golang") };
    let text = format!(
        r#"version: "{format}"
services:
  web:
    image: busybox:test
    stop_grace_period: 0s
    command: ["sleep", "1000000"]
    environment:
      WHERE: "{{{{.Node.Hostname}}}}"
    networks: [back]
    volumes: ["data:/data"]
    secrets:
      - own
      - source: shared
        target: /etc/shared.key
        mode: 0400
    configs:
      - source: conf
        target: /etc/app.conf
    deploy:
      replicas: 2
      labels: {{tier: front}}
      placement: {{constraints: ["node.role == worker"]}}
      resources: {{limits: {{memory: 64M}}}}
      restart_policy: {{condition: on-failure}}
      update_config: {{parallelism: 1, order: stop-first}}
{worker}networks:
  back: {{driver: overlay}}
volumes:
  data:
secrets:
  own: {{file: ./own.key, labels: {{a: b}}}}
  shared: {{external: true}}
configs:
  conf: {{file: ./conf.{version}, name: "conf-{version}"{template}}}
"#
    );
    file(dir, "stack.yml", &text)
}

#[test]
#[ignore = "needs root"]
fn a_stack_with_secrets_and_configs_is_deployed_changed_and_pruned() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "own.key", "of the stack");
    file(dir.path(), "conf.1", "first");
    file(dir.path(), "conf.2", "second {{index .Service.Labels \"tier\"}}");
    lab.docker("m1", &["secret", "create", "shared", &file(dir.path(), "shared.key", "of all")]).unwrap();
    let deploy = |version, worker, more: &[&str]| {
        let path = stack(dir.path(), version, worker);
        let command = ["stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", &path];
        lab.docker("m1", &[&command, more, &["st"]].concat()).unwrap();
    };
    deploy(1, true, &[]);
    lab.wait_for_running("m1", "st_web", 2);
    lab.wait_for_running("m1", "st_worker", 2);
    reads(&lab, "st_web", "/run/secrets/own", "of the stack");
    reads(&lab, "st_web", "/etc/shared.key", "of all");
    reads(&lab, "st_web", "/etc/app.conf", "first");
    let before = lab.running("m1", "st_web");

    // The same again changes nothing; another content of the config's file replaces the tasks.
    deploy(1, true, &[]);
    lab.wait_for_running("m1", "st_web", 2);
    assert_eq!(lab.running("m1", "st_web"), before);
    deploy(2, false, &["--prune"]);
    eventually("the new config is in force in both tasks, and the other service is gone", || {
        let running = lab.running("m1", "st_web");
        ensure!(running.len() == 2 && running.iter().all(|task| !before.contains(task)), "{running:?}");
        let services = lab.docker("m1", &["stack", "services", "--format", "{{.Name}}", "st"])?;
        ensure!(services == "st_web\n", "{services}");
        Ok(())
    });
    reads(&lab, "st_web", "/etc/app.conf", "second front");

    // A changed secret keeps its name in the file: Swarm cannot change it in place.
    file(dir.path(), "own.key", "changed");
    let path = stack(dir.path(), 2, false);
    refused(&lab, &["stack", "deploy", "--detach=true", "-c", &path, "st"], "only updates to Labels are allowed");
    lab.docker("m1", &["stack", "rm", "st"]).unwrap();
    assert_eq!(lab.docker("m1", &["secret", "ls", "--format", "{{.Name}}"]).unwrap(), "shared\n");
    another_content_replaces_the_tasks_of_an_applied_stack(&lab, dir.path());
}

fn another_content_replaces_the_tasks_of_an_applied_stack(lab: &Lab, dir: &Path) {
    let path = file(
        dir,
        "apply.yml",
        "services:\n  web:\n    image: busybox:test\n    stop_grace_period: 0s\n    command: sleep 1000000\n    cap_drop: [ALL]\n\
         \x20   secrets: [own, {source: shared, target: /etc/k}]\n    configs: [{source: c, target: /c.conf}]\n\
         secrets:\n  own: {file: ./own.key}\n  shared: {external: true}\nconfigs:\n  c: {content: plain}\n",
    );
    let apply = || lab.skep("m1", &["apply", "-f", &path, "--stack", "ap"]).unwrap();
    let names = || lab.docker("m1", &["secret", "ls", "--format", "{{.Name}}"]).unwrap();
    file(dir, "own.key", "first");
    apply();
    reads(lab, "ap_web", "/run/secrets/own", "first");
    reads(lab, "ap_web", "/etc/k", "of all");
    reads(lab, "ap_web", "/c.conf", "plain");
    let before = container(lab, "ap_web").unwrap();
    assert!(apply().contains("no changes"));
    assert_eq!(container(lab, "ap_web").unwrap(), before);
    file(dir, "own.key", "second");
    assert!(apply().contains("create secret ap_own-2"));
    reads(lab, "ap_web", "/run/secrets/own", "second");
    assert_eq!(names(), "ap_own\nap_own-2\nshared\n", "the first is kept for a rollback");
    let listed = lab.skep("m1", &["secret", "ls"]).unwrap();
    assert!(listed.contains("ap_own-2"), "{listed}");
    refused(lab, &["secret", "rm", "ap_own-2"], "in use");
    lab.skep("m1", &["stack", "rm", "ap"]).unwrap();
    lab.skep("m1", &["secret", "rm", "shared"]).unwrap();
    lab.skep("m1", &["secret", "create", "mine", &file(dir, "mine", "of skep")]).unwrap();
    let create = [
        "service",
        "create",
        "-d",
        "--name",
        "sk",
        "--secret",
        "source=mine,target=/m,mode=0400",
        "--cap-drop",
        "all",
        "busybox:test",
        "sleep",
        "1000000",
    ];
    lab.skep("m1", &create).unwrap();
    reads(lab, "sk", "/m", "of skep");
}
