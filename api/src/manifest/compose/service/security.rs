//! What the processes of a service may do.

use skep_proto::model::ContainerSpec;
use skep_proto::model::container::Ulimit;
use skep_proto::model::isolation::DeviceMapping;

use crate::manifest::Problems;
use crate::manifest::decode::{entries, parsed, texts, unknown_key};
use crate::manifest::yaml::{Node, Value};

/// Names as Docker's client writes them: upper case, with `CAP_`, but for `ALL`. The daemon knows which there are.
pub fn capabilities(node: &Node, problems: &mut Problems) -> Vec<String> {
    let names = texts(node, "capabilities", problems);
    let whole = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    names.iter().map(whole).collect()
}

/// `HOST[:CONTAINER[:rwm]]`.
pub fn devices(node: &Node, problems: &mut Problems) -> Vec<DeviceMapping> {
    let read = |line: &String| {
        let mut parts = line.split(':');
        let host = parts.next().unwrap_or_default().to_owned();
        let container = parts.next().unwrap_or(&host).to_owned();
        DeviceMapping { container, access: parts.next().unwrap_or("rwm").to_owned(), host }
    };
    texts(node, "devices", problems).iter().map(read).collect()
}

/// `no-new-privileges[:true]` and `seccomp:unconfined`, as far as they are built.
pub fn options(node: &Node, container: &mut ContainerSpec, problems: &mut Problems) {
    for option in texts(node, "security_opt", problems) {
        let (name, value) = option.split_once([':', '=']).unwrap_or((&option, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => container.privileges.get_or_insert_default().no_new_privileges = true,
            ("no-new-privileges", "false") => {}
            ("seccomp", "unconfined") => container.privileges.get_or_insert_default().seccomp_unconfined = true,
            _ => {
                let message = format!(
                    "the security option {option:?} is not supported by skep: no-new-privileges and seccomp:unconfined are"
                );
                problems.add(node.place, message);
            }
        }
    }
}

/// `NAME: LIMIT`, or `NAME: {soft: …, hard: …}`.
pub fn ulimits(node: &Node, problems: &mut Problems) -> Vec<Ulimit> {
    let number = |value: &Node, problems: &mut Problems| {
        parsed(value, "a limit", "a whole number, -1 for none", problems).unwrap_or_default()
    };
    let mut limits = Vec::new();
    for entry in entries(node, "ulimits", problems) {
        let mut limit = Ulimit { name: entry.key.clone(), soft: 0, hard: 0 };
        if let Value::Mapping(_) = entry.value.value {
            for field in entries(&entry.value, "a limit", problems) {
                match field.key.as_str() {
                    "soft" => limit.soft = number(&field.value, problems),
                    "hard" => limit.hard = number(&field.value, problems),
                    _ => unknown_key(field, "a limit", &["soft", "hard"], problems),
                }
            }
        } else {
            limit.soft = number(&entry.value, problems);
            limit.hard = limit.soft;
        }
        limits.push(limit);
    }
    limits
}
