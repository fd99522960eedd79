//! How `skep apply` ends, and what it shows until then: on a terminal, in a pipe, as JSON, stopped, timed out, rolled back.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use skep_tests::images::load_busybox;
use skep_tests::terminal::Terminal;
use skep_tests::{Lab, eventually};

/// Enough that a person can be quick enough to stop it.
const MANY: usize = 200;

struct Files<'a> {
    lab: &'a Lab,
    dir: tempfile::TempDir,
}

impl Files<'_> {
    fn write(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("compose.yml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Applies a text as a stack; all that the client says.
    fn apply(&self, stack: &str, text: &str, more: &[&str]) -> Output {
        let path = self.write(text);
        let arguments = [&["apply", "--stack", stack, "-f", path.to_str().unwrap()], more].concat();
        self.lab.skep_command("m1", &arguments).output().unwrap()
    }

    /// The same on a terminal, while it goes on.
    fn apply_on_terminal(&self, stack: &str, text: &str) -> Terminal {
        let path = self.write(text);
        let command = self.lab.skep_command("m1", &["apply", "--stack", stack, "-f", path.to_str().unwrap()]);
        let terminal = Terminal::start(&command).unwrap();
        terminal.resize(50, 200).unwrap();
        terminal
    }

    fn remove(&self, stack: &str) {
        self.lab.skep("m1", &["stack", "rm", stack]).unwrap();
    }
}

fn texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn one(name: &str, rest: &str) -> String {
    format!("services:\n  {name}:\n    image: busybox:test\n    stop_grace_period: 0s\n    {rest}\n")
}

#[test]
#[ignore = "needs root"]
fn an_apply_shows_how_far_it_is_and_ends_with_a_code_that_tells_how() {
    let lab = Lab::up(1, 0, &[]);
    load_busybox(&lab);
    let files = Files { lab: &lab, dir: tempfile::tempdir().unwrap() };
    progress_is_live_on_a_terminal_lines_in_a_pipe_and_json_on_request(&files);
    who_does_not_want_to_wait_does_not(&files);
    ctrl_c_while_things_are_made_leaves_whole_objects(&files);
    ctrl_c_while_waiting_leaves_the_rest_to_the_cluster(&files);
    a_time_out_tells_of_the_failing_task(&files);
    a_rolled_back_update_is_a_failure(&files);
    what_has_no_service_yet_can_be_removed(&files);
}

/// A service whose update is watched no longer than it takes to see it.
fn brief(command: &str) -> String {
    one(
        "web",
        &format!("command: {command}\n    deploy: {{update_config: {{monitor: 1s}}, restart_policy: {{delay: 0s}}}}"),
    )
}

fn progress_is_live_on_a_terminal_lines_in_a_pipe_and_json_on_request(files: &Files<'_>) {
    let text = brief("sleep 1000000");
    let terminal = files.apply_on_terminal("shown", &text);
    terminal.shows("+ create service shown_web");
    // A bar, which is drawn again in its place.
    terminal.shows("shown_web [");
    terminal.shows("1/1");
    let screen = terminal.screen();
    assert_eq!(terminal.end().code(), Some(0), "{screen}");
    assert!(screen.contains('\u{1b}'), "{screen:?}");

    // One that cannot draw gets lines.
    let path = files.write(&brief("sleep 1000002"));
    let mut command = files.lab.skep_command("m1", &["apply", "--stack", "shown", "-f", path.to_str().unwrap()]);
    let terminal = Terminal::start(command.env("TERM", "dumb")).unwrap();
    terminal.shows("shown_web: 1/1 tasks running");
    assert_eq!(terminal.end().code(), Some(0));

    let changed = brief("sleep 1000001");
    let (code, out, err) = texts(&files.apply("shown", &changed, &[]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("~ change service shown_web") && out.ends_with("stack shown: 1 to change\n"), "{out}");
    assert!(err.lines().any(|line| line == "shown_web: 1/1 tasks running") && !err.contains('\u{1b}'), "{err}");

    let (code, out, err) = texts(&files.apply("shown", &text, &["-o", "json"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["changes"].as_array().map(Vec::len), Some(1), "{out}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["service"], &last["ready"], &last["wanted"]),
        (&"shown_web".into(), &1.into(), &1.into()),
        "{out}"
    );
    files.remove("shown");
}

fn who_does_not_want_to_wait_does_not(files: &Files<'_>) {
    // It would never come to its end.
    let text = one("never", "command: 'true'\n    deploy: {placement: {constraints: [node.labels.x == y]}}");
    for flag in ["--wait=false", "-d"] {
        let start = Instant::now();
        let (code, out, err) = texts(&files.apply("quick", &text, &[flag]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(start.elapsed() < Duration::from_secs(20), "{flag} took {:?}", start.elapsed());
    }
    files.remove("quick");
}

fn ctrl_c_while_things_are_made_leaves_whole_objects(files: &Files<'_>) {
    let service = |n| format!("  s{n}: {{image: 'busybox:test', deploy: {{replicas: 0}}}}\n");
    let text = format!("services:\n{}", (0..MANY).map(service).collect::<String>());
    let mut terminal = files.apply_on_terminal("many", &text);
    eventually("some are made", || {
        ensure!(!files.lab.skep("m1", &["service", "ls", "-q"])?.is_empty(), "none yet");
        Ok(())
    });
    terminal.type_in("\u{3}").unwrap();
    terminal.shows("steps while making the service many_s");
    terminal.shows("apply again to finish");
    assert_eq!(terminal.end().code(), Some(130));
    let made = files.lab.skep("m1", &["service", "ls", "-q"]).unwrap().lines().count();
    assert!((1..MANY).contains(&made), "{made} of {MANY} were made");

    let (code, out, err) = texts(&files.apply("many", &text, &[]));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.ends_with(&format!("stack many: {} to create\n", MANY - made)), "{made} were there: {out}");
    assert_eq!(texts(&files.apply("many", &text, &[])).1, "stack many: no changes\n");
    let history = files.lab.skep("m1", &["stack", "history", "many"]).unwrap();
    assert_eq!(history.lines().count(), 2, "what was stopped is no revision: {history}");
    files.remove("many");
}

fn ctrl_c_while_waiting_leaves_the_rest_to_the_cluster(files: &Files<'_>) {
    let text = one("slow", "command: [sh, -c, 'sleep 15; sleep 1000000']")
        + "    healthcheck: {test: [CMD, test, -e, /none], interval: 1s, retries: 1000}\n";
    let mut terminal = files.apply_on_terminal("left", &text);
    terminal.shows("left_slow [");
    terminal.type_in("\u{3}").unwrap();
    terminal.shows("which goes on with it");
    assert_eq!(terminal.end().code(), Some(130));
    assert_eq!(texts(&files.apply("left", &text, &["-d"])).1, "stack left: no changes\n");
    files.remove("left");
}

fn a_time_out_tells_of_the_failing_task(files: &Files<'_>) {
    let text = one("bad", "command: [sh, -c, 'echo no such table; exit 7']\n    deploy: {restart_policy: {delay: 1s}}");
    let (code, _, err) = texts(&files.apply("late", &text, &["--timeout", "10s"]));
    assert_eq!(code, Some(1), "{err}");
    for part in [
        "not done after 10 s",
        "service late_bad: 0/1",
        "non-zero exit (7)",
        "last lines of its log:\n    no such table",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    let (code, _, err) = texts(&files.apply("late", &text, &["--timeout", "soon"]));
    assert!(code == Some(1) && err.contains("--timeout soon: write a duration"), "{err}");
    files.remove("late");
}

fn a_rolled_back_update_is_a_failure(files: &Files<'_>) {
    let text = |command: &str| {
        let policy = "update_config: {failure_action: rollback, monitor: 3s}, restart_policy: {delay: 0s}";
        one("web", &format!("command: {command}\n    deploy: {{{policy}}}"))
    };
    assert_eq!(texts(&files.apply("back", &text("sleep 1000000"), &[])).0, Some(0));
    let (code, _, err) = texts(&files.apply("back", &text("[sh, -c, 'echo out of luck; exit 3']"), &[]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("the update is rollback completed") && err.contains("    out of luck"), "{err}");
    files.lab.wait_for_running("m1", "back_web", 1);
    files.remove("back");
}

/// As after Ctrl-C between the networks and the services.
fn what_has_no_service_yet_can_be_removed(files: &Files<'_>) {
    let label = "com.docker.stack.namespace=half";
    files.lab.docker("m1", &["network", "create", "-d", "overlay", "--label", label, "half_default"]).unwrap();
    files.remove("half");
    let left = files.lab.docker("m1", &["network", "ls", "-q", "--filter", &format!("label={label}")]).unwrap();
    assert_eq!(left, "");
    let error = files.lab.skep("m1", &["stack", "rm", "half"]).unwrap_err().to_string();
    assert!(error.contains("nothing found in stack: half"), "{error}");
}
