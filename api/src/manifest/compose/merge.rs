//! Several files as one tree (Compose Specification, "Merge"): mappings are merged key by key, lists are appended, and a
//! single value of a later file wins. Some lists have a key of their own (ports, volumes), some are replaced (commands),
//! and what may be written as list or mapping is merged as a mapping. `!reset` takes a value away, `!override` replaces it.

use std::rc::Rc;

use crate::manifest::problem::Problems;
use crate::manifest::yaml::{Entry, Node, Tag, Value};

/// The tree of a file over that of the files before it.
pub fn merge(base: &Rc<Node>, over: &Rc<Node>, problems: &mut Problems) -> Rc<Node> {
    merge_at(base, over, &mut Vec::new(), problems)
}

/// Like [`merge`], for two services.
pub fn merge_services(base: &Rc<Node>, over: &Rc<Node>, problems: &mut Problems) -> Rc<Node> {
    merge_at(base, over, &mut vec!["services".into(), "*".into()], problems)
}

/// The tree without what `!reset` takes away.
pub fn without_resets(node: &Rc<Node>) -> Rc<Node> {
    let value = match &node.value {
        Value::Scalar { .. } => return node.clone(),
        Value::Sequence(items) => {
            Value::Sequence(items.iter().filter(|i| i.tag != Some(Tag::Reset)).map(without_resets).collect())
        }
        Value::Mapping(entries) => {
            let kept = entries.iter().filter(|e| e.value.tag != Some(Tag::Reset));
            Value::Mapping(kept.map(|e| Entry { value: without_resets(&e.value), ..e.clone() }).collect())
        }
    };
    Rc::new(Node::new(node.place, value, None))
}

/// How values at a path are merged, where that is not as usual.
#[derive(Clone, Copy)]
enum Rule {
    Usual,
    /// The later one wins.
    Replace,
    /// A list of `KEY=VALUE` is a mapping.
    Pairs,
    /// A list of keys is a mapping of nothing.
    Keys,
    /// A single value is a list of one.
    List,
    /// A list in which each entry has a key.
    Keyed(fn(&Node) -> Option<String>),
    /// Options are merged where the driver is the same.
    Logging,
}

fn rule(path: &[String]) -> Rule {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let [section, _, rest @ ..] = path.as_slice() else { return Rule::Usual };
    match (*section, rest) {
        ("services", ["command" | "entrypoint"] | ["healthcheck", "test"]) => Rule::Replace,
        (
            "services",
            ["environment" | "labels" | "annotations" | "sysctls"]
            | ["deploy", "labels"]
            | ["build", "args" | "labels"],
        )
        | (_, ["labels" | "driver_opts"]) => Rule::Pairs,
        ("services", ["depends_on" | "networks" | "models"]) => Rule::Keys,
        ("services", ["dns" | "dns_search" | "dns_opt" | "env_file" | "label_file" | "tmpfs"]) => Rule::List,
        ("services", ["ports"]) => Rule::Keyed(port_key),
        ("services", ["volumes"]) => Rule::Keyed(volume_key),
        ("services", ["secrets" | "configs"]) => Rule::Keyed(file_key),
        ("services", ["devices"]) => Rule::Keyed(volume_key),
        ("services", ["logging"]) => Rule::Logging,
        ("services", ["ulimits", _]) => Rule::Replace,
        (
            "services",
            [
                "cap_add" | "cap_drop" | "expose" | "group_add" | "profiles" | "security_opt" | "volumes_from"
                | "links" | "external_links" | "extra_hosts",
            ],
        ) => Rule::Keyed(|node| node.as_text().map(str::to_owned)),
        _ => Rule::Usual,
    }
}

fn merge_at(base: &Rc<Node>, over: &Rc<Node>, path: &mut Vec<String>, problems: &mut Problems) -> Rc<Node> {
    if over.tag.is_some() {
        return over.clone();
    }
    let rule = rule(path);
    if matches!(rule, Rule::Replace) || base.is_null() || base.tag == Some(Tag::Reset) {
        return over.clone();
    }
    if over.is_null() && !matches!(base.value, Value::Scalar { .. }) {
        return base.clone();
    }
    let (base, over) = match rule {
        Rule::Pairs => (as_mapping(base, true), as_mapping(over, true)),
        Rule::Keys => (as_mapping(base, false), as_mapping(over, false)),
        Rule::List => (as_list(base), as_list(over)),
        Rule::Logging
            if base.get("driver").and_then(|d| d.as_text()) != over.get("driver").and_then(|d| d.as_text())
                && over.get("driver").is_some()
                && base.get("driver").is_some() =>
        {
            return over.clone();
        }
        _ => (base.clone(), over.clone()),
    };
    let value = match (&base.value, &over.value) {
        (Value::Mapping(b), Value::Mapping(o)) => Value::Mapping(mappings(b, o, path, problems)),
        (Value::Sequence(b), Value::Sequence(o)) => Value::Sequence(match rule {
            Rule::Keyed(key) => keyed(b, o, key),
            _ => b.iter().chain(o).cloned().collect(),
        }),
        (Value::Scalar { .. }, Value::Scalar { .. }) => return over,
        // Forms of one key that are no list and no pairs: a long and a short form of a build, an external, a network.
        (Value::Scalar { .. }, _) | (_, Value::Scalar { .. }) if path.len() > 2 => return over,
        _ => {
            let message = format!("this is {}, but in the files before it is {}", over.kind(), base.kind());
            problems.add(over.place, message);
            return base;
        }
    };
    Rc::new(Node::new(over.place, value, base.tag))
}

