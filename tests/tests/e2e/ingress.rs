//! The routing mesh as a network: removed, made again without encryption and with smaller packets, and put back.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use skep_tests::capture::{Capture, Frames};
use skep_tests::load::Load;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";
/// What tasks answer.
const SECRET: &str = "quince-behind-the-second-shelf";

fn refused(lab: &Lab, arguments: &[&str]) -> String {
    lab.docker("m1", arguments).unwrap_err().to_string()
}

/// Starts a service on the worker whose port is asked at the manager.
fn serve(lab: &Lab, name: &str) {
    let place = ["--constraint", "node.role==worker", "-p", "8080:80", IMAGE, "--name", SECRET];
    lab.docker("m1", &[&["service", "create", "-d", "--name", name][..], &place].concat()).unwrap();
    lab.wait_for_running("m1", name, 1);
}

/// What is on the wire between the nodes while the manager asks itself for a task of the worker.
fn asked(lab: &Lab) -> Frames {
    let capture = Capture::start(&lab.namespace("bridge"));
    eventually("the published port leads to the task", || {
        let ask = ["exec", "m1", "--", "busybox", "wget", "-qO-", "http://127.0.0.1:8080/"];
        ensure!(lab.lab(&ask)?.contains(SECRET));
        Ok(())
    });
    capture.stop()
}

/// Waits until the worker, which asks no manager for it, lists these networks of the whole cluster.
fn worker_lists(lab: &Lab, wanted: &[&str]) {
    eventually("the worker knows the routing mesh", || {
        let listed = lab.docker("w1", &["network", "ls", "-f", "scope=swarm", "--format", "{{.Name}}"])?;
        ensure!(listed.lines().collect::<Vec<_>>() == wanted, "{listed}");
        Ok(())
    });
}

fn mesh_link(lab: &Lab, node: &str) -> String {
    lab.lab(&["exec", node, "--", "ip", "-d", "-o", "link", "show", "sk-mesh"]).unwrap()
}

#[test]
#[ignore = "needs root"]
fn the_routing_mesh_is_removed_and_made_again_with_options_of_its_own() {
    let lab = Lab::up(1, 1, &[]);
    serve(&lab, "web");
    assert_eq!(asked(&lab).with(SECRET), 0, "the mesh is encrypted from the beginning");

    // The client asks before it removes the routing mesh.
    let remove = |name: &str| lab.docker_with_input("m1", &["network", "rm", name], "y\n");
    let used = remove("ingress").unwrap_err().to_string();
    assert!(used.contains("network ingress is in use by service web"), "{used}");
    let own = ["network", "create", "-d", "overlay", "--ingress"];
    let second = refused(&lab, &[&own[..], &["outside"]].concat());
    assert!(second.contains("the routing mesh ingress is already present"), "{second}");

    lab.docker("m1", &["service", "rm", "web"]).unwrap();
    eventually("the routing mesh can be removed", || remove("ingress").map(drop));
    let names = || lab.docker("m1", &["network", "ls", "--format", "{{.Name}}"]).unwrap();
    assert!(!names().contains("ingress"));
    worker_lists(&lab, &[]);
    let without = refused(&lab, &["service", "create", "-d", "-p", "8080:80", IMAGE]);
    assert!(without.contains("service needs ingress network, but no ingress network is present"), "{without}");
    let hosted = ["service", "create", "-d", "--name", "hosted", "-p", "mode=host,published=9090,target=80", IMAGE];
    lab.docker("m1", &hosted).unwrap();

    for (options, why) in [
        (["--attachable"].as_slice(), "cannot be attachable"),
        (&["--internal"], "cannot be internal"),
        (&["--subnet", "10.11.0.0/16"], "leave out --subnet"),
    ] {
        let text = refused(&lab, &[&own[..], options, &["outside"]].concat());
        assert!(text.contains(why), "{options:?}: {text}");
    }
    let plain = ["--opt", "encrypted=false", "--opt", "com.docker.network.driver.mtu=1300", "outside"];
    lab.docker("m1", &[&own[..], &plain].concat()).unwrap();
    let shown = lab.docker("m1", &["network", "inspect", "--format", "{{.Ingress}} {{.Options}}", "outside"]).unwrap();
    assert!(shown.contains("true") && shown.contains("encrypted:false"), "{shown}");
    let attached = ["service", "create", "-d", "--network", "outside", IMAGE];
    assert!(refused(&lab, &attached).contains("cannot be explicitly attached to the ingress network"));

    worker_lists(&lab, &["outside"]);

    serve(&lab, "web");
    let frames = asked(&lab);
    assert!(frames.with(SECRET) > 0 && frames.udp_to(4789) > 0, "what the mesh carries can be read now");
    let link = mesh_link(&lab, "w1");
    assert!(link.contains("mtu 1300") && link.contains("dstport 4789"), "{link}");
    let warnings = lab.docker("w1", &["info", "--format", "{{json .Warnings}}"]).unwrap();
    assert!(warnings.contains("not encrypted on these networks: outside"), "{warnings}");

    // A restart finds the link as it is, before the managers are heard.
    let load = Load::start(&[format!("{}:8080", lab.address("m1"))], 2);
    load.wait_for(100);
    lab.lab(&["kill", "w1"]).unwrap();
    lab.lab(&["start", "w1"]).unwrap();
    let after = load.answered() + 200;
    load.wait_for(after);
    let (answered, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {answered} requests failed: {failures:#?}", failures.len());
    assert_eq!(mesh_link(&lab, "w1"), link);

    lab.docker("m1", &["service", "rm", "web"]).unwrap();
    eventually("the mesh can be removed", || remove("outside").map(drop));
    lab.docker("m1", &[&own[..], &["ingress"]].concat()).unwrap();
    serve(&lab, "web");
    let frames = asked(&lab);
    assert_eq!((frames.with(SECRET), frames.udp_to(4789)), (0, 0), "encrypted again");
    assert_eq!(names().matches("ingress").count(), 1);
    worker_lists(&lab, &["ingress"]);
}
