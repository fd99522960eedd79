//! Start: what an earlier process made is found by its files and links; what it left unfinished is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use skep_proto::model::NetworkId;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::bridges::infra_ranges;
use super::cuts::Cuts;
use super::kept::OnDisk;
use super::node::{self, Node};
use super::sandbox::{self, Live, ports_of};
use super::state::{Bridge, Bridge6, Record, Remembered, State, netns_path};
use super::switch::Switch;
use super::{Inner, LiveCell, SwitchCell, sysctl};
use crate::config::{Config, PORT_GROUP, Place};
use crate::error::{NetworkError, Step};
use crate::names::Names;
use crate::netlink::{Requests, Rtnl};
use crate::record;
use crate::spec::{Addressing, DEFAULT_BRIDGE, SandboxId};
use crate::sys::netns::{self, Netns};

/// Takes over what is there.
///
/// # Errors
/// See [`super::NodeNetwork::start`].
pub fn recover(config: Config, place: Place, node_netns: Netns, names: Arc<dyn Names>) -> Result<Inner, NetworkError> {
    netns::private_folder(&config.state_dir).step("make the folder for namespaces")?;
    for folder in [config.sandbox_dir(), config.switch_dir()] {
        fs::create_dir_all(&folder).step("make the folder for namespaces")?;
    }
    let (records, live) = sandboxes(&config)?;
    let switches = switches(&config, &records)?;
    remove_leftover_links(&config, &node_netns, &records)?;

    let mut state = State { records, ..State::default() };
    state.remembered = Remembered::read(&config.state_dir.join("node.record"))?;
    state.ipv6 = sysctl::has_ipv6(&node_netns);
    // Networks that are not encrypted may have ports of their own: their filter comes back before the managers are heard.
    let ports = switches.values().filter_map(|cell| Some(super::lock(cell).as_ref()?.path()));
    state.vxlan_ports = ports.filter(|path| !path.is_encrypted()).map(|path| path.port).collect();
    state.place = place;
    let underlay = state.remembered.underlay;
    if state.place.node.is_none() && underlay.preferred().is_some() {
        // Which cluster the node is in will be told. Until then what it had goes on.
        state.place.data_path = underlay.addresses().collect();
    }
    state.bridges = bridges(&config)?;
    let foreign = node::foreign_subnets(&config, &node_netns)?;
    for subnet in state.bridges.values().flat_map(Bridge::subnets).chain(infra_ranges(config.infra)) {
        node::refuse_overlap(subnet, &foreign)?;
    }
    let node = Node::taking_over(&config);
    let inner = Inner {
        config,
        netns: node_netns,
        names,
        state: Mutex::new(state),
        node: Mutex::new(node),
        switches: Mutex::new(switches),
        live: Mutex::new(live),
        changed: watch::Sender::new(0),
        mtu: AtomicU32::new(0),
        keys: Mutex::new(None),
        applying: AsyncMutex::new(()),
        behind: AtomicBool::new(false),
        names_checked: AtomicBool::new(false),
        published: AsyncMutex::default(),
        cuts: Cuts::default(),
    };
    sysctl::keep_neighbours(&inner.netns);
    complete_task_links(&inner)?;
    // With what was remembered of the cluster: its traffic goes on until the managers are heard.
    inner.sync_node()?;
    Ok(inner)
}

/// Task links of an earlier release get their IPv6 addresses.
fn complete_task_links(inner: &Inner) -> Result<(), NetworkError> {
    for (id, cell) in inner.live_cells() {
        let Some(mut record) = inner.state().records.get(&id).cloned() else { continue };
        let live = cell.try_lock();
        let Some(live) = live.ok().as_ref().and_then(|live| live.as_ref().map(|live| (live.netns.clone(), live.dns)))
        else {
            continue;
        };
        let (netns, dns) = live;
        match sandbox::complete_task_link(inner, &netns, &mut record) {
            Ok(false) => {}
            Ok(true) => {
                OnDisk { record: record.clone(), dns }.write(&inner.record_path(&id))?;
                inner.state().records.insert(id, record);
            }
            // Missing links are made again when they are looked at.
            Err(error) => tracing::warn!(%error, sandbox.id = %id, "a sandbox has no IPv6 yet"),
        }
    }
    Ok(())
}

type Found = (BTreeMap<SandboxId, Record>, BTreeMap<SandboxId, LiveCell>);

