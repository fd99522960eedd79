//! Networks of this node: three that every node has, and bridges that operators make.
//!
//! The network layer has the bridges; this file's record beside it has what only people see of them: ids, labels, times.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use skep_api::ports::EngineError;
use skep_proto::model::engine::LocalNetwork;
use skep_proto::model::network::Subnet;
use skep_proto::model::{Labels, Timestamp};

use super::sandboxes::{Bridge, BridgeRequest};
use super::{NodeEngine, connect, errors};

/// Format of the record. Raised when an older daemon could not read it.
const FORMAT: u32 = 1;

/// The record of networks, kept as one file that is replaced as a whole.
pub(super) struct Networks {
    path: PathBuf,
    record: Mutex<Record>,
    /// Held while a bridge is made or removed, so that record and network layer change together.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    format: u32,
    networks: Vec<Kept>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    id: String,
    name: String,
    driver: String,
    subnets: Vec<KeptSubnet>,
    internal: bool,
    labels: Labels,
    options: Labels,
    created_at: Timestamp,
    /// Not in what older daemons wrote.
    #[serde(default)]
    ipv6: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct KeptSubnet {
    subnet: IpNet,
    range: Option<IpNet>,
    gateway: IpAddr,
}

impl From<&Subnet> for KeptSubnet {
    fn from(s: &Subnet) -> Self {
        Self { subnet: s.subnet, range: s.range, gateway: s.gateway }
    }
}

impl From<&KeptSubnet> for Subnet {
    fn from(s: &KeptSubnet) -> Self {
        Self { subnet: s.subnet, range: s.range, gateway: s.gateway }
    }
}

impl Networks {
    /// Reads the record at `path`; a node without one gets the predefined networks.
    ///
    /// # Errors
    /// When it cannot be read or written: ids that clients know must not change.
    pub fn open(path: PathBuf, now: Timestamp) -> io::Result<Self> {
        let record = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Record>(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let record = Record { format: FORMAT, networks: predefined(now) };
                save(&path, &record)?;
                record
            }
            Err(error) => return Err(error),
        };
        if record.format != FORMAT {
            let text = format!("{} has format {}, this daemon knows {FORMAT}", path.display(), record.format);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { path, record: Mutex::new(record), changing: tokio::sync::Mutex::default() })
    }

    /// All of them. Those of bridges that the network layer has carry its subnets.
    pub fn list(&self, bridges: &[Bridge]) -> Vec<LocalNetwork> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record
            .networks
            .iter()
            .map(|kept| {
                let bridge = bridges.iter().find(|bridge| bridge.name == kept.name);
                let known = || kept.subnets.iter().map(Subnet::from).collect();
                let subnets = bridge.map_or_else(known, |bridge| bridge.subnets.clone());
                LocalNetwork {
                    id: kept.id.clone(),
                    name: kept.name.clone(),
                    driver: kept.driver.clone(),
                    ipv6: kept.ipv6,
                    subnets,
                    internal: kept.internal,
                    labels: kept.labels.clone(),
                    options: kept.options.clone(),
                    created_at: kept.created_at,
                }
            })
            .collect()
    }

    fn update(&self, change: impl FnOnce(&mut Vec<Kept>)) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = record.clone();
        change(&mut changed.networks);
        save(&self.path, &changed)?;
        *record = changed;
        Ok(())
    }
}

fn predefined(now: Timestamp) -> Vec<Kept> {
    [(connect::BRIDGE, "bridge"), (connect::HOST, "host"), (connect::NONE, "null")]
        .map(|(name, driver)| Kept {
            id: draw_id(),
            name: name.to_owned(),
            driver: driver.to_owned(),
            subnets: Vec::new(),
            internal: false,
            labels: Labels::default(),
            options: Labels::default(),
            created_at: now,
            ipv6: false,
        })
        .into()
}

fn draw_id() -> String {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn save(path: &Path, record: &Record) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)
}

impl NodeEngine {
    pub(super) async fn list_networks(&self) -> Result<Vec<LocalNetwork>, EngineError> {
        let bridges = self.inner.sandboxes.bridges().await.map_err(errors::sandbox)?;
        Ok(self.inner.networks.list(&bridges))
    }

