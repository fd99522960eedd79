//! Realistic stacks, and what the reader makes of them, as checked-in files: `testdata/NAME.yml` and `NAME.json`.
//! `SKEP_RECORD=1 cargo test -p skep-api manifest::kube` writes the results anew, to be reviewed as code.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::docker::requests;
use crate::manifest::fake::{self, FakeDisk};
use crate::manifest::stack::Stack;

/// The manifests.
pub const MANIFESTS: [&str; 10] = [
    "redis-cluster",
    "web-probes",
    "log-collector",
    "migration-job",
    "backup-cronjob",
    "pod-sidecar",
    "postgres-claim",
    "guestbook",
    "namespaces",
    "replication-controller",
];

fn path(name: &str, ending: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/manifest/kube/testdata").join(format!("{name}.{ending}"))
}

/// The text of one of them.
pub fn manifest(name: &str) -> String {
    std::fs::read_to_string(path(name, "yml")).unwrap()
}

/// What the reader makes of one of them.
pub fn read(name: &str) -> Stack {
    let stack = fake::read(&[(&format!("{name}.yml"), &manifest(name))], &fake::options(), &FakeDisk::default());
    stack.unwrap_or_else(|problems| panic!("{name}:\n{problems}"))
}

fn shown(stack: &Stack) -> Value {
    let parts = &stack.parts;
    let content = |content: &[u8]| String::from_utf8_lossy(content).into_owned();
    json!({
        "services": parts.services.iter().map(|s| requests::service_spec(&s.whole_spec())).collect::<Vec<_>>(),
        "networks": parts.networks.iter().map(requests::network_create).collect::<Vec<_>>(),
        "files": parts.files.iter().map(|f| json!({
            "kind": f.kind.word(), "name": f.name, "template": f.template_driver,
            "content": f.content.as_ref().map(|c| content(&c.0)),
        })).collect::<Vec<_>>(),
        "volumes": parts.volumes.iter().map(|v| &v.name).collect::<Vec<_>>(),
        "warnings": stack.warnings,
    })
}

#[test]
fn stacks_become_what_was_recorded() {
    let records = std::env::var_os("SKEP_RECORD").is_some();
    for name in MANIFESTS {
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
