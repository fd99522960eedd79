//! What earlier applies wanted, kept in the cluster: for drift, pruning, history and rollback.
//!
//! A revision is the wanted stack as compressed JSON in swarm configs of the stack, in as many parts as it needs. They have the
//! stack's label, so `docker stack rm` and `skep stack rm` take them along, and their content is replicated, sealed and
//! backed up like everything else in the store.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skep_api::manifest::plan::Wanted;
use skep_api::manifest::stack::STACK_LABEL;

use crate::client::Client;
use crate::commands::{filters, text};

/// The label that holds a revision's number.
pub const LABEL: &str = "skep.stack.revision";
/// The label that holds which part of how many it is: `1/3`.
const PART_LABEL: &str = "skep.stack.part";
/// Revisions kept.
pub const KEPT: usize = 10;
/// Bytes of one part: below the limit of a config's content.
const PART_BYTES: usize = 900 * 1024;
/// Bytes that a revision has at most when it is unpacked.
const MOST_BYTES: u64 = 256 << 20;

/// What one apply wanted. Members are only ever added.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Revision {
    /// Its number, from 1.
    pub number: u64,
    /// When it was applied (RFC 3339).
    pub at: String,
    /// Where it came from: names of files, or the revision that it went back to.
    #[serde(default)]
    pub source: String,
    /// What it changed, for people.
    #[serde(default)]
    pub summary: String,
    /// What it wanted, secrets and configs by their names in the cluster.
    pub wanted: Wanted,
}

/// The configs of one revision.
#[derive(Debug, Default)]
struct Stored {
    parts: BTreeMap<usize, Value>,
    total: usize,
}

/// Revisions of a stack, oldest first, with the ids of their configs.
#[derive(Debug, Default)]
pub struct Revisions {
    /// Those that are whole.
    pub all: Vec<Revision>,
    /// Ids of configs by revision, those of revisions that are not whole, too.
    ids: BTreeMap<u64, Vec<String>>,
}

impl Revisions {
    /// Reads them from configs of the stack.
    ///
    /// # Errors
    /// A revision that is whole and cannot be read.
    pub fn read(configs: &[Value]) -> anyhow::Result<Self> {
        let mut stored: BTreeMap<u64, Stored> = BTreeMap::new();
        let mut revisions = Self::default();
        for config in configs {
            let labels = &config["Spec"]["Labels"];
            let Some(number) = labels[LABEL].as_str().and_then(|n| n.parse().ok()) else { continue };
            revisions.ids.entry(number).or_default().push(text(&config["ID"]));
            let part = text(&labels[PART_LABEL]);
            let Some((index, total)) = part.split_once('/') else { continue };
            if let (Ok(index), Ok(total)) = (index.parse(), total.parse()) {
                let entry = stored.entry(number).or_default();
                entry.parts.insert(index, config["Spec"]["Data"].clone());
                entry.total = total;
            }
        }
        // One that was cut off while it was written never counted.
        for (number, found) in stored.into_iter().filter(|(_, s)| s.parts.len() == s.total) {
            let unpacked = unpack(&found).with_context(|| format!("reading revision {number} of the stack"))?;
            revisions.all.push(unpacked);
        }
        Ok(revisions)
    }

    /// The newest.
    pub fn last(&self) -> Option<&Revision> {
        self.all.last()
    }

    /// The number that the next one has.
    pub fn next_number(&self) -> u64 {
        self.ids.keys().next_back().map_or(1, |last| last + 1)
    }

    /// Numbers of those that go when another one comes.
    pub fn to_drop(&self) -> Vec<u64> {
        let surplus = (self.ids.len() + 1).saturating_sub(KEPT);
        self.ids.keys().take(surplus).copied().collect()
    }
}

fn unpack(stored: &Stored) -> anyhow::Result<Revision> {
    let mut packed = Vec::new();
    for data in stored.parts.values() {
        packed.extend(BASE64_STANDARD.decode(data.as_str().unwrap_or_default()).context("it is not base64")?);
    }
    let mut plain = Vec::new();
    GzDecoder::new(packed.as_slice()).take(MOST_BYTES).read_to_end(&mut plain).context("it cannot be unpacked")?;
    serde_json::from_slice(&plain).context("it is not what this version of skep writes")
}

