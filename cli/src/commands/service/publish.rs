//! The value of `--publish`.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// Reads `[PUBLISHED:]TARGET[/PROTOCOL]`, with ranges of ports, or `published=…,target=…,protocol=…,mode=…`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    if text.contains('=') { long(text).map(|port| vec![port]) } else { short(text) }
}

fn long(text: &str) -> anyhow::Result<Value> {
    let (mut published, mut target, mut protocol, mut mode) = (None, None, "tcp", "ingress");
    for part in text.split(',') {
        let (key, value) =
            part.split_once('=').with_context(|| format!("--publish {text}: {part:?} is not KEY=VALUE"))?;
        match key {
            "published" => published = Some(port(value)?),
            "target" => target = Some(port(value)?),
            "protocol" => protocol = value,
            "mode" => mode = value,
            _ => bail!("--publish {text}: there is no key {key:?}; there are published, target, protocol and mode"),
        }
    }
    let target = target.with_context(|| format!("--publish {text}: a target is needed"))?;
    Ok(entry(published, target, protocol, mode))
}

fn short(text: &str) -> anyhow::Result<Vec<Value>> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (published, target) = match numbers.split(':').collect::<Vec<_>>().as_slice() {
        [target] => (None, range(target)?),
        [published, target] => (Some(range(published)?), range(target)?),
        _ => bail!("--publish {text}: write [PUBLISHED:]TARGET[/PROTOCOL]"),
    };
    if let Some(published) = &published {
        ensure!(published.len() == target.len(), "--publish {text}: the two ranges are not of one length");
    }
    let published_at = |i: usize| published.as_ref().map(|p| p[i]);
    Ok(target.iter().enumerate().map(|(i, target)| entry(published_at(i), *target, protocol, "ingress")).collect())
}

fn range(text: &str) -> anyhow::Result<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    ensure!(first <= last, "the range {text} is empty");
    Ok((first..=last).collect())
}

fn port(text: &str) -> anyhow::Result<u16> {
    text.parse().ok().filter(|n| *n > 0).with_context(|| format!("{text:?} is no port from 1 to 65535"))
}

fn entry(published: Option<u16>, target: u16, protocol: &str, mode: &str) -> Value {
    let mut value = json!({"Protocol": protocol, "TargetPort": target, "PublishMode": mode});
    if let Some(published) = published {
        value["PublishedPort"] = json!(published);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nonsense_is_refused() {
        assert_eq!(
            parse("8080:80").unwrap(),
            [json!({"Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress", "PublishedPort": 8080})]
        );
        assert_eq!(parse("53-54:53-54/udp").unwrap().len(), 2);
        assert_eq!(parse("target=80,mode=host").unwrap()[0]["PublishMode"], "host");
        for wrong in ["", "0", "a", "80:", "1:2:3", "1-2:3", "target=x", "mode=host", "targt=80"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
