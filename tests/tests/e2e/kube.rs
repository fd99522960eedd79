//! Kubernetes manifests on a real cluster: pods, members of StatefulSets, names of Services.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;
use skep_tests::{Lab, eventually, images};

const POD: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: site}
data: {greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: site}
stringData: {word: sesame}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      terminationGracePeriodSeconds: 3
      initContainers:
      - name: first
        image: busybox:test
        command: [sh, -c, "echo one > /shared/order"]
        volumeMounts: [{name: shared, mountPath: /shared}]
      - name: helper
        image: busybox:test
        restartPolicy: Always
        command: [sh, -c, "echo two >> /shared/order; exec sleep 1000"]
        startupProbe: {exec: {command: [cat, /shared/order]}, periodSeconds: 1}
        volumeMounts: [{name: shared, mountPath: /shared}]
      containers:
      - name: web
        image: skep/whoami:latest
        args: ["--port", "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1, failureThreshold: 1}
        livenessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /etc/site}]
      - name: shell
        image: busybox:test
        command: [sh, -c, "echo three >> /shared/order; cat /etc/site/word; echo; exec sleep 1000"]
        lifecycle:
          preStop: {exec: {command: [sh, -c, "echo stopped >> /host/log"]}}
        volumeMounts:
        - {name: shared, mountPath: /shared}
        - {name: data, mountPath: /etc/site}
        - {name: host, mountPath: /host}
      volumes:
      - {name: shared, emptyDir: {}}
      - name: data
        projected:
          sources: [{configMap: {name: site}}, {secret: {name: site}}]
      - {name: host, hostPath: {path: HOST, type: DirectoryOrCreate}}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec:
  type: NodePort
  selector: {app: site}
  ports: [{port: 80, targetPort: http, nodePort: 30080}]
"#;

