//! Networks and volumes of a Compose file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use skep_proto::model::container::{Driver, VolumeOptions};
use skep_proto::model::network::IpamConfig;
use skep_proto::model::{Annotations, NetworkSpec, addressing};

use crate::manifest::Problems;
use crate::manifest::decode::{boolean, entries, items, pairs, parsed, text, unknown_key};
use crate::manifest::problem::Place;
use crate::manifest::stack::{DeclaredVolume, STACK_LABEL, StackService};
use crate::manifest::yaml::{Entry, Node, Value};

const NETWORK_KEYS: [&str; 10] = [
    "name",
    "external",
    "driver",
    "driver_opts",
    "attachable",
    "internal",
    "labels",
    "ipam",
    "enable_ipv4",
    "enable_ipv6",
];
const SUBNET_KEYS: [&str; 4] = ["subnet", "ip_range", "gateway", "aux_addresses"];
const VOLUME_KEYS: [&str; 5] = ["name", "external", "driver", "driver_opts", "labels"];

/// The networks of a file.
#[derive(Default)]
pub struct Networks {
    /// Key in the file -> name in the cluster.
    pub names: BTreeMap<String, String>,
    /// Names of networks that must exist.
    pub external: Vec<String>,
    declared: BTreeMap<String, NetworkSpec>,
    used: BTreeSet<String>,
}

impl Networks {
    /// Name in the cluster of a network that a service names; `default` is made on its first use.
    pub fn use_of(&mut self, key: &str, stack: &str, place: Place, problems: &mut Problems) -> String {
        if key == "default" && !self.names.contains_key("default") {
            self.names.insert(key.to_owned(), format!("{stack}_default"));
            self.declared.insert(key.to_owned(), empty(&format!("{stack}_default"), stack));
        }
        self.used.insert(key.to_owned());
        self.names.get(key).cloned().unwrap_or_else(|| {
            problems.add(place, format!("the network {key} is not declared: add it under networks"));
            String::new()
        })
    }

    /// Those to make: what `docker stack deploy` makes, the ones that a service uses.
    pub fn specs(&self) -> Vec<NetworkSpec> {
        self.declared.iter().filter(|(key, _)| self.used.contains(*key)).map(|(_, spec)| spec.clone()).collect()
    }
}

fn empty(name: &str, stack: &str) -> NetworkSpec {
    NetworkSpec {
        annotations: Annotations { name: name.to_owned(), labels: [(STACK_LABEL.to_owned(), stack.to_owned())].into() },
        driver: Driver { name: "overlay".into(), options: BTreeMap::new() },
        ..NetworkSpec::default()
    }
}

/// Reads `networks`.
pub fn read_networks(declared: &[Entry], stack: &str, problems: &mut Problems) -> Networks {
    let mut networks = Networks::default();
    for entry in declared {
        let mut spec = empty(&format!("{stack}_{}", entry.key), stack);
        let (mut external, mut ipam_place) = (false, entry.place);
        for field in entries(&entry.value, "a network", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "name" => spec.annotations.name = text(value, "name", problems),
                "external" => {
                    let mut name = None;
                    external = self::external(value, &mut name, problems);
                    // An external network keeps its own name unless `name` says otherwise.
                    if external && spec.annotations.name == format!("{stack}_{}", entry.key) {
                        spec.annotations.name = name.unwrap_or_else(|| entry.key.clone());
                    }
                }
                "driver" => {
                    let driver = text(value, "driver", problems);
                    // Files written for one host say bridge; in a cluster that network is an overlay.
                    if !matches!(driver.as_str(), "overlay" | "bridge") {
                        problems.add(value.place, format!("a network's driver is overlay, not {driver:?}"));
                    }
                }
                "driver_opts" => spec.driver.options = pairs(value, "driver_opts", problems),
                "attachable" => spec.attachable = boolean(value, "attachable", problems),
                "internal" => spec.internal = boolean(value, "internal", problems),
                "labels" => spec.annotations.labels.extend(pairs(value, "labels", problems)),
                "ipam" => {
                    spec.ipam = read_ipam(value, problems);
                    ipam_place = value.place;
                }
                "enable_ipv4" => {
                    if !boolean(value, "enable_ipv4", problems) {
                        problems.add(value.place, "enable_ipv4: a network without IPv4 is not supported");
                    }
                }
                "enable_ipv6" => spec.ipv6 = boolean(value, "enable_ipv6", problems),
                key if key.starts_with("x-") => {}
                _ => unknown_key(field, "a network", &NETWORK_KEYS, problems),
            }
        }
        if let Some(text) = addressing::contradiction(spec.ipv6, &spec.ipam) {
            problems
                .add(ipam_place, text.replace("add --ipv6 (EnableIPv6)", "add enable_ipv6: true").replace('\n', " "));
        }
        networks.names.insert(entry.key.clone(), spec.annotations.name.clone());
        if external {
            networks.external.push(spec.annotations.name);
        } else {
            networks.declared.insert(entry.key.clone(), spec);
        }
    }
    networks
}

