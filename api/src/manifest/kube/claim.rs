//! `v1` PersistentVolumeClaim: a volume of one node, whose tasks run there.

use std::collections::BTreeMap;

use crate::manifest::decode::{entries, texts};
use crate::manifest::problem::Problems;
use crate::manifest::yaml::Node;

use super::meta::Meta;
use super::pod::quantity;
use super::rest::Rest;

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who it is.
    pub meta: Meta,
}

const REST: Rest<'_> = Rest {
    what: "a claim",
    known: &["accessModes", "resources", "storageClassName", "volumeMode"],
    refused: &[
        ("dataSource", "the volume begins empty, or with what the image has at that path: restore into it afterwards"),
        (
            "dataSourceRef",
            "the volume begins empty, or with what the image has at that path: restore into it afterwards",
        ),
        ("volumeName", "volumes are made by the node that needs them: mount an existing path by hostPath"),
        ("selector", "volumes are made by the node that needs them: mount an existing path by hostPath"),
    ],
    left_out: &[("volumeAttributesClassName", "all volumes are folders of a node")],
};

/// Reads the object.
pub fn read(node: &Node, meta: Meta, problems: &mut Problems) -> Claim {
    match node.get("spec") {
        Some(spec) => spec_of(spec, problems),
        None => problems.add(meta.place, "the claim has no spec"),
    }
    Claim { meta }
}

/// Reads `spec` for what would not hold.
pub fn spec_of(spec: &Node, problems: &mut Problems) {
    for field in entries(spec, "a claim", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "accessModes" => {
                let modes = texts(value, "accessModes", problems);
                if modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany") {
                    let text = "volumes are of one node: all tasks that use this one run there";
                    problems.warn(value.place, text);
                }
                let known = ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod"];
                if let Some(other) = modes.iter().find(|mode| !known.contains(&mode.as_str())) {
                    problems.add(value.place, format!("an access mode is one of {}, not {other:?}", known.join(", ")));
                }
            }
            "resources" => {
                let mut sizes: BTreeMap<String, ()> = BTreeMap::new();
                for part in entries(value, "resources", problems) {
                    for size in entries(&part.value, "requests", problems) {
                        quantity::read(&size.value, &size.key, problems);
                        sizes.insert(size.key.clone(), ());
                    }
                }
                if sizes.contains_key("storage") {
                    problems
                        .warn(value.place, "the size of a claim is not enforced: a volume grows with its node's disk");
                }
            }
            "storageClassName" if value.as_text().is_some_and(|class| !class.is_empty()) => {
                problems.warn(field.place, "all volumes are folders of a node: the storage class is left out");
            }
            "storageClassName" => {}
            "volumeMode" if value.as_text() == Some("Block") => {
                problems.add(value.place, "a block device cannot be claimed: use Filesystem");
            }
            "volumeMode" => {}
            _ => REST.take(field, problems),
        }
    }
}
