//! Security contexts of pods and containers.

use std::collections::BTreeMap;

use skep_proto::model::ContainerSpec;
use skep_proto::model::container::Privileges;

use crate::manifest::decode::{boolean, entries, items, parsed, text, texts, unknown_key};
use crate::manifest::kube::rest::Rest;
use crate::manifest::problem::Problems;
use crate::manifest::yaml::{Entry, Node};

/// A pod's security context, as its containers inherit it.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    user: User,
    /// Group of volumes.
    pub fs_group: Option<u32>,
    groups: Vec<String>,
    sysctls: BTreeMap<String, String>,
    seccomp_unconfined: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct User {
    user: Option<u32>,
    group: Option<u32>,
    not_root: bool,
}

impl User {
    /// Whether the key is one of a user's.
    fn field(&mut self, field: &Entry, problems: &mut Problems) -> bool {
        let value = &field.value;
        match field.key.as_str() {
            "runAsUser" => self.user = parsed(value, "runAsUser", "a user's number", problems),
            "runAsGroup" => self.group = parsed(value, "runAsGroup", "a group's number", problems),
            "runAsNonRoot" => self.not_root = boolean(value, "runAsNonRoot", problems),
            _ => return false,
        }
        true
    }
}

const REFUSED: [(&str, &str); 2] =
    [("seLinuxOptions", "nodes do not label processes"), ("windowsOptions", "nodes run Linux")];

const POD_REST: Rest<'_> = Rest {
    what: "a pod's securityContext",
    known: &["runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "sysctls", "seccompProfile"],
    refused: &REFUSED,
    left_out: &[
        ("fsGroupChangePolicy", "the root of a volume is given to the group, what is below it keeps its owner"),
        ("supplementalGroupsPolicy", "groups of the image's user are merged"),
        ("appArmorProfile", "the node's default profile holds"),
    ],
};

/// Reads a pod's.
pub fn pod(node: &Node, problems: &mut Problems) -> Pod {
    let mut pod = Pod::default();
    for field in entries(node, "a pod's securityContext", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "fsGroup" => pod.fs_group = parsed(value, "fsGroup", "a group's number", problems),
            "supplementalGroups" => pod.groups = texts(value, "supplementalGroups", problems),
            "sysctls" => {
                for item in items(value, "sysctls", problems) {
                    let part = |key: &str| item.get(key).and_then(|node| node.as_text()).unwrap_or_default().to_owned();
                    pod.sysctls.insert(part("name"), part("value"));
                }
            }
            "seccompProfile" => pod.seccomp_unconfined = seccomp(value, problems),
            _ if pod.user.field(field, problems) => {}
            _ => POD_REST.take(field, problems),
        }
    }
    pod
}

const CONTAINER_REST: Rest<'_> = Rest {
    what: "a container's securityContext",
    known: &[
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "privileged",
        "allowPrivilegeEscalation",
        "readOnlyRootFilesystem",
        "capabilities",
        "seccompProfile",
    ],
    refused: &REFUSED,
    left_out: &[("appArmorProfile", "the node's default profile holds")],
};

/// Puts what pod and container say into the container.
pub fn container(node: Option<&Node>, pod: &Pod, container: &mut ContainerSpec, problems: &mut Problems) {
    let mut user = pod.user;
    let mut privileges = Privileges { seccomp_unconfined: pod.seccomp_unconfined, ..Privileges::default() };
    for field in node.map(|node| entries(node, "a container's securityContext", problems)).unwrap_or_default() {
        let value = &field.value;
        match field.key.as_str() {
            "privileged" => privileges.privileged = boolean(value, "privileged", problems),
            "allowPrivilegeEscalation" => {
                privileges.no_new_privileges = !boolean(value, "allowPrivilegeEscalation", problems);
            }
            "readOnlyRootFilesystem" => container.read_only = boolean(value, "readOnlyRootFilesystem", problems),
            "capabilities" => capabilities(value, container, problems),
            "seccompProfile" => privileges.seccomp_unconfined = seccomp(value, problems),
            "procMount" if value.as_text() == Some("Default") => {}
            "procMount" => problems.add(value.place, "procMount is not supported by skep: only Default is"),
            _ if user.field(field, problems) => {}
            _ => CONTAINER_REST.take(field, problems),
        }
    }
    if user.not_root
        && let Some(node) = node
        && user.user.is_none()
    {
        problems.warn(node.place, "runAsNonRoot without runAsUser is not enforced: the image's user runs the program");
    }
    if user.not_root && user.user == Some(0) {
        let place = node.map_or(Default::default(), |node| node.place);
        problems.add(place, "runAsNonRoot and runAsUser: 0 contradict each other");
    }
    container.user = match (user.user, user.group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, Some(group)) => format!("0:{group}"),
        (None, None) => String::new(),
    };
    container.groups = pod.groups.iter().cloned().chain(pod.fs_group.map(|group| group.to_string())).collect();
    container.sysctls.clone_from(&pod.sysctls);
    if privileges != Privileges::default() {
        container.privileges = Some(privileges);
    }
}

fn capabilities(node: &Node, container: &mut ContainerSpec, problems: &mut Problems) {
    let whole = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    for field in entries(node, "capabilities", problems) {
        let names: Vec<String> = texts(&field.value, "capabilities", problems).iter().map(whole).collect();
        match field.key.as_str() {
            "add" => container.cap_add = names,
            "drop" => container.cap_drop = names,
            _ => unknown_key(field, "capabilities", &["add", "drop"], problems),
        }
    }
}

fn seccomp(node: &Node, problems: &mut Problems) -> bool {
    let mut kind = String::new();
    for field in entries(node, "seccompProfile", problems) {
        match field.key.as_str() {
            "type" => kind = text(&field.value, "type", problems),
            "localhostProfile" => {}
            _ => unknown_key(field, "seccompProfile", &["type"], problems),
        }
    }
    match kind.as_str() {
        "Unconfined" => return true,
        "RuntimeDefault" => {}
        other => problems.add(node.place, format!("a seccomp profile is RuntimeDefault or Unconfined, not {other:?}")),
    }
    false
}
