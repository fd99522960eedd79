//! A program that is not ours, from a registry that asks who is there.

use anyhow::ensure;
use skep_tests::registry::{LAB_SUBNETS, PASSWORD, Registry, USER, image_of, nginx_layer};
use skep_tests::{Lab, eventually};

#[test]
#[ignore = "needs root"]
fn nginx_is_pulled_by_every_node_with_the_client_s_credentials_and_answers_everywhere() {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    let layer = nginx_layer(dir.path(), "served by nginx").unwrap();
    registry.push("nginx", "1", &layer, &["/usr/sbin/nginx", "-g", "daemon off;"]).unwrap();

    let lab = Lab::up(1, 2, &["--insecure-registry", LAB_SUBNETS]);
    let host = format!("{}:{}", lab.gateway(), registry.port());
    let image = format!("{host}/nginx:1");

    // Who is not known gets nothing, and the task says why.
    lab.docker("m1", &["service", "create", "-d", "--name", "stranger", "--restart-condition", "none", &image])
        .unwrap();
    eventually("the task of a stranger is rejected with a sentence", || {
        let story = lab.docker("m1", &["service", "ps", "--no-trunc", "stranger"])?;
        ensure!(story.contains("Rejected") && story.contains("docker login"), "{story}");
        Ok(())
    });
    lab.docker("m1", &["service", "rm", "stranger"]).unwrap();

    lab.docker("m1", &["login", "-u", USER, "-p", PASSWORD, &host]).unwrap();
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "3", "--with-registry-auth"];
    let place = ["--replicas-max-per-node", "1", "-p", "8080:80"];
    lab.docker("m1", &[&create[..], &place, &[&image]].concat()).unwrap();
    lab.wait_for_running("m1", "web", 3);
    for node in lab.nodes() {
        eventually(&format!("{node} answers"), || {
            let page = lab.http(&node, 8080, "/")?;
            ensure!(page == "served by nginx", "{page}");
            Ok(())
        });
        let images = lab.docker(&node, &["images", "--format", "{{.Repository}}"]).unwrap();
        assert!(images.contains(&format!("{host}/nginx")), "{node} has pulled it: {images}");
    }
    let pinned = image_of(&lab.docker("m1", &["service", "inspect", "web"]).unwrap()).unwrap();
    assert!(pinned.starts_with(&format!("{image}@sha256:")), "{pinned}");
}
