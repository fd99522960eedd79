//! What is kept on disk, and how. New parts lie behind the old ones: an older daemon reads those, and files of an older daemon
//! have none of the new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use skep_proto::model::service::Protocol;

use super::state::{Record, Remembered};
use crate::config::Underlay;
use crate::error::NetworkError;
use crate::names::DnsPorts;
use crate::plan::encryption::Mesh;
use crate::plan::ingress::Published;
use crate::record;

/// What the file of a sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// The sandbox.
    pub record: Record,
    /// Where its name server listens.
    pub dns: DnsPorts,
}

/// What the file of a sandbox holds behind that since there is IPv6; nothing in the files of older daemons.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ipv6Part {
    /// Of each overlay of the specification.
    overlays: Vec<Option<Ipv6Net>>,
    /// Of each bridge of the specification.
    bridges: Vec<Option<Ipv6Addr>>,
    /// Of each link: address and gateway.
    links: Vec<(Option<Ipv6Net>, Option<Ipv6Addr>)>,
}

impl Ipv6Part {
    /// That of a record.
    fn of(record: &Record) -> Self {
        Self {
            overlays: record.spec.overlays.iter().map(|overlay| overlay.address6).collect(),
            bridges: record.spec.bridges.iter().map(|bridge| bridge.address6).collect(),
            links: record.links.iter().map(|link| (link.address6, link.gateway6)).collect(),
        }
    }

    /// Puts it back into its record.
    fn complete(self, record: &mut Record) {
        for (overlay, address) in record.spec.overlays.iter_mut().zip(self.overlays) {
            overlay.address6 = address;
        }
        for (bridge, address) in record.spec.bridges.iter_mut().zip(self.bridges) {
            bridge.address6 = address;
        }
        for (link, part) in record.links.iter_mut().zip(self.links) {
            (link.address6, link.gateway6) = part;
        }
    }
}

impl OnDisk {
    /// Writes it to a file.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn write(&self, path: &Path) -> Result<(), NetworkError> {
        record::write(path, &(self, Ipv6Part::of(&self.record), &self.record.spec.ranges))
    }

    /// Reads it from a file; `None` when there is none.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn read(path: &Path) -> Result<Option<Self>, NetworkError> {
        let found = record::read_parts::<Self, Ipv6Part, BTreeMap<usize, u16>>(path)?;
        Ok(found.map(|(mut kept, part, ranges)| {
            part.complete(&mut kept.record);
            kept.record.spec.ranges = ranges;
            kept
        }))
    }
}

/// What was remembered before there was IPv6.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered4 {
    index: Option<u16>,
    underlay: Option<Ipv4Addr>,
    peers: BTreeMap<u16, Ipv4Addr>,
    ingress: BTreeMap<(Protocol, u16), (u16, Vec<Ipv4Addr>)>,
}

/// What is remembered besides.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Remembered6 {
    underlay: Option<Ipv6Addr>,
    peers: BTreeMap<u16, Ipv6Addr>,
}

/// What is remembered besides that.
#[derive(Debug, Default, Serialize, Deserialize)]
struct RememberedMore {
    ipv4_only: BTreeSet<u16>,
    mesh: Mesh,
    /// Of each published port the tasks that have IPv6, where not all have it.
    twins: BTreeMap<(Protocol, u16), Vec<Ipv4Addr>>,
}

