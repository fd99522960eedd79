//! Jobs that run when their schedule says so.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";
/// Ends with success after a moment.
const ENDS: [&str; 4] = ["--crash-after", "0.1", "--exit-code", "0"];
/// Seconds that a lab takes at least to be told of a job and to be started anew.
const AHEAD: u64 = 12;

fn inspect(lab: &Lab, service: &str) -> Value {
    let text = lab.docker("m1", &["service", "inspect", service]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

fn tasks(lab: &Lab, service: &str) -> anyhow::Result<Vec<String>> {
    let listed = lab.docker("m1", &["service", "ps", "--format", "{{.CurrentState}}", service])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// The next minute that begins late enough, as seconds since the epoch.
fn due() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now + AHEAD).div_ceil(60) * 60
}

#[test]
#[ignore = "needs root"]
fn a_job_runs_once_when_it_is_due_though_its_manager_was_killed() {
    let lab = Lab::up(1, 0, &[]);
    let due = due();
    let times = format!("{} {} * * *", due / 60 % 60, due / 3600 % 24);
    let shown = |service: &Value| {
        // Docker leaves out a zero.
        let at = service["JobStatus"]["LastExecution"].as_str().unwrap().to_owned();
        (service["JobStatus"]["JobIteration"]["Index"].as_u64().unwrap_or_default(), at)
    };

    // Docker's client waits for a job unless told otherwise; for this one there is nothing to wait for.
    let label = format!("skep.schedule={times}");
    let create = ["service", "create", "--name", "night", "--mode", "replicated-job", "--label", &label, IMAGE];
    lab.docker("m1", &[&create[..], &ENDS].concat()).unwrap();
    let made = inspect(&lab, "night");
    assert_eq!(made["Spec"]["Labels"]["skep.schedule"], times);
    let said = made["UpdateStatus"]["Message"].as_str().unwrap();
    assert!(said.starts_with("runs by its schedule, next at 20"), "{said}");
    assert_eq!(shown(&made), (0, "0001-01-01T00:00:00Z".to_owned()));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("compose.yml");
    let text = format!(
        "services:\n  j:\n    image: {IMAGE}\n    command: {}\n    deploy: {{mode: global-job, x-schedule: '{times}'}}\n",
        ENDS.join(" ")
    );
    std::fs::write(&file, text).unwrap();
    let apply = ["apply", "-f", file.to_str().unwrap(), "--stack", "st"];
    lab.skep("m1", &apply).unwrap();

    what_makes_no_sense_is_refused(&lab);
    for service in ["night", "st_j"] {
        assert_eq!(tasks(&lab, service).unwrap(), [""; 0], "it is not due yet");
    }
    lab.lab(&["kill", "m1"]).unwrap();
    lab.lab(&["start", "m1"]).unwrap();

    // Due in some seconds more than a minute at most, which is less than the patience of one wait.
    for service in ["night", "st_j"] {
        eventually("it ran", || {
            let tasks = tasks(&lab, service)?;
            ensure!(tasks.len() == 1 && tasks[0].starts_with("Complete"), "{service}: {tasks:?}");
            Ok(())
        });
    }
    let (iteration, first) = shown(&inspect(&lab, "night"));
    assert!(iteration > 0 && !first.starts_with("0001"), "{first}");

    // Another spec is no run; who asks for one gets one, and the first stays as history.
    lab.docker("m1", &["service", "update", "--label-add", "a=b", "night"]).unwrap();
    assert_eq!(shown(&inspect(&lab, "night")), (iteration, first));
    lab.skep("m1", &apply).unwrap();
    lab.docker("m1", &["service", "update", "--force", "night"]).unwrap();
    eventually("it ran again", || {
        let tasks = tasks(&lab, "night")?;
        ensure!(tasks.len() == 2 && tasks.iter().all(|t| t.starts_with("Complete")), "{tasks:?}");
        Ok(())
    });
    assert!(shown(&inspect(&lab, "night")).0 > iteration);
    assert_eq!(tasks(&lab, "st_j").unwrap().len(), 1, "what was applied again did not run again");
}

fn what_makes_no_sense_is_refused(lab: &Lab) {
    let refused = |mode: &str, label: &str| {
        let create = ["service", "create", "-d", "--mode", mode, "--label", label, IMAGE];
        lab.docker("m1", &create).unwrap_err().to_string()
    };
    for (mode, label, reason) in [
        ("replicated", "skep.schedule=@daily", "a schedule is for jobs"),
        ("replicated-job", "skep.schedule=61 * * * *", "the minute of a schedule"),
        ("global-job", "skep.schedule=0 0 31 2 *", "a day that never comes"),
    ] {
        let said = refused(mode, label);
        assert!(said.contains(reason), "{said}");
    }
}
