//! Realistic stacks, and what the reader makes of them, as checked-in files: `testdata/NAME.yml` and `NAME.json`.
//! `SKEP_RECORD=1 cargo test -p skep-api manifest::compose` writes the results anew, to be reviewed as code.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::docker::requests;
use crate::manifest::compose::export::export;
use crate::manifest::export::Export;
use crate::manifest::fake::{self, FakeDisk};
use crate::manifest::plan::{How, NetworkSeen, Observed, ServiceSeen, Wanted, plan};
use crate::manifest::stack::Stack;

/// The stacks; those of `shared-` are as users wrote them.
pub const STACKS: [&str; 16] = [
    "wordpress-mysql",
    "voting-app",
    "traefik",
    "prometheus-grafana",
    "redis-cluster",
    "elasticsearch-kibana",
    "rabbitmq",
    "flask-redis",
    "mysql-replica",
    "nextcloud",
    "gitea",
    "kafka",
    "observability",
    "shared-adminer",
    "shared-wordpress",
    "shared-middleware",
];

fn path(name: &str, ending: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/manifest/compose/testdata").join(format!("{name}.{ending}"))
}

fn disk() -> FakeDisk {
    FakeDisk::with(&[
        (".env", "DB_PASSWORD=of-env\nACME_EMAIL=ops@example.org\n"),
        ("alerts.yml", "groups: []\n"),
        ("rabbit.txt", "hare"),
        ("root.txt", "root"),
        ("nginx.conf", "events {}\n"),
        ("flask.env", "# of the page\nexport DEBUG=0\nGREETING='hello $USER'\n"),
        (
            "database.yml",
            "services:\n  db:\n    image: postgres:16\n    environment: {POSTGRES_PASSWORD: '${DB_PASSWORD}'}\n    volumes: ['db:/var/lib/postgresql/data']\n    healthcheck: {test: pg_isready}\nvolumes: {db: }\n",
        ),
    ])
}

/// What the reader makes of one of them.
pub fn read(name: &str) -> Stack {
    let text = std::fs::read_to_string(path(name, "yml")).unwrap();
    let mut options = fake::options();
    options.environment.insert("SECRET_KEY".into(), "of the caller".into());
    options.environment.insert("DB_PASSWORD".into(), "of the caller".into());
    if name == "kafka" {
        options.profiles = vec!["load".into()];
    }
    fake::read(&[(&format!("{name}.yml"), &text)], &options, &disk()).unwrap_or_else(|p| panic!("{name}:\n{p}"))
}

fn shown(stack: &Stack) -> Value {
    let parts = &stack.parts;
    json!({
        "services": parts.services.iter().map(|s| requests::service_spec(&s.whole_spec())).collect::<Vec<_>>(),
        "networks": parts.networks.iter().map(requests::network_create).collect::<Vec<_>>(),
        "external_networks": parts.external_networks,
        "files": parts.files.iter().map(|f| json!({
            "kind": f.kind.word(), "name": f.name, "template": f.template_driver,
            "content": f.content.as_ref().map(|c| String::from_utf8_lossy(&c.0).into_owned()),
        })).collect::<Vec<_>>(),
        "volumes": parts.volumes.iter().map(|v| &v.name).collect::<Vec<_>>(),
        "warnings": stack.warnings,
    })
}

#[test]
fn stacks_become_what_was_recorded() {
    let records = std::env::var_os("SKEP_RECORD").is_some();
    for name in STACKS {
        let found = format!("{:#}\n", shown(&read(name)));
        if records {
            std::fs::write(path(name, "json"), &found).unwrap();
            continue;
        }
        let expected = std::fs::read_to_string(path(name, "json")).unwrap_or_default();
        assert!(
            found == expected,
            "{name} differs from testdata/{name}.json; if that is meant, record it anew: {found}"
        );
    }
}

#[test]
fn each_stack_can_be_planned() {
    for name in STACKS {
        let wanted = Wanted::from(&read(name));
        let first = plan(&wanted, &Observed::default(), How::default());
        assert!(first.refusals.is_empty() && !first.is_empty(), "{name}: {first}");
    }
}

/// What the cluster has is written as a file that applies to no changes.
#[test]
fn an_exported_stack_applies_to_no_changes() {
    for name in STACKS {
        let stack = read(name);
        let wanted = Wanted::from(&stack);
        let from = Export {
            stack: "demo",
            services: wanted.services.clone(),
            networks: wanted.networks.clone(),
            ..Export::default()
        };
        let text = export(&from).unwrap_or_else(|problem| panic!("{name}: {problem}"));
        let again = fake::read(&[("export.yml", &text)], &fake::options(), &FakeDisk::default());
        let again = again.unwrap_or_else(|p| panic!("{name}:\n{p}\n{text}"));
        let seen = |spec: &Value| ServiceSeen { id: "s".into(), version: 1, spec: spec.clone() };
        let observed = Observed {
            services: wanted.services.iter().map(|(k, v)| (k.clone(), seen(v))).collect(),
            networks: wanted
                .networks
                .iter()
                .map(|(k, v)| (k.clone(), NetworkSeen { id: "n".into(), shown: v.clone() }))
                .collect(),
            ..Observed::default()
        };
        let plan = plan(&Wanted::from(&again), &observed, How::default());
        assert!(plan.is_empty() && plan.notes.is_empty(), "{name}: {plan}\n{text}");
    }
}

/// Files that need an image to be built are refused for that alone.
#[test]
fn what_must_be_built_is_refused_with_its_place() {
    let text = "services:\n  redis:\n    image: redis\n  web:\n    build:\n      context: .\n      dockerfile: Dockerfile\n    ports:\n      - 8080:5000\n";
    let problems = fake::read(&[("web-redis.yml", text)], &fake::options(), &disk()).unwrap_err();
    let all: Vec<_> = problems.all().iter().map(|p| (p.place.line, p.message.as_str())).collect();
    assert_eq!(
        all,
        [(5, "build: building images is not supported by skep yet: build and push the image, and name it under image")]
    );
    // Another file names what was built: then that runs, and nothing is built.
    let over = "services: {web: {image: example/web}}\n";
    let files = [("web-redis.yml", text), ("over.yml", over)];
    let stack = fake::read(&files, &fake::options(), &disk()).unwrap();
    assert_eq!(stack.parts.services.len(), 2);
    assert!(stack.warnings[0].contains("web-redis.yml:5:5: build: it has no effect"), "{:?}", stack.warnings);
}
