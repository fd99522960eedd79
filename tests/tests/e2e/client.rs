//! skep's own client: Docker's verbs over the same socket as the docker CLI.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use anyhow::ensure;
use skep_tests::registry::{LAB_SUBNETS, PASSWORD, Registry, USER};
use skep_tests::terminal::Terminal;
use skep_tests::{Lab, eventually, images};

const IMAGE: &str = "busybox:test";
const NODE: &str = "m1";

fn output(lab: &Lab, arguments: &[&str]) -> Output {
    lab.skep_command(NODE, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn piped(mut command: Command, input: &str) -> Output {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
#[ignore = "needs root"]
fn containers_are_run_looked_at_and_removed_with_docker_s_verbs() {
    let lab = Lab::up(1, 0, &["--insecure-registry", LAB_SUBNETS]);
    images::load_busybox(&lab);
    exit_codes_and_streams_are_the_container_s(&lab);
    a_terminal_has_its_size_and_is_left_with_the_detach_keys(&lab);
    exec_has_a_terminal_and_the_command_s_exit_code(&lab);
    verbs_change_several_containers_and_tell_each_failure(&lab);
    objects_are_listed_and_inspected_in_formats(&lab);
    logs_are_followed_counted_and_stamped(&lab);
    a_missing_image_is_pulled_with_the_credentials_that_login_keeps(&lab);
}

fn exit_codes_and_streams_are_the_container_s(lab: &Lab) {
    let run = output(lab, &["run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.status.code(), stdout(&run), stderr(&run)), (Some(7), "out\n".into(), "err\n".into()));
    let command = lab.skep_command(NODE, &["run", "-i", "--rm", IMAGE, "cat"]);
    assert_eq!(stdout(&piped(command, "through\n")), "through\n");
    let codes = [
        (vec!["run", "--rm", IMAGE, "no-such-program"], 127),
        (vec!["run", "--rm", IMAGE, "/etc"], 126),
        (vec!["run", "--rm", "--pull", "never", "no.such/image", "true"], 125),
        (vec!["run", "--gpus", "all", IMAGE], 125),
        (vec!["run", "-it", "--rm", IMAGE, "true"], 125),
    ];
    for (arguments, code) in codes {
        let run = output(lab, &arguments);
        assert_eq!(run.status.code(), Some(code), "{arguments:?}: {}", stderr(&run));
    }
    assert!(stderr(&output(lab, &["run", "--gpus", "all", IMAGE])).contains("--gpus"));
    assert_eq!(lab.skep(NODE, &["ps", "-aq"]).unwrap(), "", "--rm leaves nothing, whatever went wrong");
}

fn a_terminal_has_its_size_and_is_left_with_the_detach_keys(lab: &Lab) {
    // The size that the shell asks for is the one that the client told.
    let command = lab.skep_command(NODE, &["run", "-it", "--name", "shell", IMAGE, "sh"]);
    let mut terminal = Terminal::start(&command).unwrap();
    terminal.resize(33, 77).unwrap();
    eventually("the container's terminal is as large as the client's", || {
        terminal.type_in("busybox stty size\n")?;
        ensure!(terminal.screen().contains("33 77"), "{:?}", terminal.screen());
        Ok(())
    });
    terminal.resize(44, 88).unwrap();
    eventually("the size follows", || {
        terminal.type_in("busybox stty size\n")?;
        ensure!(terminal.screen().contains("44 88"), "{:?}", terminal.screen());
        Ok(())
    });
    terminal.type_in("\x10\x11").unwrap();
    assert_eq!(terminal.end().code(), Some(0));
    assert_eq!(lab.skep(NODE, &["inspect", "-f", "{{.State.Running}}", "shell"]).unwrap(), "true\n");

    let command = lab.skep_command(NODE, &["attach", "--detach-keys", "ctrl-a,d", "shell"]);
    let mut terminal = Terminal::start(&command).unwrap();
    terminal.type_in("echo at$((1+1))ached\n").unwrap();
    terminal.shows("at2ached");
    terminal.type_in("\x01d").unwrap();
    terminal.shows("read escape sequence");
    assert_eq!(terminal.end().code(), Some(1));
    assert_eq!(lab.skep(NODE, &["rm", "-f", "shell"]).unwrap(), "shell\n");
}

fn exec_has_a_terminal_and_the_command_s_exit_code(lab: &Lab) {
    lab.skep(NODE, &["run", "-d", "--name", "box", "-e", "A=1", IMAGE, "sleep", "1000"]).unwrap();
    let exec = output(lab, &["exec", "-e", "B=2", "box", "sh", "-c", "echo $A$B; exit 3"]);
    assert_eq!((exec.status.code(), stdout(&exec)), (Some(3), "12\n".into()));
    assert_eq!(output(lab, &["exec", "box", "no-such-program"]).status.code(), Some(127));
    let command = lab.skep_command(NODE, &["exec", "-i", "box", "cat"]);
    assert_eq!(stdout(&piped(command, "through\n")), "through\n");
    let mut terminal = Terminal::start(&lab.skep_command(NODE, &["exec", "-it", "box", "sh"])).unwrap();
    terminal.type_in("echo he$((1+1))re; exit 9\n").unwrap();
    terminal.shows("he2re");
    assert_eq!(terminal.end().code(), Some(9));
}

fn verbs_change_several_containers_and_tell_each_failure(lab: &Lab) {
    let stop = output(lab, &["stop", "-t", "0", "nobody", "box"]);
    assert_eq!((stop.status.code(), stdout(&stop)), (Some(1), "box\n".into()));
    assert!(stderr(&stop).contains("No such container: nobody"), "{}", stderr(&stop));
    assert_eq!(lab.skep(NODE, &["wait", "box"]).unwrap(), "137\n");
    for (arguments, answer) in [
        (&["start", "box"][..], "box\n"),
        (&["pause", "box"], "box\n"),
        (&["unpause", "box"], "box\n"),
        (&["container", "restart", "-t", "0", "box"], "box\n"),
        (&["rename", "box", "case"], ""),
        (&["kill", "-s", "KILL", "case"], "case\n"),
    ] {
        assert_eq!(lab.skep(NODE, arguments).unwrap(), answer, "{arguments:?}");
    }
    let mut started = lab.skep_command(NODE, &["start", "-a", "case"]).spawn().unwrap();
    eventually("it runs and is killed", || lab.skep(NODE, &["kill", "case"]).map(drop));
    assert_eq!(started.wait().unwrap().code(), Some(137));

    lab.skep(NODE, &["volume", "create", "data"]).unwrap();
    let found = output(lab, &["volume", "inspect", "nobody", "data"]);
    assert!(!found.status.success() && stdout(&found).contains(r#""Name": "data""#), "{found:?}");
    let removed = output(lab, &["volume", "rm", "nobody", "data"]);
    assert_eq!(
        (removed.status.code(), stdout(&removed)),
        (
            Some(1),
            "data
"
            .into()
        )
    );
    assert!(stderr(&removed).contains("nobody"), "{}", stderr(&removed));
}

/// The stock client prints the same table, while none of the ages in it goes on.
fn assert_same_table(lab: &Lab, arguments: &[&str]) {
    let theirs = || lab.docker(NODE, arguments).unwrap();
    eventually("the same table twice", || {
        let (before, ours) = (theirs(), lab.skep(NODE, arguments)?);
        ensure!(before == theirs());
        assert_eq!(ours, before, "{arguments:?}");
        Ok(())
    });
}

fn objects_are_listed_and_inspected_in_formats(lab: &Lab) {
    lab.skep(NODE, &["rm", "-f", "case"]).unwrap();
    lab.skep(NODE, &["create", "--name", "web", "-p", "8088:80", "--label", "a=b", IMAGE, "sleep", "1000"]).unwrap();
    lab.skep(NODE, &["start", "web"]).unwrap();
    let format = "{{.Names}} {{.Image}} {{.State}}";
    assert_eq!(
        lab.skep(NODE, &["ps", "--format", format, "-f", "label=a=b"]).unwrap(),
        format!("web {IMAGE} running\n")
    );
    assert_same_table(lab, &["ps", "-a"]);
    for ports in [&["port", "web"][..], &["port", "web", "80"]] {
        assert_eq!(lab.skep(NODE, ports).unwrap(), lab.docker(NODE, ports).unwrap(), "{ports:?}");
    }
    // A container counts as started when it may go on; what is to become its program takes a moment for that.
    eventually("the program is listed", || {
        let top = lab.skep(NODE, &["top", "web"])?;
        ensure!(top.starts_with("UID") && top.contains("sleep 1000"), "{top}");
        Ok(())
    });
    assert_same_table(lab, &["images"]);
    lab.skep(NODE, &["tag", IMAGE, "other:1"]).unwrap();
    assert_eq!(lab.skep(NODE, &["image", "ls", "-q", "other"]).unwrap().lines().count(), 1);
    assert_eq!(lab.skep(NODE, &["rmi", "other:1"]).unwrap(), "Untagged: other:1\n");
    for (name, format, answer) in [("m1", "{{.Spec.Role}}", "manager\n"), ("web", "{{.State.Status}}", "running\n")] {
        assert_eq!(lab.skep(NODE, &["inspect", "-f", format, name]).unwrap(), answer);
    }
    let missing = output(lab, &["inspect", "nothing"]);
    assert_eq!((missing.status.code(), stdout(&missing)), (Some(1), "[]\n".into()));
    assert!(stderr(&missing).contains("No such object: nothing"));
    assert!(stderr(&output(lab, &["inspect", "-f", "{{range .Mounts}}x{{end}}", "web"])).contains("range"));
    assert!(lab.skep(NODE, &["info"]).unwrap().contains("Swarm: active"));
    lab.skep(NODE, &["rm", "-f", "web"]).unwrap();
}

fn logs_are_followed_counted_and_stamped(lab: &Lab) {
    let script = "echo one; echo two >&2; echo three; sleep 1000";
    lab.skep(NODE, &["run", "-d", "--name", "talker", IMAGE, "sh", "-c", script]).unwrap();
    eventually("all is said", || {
        let logs = output(lab, &["logs", "talker"]);
        ensure!((stdout(&logs), stderr(&logs)) == ("one\nthree\n".into(), "two\n".into()), "{logs:?}");
        Ok(())
    });
    // The two streams are two pipes: which line came last is not said.
    let both = |arguments: &[&str]| {
        let output = output(lab, arguments);
        stdout(&output) + &stderr(&output)
    };
    assert_eq!(both(&["logs", "-n", "1", "talker"]).lines().count(), 1);
    let stamped = both(&["logs", "-t", "--since", "1h", "--tail", "1", "talker"]);
    assert!(stamped.starts_with("20") && stamped.contains("Z t"), "{stamped}");
    let mut follow = lab.skep_command(NODE, &["logs", "-f", "talker"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    // It follows by now.
    assert_eq!(lines.next().unwrap().unwrap(), "one");
    lab.skep(NODE, &["rm", "-f", "talker"]).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "three");
    assert!(lines.next().is_none() && follow.wait().is_ok());

    let create = ["service", "create", "-d", "--name", "talk", "--replicas", "2", IMAGE];
    let script = ["sh", "-c", "echo hello; echo there >&2; exec sleep 1000"];
    lab.skep(NODE, &[&create[..], &script].concat()).unwrap();
    lab.wait_for_running(NODE, "talk", 2);
    eventually("both tasks' lines are printed as docker prints them", || {
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(|l| l.trim_end().to_owned()).collect();
            lines.sort();
            lines
        };
        for flags in [&["service", "logs", "talk"][..], &["service", "logs", "-t", "--no-trunc", "talk"]] {
            let (own, stock) = (sorted(lab.skep(NODE, flags)?), sorted(lab.docker(NODE, flags)?));
            ensure!(own == stock && own.len() == 2, "{own:?} and {stock:?}");
        }
        Ok(())
    });
    lab.skep(NODE, &["service", "rm", "talk"]).unwrap();
}

fn a_missing_image_is_pulled_with_the_credentials_that_login_keeps(lab: &Lab) {
    let registry = Registry::start();
    let dir = tempfile::tempdir().unwrap();
    registry.push("box", "1", &images::busybox_layer(dir.path()), &["echo", "pulled"]).unwrap();
    let host = format!("{}:{}", lab.gateway(), registry.port());
    let image = format!("{host}/box:1");
    let stranger = output(lab, &["run", "--rm", &image]);
    assert_eq!(stranger.status.code(), Some(125), "{}", stderr(&stranger));
    let wrong = output(lab, &["login", "-u", USER, "-p", "wrong", &host]);
    assert_eq!(wrong.status.code(), Some(1), "{}", stdout(&wrong));
    let login = lab.skep_command(NODE, &["login", "-u", USER, "--password-stdin", &host]);
    assert_eq!(stdout(&piped(login, &format!("{PASSWORD}\n"))), "Login Succeeded\n");
    let run = output(lab, &["run", "--rm", &image]);
    assert_eq!((run.status.code(), stdout(&run)), (Some(0), "pulled\n".into()), "{}", stderr(&run));
    let said = stderr(&run);
    assert!(said.starts_with(&format!("Unable to find image '{image}' locally\n")), "{said}");
    assert!(said.contains("Pull complete") && said.contains("Status: Downloaded newer image"), "{said}");
    assert_eq!(lab.skep(NODE, &["pull", "-q", &image]).unwrap(), format!("{image}\n"));
    // The docker CLI finds them too.
    lab.docker(NODE, &["rmi", &image]).unwrap();
    lab.docker(NODE, &["pull", &image]).unwrap();
    assert_eq!(lab.skep(NODE, &["logout", &host]).unwrap(), format!("Removing login credentials for {host}\n"));
    lab.skep(NODE, &["rmi", &image]).unwrap();
    assert!(lab.skep(NODE, &["pull", &image]).is_err());
}