/// The bodies of the configs that hold a revision.
fn pack(revision: &Revision) -> anyhow::Result<Vec<Value>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut encoder, revision).context("encoding the revision")?;
    encoder.flush().context("packing the revision")?;
    let packed = encoder.finish().context("packing the revision")?;
    ensure!(!packed.is_empty(), "the revision is empty");
    let parts: Vec<&[u8]> = packed.chunks(PART_BYTES).collect();
    let stack = &revision.wanted.name;
    let body = |(index, part): (usize, &&[u8])| {
        let (number, index, total) = (revision.number, index + 1, parts.len());
        json!({
            "Name": config_name(stack, number, index),
            "Labels": {STACK_LABEL: stack, LABEL: number.to_string(), PART_LABEL: format!("{index}/{total}")},
            "Data": BASE64_STANDARD.encode(part),
        })
    };
    Ok(parts.iter().enumerate().map(body).collect())
}

/// Names of configs have at most 64 characters; a long name of a stack is cut, and a checksum tells two of them apart.
fn config_name(stack: &str, number: u64, part: usize) -> String {
    let short: String = if stack.len() <= 32 {
        stack.to_owned()
    } else {
        let sum =
            stack.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        format!("{}-{:08x}", &stack[..23], sum >> 32)
    };
    format!("{short}.revision.{number}.{part}")
}

/// Configs of a stack.
pub async fn configs_of(client: &Client, stack: &str) -> anyhow::Result<Vec<Value>> {
    client.get(&format!("/configs?filters={}", filters(&[("label", &[format!("{STACK_LABEL}={stack}")])]))).await
}

/// Keeps a revision, and forgets the oldest ones. Whether one was forgotten.
///
/// # Errors
/// What the cluster says.
pub async fn keep(client: &Client, known: &Revisions, revision: &Revision) -> anyhow::Result<bool> {
    for body in pack(revision)? {
        client.post("/configs/create", &body).await.context("keeping the revision of the stack")?;
    }
    let drop = known.to_drop();
    for number in &drop {
        for id in known.ids.get(number).into_iter().flatten() {
            client.call(Method::DELETE, &format!("/configs/{id}"), None).await.context("forgetting an old revision")?;
        }
    }
    Ok(!drop.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: u64, noise: usize) -> Revision {
        // Text that does not compress, so that several parts are needed.
        let mut seed = 1_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'!' + u8::try_from(seed >> 33 & 63).unwrap())
        };
        let text: String = (0..noise).map(|_| next()).collect();
        let services = BTreeMap::from([("demo_web".to_owned(), json!({"Name": "demo_web", "Labels": {"x": text}}))]);
        let wanted = Wanted { name: "demo".into(), services, ..Wanted::default() };
        Revision { number, at: "2026-01-01T00:00:00Z".into(), source: String::new(), summary: String::new(), wanted }
    }

    fn stored(revision: &Revision) -> Vec<Value> {
        let configs = pack(revision).unwrap();
        configs.into_iter().map(|spec| json!({"ID": spec["Name"], "Spec": spec})).collect()
    }

    #[test]
    fn a_large_revision_takes_several_configs_and_is_read_again() {
        let large = revision(3, 3 << 20);
        let mut configs = stored(&large);
        assert!(configs.len() > 1);
        assert!(configs.iter().all(|c| c["Spec"]["Data"].as_str().unwrap().len() < 1000 * 1024 * 4 / 3));
        configs.reverse();
        configs.extend(stored(&revision(2, 10)));
        let read = Revisions::read(&configs).unwrap();
        assert_eq!(read.all.iter().map(|r| r.number).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(read.last().unwrap().wanted, large.wanted);
        configs.remove(0);
        let cut = Revisions::read(&configs).unwrap();
        assert_eq!((cut.last().unwrap().number, cut.next_number()), (2, 4), "a part is missing: it does not count");
    }

    #[test]
    fn only_so_many_are_kept() {
        let configs: Vec<Value> = (1..=12).flat_map(|n| stored(&revision(n, 1))).collect();
        assert_eq!(Revisions::read(&configs).unwrap().to_drop(), [1, 2, 3]);
    }

    #[test]
    fn names_of_configs_are_short_enough_and_differ() {
        let long = "a".repeat(63);
        let other = format!("{}b", "a".repeat(62));
        let names = [config_name(&long, 1_000_000, 99), config_name(&other, 1_000_000, 99)];
        assert!(names[0].len() <= 64 && names[0] != names[1], "{names:?}");
    }
}
