//! Containers of a task that end and are started again in place, and jobs whose sidecars end with them.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;
use skep_tests::images::load_busybox;
use skep_tests::{Lab, eventually};

/// A sidecar that ends again and again, one whose probe wants it ended once, a main container that runs well and ends, and one
/// that stays.
const SITE: &str = "
apiVersion: v1
kind: Secret
metadata: {name: word}
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
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: brief
        image: busybox:test
        restartPolicy: Always
        command: [sh, -c, 'cat /etc/word/word >> /host/brief; echo >> /host/brief; sleep 1']
        volumeMounts: [{name: word, mountPath: /etc/word}, {name: host, mountPath: /host}]
      - name: ailing
        image: busybox:test
        restartPolicy: Always
        command: [sh, -c, 'echo >> /host/ailing; exec sleep 1000000']
        livenessProbe: {exec: {command: [sh, -c, '[ -e /host/well ] || { echo > /host/well; false; }']}, periodSeconds: 1, failureThreshold: 1}
        volumeMounts: [{name: host, mountPath: /host}]
      containers:
      - {name: stays, image: 'busybox:test', command: [sleep, '1000000']}
      - name: worker
        image: busybox:test
        command: [sh, -c, 'echo >> /host/worker; sleep 11; exit 3']
        volumeMounts: [{name: host, mountPath: /host}]
      volumes:
      - {name: word, secret: {secretName: word}}
      - {name: host, hostPath: {path: HOST, type: DirectoryOrCreate}}
";

const JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  backoffLimit: 0
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      initContainers:
      - {name: proxy, image: 'busybox:test', restartPolicy: Always, command: [sh, -c, 'sleep 1; exit 1']}
      - {name: log, image: 'busybox:test', restartPolicy: Always, command: [sleep, '1000000']}
      containers:
      - {name: work, image: 'busybox:test', command: [sleep, '4']}
";

fn file(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.root("m1").join(name);
    std::fs::write(&path, text.replace("HOST", &lab.root("m1").join("seen").display().to_string())).unwrap();
    path
}

/// How often a container of the site has begun.
fn runs(lab: &Lab, name: &str) -> usize {
    let text = std::fs::read_to_string(lab.root("m1").join("seen").join(name)).unwrap_or_default();
    text.lines().count()
}

/// The container of that name in the only task of a service.
fn inspect(lab: &Lab, service: &str, name: &str) -> anyhow::Result<Value> {
    let all = lab.docker("m1", &["ps", "-a", "--format", "{{.Names}}", "-f", &format!("name={service}")])?;
    let found = all.lines().find(|line| line.ends_with(&format!(".{name}"))).context(all.clone())?;
    let text = lab.docker("m1", &["inspect", found])?;
    Ok(serde_json::from_str::<Value>(&text)?[0].clone())
}

fn tasks(lab: &Lab, service: &str) -> Vec<String> {
    let listed = lab.docker("m1", &["service", "ps", "-q", "--no-trunc", service]).unwrap();
    listed.lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root"]
fn containers_are_started_again_in_their_task_which_goes_on() {
    let lab = Lab::up(1, 0, &[]);
    load_busybox(&lab);
    let site = file(&lab, "site.yml", SITE);
    lab.skep("m1", &["apply", "-d", "--stack", "k", "-f", site.to_str().unwrap()]).unwrap();
    eventually("the sidecars have ended and begun again", || {
        let (brief, ailing) = (runs(&lab, "brief"), runs(&lab, "ailing"));
        ensure!(brief >= 2 && ailing == 2, "{brief} {ailing}");
        Ok(())
    });
    let first = tasks(&lab, "k_site");
    assert_eq!(first.len(), 1, "{first:?}");
    eventually("and so has the worker", || {
        let worker = runs(&lab, "worker");
        ensure!(worker >= 2, "{worker}");
        Ok(())
    });
    let restarts = |name: &str| Ok::<_, anyhow::Error>(inspect(&lab, "k_site", name)?["RestartCount"].as_u64());
    assert!(restarts("brief").unwrap() >= Some(1));
    assert_eq!(restarts("worker").unwrap(), Some(1));
    let words = std::fs::read_to_string(lab.root("m1").join("seen/brief")).unwrap();
    assert!(words.lines().all(|word| word == "sesame"), "each run has its secret: {words}");

    // Another daemon goes on with it.
    let before = runs(&lab, "brief");
    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();
    eventually("a new daemon starts it again, too", || {
        let brief = runs(&lab, "brief");
        ensure!(brief > before, "{brief}");
        Ok(())
    });
    let words = std::fs::read_to_string(lab.root("m1").join("seen/brief")).unwrap();
    assert!(words.lines().all(|word| word == "sesame"), "{words}");
    assert_eq!(tasks(&lab, "k_site"), first, "the task is the same");
}

#[test]
#[ignore = "needs root"]
fn a_job_is_done_when_its_main_containers_are() {
    let lab = Lab::up(1, 0, &[]);
    load_busybox(&lab);
    let job = file(&lab, "job.yml", JOB);
    lab.skep("m1", &["apply", "--stack", "k", "-f", job.to_str().unwrap()]).unwrap();
    let story = lab.docker("m1", &["service", "ps", "k_once", "--format", "{{.CurrentState}}"]).unwrap();
    assert!(story.lines().count() == 1 && story.starts_with("Complete"), "{story}");
    for sidecar in ["proxy", "log"] {
        eventually("no sidecar goes on", || {
            let state = inspect(&lab, "k_once", sidecar)?["State"]["Status"].clone();
            ensure!(state == "exited", "{sidecar}: {state}");
            Ok(())
        });
    }
}
