//! `skep stack export -o kube`: what the cluster has of a stack, as manifests that apply to no changes.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::Path;

use anyhow::ensure;
use skep_tests::images::load_busybox;
use skep_tests::{Lab, eventually};

/// Stacks that the readers are tested with, whose tasks need not run for this.
const RECORDED: [&str; 16] = [
    "kube/testdata/redis-cluster.yml",
    "kube/testdata/web-probes.yml",
    "kube/testdata/log-collector.yml",
    "kube/testdata/migration-job.yml",
    "kube/testdata/backup-cronjob.yml",
    "kube/testdata/pod-sidecar.yml",
    "kube/testdata/postgres-claim.yml",
    "kube/testdata/guestbook.yml",
    "kube/testdata/namespaces.yml",
    "kube/testdata/replication-controller.yml",
    "compose/testdata/elasticsearch-kibana.yml",
    "compose/testdata/voting-app.yml",
    "compose/testdata/traefik.yml",
    "compose/testdata/redis-cluster.yml",
    "compose/testdata/kafka.yml",
    "compose/testdata/gitea.yml",
];

/// The export of a stack, applied again from nothing but its text.
fn export_and_apply(lab: &Lab, stack: &str, dir: &Path) -> anyhow::Result<String> {
    let text = lab.skep("m1", &["stack", "export", stack, "-o", "kube"])?;
    let file = dir.join("export.yml");
    std::fs::write(&file, &text)?;
    let said = lab.skep("m1", &["apply", "-d", "--stack", stack, "-f", file.to_str().unwrap()])?;
    ensure!(said == format!("stack {stack}: no changes\n"), "{said}\n{text}");
    Ok(text)
}

#[test]
#[ignore = "needs root"]
fn every_recorded_stack_is_exported_as_manifests_that_change_nothing() {
    let lab = Lab::up(1, 0, &[]);
    // Images are of no interest here.
    lab.docker("m1", &["node", "update", "--availability", "drain", "m1"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "DB_PASSWORD=x\nACME_EMAIL=ops@example.org\n").unwrap();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/src/manifest");
    for name in RECORDED {
        let file = dir.path().join("stack.yml");
        // Published ports of one stack are free again once its services are gone.
        std::fs::copy(manifests.join(name), &file).unwrap();
        let arguments = ["apply", "-d", "--stack", "demo", "--profile", "load", "-f", file.to_str().unwrap()];
        lab.skep("m1", &arguments).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let exported = export_and_apply(&lab, "demo", dir.path());
        exported.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        lab.skep("m1", &["stack", "rm", "demo"]).unwrap();
        eventually("the stack is gone", || {
            let left = lab.docker("m1", &["service", "ls", "-q"])?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        });
    }
}

const SHOP: &str = "
services:
  My_Web:
    image: busybox:test
    command: sh -c 'cat /run/secrets/key /etc/conf; echo; sleep 1000000'
    configs: [{source: conf, target: /etc/conf}]
    secrets: [key]
    networks: {front: {aliases: [web.shop]}, back: }
    ports: ['18080:80']
    healthcheck: {test: 'test -e /etc/conf', interval: 1s}
    stop_grace_period: 1s
    deploy:
      update_config: {order: start-first, delay: 1s}
      resources: {limits: {pids: 50}, reservations: {generic_resources: [{discrete_resource_spec: {kind: gpu, value: 1}}]}}
networks: {front: , back: {internal: true}}
configs: {conf: {content: CONTENT}}
secrets: {key: {file: ./key}}
";

#[test]
#[ignore = "needs root"]
fn a_stack_of_compose_goes_on_as_manifests() {
    let lab = Lab::up(1, 0, &["--daemon-arg=--node-generic-resource=gpu=2"]);
    load_busybox(&lab);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "sesame").unwrap();
    let file = dir.path().join("shop.yml");
    for content in ["first", "second"] {
        std::fs::write(&file, SHOP.replace("CONTENT", content)).unwrap();
        lab.skep("m1", &["apply", "--stack", "shop", "-f", file.to_str().unwrap()]).unwrap();
    }
    let text = export_and_apply(&lab, "shop", dir.path()).unwrap();
    assert!(text.contains("conf: second") && text.contains("shop_key") && !text.contains("sesame"), "{text}");

    // From then on the manifests are what is changed.
    std::fs::write(dir.path().join("export.yml"), text.replace("conf: second", "conf: third")).unwrap();
    let manifests = dir.path().join("export.yml");
    let said = lab.skep("m1", &["apply", "--stack", "shop", "-f", manifests.to_str().unwrap()]).unwrap();
    assert!(said.contains("create config shop_conf-3"), "{said}");
    eventually("the new content is in the container", || {
        let log = lab.docker("m1", &["service", "logs", "--raw", "shop_My_Web"])?;
        ensure!(
            log.contains("sesamethird"),
            "{log}\n{}",
            lab.docker("m1", &["service", "ps", "--no-trunc", "shop_My_Web"])?
        );
        Ok(())
    });
    let spec = lab.docker("m1", &["service", "inspect", "shop_My_Web", "--format", "{{json .Spec}}"]).unwrap();
    assert!(spec.contains(r#""Kind":"gpu","Value":1"#) && spec.contains("web.shop"), "{spec}");

    // The secret must be there: its content is in no export.
    lab.skep("m1", &["stack", "rm", "shop"]).unwrap();
    eventually("the stack is gone, and its manifests say what they lack", || {
        let refused = lab.skep("m1", &["apply", "-d", "--stack", "shop", "-f", manifests.to_str().unwrap()]);
        let Err(refused) = refused else { anyhow::bail!("it was applied without its secret") };
        ensure!(format!("{refused:#}").contains("the secret shop_key must exist"), "{refused:#}");
        Ok(())
    });
}