fn mappings(base: &[Entry], over: &[Entry], path: &mut Vec<String>, problems: &mut Problems) -> Vec<Entry> {
    let mut merged = base.to_vec();
    let index: std::collections::HashMap<String, usize> =
        base.iter().enumerate().map(|(i, e)| (e.key.clone(), i)).collect();
    for entry in over {
        let Some(&at) = index.get(&entry.key) else {
            merged.push(entry.clone());
            continue;
        };
        path.push(entry.key.clone());
        let value = merge_at(&merged[at].value, &entry.value, path, problems);
        path.pop();
        merged[at] = Entry { key: entry.key.clone(), place: entry.place, value };
    }
    merged
}

fn keyed(base: &[Rc<Node>], over: &[Rc<Node>], key: fn(&Node) -> Option<String>) -> Vec<Rc<Node>> {
    let mut merged = base.to_vec();
    let mut index: std::collections::HashMap<String, usize> =
        base.iter().enumerate().filter_map(|(i, n)| Some((key(n)?, i))).collect();
    for item in over {
        match key(item) {
            Some(key) => match index.get(&key) {
                Some(&at) => merged[at] = item.clone(),
                None => {
                    index.insert(key, merged.len());
                    merged.push(item.clone());
                }
            },
            None => merged.push(item.clone()),
        }
    }
    merged
}

/// A list of `KEY=VALUE` or of keys as a mapping; a later item of the same key wins. Other values as they are.
fn as_mapping(node: &Rc<Node>, are_pairs: bool) -> Rc<Node> {
    let Value::Sequence(items) = &node.value else { return node.clone() };
    let mut entries: Vec<Entry> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for item in items {
        let Value::Scalar { text, .. } = &item.value else { return node.clone() };
        let pair = if are_pairs { text.split_once('=') } else { None };
        let (key, value, quoted) = pair.map_or((text.as_str(), "", false), |(k, v)| (k, v, true));
        let value = Rc::new(Node::new(item.place, Value::Scalar { text: value.to_owned(), quoted }, None));
        let entry = Entry { key: key.to_owned(), place: item.place, value };
        match index.get(key) {
            Some(&at) => entries[at] = entry,
            None => {
                index.insert(key.to_owned(), entries.len());
                entries.push(entry);
            }
        }
    }
    Rc::new(Node::new(node.place, Value::Mapping(entries), node.tag))
}

fn as_list(node: &Rc<Node>) -> Rc<Node> {
    match &node.value {
        Value::Sequence(_) => node.clone(),
        _ => Rc::new(Node::new(node.place, Value::Sequence(vec![node.clone()]), None)),
    }
}

fn field(node: &Node, name: &str) -> String {
    node.get(name).and_then(|n| n.as_text()).unwrap_or_default().to_owned()
}

/// Address, published port, target and protocol.
fn port_key(node: &Node) -> Option<String> {
    if let Value::Mapping(_) = node.value {
        let protocol = Some(field(node, "protocol")).filter(|p| !p.is_empty()).unwrap_or_else(|| "tcp".to_owned());
        return Some(format!(
            "{}:{}:{}/{protocol}",
            field(node, "host_ip"),
            field(node, "published"),
            field(node, "target")
        ));
    }
    let text = node.as_text()?;
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let mut parts = ports.rsplitn(3, ':');
    let (target, published, ip) = (parts.next()?, parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    Some(format!("{ip}:{published}:{target}/{protocol}"))
}

/// The path in the container.
fn volume_key(node: &Node) -> Option<String> {
    if let Value::Mapping(_) = node.value {
        return Some(field(node, "target"));
    }
    let mut parts = node.as_text()?.split(':');
    let first = parts.next()?;
    Some(parts.next().unwrap_or(first).to_owned())
}

/// The path in the container; the name stands for it when there is none.
fn file_key(node: &Node) -> Option<String> {
    if let Value::Mapping(_) = node.value {
        let target = field(node, "target");
        return Some(if target.is_empty() { field(node, "source") } else { target });
    }
    node.as_text().map(str::to_owned)
}
