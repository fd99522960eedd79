//! `skep apply`: plan, drift, pruning, history, waiting, dependencies, and stacks of the stock client.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::Value;
use skep_tests::images::load_busybox;
use skep_tests::{Lab, eventually};

struct Project<'a> {
    lab: &'a Lab,
    dir: tempfile::TempDir,
}

impl<'a> Project<'a> {
    fn new(lab: &'a Lab) -> Self {
        Self { lab, dir: tempfile::tempdir().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn skep(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.lab.skep("m1", arguments)
    }

    /// Applies without waiting.
    fn apply(&self, file: &Path, more: &[&str]) -> anyhow::Result<String> {
        self.skep(&[&["apply", "-d", "--stack", "demo", "-f", file.to_str().unwrap()], more].concat())
    }

    fn spec(&self, service: &str) -> Value {
        let text = self.lab.docker("m1", &["service", "inspect", service]).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()[0].clone()
    }

    fn configs(&self) -> Vec<String> {
        let listed = self.lab.docker("m1", &["config", "ls", "--format", "{{.Name}}"]).unwrap();
        listed.lines().filter(|name| !name.contains(".revision.")).map(str::to_owned).collect()
    }
}

fn stack(content: &str, replicas: u8, more: &str) -> String {
    format!(
        "services:\n  web:\n    image: busybox:test\n    stop_grace_period: 0s\n    command: sleep 1000000\n    environment: {{GREETING: '${{GREETING:-hello}}'}}\n\
         \x20   configs: [{{source: conf, target: /c}}]\n    secrets: [key]\n    deploy: {{replicas: {replicas}}}\n{more}\
         configs: {{conf: {{content: '{content}'}}}}\nsecrets: {{key: {{file: ./key}}}}\n"
    )
}

#[test]
#[ignore = "needs root"]
fn a_stack_is_planned_applied_changed_by_hand_rolled_back_and_pruned() {
    let lab = Lab::up(1, 1, &[]);
    load_busybox(&lab);
    let project = Project::new(&lab);
    project.write("key", "one");
    let other = "  other: {image: 'busybox:test', stop_grace_period: 0s, command: sleep 1000000}\n";
    let file = project.write("stack.yml", &stack("first", 1, other));
    let path = file.to_str().unwrap();

    // A plan touches nothing; an apply waits until all runs; a second one has nothing to do.
    let said = project.apply(&file, &["--dry-run"]).unwrap();
    assert!(said.contains("+ create service demo_web") && said.ends_with("stack demo: 5 to create\n"), "{said}");
    assert!(project.configs().is_empty());
    project.skep(&["apply", "--stack", "demo", "-f", path]).unwrap();
    assert_eq!(lab.running("m1", "demo_web").len(), 1, "it has waited");
    let before = project.spec("demo_web");
    assert_eq!(project.apply(&file, &[]).unwrap(), "stack demo: no changes\n");
    assert_eq!(project.spec("demo_web")["Version"], before["Version"], "nothing was touched");
    let history = project.skep(&["stack", "history", "demo"]).unwrap();
    assert_eq!(history.lines().count(), 2, "{history}");

    // Another content rolls the config and the secret; the old ones stay for a rollback.
    project.write("key", "two");
    project.write("stack.yml", &stack("second", 1, other));
    let said = project.apply(&file, &[]).unwrap();
    for line in ["+ create config demo_conf-2", "+ create secret demo_key-2", "ConfigName: demo_conf -> demo_conf-2"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(project.configs(), ["demo_conf", "demo_conf-2"]);
    assert_eq!(project.apply(&file, &[]).unwrap(), "stack demo: no changes\n");

    // What is changed by hand is told, kept through another change, and taken back when asked to.
    lab.docker("m1", &["service", "scale", "--detach", "demo_web=2"]).unwrap();
    let said = project.apply(&file, &[]).unwrap();
    assert!(said.contains("Replicas: 2, the files say 1") && said.contains("no changes"), "{said}");
    let diff = project.skep(&["stack", "diff", "--stack", "demo", "-f", path, "-o", "json"]).unwrap();
    let diff: Value = serde_json::from_str(&diff).unwrap();
    assert_eq!(diff["drift"][0]["service"], "demo_web");
    assert_eq!(diff["changes"].as_array().unwrap().len(), 0);
    let said = project.apply(&file, &["--force"]).unwrap();
    assert!(said.contains("Replicas: 2 -> 1"), "{said}");

    // Back to the first revision, with its files; and what is not wanted any more goes.
    let said = project.skep(&["stack", "rollback", "-d", "demo", "1"]).unwrap();
    assert!(said.contains("ConfigName: demo_conf-2 -> demo_conf\n"), "{said}");
    let container = &project.spec("demo_web")["Spec"]["TaskTemplate"]["ContainerSpec"];
    assert_eq!(
        (&container["Configs"][0]["ConfigName"], &container["Secrets"][0]["SecretName"]),
        (&"demo_conf".into(), &"demo_key".into())
    );
    project.write("stack.yml", &stack("second", 1, ""));
    let said = project.apply(&file, &[]).unwrap();
    assert!(said.contains("- remove service demo_other") && said.contains("-> demo_conf-2"), "{said}");
    assert!(project.skep(&["stack", "rollback", "demo", "99"]).unwrap_err().to_string().contains("no revision 99"));

    a_failed_update_is_told_with_its_log(&project);
    a_service_waits_in_the_cluster(&project);
    project.skep(&["stack", "rm", "demo"]).unwrap();
    eventually("nothing of the stack is left", || {
        let left = lab.docker("m1", &["config", "ls", "-q"])? + &lab.docker("m1", &["secret", "ls", "-q"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    });
    a_stack_of_the_stock_client_is_the_same_and_is_taken_over(&lab);
}

fn a_failed_update_is_told_with_its_log(project: &Project<'_>) {
    let text = |command: &str| {
        format!(
            "services:\n  bad:\n    image: busybox:test\n    command: {command}\n    deploy: {{restart_policy: {{delay: 0s}}, update_config: {{failure_action: pause, monitor: 2s}}}}\n"
        )
    };
    let file = project.write("bad.yml", &text("sleep 1000000"));
    let path = file.to_str().unwrap().to_owned();
    project.skep(&["apply", "-d", "--stack", "bad", "-f", &path]).unwrap();
    project.lab.wait_for_running("m1", "bad_bad", 1);
    project.write("bad.yml", &text("[sh, -c, 'echo the disk is on fire; exit 3']"));
    let error = project.skep(&["apply", "--stack", "bad", "-f", &path]).unwrap_err().to_string();
    assert!(error.contains("the update is paused") && error.contains("the disk is on fire"), "{error}");
    project.skep(&["stack", "rm", "bad"]).unwrap();

    let late = "services: {never: {image: 'busybox:test', command: 'sleep 9', deploy: {placement: {constraints: [node.labels.x == y]}}}}\n";
    let file = project.write("late.yml", late);
    let apply = ["apply", "--stack", "late", "--timeout", "1s", "-f", file.to_str().unwrap()];
    let error = project.skep(&apply).unwrap_err().to_string();
    assert!(error.contains("not done after 1 s") && error.contains("late_never: 0/1"), "{error}");
    project.skep(&["stack", "rm", "late"]).unwrap();
}

fn a_service_waits_in_the_cluster(project: &Project<'_>) {
    let text = "services:\n  web: {image: 'busybox:test', stop_grace_period: 0s, command: sleep 1000000, depends_on: {migrate: {condition: service_completed_successfully}, db: {condition: service_healthy}}}\n\
                \x20 migrate: {image: 'busybox:test', command: 'true', depends_on: {db: {condition: service_healthy}}}\n\
                \x20 db: {image: 'busybox:test', stop_grace_period: 0s, command: [sh, -c, 'sleep 2; echo > /up; sleep 1000000'], healthcheck: {test: [CMD-SHELL, '[ -e /up ]'], interval: 200ms, retries: 100}}\n";
    let file = project.write("order.yml", text);
    project.skep(&["apply", "--stack", "order", "-f", file.to_str().unwrap()]).unwrap();
    let started = |service: &str| {
        let id = project.lab.docker("m1", &["service", "ps", "-q", "--no-trunc", service]).unwrap();
        let at =
            project.lab.docker("m1", &["inspect", "--format", "{{.Status.Timestamp}}", id.lines().next().unwrap()]);
        at.unwrap()
    };
    let (db, migrate, web) = (started("order_db"), started("order_migrate"), started("order_web"));
    assert!(db < migrate && migrate < web, "{db} {migrate} {web}");
    project.skep(&["stack", "rm", "order"]).unwrap();
}

/// What both clients make of one file is the same, so that each can go on with the other's stack.
fn a_stack_of_the_stock_client_is_the_same_and_is_taken_over(lab: &Lab) {
    let project = Project::new(lab);
    let file = project.write("both.yml", include_str!("apply/both.yml"));
    project.write("key", "secret");
    project.write("conf", "config");
    project.write("more.env", "FROM_FILE=1\nB=of the file\n");
    let path = file.to_str().unwrap();
    lab.docker("m1", &["stack", "deploy", "--detach=true", "--resolve-image", "never", "-c", path, "both"]).unwrap();
    let said = project.skep(&["apply", "-d", "--stack", "both", "-f", path, "--dry-run"]).unwrap();
    assert_eq!(said, "stack both: no changes\n");
    let services = ["both_web", "both_all", "both_job"];
    let of_docker: Vec<Value> = services.map(|s| normalised(&project.spec(s)["Spec"])).to_vec();
    project.skep(&["apply", "-d", "--stack", "both", "-f", path]).unwrap();
    lab.docker("m1", &["stack", "rm", "both"]).unwrap();
    eventually("the networks are gone", || {
        let left = lab.docker("m1", &["network", "ls", "-q", "--filter", "label=com.docker.stack.namespace=both"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    });
    project.skep(&["apply", "-d", "--stack", "both", "-f", path]).unwrap();
    // Written as a file, it is the same again.
    let exported = project.skep(&["stack", "export", "both", "-o", "compose"]).unwrap();
    let export = project.write("export.yml", &exported);
    let said = project.skep(&["stack", "diff", "--stack", "both", "-f", export.to_str().unwrap()]).unwrap();
    assert_eq!(said, "stack both: no changes\n", "{exported}");
    for (name, expected) in services.into_iter().zip(of_docker) {
        assert_eq!(normalised(&project.spec(name)["Spec"]), expected, "{name}");
    }
    lab.docker("m1", &["stack", "rm", "both"]).unwrap();
}

/// A spec without ids, which differ between two makings of the same, and without what says nothing; in one order.
fn normalised(spec: &Value) -> Value {
    match spec {
        Value::Object(map) => {
            let is_id =
                |key: &str| key.ends_with("ID") && key.len() > 3 || key == "Target" && !map.contains_key("Type");
            let says =
                |v: &Value| !matches!(v, Value::Null | Value::Bool(false)) && *v != Value::Object(Default::default());
            let value = |key: &str, value: &Value| {
                let mut value = normalised(value);
                // Names of one address: their order says nothing.
                if key == "Aliases" {
                    value.as_array_mut().into_iter().for_each(|names| names.sort_by_key(Value::to_string));
                }
                value
            };
            let kept = map.iter().filter(|(key, _)| !is_id(key)).map(|(k, v)| (k.clone(), value(k, v)));
            kept.filter(|(_, v)| says(v)).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(list) => {
            let mut items: Vec<Value> = list.iter().map(normalised).collect();
            if items.iter().all(Value::is_object) {
                items.sort_by_key(Value::to_string);
            }
            items.into()
        }
        other => other.clone(),
    }
}
