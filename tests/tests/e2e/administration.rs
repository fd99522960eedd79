//! Who is a manager, what the cluster is set to, its keys and certificates: all of it changed while tasks run.

use anyhow::{Context, ensure};
use skep_tests::{Lab, eventually, host};

const IMAGE: &str = "skep/whoami:latest";

/// `ManagerStatus` of a node as `docker node ls` shows it, asked at another node.
fn manager_status(lab: &Lab, from: &str, node: &str) -> anyhow::Result<String> {
    let nodes = lab.docker(from, &["node", "ls", "--format", "{{.Hostname}}={{.Status}}={{.ManagerStatus}}"])?;
    let line = nodes.lines().find(|l| l.starts_with(&format!("{node}="))).context("the node is not listed")?;
    Ok(line.split_once('=').unwrap_or_default().1.to_owned())
}

fn wait_for_status(lab: &Lab, from: &str, node: &str, wanted: &[&str]) {
    eventually(&format!("{node} is {wanted:?}"), || {
        let status = manager_status(lab, from, node)?;
        ensure!(wanted.contains(&status.as_str()), "{status}");
        Ok(())
    });
}

fn refusal(lab: &Lab, node: &str, arguments: &[&str]) -> String {
    match lab.docker(node, arguments) {
        Ok(said) => panic!("not refused: {said}"),
        Err(error) => error.to_string(),
    }
}

fn info(lab: &Lab, node: &str, field: &str) -> anyhow::Result<String> {
    Ok(lab.docker(node, &["info", "--format", &format!("{{{{{field}}}}}")])?.trim().to_owned())
}

/// `docker node` with a verb that changes roles. It reads the node and names the version it read: when the managers noted
/// something of the node in between, such as the end of the last change, the request is out of sequence and made again.
fn change_role(lab: &Lab, from: &str, arguments: &[&str]) {
    eventually(&format!("{arguments:?} is taken"), || match lab.docker(from, &[&["node"], arguments].concat()) {
        Err(error) if !error.to_string().contains("update out of sequence") => panic!("{arguments:?}: {error:#}"),
        outcome => outcome.map(drop),
    });
}

const MANAGES: &[&str] = &["Ready=Reachable", "Ready=Leader"];

