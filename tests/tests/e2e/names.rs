//! Names, virtual addresses and published ports follow tasks, also those that die.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, ensure};
use skep_tests::{Lab, eventually, images};

const IMAGE: &str = "skep/whoami:latest";

/// A container that asks.
struct Asker<'a>(&'a Lab);

impl Asker<'_> {
    fn run(&self, command: &[&str]) -> String {
        let said = self.0.docker_output("m1", &[&["exec", "asker"], command].concat());
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
    }

    /// Addresses of a name, as its server tells them.
    fn resolve(&self, name: &str) -> BTreeSet<String> {
        let text = self.run(&["nslookup", name, "127.0.0.11"]);
        // The first one is the server's own.
        let found = text.lines().filter_map(|line| line.strip_prefix("Address")).skip(1);
        found.filter_map(|line| line.split_whitespace().find(|word| word.contains("10."))).map(str::to_owned).collect()
    }
}

fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

fn container_of(lab: &Lab, task: &str) -> String {
    let format = "{{.Status.ContainerStatus.ContainerID}}";
    lab.docker("m1", &["inspect", "--format", format, task]).expect("the task is known").trim().to_owned()
}

#[test]
#[ignore = "needs root"]
fn names_lead_to_tasks_that_are_there_and_to_no_others() {
    let lab = Lab::up(1, 1, &[]);
    images::load_busybox(&lab);
    let docker = |arguments: &[&str]| lab.docker("m1", arguments).unwrap();
    docker(&["network", "create", "-d", "overlay", "--attachable", "app_back"]);
    let service = |name: &str, more: &[&str]| {
        let common = ["service", "create", "-d", "--name", name, "--restart-condition", "none"];
        docker(&[&common[..], more, &[IMAGE]].concat());
    };
    service("web", &["--replicas", "4", "-p", "8080:80", "--network", "name=app_back,alias=front"]);
    service("rr", &["--replicas", "2", "--endpoint-mode", "dnsrr", "--network", "app_back"]);
    service("none", &["--replicas", "0", "--endpoint-mode", "dnsrr", "--network", "app_back"]);
    docker(&["run", "-d", "--name", "asker", "--network", "app_back", "busybox:test", "sleep", "100000"]);
    lab.wait_for_running("m1", "web", 4);
    lab.wait_for_running("m1", "rr", 2);
    let asker = Asker(&lab);
    let count = |name: &str, wanted: usize| {
        eventually(&format!("{name} has {wanted} addresses"), || {
            let found = asker.resolve(name);
            ensure!(found.len() == wanted, "{found:?}: {}", asker.run(&["nslookup", name, "127.0.0.11"]));
            Ok(())
        });
    };
    for (name, wanted) in [
        ("web", 1),
        ("tasks.web", 4),
        ("front", 1),
        ("tasks.front.app_back", 4),
        ("rr", 2),
        ("tasks.rr", 2),
        ("asker", 1),
    ] {
        count(name, wanted);
    }
    // A container by its own name, and its name by its address.
    let tasks = lab.running("m1", "web");
    let own: Vec<(String, String, String)> = tasks
        .iter()
        .map(|line| {
            let (task, node) = line.split_once(' ').unwrap();
            let slot = docker(&["inspect", "--format", "{{.Slot}}", task]);
            let name = format!("web.{}.{task}", slot.trim());
            let addresses = asker.resolve(&name);
            assert_eq!(addresses.len(), 1, "{name}");
            (task.to_owned(), node.to_owned(), addresses.into_iter().next().unwrap())
        })
        .collect();
    let named = asker.run(&["nslookup", &own[0].2, "127.0.0.11"]);
    assert!(named.contains(&format!("{}.app_back", own[0].0)), "{named}");
    // Nobody outside is asked for what only the cluster can have: the answer is there at once.
    for name in ["nobody", "nobody.app_back", "tasks.no_body"] {
        let said = asker.run(&["nslookup", name, "127.0.0.11"]);
        assert!(said.contains("NXDOMAIN"), "{name}: {said}");
    }
    for name in ["none", "tasks.none"] {
        assert_eq!(asker.resolve(name), BTreeSet::new());
    }

    // One dies.
    let (task, node, address) =
        own.iter().find(|(_, node, _)| node == "w1").expect("two nodes share four tasks").clone();
    let container = container_of(&lab, &task);
    lab.docker(&node, &["kill", &container]).unwrap();
    eventually("the managers see it dead", || {
        let state = docker(&["inspect", "--format", "{{.Status.State}}", &task]);
        ensure!(state.trim() == "failed", "{state}");
        Ok(())
    });
    let seen = Instant::now();
    eventually("DNS names it no more", || {
        let found = asker.resolve("tasks.web");
        ensure!(found.len() == 3 && !found.contains(&address), "{found:?}");
        Ok(())
    });
    let by_name = seen.elapsed();
    let hostname = &container[..12];
    // By address: the C library of a static busybox cannot look names up everywhere.
    let virtual_address = format!("http://{}/", asker.resolve("web").first().expect("web has one"));
    for (way, ask) in [
        ("the virtual address", &(|| asker.run(&["wget", "-qO-", &virtual_address])) as &dyn Fn() -> String),
        ("m1's port", &|| lab.http("m1", 8080, "/").unwrap_or_default()),
        ("w1's port", &|| lab.http("w1", 8080, "/").unwrap_or_default()),
    ] {
        let (mut hosts, mut from) = (BTreeSet::new(), seen.elapsed());
        eventually(&format!("{way} leads to the three others and never to it"), || {
            hosts.clear();
            from = seen.elapsed();
            for _ in 0..20 {
                let answer = ask();
                hosts.insert(
                    value(&answer, "Hostname").with_context(|| format!("nobody answers: {answer}"))?.to_owned(),
                );
            }
            ensure!(hosts.len() == 3 && !hosts.contains(hostname), "{hosts:?}");
            Ok(())
        });
        println!("{way}: 20 of 20 answers of those that live, from {from:?} after the managers saw it dead");
    }
    println!("DNS: {by_name:?}");
    docker(&["rm", "-f", "asker"]);
}
