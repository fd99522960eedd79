//! Services that run to completion.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use anyhow::ensure;
use serde_json::Value;
use skep_tests::{Lab, eventually};

const IMAGE: &str = "skep/whoami:latest";
/// Ends with success after a moment.
const ENDS: [&str; 4] = ["--crash-after", "0.1", "--exit-code", "0"];

fn ls(lab: &Lab, service: &str) -> String {
    let format = "{{.Mode}} {{.Replicas}}";
    lab.docker("m1", &["service", "ls", "--filter", &format!("name={service}"), "--format", format]).unwrap()
}

fn ps(lab: &Lab, service: &str) -> Vec<String> {
    let format = "{{.Name}} {{.DesiredState}} {{.CurrentState}}";
    let listed = lab.docker("m1", &["service", "ps", "--format", format, service]).unwrap();
    listed.lines().map(str::to_owned).collect()
}

fn inspect(lab: &Lab, service: &str) -> Value {
    let text = lab.docker("m1", &["service", "inspect", service]).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

#[test]
#[ignore = "needs root"]
fn jobs_complete_run_again_and_say_how_far_they_are() {
    let lab = Lab::up(1, 1, &[]);
    the_stock_client_waits_for_a_job_and_runs_it_again(&lab);
    a_job_that_fails_is_tried_again_until_its_attempts_are_used_up(&lab);
    a_global_job_completes_on_each_node(&lab);
    what_makes_no_sense_is_refused(&lab);
    a_compose_file_has_jobs(&lab);
}

fn the_stock_client_waits_for_a_job_and_runs_it_again(lab: &Lab) {
    let create = ["service", "create", "--name", "five", "--mode", "replicated-job", "--replicas", "5"];
    let said = lab.docker("m1", &[&create[..], &["--max-concurrent", "2", IMAGE], &ENDS].concat()).unwrap();
    assert!(said.contains("job complete"), "{said}");
    assert_eq!(ls(lab, "five").trim(), "replicated job 0/2 (5/5 completed)");
    let before = ps(lab, "five");
    assert_eq!(before.len(), 5, "{before:?}");
    assert!(before.iter().all(|l| l.contains(" Complete Complete ")), "{before:?}");
    let first = inspect(lab, "five")["JobStatus"].clone();
    let tasks = lab.docker("m1", &["service", "ps", "-q", "--no-trunc", "five"]).unwrap();
    let task = lab.docker("m1", &["inspect", "--format", "{{json .JobIteration}}", tasks.lines().next().unwrap()]);
    assert_eq!(serde_json::from_str::<Value>(&task.unwrap()).unwrap(), first["JobIteration"]);

    let said = lab.docker("m1", &["service", "update", "--force", "five"]).unwrap();
    assert!(said.contains("job complete"), "{said}");
    let second = inspect(lab, "five")["JobStatus"].clone();
    let index = |status: &Value| status["JobIteration"]["Index"].as_u64().unwrap();
    assert!(index(&second) > index(&first), "{first} {second}");
    assert!(second["LastExecution"].as_str() > first["LastExecution"].as_str(), "{first} {second}");
    eventually("only the new iteration is left", || {
        let now = lab.docker("m1", &["service", "ps", "-q", "--no-trunc", "five"])?;
        ensure!(now.lines().count() == 5 && now.lines().all(|id| !tasks.contains(id)), "{now}");
        Ok(())
    });
}

fn a_job_that_fails_is_tried_again_until_its_attempts_are_used_up(lab: &Lab) {
    let create = ["service", "create", "-d", "--name", "fails", "--mode", "replicated-job"];
    let policy = ["--restart-max-attempts", "1", "--restart-delay", "10ms", IMAGE];
    lab.docker("m1", &[&create[..], &policy, &["--crash-after", "0.1", "--exit-code", "3"]].concat()).unwrap();
    eventually("it was tried twice", || {
        let tasks = ps(lab, "fails");
        ensure!(tasks.iter().filter(|l| l.contains(" Failed ")).count() == 2, "{tasks:?}");
        Ok(())
    });
    assert_eq!(ls(lab, "fails").trim(), "replicated job 0/1 (0/1 completed)");
}

fn a_global_job_completes_on_each_node(lab: &Lab) {
    let create = ["service", "create", "--name", "all", "--mode", "global-job", IMAGE];
    let said = lab.docker("m1", &[&create[..], &ENDS].concat()).unwrap();
    assert!(said.contains("job complete"), "{said}");
    assert_eq!(ls(lab, "all").trim(), "global job 0/0 (2/2 completed)");
    let said = lab.skep("m1", &["service", "ls"]).unwrap();
    assert!(said.contains("0/0 (2/2 completed)") && said.contains("0/2 (5/5 completed)"), "{said}");
}

fn what_makes_no_sense_is_refused(lab: &Lab) {
    let refused = |more: &[&str]| {
        let create = ["service", "create", "-d", "--mode", "replicated-job"];
        lab.docker("m1", &[&create[..], more, &[IMAGE]].concat()).unwrap_err().to_string()
    };
    let said = refused(&["--update-parallelism", "2"]);
    assert!(said.contains("update and rollback configuration is not supported for jobs"), "{said}");
    let said = lab.skep("m1", &["service", "create", "--mode", "replicated-job", "--update-parallelism", "2", IMAGE]);
    assert!(said.unwrap_err().to_string().contains("Jobs may not have an update config"));
}

fn a_compose_file_has_jobs(lab: &Lab) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("compose.yml");
    let text = "services:\n  init:\n    image: skep/whoami:latest\n    command: --crash-after 0.1 --exit-code 0\n    deploy:\n      mode: replicated-job\n      replicas: 3\n";
    std::fs::write(&file, text).unwrap();
    lab.skep("m1", &["apply", "-f", file.to_str().unwrap(), "--stack", "st"]).unwrap();
    assert_eq!(ls(lab, "st_init").trim(), "replicated job 0/3 (3/3 completed)");
}
