//! Stacks of images that their registries show to nobody without a login.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::ensure;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use skep_tests::images::busybox_layer;
use skep_tests::registry::{LAB_SUBNETS, PASSWORD, Registry, USER};
use skep_tests::{Lab, eventually};

/// A pod on every node whose containers come from two registries.
const PODS: &str = "
apiVersion: v1
kind: Secret
metadata: {name: logins}
type: kubernetes.io/dockerconfigjson
data: {.dockerconfigjson: LOGINS}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: tool}
spec:
  selector: {matchLabels: {app: tool}}
  template:
    metadata: {labels: {app: tool}}
    spec:
      terminationGracePeriodSeconds: 1
      imagePullSecrets: [{name: logins}]
      initContainers: [{name: first, image: 'SECOND/team/first:1', command: ['true']}]
      containers: [{name: tool, image: 'FIRST/tool:1', command: [sleep, '1000000']}]
";

/// A program that keeps credentials, as docker-credential-helpers are asked.
fn helper(dir: &Path, server: &str) {
    let path = dir.join("docker-credential-lab");
    let answer = json!({"ServerURL": server, "Username": USER, "Secret": PASSWORD});
    let script = format!(
        "#!/bin/sh\nread server\n[ \"$1 $server\" = 'get {server}' ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\necho '{answer}'\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "needs root"]
fn every_node_pulls_with_the_credentials_of_manifests_and_of_the_caller_and_nobody_is_shown_them() {
    let (first, second) = (Registry::start(), Registry::start());
    let dir = tempfile::tempdir().unwrap();
    let layer = busybox_layer(dir.path());
    for (registry, name) in [(&first, "tool"), (&second, "team/first"), (&second, "other")] {
        registry.push(name, "1", &layer, &["sleep", "1000000"]).unwrap();
    }
    let lab = Lab::up(1, 1, &["--insecure-registry", LAB_SUBNETS]);
    let [first, second] = [&first, &second].map(|registry| format!("{}:{}", lab.gateway(), registry.port()));

    // By a Secret of the manifests: each registry is shown its own login.
    let login = json!({"auth": BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"))});
    let wrong = json!({"username": USER, "password": "of another team"});
    let all = json!({"auths": {&first: login, format!("{second}/team"): login, &second: wrong}});
    let text = PODS.replace("FIRST", &first).replace("SECOND", &second);
    let text = text.replace("LOGINS", &BASE64_STANDARD.encode(all.to_string()));
    let file = dir.path().join("pods.yml");
    std::fs::write(&file, text).unwrap();
    let apply = ["apply", "--stack", "pods", "-f", file.to_str().unwrap()];
    let said = lab.skep("m1", &apply).unwrap();
    assert_eq!(lab.running("m1", "pods_tool").len(), 2, "on every node");
    let again = lab.skep("m1", &apply).unwrap();
    assert_eq!(again, "stack pods: no changes\n");

    // Nothing that is printed or kept for people has them.
    let mut shown = said;
    for arguments in [
        &["service", "inspect", "pods_tool"][..],
        &["stack", "history", "pods", "--json"],
        &["stack", "export", "pods", "-o", "kube"],
        &["stack", "diff", "--stack", "pods", "-f", file.to_str().unwrap(), "-o", "json"],
        &["config", "ls"],
        &["secret", "ls"],
    ] {
        shown.push_str(&lab.skep("m1", arguments).unwrap());
    }
    let quoted = format!("\"{PASSWORD}\"");
    for secret in [quoted.as_str(), login["auth"].as_str().unwrap(), "of another team"] {
        assert!(!shown.contains(secret), "{secret} is in {shown}");
    }

    // By the caller's own, which a program keeps: only when that is asked for.
    helper(dir.path(), &second);
    let config = dir.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("config.json"), json!({"credHelpers": {&second: "lab"}}).to_string()).unwrap();
    let file = dir.path().join("compose.yml");
    let service = format!(
        "services:\n  other:\n    image: {second}/other:1\n    stop_grace_period: 1s\n    deploy: {{mode: global, restart_policy: {{condition: none}}}}\n"
    );
    std::fs::write(&file, service).unwrap();
    let apply = |more: &[&str]| {
        let arguments = [&["apply", "--stack", "c", "-f", file.to_str().unwrap()], more].concat();
        let mut command = lab.skep_command("m1", &arguments);
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let output = command.env("DOCKER_CONFIG", &config).env("PATH", path).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    apply(&["-d"]);
    eventually("without a login nothing is pulled, and the task says why", || {
        let story = lab.docker("m1", &["service", "ps", "--no-trunc", "c_other"])?;
        ensure!(story.contains("Rejected") && story.contains("docker login"), "{story}");
        Ok(())
    });
    lab.skep("m1", &["stack", "rm", "c"]).unwrap();
    eventually("the stack is gone", || {
        let left = lab.docker("m1", &["service", "ls", "-q", "-f", "name=c_other"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    });
    let (is_done, said) = apply(&["--with-registry-auth"]);
    assert!(is_done, "{said}");
    assert_eq!(lab.running("m1", "c_other").len(), 2, "on every node");
}
