//! Published ports: `8080:80`, `127.0.0.1:53:53/udp`, ranges, or the long form.

use std::collections::BTreeSet;

use skep_proto::model::service::{PortConfig, Protocol, PublishMode};

use crate::manifest::Problems;
use crate::manifest::decode::{entries, items, parsed, text, unknown_key};
use crate::manifest::yaml::{Node, Value};

/// Ports of one entry at most, so that a range cannot make a huge service.
const MOST_OF_RANGE: usize = 1000;

/// Reads `ports`.
pub fn read(node: &Node, problems: &mut Problems) -> Vec<PortConfig> {
    let mut ports: Vec<PortConfig> = Vec::new();
    for item in items(node, "ports", problems) {
        if let Value::Mapping(_) = item.value {
            ports.extend(long(item, problems));
            continue;
        }
        let line = text(item, "a port", problems);
        match short(&line) {
            Ok(more) => ports.extend(more),
            Err(message) => problems.add(item.place, message),
        }
    }
    let mut taken = BTreeSet::new();
    for port in ports.iter().filter(|p| p.published.is_some()) {
        if !taken.insert((port.published, port.protocol)) {
            problems.add(node.place, format!("the port {} is published twice", port.published.unwrap_or_default()));
        }
    }
    ports
}

fn long(node: &Node, problems: &mut Problems) -> Option<PortConfig> {
    let mut port = PortConfig {
        name: String::new(),
        protocol: Protocol::Tcp,
        target: 0,
        published: None,
        mode: PublishMode::Ingress,
    };
    for field in entries(node, "a port", problems) {
        let value = &field.value;
        match field.key.as_str() {
            "target" => port.target = parsed(value, "target", "a port from 1 to 65535", problems).unwrap_or(0),
            "published" => port.published = parsed(value, "published", "a port from 1 to 65535", problems),
            "name" => port.name = text(value, "name", problems),
            "protocol" => match protocol(&text(value, "protocol", problems)) {
                Some(protocol) => port.protocol = protocol,
                None => problems.add(value.place, "a protocol is tcp or udp"),
            },
            "mode" => match text(value, "mode", problems).as_str() {
                "ingress" => port.mode = PublishMode::Ingress,
                "host" => port.mode = PublishMode::Host,
                other => problems.add(value.place, format!("the mode of a port is ingress or host, not {other:?}")),
            },
            _ => unknown_key(field, "a port", &["target", "published", "protocol", "mode", "name"], problems),
        }
    }
    if port.target == 0 {
        problems.add(node.place, "a port needs a target from 1 to 65535");
        return None;
    }
    Some(port)
}

fn protocol(text: &str) -> Option<Protocol> {
    match text {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    }
}

fn short(line: &str) -> Result<Vec<PortConfig>, String> {
    let wrong = || format!("a port is [PUBLISHED:]TARGET[/PROTOCOL], not {line:?}");
    let (numbers, protocol_name) = line.split_once('/').unwrap_or((line, "tcp"));
    let protocol = protocol(protocol_name).ok_or_else(|| format!("a protocol is tcp or udp, not {protocol_name:?}"))?;
    let parts: Vec<&str> = numbers.split(':').collect();
    let (published, target) = match parts.as_slice() {
        [target] => (None, *target),
        [published, target] => (Some(*published), *target),
        [_, _, _] => {
            return Err("publishing on one address is not supported by skep yet: leave the address out".to_owned());
        }
        _ => return Err(wrong()),
    };
    let targets = range(target).ok_or_else(wrong)?;
    let published = published.map(|p| range(p).ok_or_else(wrong)).transpose()?;
    if published.as_ref().is_some_and(|p| p.len() != targets.len()) {
        return Err(format!("the two ranges of {line:?} are not of one length"));
    }
    let port = |(i, target): (usize, u16)| PortConfig {
        name: String::new(),
        protocol,
        target,
        published: published.as_ref().map(|p| p[i]),
        mode: PublishMode::Ingress,
    };
    Ok(targets.into_iter().enumerate().map(port).collect())
}

/// `80` or `8000-8010`.
fn range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last && usize::from(last - first) < MOST_OF_RANGE).then(|| (first..=last).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_pair_up_and_nonsense_is_refused() {
        let ports = short("8000-8001:80-81/udp").unwrap();
        assert_eq!(
            ports.iter().map(|p| (p.published, p.target)).collect::<Vec<_>>(),
            [(Some(8000), 80), (Some(8001), 81)]
        );
        for wrong in ["", "0", "70000", "80/icmp", "1-2:1", "1-5000", "a:b", "127.0.0.1:80:80", "::1"] {
            assert!(short(wrong).is_err(), "{wrong}");
        }
    }
}