    pub(super) async fn make_network(&self, network: LocalNetwork) -> Result<LocalNetwork, EngineError> {
        match network.driver.as_str() {
            "" | "bridge" => {}
            driver => return Err(EngineError::Unsupported(format!("a network of this node with the driver {driver}"))),
        }
        let _changing = self.inner.networks.changing.lock().await;
        if self.inner.networks.list(&[]).iter().any(|n| n.name == network.name) {
            return Err(EngineError::Conflict(format!("network with name {} already exists", network.name)));
        }
        let request = BridgeRequest {
            name: network.name.clone(),
            subnets: network.subnets.clone(),
            internal: network.internal,
            ipv6: network.ipv6,
        };
        let bridge = self.inner.sandboxes.ensure_bridge(request).await.map_err(errors::sandbox)?;
        let kept = Kept {
            id: draw_id(),
            name: network.name,
            driver: "bridge".to_owned(),
            subnets: bridge.subnets.iter().map(KeptSubnet::from).collect(),
            internal: network.internal,
            labels: network.labels,
            options: network.options,
            created_at: (self.inner.clock)(),
            ipv6: network.ipv6,
        };
        let id = kept.id.clone();
        if let Err(error) = self.inner.networks.update(|all| all.push(kept)) {
            if let Err(error) = self.inner.sandboxes.remove_bridge(&bridge.name).await {
                tracing::warn!(network = %bridge.name, %error, "removing a bridge that could not be recorded");
            }
            return Err(errors::internal("recording the network", error));
        }
        let found = self.list_networks().await?.into_iter().find(|n| n.id == id);
        found.iter().for_each(|network| self.tell_of_network("create", network));
        found.ok_or(EngineError::NoSuchNetwork(id))
    }

    pub(super) async fn delete_network(&self, reference: &str) -> Result<(), EngineError> {
        let _changing = self.inner.networks.changing.lock().await;
        let all = self.inner.networks.list(&[]);
        let network = connect::find(&all, reference).ok_or_else(|| EngineError::NoSuchNetwork(reference.to_owned()))?;
        if [connect::BRIDGE, connect::HOST, connect::NONE].contains(&network.name.as_str()) {
            let text = format!("{} is a pre-defined network and cannot be removed", network.name);
            return Err(EngineError::Invalid(text));
        }
        self.inner.sandboxes.remove_bridge(&network.name).await.map_err(|error| match error {
            super::sandboxes::SandboxError::InUse(_) => EngineError::Conflict(format!(
                "error while removing network: network {} id {} has active endpoints",
                network.name, network.id
            )),
            other => errors::sandbox(other),
        })?;
        self.inner
            .networks
            .update(|networks| networks.retain(|n| n.id != network.id))
            .map_err(|error| errors::internal("recording the removal of a network", error))?;
        self.tell_of_network("destroy", network);
        Ok(())
    }

    /// Makes the bridges that the record knows and the network layer has lost.
    pub(super) async fn recover_networks(&self) {
        for network in self.inner.networks.list(&[]) {
            if network.driver != "bridge" || network.name == connect::BRIDGE {
                continue;
            }
            let request = BridgeRequest {
                name: network.name.clone(),
                subnets: network.subnets,
                internal: network.internal,
                ipv6: network.ipv6,
            };
            if let Err(error) = self.inner.sandboxes.ensure_bridge(request).await {
                tracing::error!(network = %network.name, error = %crate::chain(&error), "making a bridge again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_predefined_networks_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network/local.json");
        let first = Networks::open(path.clone(), Timestamp(1)).unwrap().list(&[]);
        assert_eq!(Networks::open(path, Timestamp(2)).unwrap().list(&[]), first);
        let shown: Vec<_> = first.iter().map(|n| (n.name.as_str(), n.driver.as_str(), n.id.len())).collect();
        assert_eq!(shown, [("bridge", "bridge", 64), ("host", "host", 64), ("none", "null", 64)]);
    }

    #[test]
    fn a_record_of_a_release_without_ipv6_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local.json");
        let old = r#"{"format":1,"networks":[{"id":"ab","name":"back","driver":"bridge","internal":false,
            "subnets":[{"subnet":"172.18.0.0/16","range":null,"gateway":"172.18.0.1"}],"labels":{},"options":{},"created_at":7}]}"#;
        std::fs::write(&path, old).unwrap();
        let read = Networks::open(path, Timestamp(1)).unwrap().list(&[]);
        assert_eq!(read.iter().map(|n| (n.name.as_str(), n.ipv6)).collect::<Vec<_>>(), [("back", false)]);
    }

    #[test]
    fn a_record_of_a_later_release_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("local.json");
        std::fs::write(&path, r#"{"format":2,"networks":[]}"#).unwrap();
        assert!(Networks::open(path, Timestamp(1)).is_err());
    }
}
