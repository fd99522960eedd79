//! Manifests, indexes and configurations as JSON (OCI image-spec 1.1; Docker's image manifest version 2 schema 2).
//!
//! Only what is needed is read, and nulls count as absent: configurations that Docker wrote are full of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use skep_proto::model::Labels;
use skep_proto::model::container::Healthcheck;
use skep_proto::model::engine::ImageConfig;
use skep_proto::model::service::Protocol;

use super::digest::Digest;
use super::error::ImageError;
use super::platform::Platform;

/// OCI's image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI's uncompressed layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's image manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Layers that an image may have: overlayfs mounts at most 500 (kernel, `OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// A manifest or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images by platform.
    Index(Index),
}

/// An image: its configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What this document is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Manifests by platform.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// In the order of preference of whoever made it.
    pub manifests: Vec<Descriptor>,
}

/// What a document refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// For which platform.
    #[serde(default, skip_serializing)]
    pub platform: Option<Platform>,
    /// Notes of whoever made it.
    #[serde(default, skip_serializing, deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Describes a blob.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

impl Document {
    /// Reads a manifest or index.
    ///
    /// # Errors
    /// [`ImageError::Malformed`], or [`ImageError::Unsupported`] for schema 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Header {
            #[serde(default)]
            schema_version: u32,
            #[serde(default)]
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let malformed = |e| ImageError::Malformed(format!("malformed manifest: {e}"));
        let header: Header = serde_json::from_slice(bytes).map_err(malformed)?;
        if header.schema_version != 2 {
            return Err(ImageError::Unsupported(format!("image manifest schema version {}", header.schema_version)));
        }
        let media_type = header.media_type.as_deref().unwrap_or_default();
        if matches!(media_type, OCI_INDEX | DOCKER_LIST) || header.manifests.is_some() {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(malformed);
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(ImageError::Malformed(format!(
                "the image has {} layers, more than the {MAX_LAYERS} that can be mounted",
                manifest.layers.len()
            )));
        }
        Ok(Self::Manifest(manifest))
    }
}

/// An image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDocument {
    /// When it was built, RFC 3339.
    pub created: String,
    /// Who built it.
    pub author: String,
    /// For which platform.
    pub platform: Platform,
    /// diffIDs, lowest first.
    pub layers: Vec<Digest>,
    /// What containers inherit.
    pub config: ImageConfig,
}

impl ImageDocument {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ImageError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let malformed = |e| ImageError::Malformed(format!("malformed image configuration: {e}"));
        let raw: RawImage = serde_json::from_slice(bytes).map_err(malformed)?;
        if raw.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(ImageError::Malformed(format!("the image has more than {MAX_LAYERS} layers")));
        }
        Ok(Self {
            created: raw.created,
            author: raw.author,
            platform: Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant },
            layers: raw.rootfs.diff_ids,
            config: raw.config.into_config()?,
        })
    }
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default, deserialize_with = "null_as_default")]
    created: String,
    #[serde(default, deserialize_with = "null_as_default")]
    author: String,
    #[serde(default, deserialize_with = "null_as_default")]
    os: String,
    #[serde(default, deserialize_with = "null_as_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_as_default")]
    variant: String,
    #[serde(default, deserialize_with = "null_as_default")]
    config: RawConfig,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

/// The part that containers inherit, with Docker's additions (`Healthcheck`, `StopSignal`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RawConfig {
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "words", skip_serializing_if = "Vec::is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    labels: Labels,
    #[serde(deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<RawHealthcheck>,
}

/// A set's value in Go's JSON: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Empty {}

/// Durations are nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawHealthcheck {
    #[serde(deserialize_with = "null_as_default")]
    test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    start_interval: u64,
    retries: u32,
}

impl RawConfig {
    fn into_config(self) -> Result<ImageConfig, ImageError> {
        let exposed = self.exposed_ports.keys().map(|port| parse_port(port)).collect::<Result<_, _>>()?;
        Ok(ImageConfig {
            user: self.user,
            env: self.env,
            entrypoint: self.entrypoint,
            command: self.cmd,
            dir: self.working_dir,
            labels: self.labels,
            volumes: self.volumes.into_keys().collect(),
            exposed,
            stop_signal: self.stop_signal,
            healthcheck: self.healthcheck.map(|h| Healthcheck {
                test: h.test,
                interval: Duration::from_nanos(h.interval),
                timeout: Duration::from_nanos(h.timeout),
                start_period: Duration::from_nanos(h.start_period),
                start_interval: Duration::from_nanos(h.start_interval),
                retries: h.retries,
            }),
        })
    }
}