/// `true`, `false`, or the obsolete form `{name: NAME}`.
pub fn external(node: &Node, name: &mut Option<String>, problems: &mut Problems) -> bool {
    if let Value::Mapping(_) = node.value {
        for field in entries(node, "external", problems) {
            match field.key.as_str() {
                "name" => *name = Some(text(&field.value, "name", problems)),
                _ => unknown_key(field, "external", &["name"], problems),
            }
        }
        return true;
    }
    boolean(node, "external", problems)
}

fn read_ipam(node: &Node, problems: &mut Problems) -> Vec<IpamConfig> {
    let mut configs = Vec::new();
    for field in entries(node, "ipam", problems) {
        match field.key.as_str() {
            "driver" if text(&field.value, "driver", problems) == "default" => {}
            "config" => {
                for item in items(&field.value, "config", problems) {
                    let mut config = IpamConfig::default();
                    for part in entries(item, "an entry of ipam.config", problems) {
                        match part.key.as_str() {
                            "subnet" => {
                                config.subnet = parsed(&part.value, "subnet", "a subnet like 10.1.0.0/24", problems)
                            }
                            "ip_range" => {
                                config.range = parsed(&part.value, "ip_range", "a subnet like 10.1.0.0/25", problems)
                            }
                            "gateway" => {
                                config.gateway = parsed(&part.value, "gateway", "an address like 10.1.0.1", problems)
                            }
                            "aux_addresses" => config.reserved = read_reserved(&part.value, problems),
                            _ => unknown_key(part, "an entry of ipam.config", &SUBNET_KEYS, problems),
                        }
                    }
                    configs.push(config);
                }
            }
            _ => unknown_key(field, "ipam", &["driver", "config"], problems),
        }
    }
    configs
}

/// Addresses kept for others, by name.
fn read_reserved(node: &Node, problems: &mut Problems) -> BTreeMap<String, IpAddr> {
    let read = entries(node, "aux_addresses", problems).iter().filter_map(|entry| {
        let address = parsed(&entry.value, "aux_addresses", "an address like 10.1.0.9", problems)?;
        Some((entry.key.clone(), address))
    });
    read.collect()
}

/// A volume of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name on the nodes.
    pub name: String,
    /// How it is made; `None` for one that must exist.
    pub options: Option<VolumeOptions>,
}

/// The volumes that services mount.
pub fn declared(volumes: BTreeMap<String, Volume>, services: &[StackService]) -> Vec<DeclaredVolume> {
    let mounts = services.iter().flat_map(|s| &s.spec.task.containers).flat_map(|c| &c.mounts);
    let used: BTreeSet<&str> = mounts.map(|m| m.source.as_str()).collect();
    let used = volumes.into_iter().filter(|(_, volume)| used.contains(volume.name.as_str()));
    used.map(|(key, Volume { name, options })| DeclaredVolume { key, name, options }).collect()
}

/// Reads `volumes`.
pub fn read_volumes(declared: &[Entry], stack: &str, problems: &mut Problems) -> BTreeMap<String, Volume> {
    let mut volumes = BTreeMap::new();
    for entry in declared {
        let (mut name, mut external, mut driver) = (None, false, Driver::default());
        let mut labels = BTreeMap::from([(STACK_LABEL.to_owned(), stack.to_owned())]);
        for field in entries(&entry.value, "a volume", problems) {
            let value = &field.value;
            match field.key.as_str() {
                "name" => name = Some(text(value, "name", problems)),
                "external" => external = self::external(value, &mut name, problems),
                "driver" => driver.name = text(value, "driver", problems),
                "driver_opts" => driver.options = pairs(value, "driver_opts", problems),
                "labels" => labels.extend(pairs(value, "labels", problems)),
                key if key.starts_with("x-") => {}
                _ => unknown_key(field, "a volume", &VOLUME_KEYS, problems),
            }
        }
        let default = if external { entry.key.clone() } else { format!("{stack}_{}", entry.key) };
        let has_driver = !driver.name.is_empty() || !driver.options.is_empty();
        if has_driver && driver.name.is_empty() {
            driver.name = "local".into();
        }
        let options = VolumeOptions { labels, driver: has_driver.then_some(driver), ..VolumeOptions::default() };
        let volume = Volume { name: name.unwrap_or(default), options: (!external).then_some(options) };
        volumes.insert(entry.key.clone(), volume);
    }
    volumes
}