impl Remembered {
    /// Writes it to a file.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn write(&self, path: &Path) -> Result<(), NetworkError> {
        let v4 = Remembered4 {
            index: self.index,
            underlay: self.underlay.v4,
            peers: self.peers.iter().filter_map(|(index, peer)| Some((*index, peer.v4?))).collect(),
            ingress: self.ingress.iter().map(|(port, to)| (*port, (to.target, to.tasks.clone()))).collect(),
        };
        let v6 = Remembered6 {
            underlay: self.underlay.v6,
            peers: self.peers.iter().filter_map(|(index, peer)| Some((*index, peer.v6?))).collect(),
        };
        let lacking = self.ingress.iter().filter(|(_, to)| to.twins.len() != to.tasks.len());
        let more = RememberedMore {
            ipv4_only: self.ipv4_only.clone(),
            mesh: self.mesh,
            twins: lacking.map(|(port, to)| (*port, to.twins.clone())).collect(),
        };
        record::write(path, &(v4, v6, more))
    }

    /// Reads it from a file; nothing is remembered where there is none.
    ///
    /// # Errors
    /// [`NetworkError::Record`].
    pub fn read(path: &Path) -> Result<Self, NetworkError> {
        let kept: Option<(Remembered4, Remembered6, RememberedMore)> = record::read_parts(path)?;
        let (v4, v6, mut more) = kept.unwrap_or_default();
        let mut peers: BTreeMap<u16, Underlay> = BTreeMap::new();
        for (index, address) in v4.peers {
            peers.entry(index).or_default().v4 = Some(address);
        }
        for (index, address) in v6.peers {
            peers.entry(index).or_default().v6 = Some(address);
        }
        let underlay = Underlay { v4: v4.underlay, v6: v6.underlay };
        let published = |(port, (target, tasks)): (_, (_, Vec<Ipv4Addr>))| {
            let twins = more.twins.remove(&port).unwrap_or_else(|| tasks.clone());
            (port, Arc::new(Published { target, tasks, twins }))
        };
        let ingress = v4.ingress.into_iter().map(published).collect();
        Ok(Self { index: v4.index, underlay, peers, ipv4_only: more.ipv4_only, mesh: more.mesh, ingress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::state::tests::{config, spec, state};

    #[test]
    fn a_record_keeps_its_ipv6_part_and_one_without_is_read_too() {
        let (mut state, config) = (state(), config());
        let mut record = state.reserve(spec(1), &config, |_| true).unwrap();
        let dns = DnsPorts { udp: 1, tcp: 2 };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.record");
        let kept = OnDisk { record: record.clone(), dns };
        record::write(&path, &kept).unwrap();
        assert_eq!(OnDisk::read(&path).unwrap(), Some(kept));
        record.spec.bridges[0].address6 = Some("fd00::2".parse().unwrap());
        record.links[0].address6 = Some("fd00::2/64".parse().unwrap());
        record.links[0].gateway6 = Some("fd00::1".parse().unwrap());
        // As it was before there were ranges of ports.
        let kept = OnDisk { record, dns };
        record::write(&path, &(&kept, Ipv6Part::of(&kept.record))).unwrap();
        assert_eq!(OnDisk::read(&path).unwrap(), Some(kept.clone()));
        let mut kept = kept;
        kept.record.spec.ranges = [(0, 8010)].into();
        kept.write(&path).unwrap();
        assert_eq!(OnDisk::read(&path).unwrap(), Some(kept));
    }

    #[test]
    fn what_is_remembered_has_both_families_and_the_old_form_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.record");
        assert_eq!(Remembered::read(&path).unwrap(), Remembered::default());
        let (v4, v6) = (Some(Ipv4Addr::new(192, 0, 2, 1)), Some("2001:db8::1".parse().unwrap()));
        let all = Remembered {
            index: Some(7),
            underlay: Underlay { v4, v6 },
            peers: [(1, Underlay { v4, v6 }), (2, Underlay { v4, v6: None }), (3, Underlay { v4: None, v6 })].into(),
            ipv4_only: [2].into(),
            mesh: Mesh { encrypted: false, mtu: Some(1400), port: 4789 },
            ingress: [(80, vec![]), (81, vec![v4.unwrap()])]
                .map(|(port, twins)| {
                    let published = Published { target: 8080, tasks: vec![v4.unwrap()], twins };
                    ((Protocol::Tcp, port), Arc::new(published))
                })
                .into_iter()
                .collect(),
        };
        all.write(&path).unwrap();
        assert_eq!(Remembered::read(&path).unwrap(), all);
        // As daemons wrote it that did not know who has no IPv6, and as they read it.
        record::write(&path, &(Remembered4::default(), Remembered6 { underlay: v6, ..Remembered6::default() }))
            .unwrap();
        let read = Remembered::read(&path).unwrap();
        assert_eq!((read.underlay.v6, read.ipv4_only, read.mesh), (v6, BTreeSet::new(), Mesh::default()));
        all.write(&path).unwrap();
        assert!(record::read_with::<Remembered4, Remembered6>(&path).unwrap().is_some());
        let old =
            Remembered4 { index: Some(7), underlay: v4, peers: [(2, v4.unwrap())].into(), ..Remembered4::default() };
        record::write(&path, &old).unwrap();
        let read = Remembered::read(&path).unwrap();
        assert_eq!((read.underlay, read.peers), (Underlay { v4, v6: None }, [(2, Underlay { v4, v6: None })].into()));
    }
}