/// Sandboxes with record and namespace. After a reboot there are records alone.
fn sandboxes(config: &Config) -> Result<Found, NetworkError> {
    let (mut records, mut live) = (BTreeMap::new(), BTreeMap::new());
    let folder = config.sandbox_dir();
    for name in file_names(&folder)? {
        let Some(id) = name.strip_suffix(".record").and_then(SandboxId::new) else { continue };
        let path = netns_path(config, &id);
        match (OnDisk::read(&folder.join(&name)), Netns::open(&path)) {
            (Ok(Some(OnDisk { record, dns })), Ok(netns)) => {
                live.insert(id.clone(), Arc::new(AsyncMutex::new(Some(Live::new(netns, dns, false)))));
                records.insert(id, record);
            }
            (Err(error), _) => {
                tracing::warn!(%error, sandbox.id = %id, "cannot read the record of a sandbox; it is removed");
                record::delete(&folder.join(&name))?;
            }
            _ => record::delete(&folder.join(&name))?,
        }
    }
    for name in file_names(&folder)? {
        let known = name.strip_suffix(".net").and_then(SandboxId::new).is_some_and(|id| records.contains_key(&id));
        if name.ends_with(".net") && !known {
            netns::remove(&folder.join(&name)).step("remove a leftover namespace")?;
        }
    }
    Ok((records, live))
}

fn switches(
    config: &Config,
    records: &BTreeMap<SandboxId, Record>,
) -> Result<BTreeMap<NetworkId, SwitchCell>, NetworkError> {
    let used: BTreeSet<NetworkId> = records.values().flat_map(Record::networks).collect();
    let mut found = BTreeMap::new();
    for name in file_names(&config.switch_dir())? {
        let network = name.parse::<NetworkId>().ok();
        let ports = network.map(|network| ports_of(records, network)).unwrap_or_default();
        let switch = network.map(|network| (network, Switch::recover(config, network, &ports)));
        match switch {
            Some((network, Ok(switch))) if used.contains(&network) => {
                found.insert(network, Arc::new(Mutex::new(Some(switch))));
            }
            // Its network identifier is only free when its links are gone.
            Some((_, Ok(unused))) => unused.remove()?,
            _ => netns::remove(&config.switch_dir().join(&name)).step("remove a leftover namespace")?,
        }
    }
    Ok(found)
}

fn remove_leftover_links(
    config: &Config,
    netns: &Netns,
    records: &BTreeMap<SandboxId, Record>,
) -> Result<(), NetworkError> {
    let names = config.names();
    let (mut known, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for record in records.values() {
        known.insert(names.task_link(record.slot));
        ports.extend(record.links.iter().map(|link| names.bridge_port(record.slot, link.number())));
    }
    let mut rtnl = Rtnl::open(netns).step("open rtnetlink")?;
    let mut requests = Requests::new();
    for link in rtnl.links().step("read links")? {
        if ports.contains(&link.name) {
            // Those of an earlier release were in none.
            requests.set_group(link.index, PORT_GROUP);
        } else if names.is_sandbox_link(&link.name) && !known.contains(&link.name) {
            requests.delete_link(&link.name);
        }
    }
    rtnl.send(&requests).step("delete leftover links")
}

fn bridges(config: &Config) -> Result<BTreeMap<String, Bridge>, NetworkError> {
    let (kept, ipv6): (Vec<Bridge>, Vec<Option<Bridge6>>) =
        record::read_with(&config.state_dir.join("bridges.record"))?.unwrap_or_default();
    let mut asked: BTreeMap<String, Addressing> =
        record::read(&config.state_dir.join("addressing.record"))?.unwrap_or_default();
    let ipv6 = ipv6.into_iter().chain(std::iter::repeat(None));
    let kept = kept.into_iter().zip(ipv6).map(|(mut bridge, ipv6)| {
        bridge.ipv6 = ipv6;
        bridge.addressing = asked.remove(&bridge.name).unwrap_or_default();
        bridge
    });
    let mut bridges: BTreeMap<String, Bridge> = kept.map(|b| (b.name.clone(), b)).collect();
    if let IpNet::V4(subnet) = config.bridge_subnet {
        let name = DEFAULT_BRIDGE.to_owned();
        bridges.insert(
            name.clone(),
            Bridge {
                name,
                number: 0,
                subnet: subnet.trunc(),
                internal: false,
                addressing: Addressing::default(),
                ipv6: None,
            },
        );
    }
    Ok(bridges)
}

fn file_names(folder: &Path) -> Result<Vec<String>, NetworkError> {
    let entries = fs::read_dir(folder).step("read the folder of namespaces")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// Removes all records and the mount that keeps namespaces apart.
///
/// # Errors
/// Those of the file system.
pub fn forget(config: &Config) -> Result<(), NetworkError> {
    for name in ["node.record", "bridges.record", "addressing.record"] {
        record::delete(&config.state_dir.join(name))?;
    }
    netns::release_folder(&config.state_dir).step("unmount the folder of namespaces")
}