#[test]
#[ignore = "needs root"]
fn a_promoted_worker_manages_and_a_demoted_manager_works_on_and_no_container_notices() {
    let lab = Lab::up(1, 2, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 3);
    let before = (lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1"));
    let last = refusal(&lab, "m1", &["node", "demote", "m1"]);
    assert!(last.contains("attempting to demote the last manager of the swarm"), "{last}");

    change_role(&lab, "m1", &["promote", "w1", "w2"]);
    for node in ["w1", "w2"] {
        wait_for_status(&lab, "m1", node, MANAGES);
        eventually("the new manager answers", || lab.docker(node, &["node", "ls"]).map(drop));
    }
    let member = refusal(&lab, "m1", &["node", "rm", "--force", "w1"]);
    assert!(
        member.contains("is a cluster manager and is a member of the raft cluster. It must be demoted"),
        "{member}"
    );

    // The leader itself: it hands over first.
    change_role(&lab, "w1", &["demote", "m1"]);
    wait_for_status(&lab, "w1", "m1", &["Ready="]);
    eventually("the demoted manager is a worker", || {
        ensure!(info(&lab, "m1", ".Swarm.ControlAvailable")? == "false");
        Ok(())
    });
    assert!(refusal(&lab, "m1", &["node", "ls"]).contains("This node is not a swarm manager. Worker nodes can't"));

    // Of two managers, one that is down takes the majority with it.
    lab.lab(&["kill", "w2"]).unwrap();
    eventually("the other manager is alone", || {
        let refused = refusal(&lab, "w1", &["node", "demote", "w1"]);
        ensure!(refused.contains("loss of quorum") || refused.contains("does not have a leader"), "{refused}");
        Ok(())
    });
    lab.lab(&["start", "w2"]).unwrap();
    wait_for_status(&lab, "w1", "w2", MANAGES);

    // And back, the first manager anew.
    change_role(&lab, "w1", &["promote", "m1"]);
    wait_for_status(&lab, "w1", "m1", MANAGES);
    eventually("it answers again", || lab.docker("m1", &["node", "ls"]).map(drop));
    // Demoted and promoted before it notices, and once more after it has.
    change_role(&lab, "m1", &["demote", "w1"]);
    change_role(&lab, "m1", &["promote", "w1"]);
    wait_for_status(&lab, "m1", "w1", MANAGES);
    change_role(&lab, "m1", &["demote", "w1"]);
    wait_for_status(&lab, "m1", "w1", &["Ready="]);
    change_role(&lab, "m1", &["update", "--role", "manager", "w1"]);
    wait_for_status(&lab, "m1", "w1", MANAGES);
    eventually("it answers once more", || lab.docker("w1", &["service", "ls"]).map(drop));
    assert_eq!((lab.running("m1", "web"), host::pids_of(&lab.cgroup(), "w1")), before, "no container was touched");
}

#[test]
#[ignore = "needs root"]
fn a_change_of_role_goes_on_after_a_kill_at_any_time_and_a_node_leaves_and_is_removed() {
    let lab = Lab::up(1, 1, &[]);
    for pause_ms in [0, 150, 400, 900] {
        for (verb, wanted) in [("promote", MANAGES), ("demote", &["Ready="] as &[&str])] {
            change_role(&lab, "m1", &[verb, "w1"]);
            // Where in the change it is killed is a matter of chance, and must not matter.
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            lab.lab(&["kill", "w1"]).unwrap();
            lab.lab(&["start", "w1"]).unwrap();
            wait_for_status(&lab, "m1", "w1", wanted);
        }
    }
    change_role(&lab, "m1", &["promote", "w1"]);
    wait_for_status(&lab, "m1", "w1", MANAGES);
    let refused = refusal(&lab, "w1", &["swarm", "leave"]);
    assert!(
        refused.contains("participating as a manager. Removing this node leaves 1 managers out of 2."),
        "{refused}"
    );
    lab.docker("w1", &["swarm", "leave", "--force"]).unwrap();
    eventually("it is down and no manager", || {
        let status = manager_status(&lab, "m1", "w1")?;
        ensure!(status == "Down=", "{status}");
        Ok(())
    });
    lab.docker("m1", &["node", "rm", "w1"]).unwrap();
    let last = refusal(&lab, "m1", &["swarm", "leave"]);
    assert!(last.contains("Removing the last manager erases all current state of the swarm."), "{last}");
}

#[test]
#[ignore = "needs root"]
fn what_swarm_update_sets_is_in_force_at_once() {
    let lab = Lab::up(1, 1, &[]);
    let settings = ["--task-history-limit", "1", "--dispatcher-heartbeat", "700ms", "--cert-expiry", "48h"];
    let snapshots = ["--snapshot-interval", "40", "--max-snapshots", "2"];
    lab.docker("m1", &[&["swarm", "update"], &settings[..], &snapshots[..]].concat()).unwrap();
    let spec = info(&lab, "m1", "json .Swarm.Cluster.Spec").unwrap();
    for part in [
        r#""TaskHistoryRetentionLimit":1"#,
        r#""SnapshotInterval":40,"KeepOldSnapshots":2"#,
        r#""HeartbeatPeriod":700000000"#,
        r#""NodeCertExpiry":172800000000000"#,
    ] {
        assert!(spec.contains(part), "{part} is not in {spec}");
    }
    for (arguments, words) in [
        (["--cert-expiry", "10m"], "minimum certificate expiry time is: 1h0m0s"),
        (["--external-ca", "protocol=cfssl,url=https://ca.example"], "not supported by skep"),
        (["--dispatcher-heartbeat", "1ms"], "heartbeat"),
    ] {
        let refused = refusal(&lab, "m1", &[&["swarm", "update"], &arguments[..]].concat());
        assert!(refused.contains(words), "{refused}");
    }
    for n in 0..220 {
        let made = lab.skep("m1", &["network", "create", "--driver", "overlay", &format!("n{n}")]);
        if let Err(error) = made {
            panic!("{error}");
        }
    }
    eventually("two older snapshots stay besides the newest", || {
        let folder = std::fs::read_dir(lab.daemon_root("m1").join("raft"))?;
        let count =
            folder.filter(|f| f.as_ref().is_ok_and(|f| f.path().extension() == Some("snapshot".as_ref()))).count();
        ensure!(count == 3, "{count} snapshots");
        Ok(())
    });
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--replicas", "2", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 2);
    for _ in 0..2 {
        lab.docker("m1", &["service", "update", "--force", "--detach=false", "--quiet", "web"]).unwrap();
    }
    eventually("each slot keeps one task", || {
        let tasks = lab.docker("m1", &["service", "ps", "-q", "web"])?;
        ensure!(tasks.lines().count() == 2, "{tasks}");
        Ok(())
    });
    assert_eq!(manager_status(&lab, "m1", "w1").unwrap(), "Ready=");

    // And what `swarm init` sets, in a cluster of its own.
    lab.docker("w1", &["swarm", "leave"]).unwrap();
    let address = lab.address("w1");
    let settings = ["--task-history-limit", "2", "--dispatcher-heartbeat", "3s", "--cert-expiry", "5h"];
    let network =
        ["--default-addr-pool", "10.77.0.0/16", "--default-addr-pool-mask-length", "26", "--data-path-port", "5789"];
    let node = ["--availability", "drain", "--autolock", "--advertise-addr", &address];
    let said = lab.docker("w1", &[&["swarm", "init"], &settings[..], &network[..], &node[..]].concat()).unwrap();
    assert!(key_in(&said).len() > 40, "{said}");
    let cluster = info(&lab, "w1", "json .Swarm.Cluster").unwrap();
    for part in [
        r#""TaskHistoryRetentionLimit":2"#,
        r#""HeartbeatPeriod":3000000000"#,
        r#""NodeCertExpiry":18000000000000"#,
        r#""AutoLockManagers":true"#,
        r#""DefaultAddrPool":["10.77.0.0/16"],"SubnetSize":26,"DataPathPort":5789"#,
    ] {
        assert!(cluster.contains(part), "{part} is not in {cluster}");
    }
    lab.docker("w1", &["network", "create", "-d", "overlay", "own"]).unwrap();
    let subnet =
        lab.docker("w1", &["network", "inspect", "own", "--format", "{{(index .IPAM.Config 0).Subnet}}"]).unwrap();
    assert!(subnet.starts_with("10.77.") && subnet.trim().ends_with("/26"), "{subnet}");
    let availability = lab.docker("w1", &["node", "inspect", "self", "--format", "{{.Spec.Availability}}"]).unwrap();
    assert_eq!(availability.trim(), "drain");
    wait_for_lock(&lab, "w1", true);
}

fn key_in(text: &str) -> String {
    let word = text.split_whitespace().find(|word| word.starts_with("SWMKEY-1-"));
    word.unwrap_or_else(|| panic!("no key in {text}")).to_owned()
}

fn restart(lab: &Lab, node: &str) {
    lab.lab(&["kill", node]).expect("the daemon is killed");
    lab.lab(&["start", node]).expect("the daemon starts again");
}

/// `docker swarm unlock` reads the key from its standard input.
fn unlock(lab: &Lab, node: &str, key: &str) -> anyhow::Result<String> {
    lab.docker_with_input(node, &["swarm", "unlock"], &format!("{key}\n"))
}

fn is_locked_on_disk(lab: &Lab, node: &str) -> anyhow::Result<bool> {
    let keys = std::fs::read_to_string(lab.daemon_root(node).join("raft").join("keys"))?;
    let own = std::fs::read_to_string(lab.daemon_root(node).join("ca").join("node.pem"))?;
    let (wrapped, sealed) = (!keys.contains(" plain "), !own.contains("PRIVATE KEY"));
    ensure!(wrapped == sealed, "keys wrapped: {wrapped}, node key sealed: {sealed}");
    Ok(wrapped)
}

fn wait_for_lock(lab: &Lab, node: &str, wanted: bool) {
    eventually(&format!("{node} is locked on disk: {wanted}"), || {
        ensure!(is_locked_on_disk(lab, node)? == wanted);
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_locked_manager_needs_its_key_after_a_restart_and_its_containers_do_not() {
    let lab = Lab::up(2, 1, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 3);
    let pids = host::pids_of(&lab.cgroup(), "m2");
    assert!(unlock(&lab, "m1", "SWMKEY-1-x").unwrap_err().to_string().contains("swarm is not locked"));
    let first = key_in(&lab.docker("m1", &["swarm", "update", "--autolock"]).unwrap());
    assert_eq!(first, lab.docker("m2", &["swarm", "unlock-key", "-q"]).unwrap().trim());
    wait_for_lock(&lab, "m1", true);
    wait_for_lock(&lab, "m2", true);

    restart(&lab, "m2");
    assert_eq!(info(&lab, "m2", ".Swarm.LocalNodeState").unwrap(), "locked");
    let refused = refusal(&lab, "m2", &["node", "ls"]);
    assert!(refused.contains("Swarm is encrypted and needs to be unlocked before it can be used."), "{refused}");
    let refused = refusal(&lab, "m2", &["swarm", "leave"]);
    assert!(refused.contains("Swarm is encrypted and locked."), "{refused}");
    let other = "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let refused = unlock(&lab, "m2", other).unwrap_err().to_string();
    assert!(refused.contains("swarm could not be unlocked: invalid key provided"), "{refused}");
    assert_eq!(host::pids_of(&lab.cgroup(), "m2"), pids, "its containers go on");
    unlock(&lab, "m2", &first).unwrap();
    wait_for_status(&lab, "m2", "m2", MANAGES);

    let second = lab.docker("m2", &["swarm", "unlock-key", "--rotate", "-q"]).unwrap().trim().to_owned();
    assert_ne!(first, second);
    // A promoted node is locked as well, with the key of now.
    change_role(&lab, "m2", &["promote", "w1"]);
    wait_for_status(&lab, "m2", "w1", MANAGES);
    wait_for_lock(&lab, "w1", true);
    eventually("the new key is the one in force", || {
        restart(&lab, "w1");
        unlock(&lab, "w1", &second).map(drop)
    });
    wait_for_status(&lab, "m2", "w1", MANAGES);
    // A demoted one is not: a worker has nothing to lock.
    change_role(&lab, "m2", &["demote", "w1"]);
    wait_for_status(&lab, "m2", "w1", &["Ready="]);
    eventually("the worker's raft folder is gone", || {
        ensure!(!lab.daemon_root("w1").join("raft").exists());
        Ok(())
    });
    restart(&lab, "w1");
    wait_for_status(&lab, "m2", "w1", &["Ready="]);

    lab.docker("m1", &["swarm", "update", "--autolock=false"]).unwrap();
    wait_for_lock(&lab, "m1", false);
    wait_for_lock(&lab, "m2", false);
    restart(&lab, "m1");
    wait_for_status(&lab, "m2", "m1", MANAGES);
    assert_eq!(lab.running("m2", "web").len(), 3);
}

#[test]
#[ignore = "needs root"]
fn a_manager_that_lost_the_others_goes_on_alone_and_refuses_them() {
    let lab = Lab::up(3, 1, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 4);
    let pids = || (host::pids_of(&lab.cgroup(), "m1"), host::pids_of(&lab.cgroup(), "w1"));
    let before = pids();
    lab.lab(&["kill", "m2"]).unwrap();
    lab.lab(&["kill", "m3"]).unwrap();
    eventually("the majority is lost", || {
        let refused = refusal(&lab, "m1", &["node", "ls"]);
        ensure!(refused.contains("does not have a leader"), "{refused}");
        Ok(())
    });
    let said = lab.skep("m1", &["swarm", "init", "--force-new-cluster"]).unwrap();
    let (m2, m3) = (lab.address("m2"), lab.address("m3"));
    assert!(said.contains(&m2) && said.contains(&m3), "it does not say what is dropped: {said}");
    wait_for_status(&lab, "m1", "m1", &["Ready=Leader"]);
    wait_for_status(&lab, "m1", "w1", &["Ready="]);
    let nodes = lab.docker("m1", &["node", "ls", "-q"]).unwrap();
    assert_eq!(nodes.lines().count(), 2, "{nodes}");
    lab.docker("m1", &["service", "update", "-d", "--label-add", "alone=1", "web"]).unwrap();
    lab.wait_for_running("m1", "web", 2);
    assert_eq!(pids(), before, "no container was touched");
    assert_eq!(lab.running("w1", "web").len(), 0, "a worker does not answer for the cluster");

    // One that was dropped is refused, and comes back as any other node does.
    lab.lab(&["start", "m2"]).unwrap();
    lab.docker("m2", &["swarm", "leave", "--force"]).unwrap();
    let token = lab.docker("m1", &["swarm", "join-token", "-q", "manager"]).unwrap();
    let remote = format!("{}:2377", lab.address("m1"));
    lab.docker("m2", &["swarm", "join", "--token", token.trim(), &remote]).unwrap();
    wait_for_status(&lab, "m1", "m2", MANAGES);
    lab.wait_for_running("m1", "web", 3);
    // And the next restart finds what was made.
    restart(&lab, "m1");
    wait_for_status(&lab, "m2", "m1", MANAGES);
}

#[test]
#[ignore = "needs root"]
fn a_new_root_reaches_every_node_also_one_that_was_down_and_nothing_is_cut() {
    let lab = Lab::up(2, 2, &[]);
    let create = ["service", "create", "-d", "--name", "web", "--mode", "global", "-p", "8080:80", IMAGE];
    lab.docker("m1", &create).unwrap();
    lab.wait_for_running("m1", "web", 4);
    let before = lab.running("m1", "web");
    let root = || lab.docker("m2", &["swarm", "ca"]).unwrap();
    let token = || lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap().trim().to_owned();
    let (old_root, old_token) = (root(), token());

    // The client waits until every node has followed.
    lab.docker("m1", &["swarm", "ca", "--rotate", "--quiet"]).unwrap();
    assert_ne!(root(), old_root);
    assert_ne!(token(), old_token);
    assert_eq!(lab.running("m1", "web"), before);

    // A node that is down is waited for.
    lab.lab(&["kill", "w2"]).unwrap();
    let (second_root, second_token) = (root(), token());
    lab.docker("m2", &["swarm", "ca", "--rotate", "--detach"]).unwrap();
    let in_progress = || info(&lab, "m1", ".Swarm.Cluster.RootRotationInProgress").unwrap();
    assert_eq!(in_progress(), "true");
    wait_for_status(&lab, "m1", "w2", &["Down="]);
    assert_eq!((in_progress().as_str(), root(), token()), ("true", second_root.clone(), second_token.clone()));
    // Restarts in the middle of it, and a node that joins.
    restart(&lab, "m1");
    wait_for_status(&lab, "m2", "m1", MANAGES);
    lab.docker("w1", &["swarm", "leave"]).unwrap();
    let remote = format!("{}:2377", lab.address("m2"));
    lab.docker("w1", &["swarm", "join", "--token", &second_token, &remote]).unwrap();
    lab.lab(&["start", "w2"]).unwrap();
    eventually("the left node is down", || {
        lab.docker("m1", &["node", "rm", "w1"]).map(drop).or_else(|error| {
            // Two nodes have its name: the one that left goes by its id.
            let listed = lab.docker("m1", &["node", "ls", "--format", "{{.ID}} {{.Hostname}} {{.Status}}"])?;
            let left = listed
                .lines()
                .find(|l| l.ends_with("w1 Down"))
                .context(error)?
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned();
            lab.docker("m1", &["node", "rm", &left]).map(drop)
        })
    });
    eventually("every node has followed", || {
        ensure!(in_progress() == "false");
        Ok(())
    });
    assert_ne!((root(), token()), (second_root, second_token));
    lab.wait_for_running("m1", "web", 4);
    // It may lead to the task of the node that left until its own session has told it.
    eventually("w2 answers", || lab.http("w2", 8080, "/health").map(drop));
    // What was made with the new root alone holds after restarts.
    restart(&lab, "m2");
    restart(&lab, "w2");
    wait_for_status(&lab, "m1", "m2", MANAGES);
    wait_for_status(&lab, "m1", "w2", &["Ready="]);
}

#[test]
#[ignore = "needs root"]
fn a_manager_that_changed_its_address_is_found_again() {
    let mut lab = Lab::up(3, 1, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 4);
    let before = lab.running("m1", "web");
    // Each in turn, the leader among them.
    for (n, node) in ["m1", "m2", "m3"].into_iter().enumerate() {
        let other = if node == "m1" { "m3" } else { "m1" };
        lab.lab(&["kill", node]).unwrap();
        let old = lab.address(node);
        let new = format!("{}.{}", old.rsplit_once('.').unwrap().0, 200 + n);
        lab.move_node(node, &new);
        lab.lab(&["start", node]).unwrap();
        wait_for_status(&lab, other, node, MANAGES);
        eventually("the others know the new address", || {
            let shown = lab.docker(other, &["node", "inspect", "--format", "{{.ManagerStatus.Addr}}", node])?;
            ensure!(shown.trim() == format!("{new}:2377"), "{shown}");
            Ok(())
        });
        eventually("it answers", || lab.docker(node, &["node", "ls"]).map(drop));
    }
    assert_eq!(lab.running("m2", "web"), before, "no task was restarted");
}

#[test]
#[ignore = "needs root"]
fn the_only_manager_may_change_its_address() {
    let mut lab = Lab::up(1, 0, &[]);
    lab.lab(&["kill", "m1"]).unwrap();
    let new = format!("{}.200", lab.address("m1").rsplit_once('.').unwrap().0);
    lab.move_node("m1", &new);
    lab.lab(&["start", "m1"]).unwrap();
    wait_for_status(&lab, "m1", "m1", &["Ready=Leader"]);
    eventually("tokens are shown with the new address", || {
        let shown = lab.docker("m1", &["swarm", "join-token", "worker"])?;
        ensure!(shown.contains(&new), "{shown}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_backup_makes_the_same_cluster_on_a_fresh_root() {
    let lab = Lab::up(1, 1, &[]);
    lab.docker("m1", &["service", "create", "-d", "--name", "web", "--mode", "global", IMAGE]).unwrap();
    lab.wait_for_running("m1", "web", 2);
    let pids = host::pids_of(&lab.cgroup(), "w1");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("passphrase"), "correct horse\n").unwrap();
    lab.skep("m1", &["cluster", "backup", &path("backup"), "--passphrase-file", &path("passphrase")]).unwrap();
    let cluster = info(&lab, "m1", ".Swarm.Cluster.ID").unwrap();
    let token = lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap();
    // Unknown to the backup, but seen by the worker.
    lab.docker("m1", &["service", "update", "-d", "--label-add", "late=1", "web"]).unwrap();

    // The manager's disk is lost.
    lab.lab(&["kill", "m1"]).unwrap();
    for part in ["raft", "ca", "state/swarm.json", "state/agent.redb"] {
        let gone = lab.daemon_root("m1").join(part);
        if gone.is_dir() { std::fs::remove_dir_all(gone) } else { std::fs::remove_file(gone) }.unwrap();
    }
    let (address, root) = (lab.address("m1"), lab.daemon_root("m1").to_str().unwrap().to_owned());
    std::fs::write(path("wrong"), "wrong horse\n").unwrap();
    let restore = |passphrase: &str| {
        let arguments = ["--passphrase-file", passphrase, "--root", &root, "--advertise-addr", &address];
        lab.skep("m1", &[&["cluster", "restore", &path("backup")], &arguments[..]].concat())
    };
    assert!(restore(&path("wrong")).unwrap_err().to_string().contains("does not open"));
    let told = restore(&path("passphrase")).unwrap();
    assert!(told.contains(&cluster) && told.contains("m1 ("), "{told}");
    assert!(restore(&path("passphrase")).unwrap_err().to_string().contains("belongs to a node already"));

    lab.lab(&["start", "m1"]).unwrap();
    wait_for_status(&lab, "m1", "m1", &["Ready=Leader"]);
    wait_for_status(&lab, "m1", "w1", &["Ready="]);
    assert_eq!(info(&lab, "m1", ".Swarm.Cluster.ID").unwrap(), cluster);
    assert_eq!(lab.docker("m1", &["swarm", "join-token", "-q", "worker"]).unwrap(), token);
    lab.wait_for_running("m1", "web", 2);
    assert_eq!(host::pids_of(&lab.cgroup(), "w1"), pids, "the worker's container goes on");
}
