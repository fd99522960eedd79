//! A container on disk: `containers/<id>/container.json`, replaced as a whole.
//!
//! The kernel and the shim know what runs; this file knows what was asked for and what was last seen.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_proto::model::engine::{
    ContainerConfig, ContainerState, ContainerStatus, NetworkMode, ResolvedMount, ResolvedProcess,
};
use skep_proto::model::{HealthStatus, Timestamp};

/// Format of the file. Raised when an older daemon could not read it.
const FORMAT: u32 = 1;
/// Name of the file.
const FILE: &str = "container.json";

/// All that is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// As the caller gave it.
    pub config: ContainerConfig,
    /// When it was made.
    pub created_at: Timestamp,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// As resolved from configuration and image.
    pub process: ResolvedProcess,
    /// Ports that image or client declared.
    pub exposed: Vec<(skep_proto::model::service::Protocol, u16)>,
    mounts: Vec<MountRecord>,
    /// Where it stands, as last seen.
    pub state: ContainerState,
    /// Restarts by its policy since the last start by hand.
    pub restart_count: u32,
    /// It was stopped by hand: `unless-stopped` leaves it so.
    pub stopped_by_hand: bool,
    /// The network of the last start, for restarts by the policy.
    pub network: NetworkMode,
    /// The boot in which it last ran; in another one nothing of it is left.
    pub boot: String,
    /// What its probes showed last; `None` without a health check and before the first start.
    #[serde(default)]
    pub health: Option<HealthStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct MountRecord {
    kind: String,
    name: String,
    source: PathBuf,
    target: String,
    writable: bool,
    propagation: String,
}

impl Record {
    /// A container that has just been made.
    pub fn new(
        config: ContainerConfig,
        process: ResolvedProcess,
        image: &super::ImageRef,
        mounts: &[ResolvedMount],
        now: Timestamp,
    ) -> Self {
        Self {
            format: FORMAT,
            config,
            created_at: now,
            image_id: image.id.clone(),
            layers: image.layers.clone(),
            process,
            exposed: image.config.exposed.clone(),
            mounts: mounts.iter().map(MountRecord::from).collect(),
            state: ContainerState {
                status: ContainerStatus::Created,
                pid: 0,
                exit_code: 0,
                error: String::new(),
                oom_killed: false,
                started_at: None,
                finished_at: None,
            },
            restart_count: 0,
            stopped_by_hand: false,
            network: NetworkMode::None,
            boot: String::new(),
            health: None,
        }
    }

    /// Mounts as the caller resolved them.
    pub fn mounts(&self) -> Vec<ResolvedMount> {
        self.mounts.iter().map(ResolvedMount::from).collect()
    }

    /// Reads the record in `dir`.
    ///
    /// # Errors
    /// When it is missing, torn, or of a format that this daemon does not know.
    pub fn load(dir: &Path) -> io::Result<Self> {
        let record: Self = serde_json::from_slice(&fs::read(dir.join(FILE))?)?;
        if record.format != FORMAT {
            let text = format!("{FILE} has format {}, this daemon knows {FORMAT}", record.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(record)
    }

    /// Writes the record into `dir`: the whole new one is there afterwards, or the whole old one.
    ///
    /// # Errors
    /// As of the file system.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("container.json.new");
        fs::File::create(&temporary)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(temporary, dir.join(FILE))
    }
}

impl From<&ResolvedMount> for MountRecord {
    fn from(m: &ResolvedMount) -> Self {
        Self {
            kind: m.kind.to_owned(),
            name: m.name.clone(),
            source: m.source.clone(),
            target: m.target.clone(),
            writable: m.writable,
            propagation: m.propagation.clone(),
        }
    }
}

impl From<&MountRecord> for ResolvedMount {
    fn from(m: &MountRecord) -> Self {
        Self {
            kind: match m.kind.as_str() {
                "volume" => "volume",
                "tmpfs" => "tmpfs",
                _ => "bind",
            },
            name: m.name.clone(),
            source: m.source.clone(),
            target: m.target.clone(),
            writable: m.writable,
            propagation: m.propagation.clone(),
        }
    }
}
