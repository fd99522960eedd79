//! The recorded stacks of `api/src/manifest/{compose,kube}/testdata` on a lab, one after another, with stand-in images: what runs,
//! answers and goes, and what cannot run here. `deploy/stacks` starts it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use skep_tests::answers::{exec_shows, http_shows, no_trace};
use skep_tests::stand_ins::Archive;
use skep_tests::{Lab, eventually};

/// A stack, and how one sees that it works.
struct Stack {
    /// Its file.
    name: &'static str,
    is_kube: bool,
    images: &'static [&'static str],
    /// Open files that it allows a task; a machine that allows fewer and may not raise it cannot run it.
    open_files: u64,
    answers: fn(&Lab, &str),
}

/// Those that stand-ins can serve.
const STACKS: &[Stack] = &[
    Stack {
        name: "wordpress-mysql",
        is_kube: false,
        images: &["wordpress:6-apache", "mysql:8.4"],
        open_files: 0,
        answers: |lab, _| http_shows(lab, 8080, "/wp-admin/install.php", "five-minute WordPress installation"),
    },
    Stack {
        name: "flask-redis",
        is_kube: false,
        images: &["example/flask:1", "redis:7"],
        open_files: 0,
        answers: |lab, _| http_shows(lab, 8080, "/", "counted by redis"),
    },
    Stack {
        name: "voting-app",
        is_kube: false,
        images: &[
            "dockersamples/examplevotingapp_vote:latest",
            "dockersamples/examplevotingapp_worker:latest",
            "dockersamples/examplevotingapp_result:latest",
            "redis:alpine",
            "postgres:15-alpine",
        ],
        open_files: 0,
        answers: |lab, _| {
            http_shows(lab, 5000, "/?for=dogs", "voted");
            http_shows(lab, 5001, "/", "there are votes");
        },
    },
    Stack {
        name: "redis-cluster",
        is_kube: false,
        images: &["redis:7.2", "example/shop:1"],
        open_files: 65536,
        answers: |lab, stack| {
            exec_shows(lab, &format!("{stack}_redis-2"), 0, &["redis-cli", "cluster", "info"], "cluster_state:ok");
        },
    },
    Stack {
        name: "mysql-replica",
        is_kube: false,
        images: &["mysql:8.4"],
        open_files: 0,
        answers: |lab, stack| {
            let query = ["mysql", "-hmysql", "-uroot", "-proot", "-e", "select @@server_id"];
            exec_shows(lab, &format!("{stack}_replica"), 0, &query, "1");
        },
    },
    Stack {
        name: "prometheus-grafana",
        is_kube: false,
        images: &["prom/prometheus:v2.53.0", "prom/node-exporter:v1.8.1", "grafana/grafana-oss:11.1.0"],
        open_files: 0,
        answers: |lab, _| {
            // Every node's exporter is found by name and asked.
            http_shows(lab, 9090, "/api/v1/query?query=count(up==1)", "\"3\"]");
            http_shows(lab, 3000, "/", "Grafana");
        },
    },
    Stack {
        name: "redis-cluster",
        is_kube: true,
        images: &["redis:7.2"],
        open_files: 0,
        answers: |lab, stack| {
            let ask = ["redis-cli", "-h", "redis-0.redis", "ping"];
            exec_shows(lab, &format!("{stack}_redis"), 5, &ask, "PONG");
        },
    },
    Stack {
        name: "guestbook",
        is_kube: true,
        images: &["redis:latest", "registry.example.org/guestbook:v5"],
        open_files: 0,
        answers: |lab, stack| {
            http_shows(lab, published(lab, &format!("{stack}_frontend")), "/", "counted by");
            let ask = ["redis-cli", "info", "replication"];
            exec_shows(lab, &format!("{stack}_follower"), 1, &ask, "master_link_status:up");
        },
    },
    Stack {
        name: "pod-sidecar",
        is_kube: true,
        images: &["busybox:1.36", "nginx:latest", "nginx/nginx-prometheus-exporter:1.1"],
        open_files: 0,
        answers: |lab, stack| {
            http_shows(lab, 30080, "/", "hello");
            http_shows(lab, published_for(lab, &format!("{stack}_site"), 9113), "/", "The exporter");
        },
    },
    Stack {
        name: "postgres-claim",
        is_kube: true,
        images: &["postgres:16"],
        open_files: 0,
        answers: |lab, stack| {
            let query = ["psql", "postgresql://postgres:example@postgres/postgres", "-tc", "select 40 + 2"];
            exec_shows(lab, &format!("{stack}_postgres"), 0, &query, "42");
        },
    },
    Stack {
        name: "migration-job",
        is_kube: true,
        images: &["registry.example.org/shop/migrate:latest"],
        open_files: 0,
        answers: |lab, stack| {
            eventually("all three have completed", || {
                let format = ["service", "ps", "--format", "{{.CurrentState}}", &format!("{stack}_migrate")];
                let listed = lab.docker("m1", &format)?;
                ensure!(listed.lines().filter(|state| state.starts_with("Complete")).count() == 3, "{listed}");
                Ok(())
            });
        },
    },
    Stack {
        name: "log-collector",
        is_kube: true,
        images: &["fluent/fluent-bit:3.0"],
        open_files: 0,
        answers: |lab, _| http_shows(lab, 2020, "/", "Fluent Bit"),
    },
    Stack { name: "backup-cronjob", is_kube: true, images: &["postgres:16"], open_files: 0, answers: |_, _| {} },
];

