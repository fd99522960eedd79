//! Whatever is written: the reader answers with a stack or with problems, and never panics.

use proptest::prelude::*;

use super::recorded::{MANIFESTS, manifest};
use crate::manifest::fake::{self, FakeDisk};

fn read(text: &str) {
    let _ =
        fake::read(&[("k.yml", text)], &fake::options(), &FakeDisk::default()).map_err(|problems| problems.to_string());
}

/// Words that mean something somewhere, and some that never do.
const WORDS: [&str; 30] = [
    "0",
    "-1",
    "99999999999999999999",
    "100%",
    "1Gi",
    "500m",
    "true",
    "null",
    "\"\"",
    "{}",
    "[]",
    "{a: b}",
    "[a, b]",
    "[{}]",
    "[{name: x}]",
    "Always",
    "None",
    "$(A) $$",
    "{{.Task.X}}",
    "{{",
    "/",
    "..",
    "65536",
    "é",
    "2e9",
    "~",
    "x: y",
    "- a",
    "{matchLabels: {a: b}}",
    "[{key: a, operator: In, values: []}]",
];

proptest! {
    /// One line of a real manifest says something else, is gone, or stands twice.
    #[test]
    fn a_changed_line_never_panics(
        of in 0..MANIFESTS.len(), line in 0..200usize, word in prop::sample::select(&WORDS[..]), how in 0..4u8,
    ) {
        let text = manifest(MANIFESTS[of]);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = line % lines.len().max(1);
        match how {
            0 => { lines.remove(at); }
            1 => { let again = lines[at].clone(); lines.insert(at, again); }
            2 => {
                let key = lines[at].split_once(':').map_or(lines[at].clone(), |(key, _)| key.to_owned());
                lines[at] = format!("{key}: {word}");
            }
            _ => lines[at] = format!("{} {word}", lines[at]),
        }
        read(&lines.join("\n"));
    }

    /// Keys of Kubernetes in any order and at any depth.
    #[test]
    fn keys_in_any_place_never_panic(
        kind in prop::sample::select(vec!["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim", "ReplicationController", "List", "Thing"]),
        pairs in prop::collection::vec((0..8usize, prop::sample::select(vec![
            "metadata", "spec", "template", "containers", "name", "image", "ports", "selector", "volumes", "env", "valueFrom",
            "emptyDir", "securityContext", "resources", "limits", "cpu", "items", "data", "schedule", "jobTemplate", "replicas",
            "volumeMounts", "livenessProbe", "httpGet", "port", "affinity", "type", "strategy", "rollingUpdate", "maxSurge",
        ]), prop::sample::select(&WORDS[..]), any::<bool>()), 0..20),
    ) {
        let mut text = format!("apiVersion: v1\nkind: {kind}\n");
        let mut depth = 0usize;
        for (wanted, key, word, opens) in pairs {
            depth = depth.min(wanted);
            let indent = "  ".repeat(depth);
            text.push_str(&if opens { depth += 1; format!("{indent}{key}:\n") } else { format!("{indent}{key}: {word}\n") });
        }
        read(&text);
    }

    #[test]
    fn quantities_never_panic(text in "[0-9.eEmkMGTPinu+-]{0,24}") {
        let _ = super::pod::quantity::parse(&text);
    }
}
