//! Placement constraints: `node.role==worker`, `node.labels.zone!=a`.

use std::net::IpAddr;

use ipnet::IpNet;
use skep_proto::model::{Node, NodeRole};

/// A constraint that was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Constraint {
    key: Key,
    is_equal: bool,
    value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Id,
    Hostname,
    Ip,
    Role,
    Os,
    Arch,
    Label(String),
    EngineLabel(String),
}

/// A text is no constraint (swarmkit's words).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseConstraintError {
    /// Neither `==` nor `!=`.
    #[error("constraint expected one operator from ==, !=: {0:?}")]
    NoOperator(String),
    /// Not a property of nodes.
    #[error(
        "constraint key {0:?} is not known: node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME and engine.labels.NAME are"
    )]
    UnknownKey(String),
    /// An empty value, or one with characters that none has.
    #[error("value {0:?} of a constraint is invalid")]
    Value(String),
}

/// Reads one constraint.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Constraint, ParseConstraintError> {
    let equal = text.split_once("==").map(|(k, v)| (k, v, true));
    let (key, value, is_equal) = text
        .split_once("!=")
        .map(|(k, v)| (k, v, false))
        .filter(|(k, ..)| !k.contains("=="))
        .or(equal)
        .ok_or_else(|| ParseConstraintError::NoOperator(text.to_owned()))?;
    let (key, value) = (key.trim(), value.trim());
    if value.is_empty() || !value.chars().all(|c| c.is_ascii_graphic() || c == ' ') || value.contains('=') {
        return Err(ParseConstraintError::Value(value.to_owned()));
    }
    let unknown = || ParseConstraintError::UnknownKey(key.to_owned());
    let lower = key.to_ascii_lowercase();
    // Keys are compared without case, names of labels with it (swarmkit).
    let label = |prefix: &str| {
        lower.starts_with(prefix).then(|| key[prefix.len()..].to_owned()).filter(|name| !name.is_empty())
    };
    let key = match lower.as_str() {
        "node.id" => Key::Id,
        "node.hostname" => Key::Hostname,
        "node.ip" => Key::Ip,
        "node.role" => Key::Role,
        "node.platform.os" => Key::Os,
        "node.platform.arch" => Key::Arch,
        _ => match (label("node.labels."), label("engine.labels.")) {
            (Some(name), _) => Key::Label(name),
            (None, Some(name)) => Key::EngineLabel(name),
            (None, None) => return Err(unknown()),
        },
    };
    Ok(Constraint { key, is_equal, value: value.to_owned() })
}

impl Constraint {
    /// Whether a node satisfies it. A label that a node does not have is unequal to everything.
    pub fn matches(&self, node: &Node) -> bool {
        let same = |text: &str| text.eq_ignore_ascii_case(&self.value);
        let is = match &self.key {
            Key::Id => same(&node.id.to_string()),
            Key::Hostname => same(&node.description.hostname),
            Key::Ip => node.address.is_some_and(|address| is_address(&self.value, address)),
            Key::Role => match node.spec.role {
                NodeRole::Worker => same("worker"),
                NodeRole::Manager => same("manager"),
            },
            Key::Os => same(&node.description.platform.os),
            Key::Arch => architecture(&self.value) == architecture(&node.description.platform.architecture),
            Key::Label(name) => node.spec.annotations.labels.get(name).is_some_and(|v| same(v)),
            Key::EngineLabel(name) => node.description.engine_labels.get(name).is_some_and(|v| same(v)),
        };
        is == self.is_equal
    }
}

/// An address, or a subnet that holds it.
fn is_address(text: &str, address: IpAddr) -> bool {
    text.parse::<IpAddr>().is_ok_and(|a| a == address) || text.parse::<IpNet>().is_ok_and(|net| net.contains(&address))
}

/// One name for each architecture: uname's and Go's differ.
pub fn architecture(name: &str) -> String {
    match name.to_ascii_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".into(),
        "aarch64" => "arm64".into(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn constraints_are_read_with_blanks_and_in_any_case() {
        assert_eq!(parse("Node.Role == worker").unwrap(), parse("node.role==worker").unwrap());
        assert_eq!(parse("node.labels.Zone!=a").unwrap().key, Key::Label("Zone".into()));
        for wrong in
            ["", "node.role", "node.role=worker", "node.roll==worker", "node.labels.==x", "node.id==", "a!=b==c"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