const MEMBERS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db-read}
spec: {selector: {app: db}, ports: [{port: 8000, targetPort: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: db
        image: skep/whoami:latest
        volumeMounts: [{name: data, mountPath: /data}]
      - name: shell
        image: busybox:test
        command: [sh, -c, "[ -e /data/first ] || hostname > /data/first; exec sleep 1000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce]}
"#;

fn file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.root("m1").join(name);
    std::fs::write(&path, text.replace("HOST", &lab.root("m1").join("hook").display().to_string()))
        .expect("the lab's own directory");
    path
}

fn apply(lab: &Lab, path: &std::path::Path) -> String {
    lab.skep("m1", &["apply", "-f", path.to_str().expect("a path of text"), "--stack", "k"])
        .expect("the manifest applies")
}

/// The name of the container of a task on the node where it runs: `SERVICE.SLOT.TASK[.CONTAINER]`.
fn containers(lab: &Lab, node: &str, service: &str) -> Vec<String> {
    let names = lab
        .docker(node, &["ps", "--filter", &format!("name={service}."), "--format", "{{.Names}}"])
        .expect("the node answers");
    let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
    names.sort();
    names
}

fn container(lab: &Lab, node: &str, service: &str, ending: &str) -> String {
    let all = containers(lab, node, service);
    all.iter().find(|name| name.ends_with(ending)).cloned().unwrap_or_else(|| panic!("no {ending} in {all:?}"))
}

#[test]
#[ignore = "needs root"]
fn a_pod_runs_in_its_order_is_probed_and_is_taken_over_by_the_next_daemon() {
    let lab = Lab::up(1, 0, &[]);
    images::load_busybox(&lab);
    let path = file(&lab, "pod.yml", POD);
    apply(&lab, &path);
    let exec = |container: &str, words: &[&str]| lab.docker("m1", &[&["exec", container], words].concat());
    let names = containers(&lab, "m1", "k_site");
    assert_eq!(names.len(), 3, "the first container, the shell and the helper run: {names:?}");
    let shell = container(&lab, "m1", "k_site", ".shell");
    assert_eq!(exec(&shell, &["cat", "/shared/order"]).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(exec(&shell, &["cat", "/etc/site/greeting"]).unwrap(), "hello");
    assert_eq!(lab.docker("m1", &["logs", &shell]).unwrap(), "sesame\n");
    // One network, one host name; the port of the Service leads to another one of the pod, by each of its names.
    assert!(exec(&shell, &["wget", "-qO-", "http://127.0.0.1:8080/"]).unwrap().contains("Hostname:"));
    let own = names.iter().find(|name| name.matches('.').count() == 2).expect("the first container has Swarm's name");
    let host_of = |name: &str| lab.docker("m1", &["inspect", "--format", "{{.Config.Hostname}}", name]).unwrap();
    assert_eq!(host_of(own), host_of(&shell));
    for name in ["site", "site.default", "site.default.svc.cluster.local"] {
        let answer = exec(&shell, &["wget", "-qO-", &format!("http://{name}/")]);
        let answer = answer.unwrap_or_else(|e| e.to_string());
        assert!(answer.contains("Hostname:"), "{name}: {answer}");
    }
    assert!(exec(&shell, &["nslookup", "nobody.default.svc.cluster.local"]).is_err());

    // What is not ready gets nothing new, and is not ended.
    let answers = || lab.http("m1", 30080, "/").is_ok();
    eventually("the published port answers", || {
        ensure!(answers());
        Ok(())
    });
    exec(&shell, &["wget", "-qO-", "http://127.0.0.1:8080/health?status=503"]).ok();
    eventually("the task gets no connections", || {
        ensure!(!answers());
        Ok(())
    });
    exec(&shell, &["wget", "-qO-", "http://127.0.0.1:8080/health?status=200"]).ok();
    eventually("the task gets connections again", || {
        ensure!(answers());
        Ok(())
    });

    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    eventually("the daemon answers", || lab.docker("m1", &["version"]).map(drop));
    eventually("the task is known as running", || {
        ensure!(lab.running("m1", "k_site").len() == 1);
        Ok(())
    });
    assert_eq!(containers(&lab, "m1", "k_site"), names, "nothing was started anew");

    // A client of Docker's changes what it knows, and loses nothing of the rest.
    lab.docker("m1", &["service", "update", "--detach", "--label-add", "by=docker", "k_site"]).unwrap();
    let again = apply(&lab, &path);
    assert!(!again.is_empty());
    assert_eq!(containers(&lab, "m1", "k_site"), names);

    // A sidecar that fails is started again in its task. Another task has containers of its own.
    let helper = container(&lab, "m1", "k_site", ".helper");
    lab.docker("m1", &["kill", &helper]).unwrap();
    eventually("the helper runs again", || {
        let restarts = lab.docker("m1", &["inspect", "--format", "{{.State.Running}} {{.RestartCount}}", &helper])?;
        ensure!(restarts.trim() == "true 1", "{restarts}");
        Ok(())
    });
    assert_eq!(containers(&lab, "m1", "k_site"), names);
    lab.docker("m1", &["service", "update", "--force", "--detach", "k_site"]).unwrap();
    eventually("another task runs", || {
        let now = containers(&lab, "m1", "k_site");
        ensure!(now.len() == 3 && now.iter().all(|name| !names.contains(name)), "{now:?}");
        Ok(())
    });
    let log = || std::fs::read_to_string(lab.root("m1").join("hook/log")).context("the hook's log").unwrap();
    eventually("the hook comes before the stop", || {
        ensure!(log() == "stopped\n", "{}", log());
        Ok(())
    });
    lab.docker("m1", &["service", "rm", "k_site"]).unwrap();
    eventually("nothing of the pod is left", || {
        let left = lab.docker("m1", &["volume", "ls", "-q"])?;
        ensure!(left.is_empty(), "{left}");
        ensure!(containers(&lab, "m1", "k_site").is_empty());
        Ok(())
    });
    assert_eq!(log(), "stopped\nstopped\n");
}

#[test]
#[ignore = "needs root"]
fn members_of_a_stateful_set_keep_their_name_and_their_volume() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let path = file(&lab, "members.yml", MEMBERS);
    apply(&lab, &path);
    let place = || {
        let format = "{{.Name}} {{.Node}}";
        let listed =
            lab.docker("m1", &["service", "ps", "--filter", "desired-state=running", "--format", format, "k_db"]);
        let mut lines: Vec<String> = listed.unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = place();
    assert_eq!(before.len(), 2);
    let node_of = |places: &[String], slot: &str| {
        let found = places.iter().find(|line| line.starts_with(&format!("k_db.{slot} ")));
        found.and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned()
    };
    let shell = |slot: u32| {
        let node = node_of(&place(), &slot.to_string());
        let all = containers(&lab, &node, "k_db");
        let name = all.into_iter().find(|name| name.starts_with(&format!("k_db.{slot}.")) && name.ends_with(".shell"));
        (node, name.unwrap_or_default())
    };
    let ask = |slot: u32, words: &[&str]| {
        let (node, name) = shell(slot);
        lab.docker(&node, &[&["exec", &name], words].concat())
    };
    for (slot, name) in [(1, "db-0"), (2, "db-1")] {
        assert_eq!(ask(slot, &["hostname"]).unwrap().trim(), name);
        assert_eq!(ask(slot, &["cat", "/data/first"]).unwrap().trim(), name);
    }
    // Each member by its own names, from the other one; the headless Service is all of them; the other one is one address.
    for name in ["db-1.db", "db-1.db.default.svc.cluster.local"] {
        let answer = ask(1, &["wget", "-qO-", &format!("http://{name}/")]);
        let answer = answer.unwrap_or_else(|e| e.to_string());
        assert!(answer.contains("Hostname: db-1"), "{name}: {answer}");
    }
    let found = ask(1, &["nslookup", "db.default.svc.cluster.local"]).unwrap();
    assert!(found.matches("Address").count() >= 3, "the server and both members: {found}");
    let answer = ask(2, &["wget", "-qO-", "http://db-read:8000/"]);
    let answer = answer.unwrap_or_else(|e| e.to_string());
    assert!(answer.contains("Hostname: db-"), "{answer}");

    // Replaced, and scaled away and back: the same volume on the same node.
    lab.docker("m1", &["service", "update", "--force", "--detach=false", "k_db"]).unwrap();
    assert_eq!(place(), before, "members stay where their volumes are");
    lab.docker("m1", &["service", "scale", "k_db=1"]).unwrap();
    eventually("one member is left", || {
        ensure!(place().len() == 1);
        Ok(())
    });
    lab.docker("m1", &["service", "scale", "k_db=2"]).unwrap();
    lab.wait_for_running("m1", "k_db", 2);
    assert_eq!(place(), before);
    for (slot, name) in [(1, "db-0"), (2, "db-1")] {
        assert_eq!(ask(slot, &["cat", "/data/first"]).unwrap().trim(), name);
    }
    let shown = lab.docker("m1", &["service", "inspect", "k_db"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["Spec"]["Name"], "k_db");
}