impl From<&ImageConfig> for RawConfig {
    fn from(config: &ImageConfig) -> Self {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Self {
            user: config.user.clone(),
            exposed_ports: config.exposed.iter().map(|port| (format_port(*port), Empty {})).collect(),
            env: config.env.clone(),
            entrypoint: config.entrypoint.clone(),
            cmd: config.command.clone(),
            volumes: config.volumes.iter().map(|path| (path.clone(), Empty {})).collect(),
            working_dir: config.dir.clone(),
            labels: config.labels.clone(),
            stop_signal: config.stop_signal.clone(),
            healthcheck: config.healthcheck.as_ref().map(|h| RawHealthcheck {
                test: h.test.clone(),
                interval: nanos(h.interval),
                timeout: nanos(h.timeout),
                start_period: nanos(h.start_period),
                start_interval: nanos(h.start_interval),
                retries: h.retries,
            }),
        }
    }
}

/// A configuration to be written, for images made here.
#[derive(Debug, Serialize)]
pub struct NewImage<'a> {
    /// When, RFC 3339.
    pub created: &'a str,
    /// For which machine.
    pub architecture: &'a str,
    /// For which system.
    pub os: &'a str,
    /// What containers inherit.
    pub config: RawConfig,
    /// The layers.
    pub rootfs: NewRootfs<'a>,
    /// How the layers came to be.
    pub history: [NewHistory<'a>; 1],
}

/// The layers of a configuration to be written.
#[derive(Debug, Serialize)]
pub struct NewRootfs<'a> {
    /// Always `layers`.
    pub r#type: &'static str,
    /// diffIDs, lowest first.
    pub diff_ids: &'a [Digest],
}

/// A line of history.
#[derive(Debug, Serialize)]
pub struct NewHistory<'a> {
    /// When, RFC 3339.
    pub created: &'a str,
    /// What people see.
    pub comment: &'a str,
}

/// `80`, `80/tcp`, `53/udp`.
pub fn parse_port(text: &str) -> Result<(Protocol, u16), ImageError> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(ImageError::Malformed(format!("invalid proto: {text}"))),
    };
    let number = number.parse().map_err(|_| ImageError::Malformed(format!("invalid containerPort: {text}")))?;
    Ok((protocol, number))
}

fn format_port((protocol, number): (Protocol, u16)) -> String {
    let protocol = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    format!("{number}/{protocol}")
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A list of words, or one word: old builders wrote `"Entrypoint": "sh"`.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_configuration_full_of_nulls_is_read() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":null,"config":{{"Env":null,"Cmd":null,"Entrypoint":"sh",
            "Labels":null,"Volumes":null,"ExposedPorts":null,"Healthcheck":null,"OnBuild":null}},
            "rootfs":{{"type":"layers","diff_ids":["{DIFF}"]}}}}"#
        );
        let image = ImageDocument::parse(text.as_bytes()).unwrap();
        assert_eq!(image.config, ImageConfig { entrypoint: vec!["sh".into()], ..ImageConfig::default() });
        assert_eq!(image.layers, [DIFF.parse().unwrap()]);
    }

    #[test]
    fn what_containers_inherit_survives_writing_and_reading() {
        let config = ImageConfig {
            user: "app:app".into(),
            env: vec!["A=b".into()],
            entrypoint: vec!["/bin/a".into()],
            command: vec!["-v".into()],
            dir: "/srv".into(),
            labels: [("k".into(), "v".into())].into(),
            volumes: vec!["/data".into()],
            exposed: vec![(Protocol::Udp, 53), (Protocol::Tcp, 80)],
            stop_signal: "SIGINT".into(),
            healthcheck: Some(Healthcheck {
                test: vec!["CMD".into(), "true".into()],
                interval: Duration::from_secs(3),
                retries: 2,
                ..Healthcheck::default()
            }),
        };
        let text = serde_json::to_vec(&RawConfig::from(&config)).unwrap();
        let raw: RawConfig = serde_json::from_slice(&text).unwrap();
        assert_eq!(raw.into_config().unwrap(), config);
    }

    #[test]
    fn an_index_is_told_from_a_manifest() {
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index), Ok(Document::Index(_))));
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{DIFF}","size":1}},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes()), Ok(Document::Manifest(_))));
        assert!(matches!(Document::parse(br#"{"schemaVersion":1}"#), Err(ImageError::Unsupported(_))));
        assert!(matches!(Document::parse(b"<html>"), Err(ImageError::Malformed(_))));
    }
}
