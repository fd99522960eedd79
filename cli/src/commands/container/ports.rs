//! The value of `--publish` of plain containers: `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTOCOL]`
//! (docker/go-connections `nat.ParsePortSpec`).

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

/// Adds what `text` publishes to the Engine API's `PortBindings`.
///
/// # Errors
/// What is wrong with it.
pub fn publish(bindings: &mut Map<String, Value>, text: &str) -> anyhow::Result<()> {
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    ensure!(["tcp", "udp", "sctp"].contains(&protocol), "invalid proto: {protocol}");
    let (rest, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), host),
        None => ("", rest),
    };
    let wrong = || format!("invalid port specification: {text:?}");
    let (first, last) = range(container).with_context(wrong)?;
    let count = last - first;
    let hosts: Option<(u16, u16)> = if host.is_empty() { None } else { Some(range(host).with_context(wrong)?) };
    for offset in 0..=count {
        let host_port = match hosts {
            None => String::new(),
            Some((low, high)) if high - low == count => (low + offset).to_string(),
            // One port of a range of the host's: the daemon chooses.
            Some((low, high)) if count == 0 => format!("{low}-{high}"),
            Some(_) => bail!("invalid ranges specified for container and host Ports: {container} and {host}"),
        };
        let list = bindings.entry(format!("{}/{protocol}", first + offset)).or_insert_with(|| json!([]));
        list.as_array_mut().context("lists are ours")?.push(json!({"HostIp": ip, "HostPort": host_port}));
    }
    Ok(())
}

/// `80` or `80-90`.
fn range(text: &str) -> anyhow::Result<(u16, u16)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high): (u16, u16) = (low.parse()?, high.parse()?);
    ensure!(0 < low && low <= high, "invalid range specified for port: {text}");
    Ok((low, high))
}

/// Names of the ports that `--expose` names: `80/tcp`, one each of a range.
///
/// # Errors
/// What is wrong with it.
pub fn exposed(text: &str) -> anyhow::Result<Vec<String>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (low, high) = range(ports).with_context(|| format!("invalid range format for --expose: {text}"))?;
    Ok((low..=high).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Value> {
        let mut bindings = Map::new();
        publish(&mut bindings, text).map(|()| Value::Object(bindings))
    }

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let one = |ip: &str, host: &str| json!([{"HostIp": ip, "HostPort": host}]);
        assert_eq!(read("80").unwrap(), json!({"80/tcp": one("", "")}));
        assert_eq!(read("8080:80/udp").unwrap(), json!({"80/udp": one("", "8080")}));
        assert_eq!(read("127.0.0.1::80").unwrap(), json!({"80/tcp": one("127.0.0.1", "")}));
        assert_eq!(read("[::1]:1:2").unwrap(), json!({"2/tcp": one("::1", "1")}));
        assert_eq!(read("8000-8001:80-81").unwrap(), json!({"80/tcp": one("", "8000"), "81/tcp": one("", "8001")}));
        assert_eq!(read("8000-8009:80").unwrap(), json!({"80/tcp": one("", "8000-8009")}));
        for wrong in ["", "x", "0", "80/x", "8000-8001:80-82", "2-1", "70000"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