/// The others, and why they do not run here.
const LEFT_OUT: &[(&str, &str)] = &[
    ("traefik", "no package of Traefik, and a proxy that answers for all proves nothing"),
    ("elasticsearch-kibana", "no package; three nodes of it need 3 GB"),
    ("rabbitmq", "its health check is a program of the image"),
    ("nextcloud", "no package of its application, which the web server needs"),
    ("gitea", "no package; it mounts files of the host that may not be there"),
    ("kafka", "no package; its jobs are programs of the image"),
    ("observability", "no package; it wants a GPU"),
    ("web-probes", "its liveness probe speaks TLS, which its configuration does not"),
    ("namespaces", "its client ends when it has asked, and is started again for ever"),
    ("replication-controller, shared-*", "tests/tests/e2e/stacks.rs runs them"),
];

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    match all(&only) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs them; how many did not do what they should.
fn all(only: &[String]) -> anyhow::Result<usize> {
    let wanted: Vec<&Stack> =
        STACKS.iter().filter(|s| only.is_empty() || only.iter().any(|name| name == s.name)).collect();
    ensure!(!wanted.is_empty(), "there is no such stack");
    let images: std::collections::BTreeSet<&str> = wanted.iter().flat_map(|s| s.images.iter().copied()).collect();
    let archive = Archive::of(&images.into_iter().collect::<Vec<_>>())?;
    let lab = Lab::up(2, 1, &[]);
    archive.load(&lab);
    // What the files expect of a cluster.
    for node in ["m1", "m2", "w1"] {
        lab.docker("m1", &["node", "update", "--label-add", "disk=ssd", node])?;
        lab.skep("m1", &["node", "policy", node, "--allow", "privileged"])?;
    }
    lab.docker_with_input("m1", &["secret", "create", "grafana-admin", "-"], "admin")?;
    let mut failed = 0;
    let mut report = Vec::new();
    for stack in wanted {
        if !allows(stack.open_files) {
            println!("{:<22} left out    this machine allows no {} open files", stack.name, stack.open_files);
            continue;
        }
        let began = Instant::now();
        let kind = if stack.is_kube { "Kubernetes" } else { "Compose" };
        // A check that fails ends that stack, not the others.
        let outcome = catch_unwind(AssertUnwindSafe(|| one(&lab, stack)));
        let said = match outcome {
            Ok(Ok(())) => format!("runs, answers, goes ({:.0} s)", began.elapsed().as_secs_f64()),
            Ok(Err(error)) => format!("FAILED: {error:#}"),
            Err(_) => "FAILED: see above".to_owned(),
        };
        if said.starts_with("FAILED") {
            failed += 1;
            // Whatever is left must not stand in the way of the next.
            let _ = lab.skep("m1", &["stack", "rm", &stack_name(stack)]);
        }
        println!("{:<22} {kind:<11} {said}", stack.name);
        report.push(said);
    }
    LEFT_OUT.iter().for_each(|(name, why)| println!("{name:<22} left out    {why}"));
    println!("{} of {} run", report.len() - failed, report.len());
    Ok(failed)
}

/// Whether a limit of open files can be set: tried, for that is what counts.
fn allows(open_files: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let own = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: own.current, maximum: Some(open_files) };
    own.maximum.is_none_or(|most| most >= open_files) || setrlimit(Resource::Nofile, raised).is_ok()
}

fn stack_name(stack: &Stack) -> String {
    format!("{}-{}", stack.name, if stack.is_kube { "kube" } else { "compose" })
}

fn one(lab: &Lab, stack: &Stack) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, text) in [
        (".env", "DB_PASSWORD=of-env\n"),
        ("flask.env", "DEBUG=0\n"),
        ("root.txt", "root"),
        ("alerts.yml", "groups: []\n"),
    ] {
        std::fs::write(dir.path().join(name), text)?;
    }
    let file = dir.path().join(format!("{}.yml", stack.name));
    std::fs::copy(source(stack), &file)?;
    let name = stack_name(stack);
    let arguments = ["apply", "--timeout", "120s", "--stack", &name, "-f", file.to_str().context("a path of text")?];
    let mut command = lab.skep_command("m1", &arguments);
    command.env("DB_PASSWORD", "of-the-caller").env("SECRET_KEY", "of-the-caller");
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    (stack.answers)(lab, &name);
    let again = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
    ensure!(again == format!("stack {name}: no changes\n"), "a second apply: {again}");
    lab.skep("m1", &["stack", "rm", &name])?;
    no_trace(lab, &name);
    Ok(())
}

fn source(stack: &Stack) -> PathBuf {
    let kind = if stack.is_kube { "kube" } else { "compose" };
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/src/manifest").join(kind).join("testdata");
    all.join(format!("{}.yml", stack.name))
}

/// The port at which a service is published, when it is only one.
fn published(lab: &Lab, service: &str) -> u16 {
    let format = "{{range .Endpoint.Ports}}{{.PublishedPort}} {{end}}";
    let text = lab.docker("m1", &["service", "inspect", "--format", format, service]).unwrap_or_default();
    text.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or_default()
}

/// The port at which one of its ports is published.
fn published_for(lab: &Lab, service: &str, target: u16) -> u16 {
    let format = "{{range .Endpoint.Ports}}{{.TargetPort}}={{.PublishedPort}} {{end}}";
    let text = lab.docker("m1", &["service", "inspect", "--format", format, service]).unwrap_or_default();
    let wanted = format!("{target}=");
    text.split_whitespace().find_map(|pair| pair.strip_prefix(&wanted)?.parse().ok()).unwrap_or_default()
}
