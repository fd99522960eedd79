//! Configuration of the daemon: flags over environment over file, into one raw struct, then checked into a typed one.
//!
//! Every problem is reported at once, and the process ends with `EX_USAGE`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use ipnet::IpNet;
use serde::Deserialize;
use skep_network::config::{ENCRYPTED_PORT, WIREGUARD_PORT};

use crate::output::UsageError;

use super::resources::GenericResources;

/// Port of the cluster's own protocol (Docker: swarm management).
pub const CLUSTER_PORT: u16 = 2377;
const DEFAULT_FILE: &str = "/etc/skep/daemon.yml";

/// Settings as given, by flag or environment. Absent ones are looked up in the file.
#[derive(Debug, Default, Args)]
pub struct Flags {
    /// File with settings in YAML: the same names as the flags [default: /etc/skep/daemon.yml, if it exists]
    #[arg(long, env = "SKEP_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// One layer of settings.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Directory of the node's state [default: /var/lib/skep]
    #[arg(long, env = "SKEP_ROOT")]
    root: Option<PathBuf>,
    /// Directory of sockets and other files that a reboot may lose [default: /run/skep]
    #[arg(long, env = "SKEP_RUN_DIR")]
    run_dir: Option<PathBuf>,
    /// Name of the node [default: the host name]
    #[arg(long, env = "SKEP_NODE_NAME")]
    node_name: Option<String>,
    /// Where the Docker Engine API is served; may be repeated [default: unix:///run/skep/docker.sock]
    #[arg(long, env = "SKEP_HOST", value_delimiter = ',')]
    host: Vec<String>,
    /// Address and port of the cluster's protocol, when `swarm init|join` names none [default: 0.0.0.0:2377]
    #[arg(long, env = "SKEP_LISTEN_ADDR")]
    listen_addr: Option<String>,
    /// Address that other nodes are told, when `swarm init|join` names none
    #[arg(long, env = "SKEP_ADVERTISE_ADDR")]
    advertise_addr: Option<String>,
    /// Address of the data path, when `swarm init|join` names none
    #[arg(long, env = "SKEP_DATA_PATH_ADDR")]
    data_path_addr: Option<String>,
    /// cgroup below which the node's containers are put [default: /skep]
    #[arg(long, env = "SKEP_CGROUP_PARENT")]
    cgroup_parent: Option<String>,
    /// What tasks may reserve, when not all of the machine: cpus=4,memory=8GiB
    #[arg(long, env = "SKEP_CAPACITY")]
    capacity: Option<String>,
    /// Registry that may be spoken to without TLS, HOST:PORT, or subnet of such; may be repeated. Loopback always may
    #[arg(long, env = "SKEP_INSECURE_REGISTRY", value_delimiter = ',')]
    insecure_registry: Vec<String>,
    /// Label of the node's engine, KEY=VALUE, for constraints on engine.labels; may be repeated
    #[arg(long, env = "SKEP_LABEL", value_delimiter = ',')]
    label: Vec<String>,
    /// Generic resource that tasks may reserve, KIND=AMOUNT or KIND=NAME; may be repeated
    #[arg(long, env = "SKEP_NODE_GENERIC_RESOURCE", value_delimiter = ',')]
    node_generic_resource: Vec<String>,
    /// The shim's executable [default: skep-shim beside skep]
    #[arg(long, env = "SKEP_SHIM")]
    shim: Option<PathBuf>,
    /// Subnet of the default bridge [default: 172.17.0.0/16]
    #[arg(long, env = "SKEP_BRIDGE_SUBNET")]
    bridge_subnet: Option<String>,
    /// Range of skep's own addresses: routing mesh and task bridges [default: 100.64.0.0/10]
    #[arg(long, env = "SKEP_INFRA_SUBNET")]
    infra_subnet: Option<String>,
    /// UDP port of WireGuard, by which nodes encrypt what they send each other [default: 51820]
    #[arg(long, env = "SKEP_WIREGUARD_PORT")]
    wireguard_port: Option<u16>,
    /// What is logged: error, warn, info, debug, trace, or a filter like skep_network=debug,info [default: info, openraft=warn]
    #[arg(long, env = "SKEP_LOG")]
    log: Option<String>,
}

impl Settings {
    /// These settings, and `below` where they are silent.
    fn over(self, below: Self) -> Self {
        let pick = |above: Vec<String>, below: Vec<String>| if above.is_empty() { below } else { above };
        Self {
            root: self.root.or(below.root),
            run_dir: self.run_dir.or(below.run_dir),
            node_name: self.node_name.or(below.node_name),
            host: pick(self.host, below.host),
            listen_addr: self.listen_addr.or(below.listen_addr),
            advertise_addr: self.advertise_addr.or(below.advertise_addr),
            data_path_addr: self.data_path_addr.or(below.data_path_addr),
            cgroup_parent: self.cgroup_parent.or(below.cgroup_parent),
            capacity: self.capacity.or(below.capacity),
            insecure_registry: pick(self.insecure_registry, below.insecure_registry),
            label: pick(self.label, below.label),
            node_generic_resource: pick(self.node_generic_resource, below.node_generic_resource),
            shim: self.shim.or(below.shim),
            bridge_subnet: self.bridge_subnet.or(below.bridge_subnet),
            infra_subnet: self.infra_subnet.or(below.infra_subnet),
            wireguard_port: self.wireguard_port.or(below.wireguard_port),
            log: self.log.or(below.log),
        }
    }
}

/// The daemon's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// State that survives a reboot.
    pub root: PathBuf,
    /// State that need not.
    pub run_dir: PathBuf,
    /// Name of the node.
    pub node_name: String,
    /// Where the Docker Engine API is served.
    pub hosts: Vec<ApiAddress>,
    /// Where the cluster's protocol is served.
    pub listen: SocketAddr,
    /// What other nodes are told.
    pub advertise: Option<IpAddr>,
    /// Where the data path is.
    pub data_path: Option<IpAddr>,
    /// Absolute path below the root of each cgroup hierarchy.
    pub cgroup_parent: String,
    /// What tasks may reserve.
    pub capacity: Capacity,
    /// `HOST:PORT` of registries without TLS.
    pub insecure_registries: Vec<String>,
    /// Labels of the engine.
    pub labels: Vec<(String, String)>,
    /// Generic resources that tasks may reserve.
    pub generic: GenericResources,
    /// The shim's executable.
    pub shim: PathBuf,
    /// Subnet of the default bridge.
    pub bridge_subnet: IpNet,
    /// Range of skep's own addresses.
    pub infra_subnet: IpNet,
    /// UDP port of WireGuard.
    pub wireguard_port: u16,
    /// Filter of the log.
    pub log: String,
}

/// Where the Docker Engine API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// A unix socket.
    Unix(PathBuf),
}

/// What tasks may reserve; zero means all of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    /// In nano-CPUs.
    pub nano_cpus: i64,
    /// In bytes.
    pub memory: i64,
}

impl FromStr for ApiAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') && path.len() <= 107 => Ok(Self::Unix(path.into())),
            Some(("unix", path)) => {
                Err(format!("the path of a unix socket is absolute and at most 107 bytes, not {path:?}"))
            }
            Some(("tcp", _)) => {
                Err(format!("{text}: the API over TCP is not supported by skep yet, only unix:///PATH"))
            }
            _ => Err(format!("{text:?} is no address: write unix:///PATH")),
        }
    }
}

impl FromStr for Capacity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut capacity = Self::default();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            match part.split_once('=') {
                Some(("cpus", value)) => capacity.nano_cpus = parse_cpus(value)?,
                Some(("memory", value)) => capacity.memory = parse_bytes(value)?,
                _ => return Err(format!("{part:?} is no part of a capacity: write cpus=4,memory=8GiB")),
            }
        }
        Ok(capacity)
    }
}

fn parse_cpus(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no number of CPUs: write 4 or 0.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return Err(wrong());
    }
    let nano: i64 = format!("{fraction:0<9}").parse().map_err(|_| wrong())?;
    whole
        .parse::<i64>()
        .ok()
        .and_then(|w| w.checked_mul(1_000_000_000)?.checked_add(nano))
        .filter(|n| *n > 0)
        .ok_or_else(wrong)
}

/// Sizes as Docker writes them: 1024 to the unit, whether `G`, `GB` or `GiB`.
fn parse_bytes(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no size: write 512MiB or 8GiB");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<i64>().ok().and_then(|n| n.checked_mul(1 << shift)).filter(|n| *n > 0).ok_or_else(wrong)
}

/// Collects problems while values are taken out.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn parse<T>(&mut self, name: &str, text: Option<&str>) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let text = text?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(format!("{name} {text}: {error}"));
                None
            }
        }
    }
}

impl Config {
    /// Reads the file, puts the layers over each other, checks the result.
    ///
    /// # Errors
    /// [`UsageError`] with every problem, or that the file cannot be read or parsed.
    pub fn load(flags: Flags) -> anyhow::Result<Self> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => Settings::default(),
        };
        Ok(Self::validate(flags.settings.over(file)).map_err(UsageError)?)
    }

    fn validate(settings: Settings) -> Result<Self, Vec<String>> {
        let mut problems = Problems::default();
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let run_dir = absolute(settings.run_dir.unwrap_or_else(|| "/run/skep".into()));
        let mut hosts: Vec<ApiAddress> =
            settings.host.iter().filter_map(|h| problems.parse("--host", Some(h))).collect();
        if settings.host.is_empty() {
            hosts.push(ApiAddress::Unix(run_dir.join("docker.sock")));
        }
        let listen = settings.listen_addr.as_deref().map(|t| if has_port(t) { t.to_owned() } else { with_port(t) });
        let default_listen = SocketAddr::from(([0, 0, 0, 0], CLUSTER_PORT));
        let listen = problems.parse("--listen-addr", listen.as_deref()).unwrap_or(default_listen);
        let advertise = problems.parse("--advertise-addr", settings.advertise_addr.as_deref());
        let data_path = problems.parse("--data-path-addr", settings.data_path_addr.as_deref());
        let capacity = problems.parse("--capacity", settings.capacity.as_deref()).unwrap_or_default();
        let bridge = problems.parse("--bridge-subnet", settings.bridge_subnet.as_deref().or(Some("172.17.0.0/16")));
        let infra = problems.parse("--infra-subnet", settings.infra_subnet.as_deref().or(Some("100.64.0.0/10")));
        let wireguard_port = settings.wireguard_port.unwrap_or(WIREGUARD_PORT);
        if matches!(wireguard_port, 0 | 4789 | ENCRYPTED_PORT) {
            problems
                .0
                .push(format!("--wireguard-port {wireguard_port}: 0 is no port, 4789 and 4790 are those of VXLAN"));
        }
        let cgroup_parent = settings.cgroup_parent.unwrap_or_else(|| "/skep".into());
        if !cgroup_parent.starts_with('/') || cgroup_parent.split('/').any(|part| part == "..") {
            problems.0.push(format!("--cgroup-parent {cgroup_parent}: an absolute path without .. is needed"));
        }
        let node_name = settings.node_name.unwrap_or_else(host_name);
        if node_name.is_empty()
            || node_name.len() > 63
            || !node_name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            problems.0.push(format!("--node-name {node_name:?}: 1 to 63 letters, digits, and -_. are needed"));
        }
        let labels = settings
            .label
            .iter()
            .filter_map(|label| match label.split_once('=') {
                Some((key, value)) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
                _ => {
                    problems.0.push(format!("--label {label}: write KEY=VALUE"));
                    None
                }
            })
            .collect();
        let generic = GenericResources::parse(&settings.node_generic_resource);
        let generic = generic.unwrap_or_else(|error| {
            problems.0.push(format!("--node-generic-resource: {error}"));
            GenericResources::default()
        });
        let shim = settings.shim.unwrap_or_else(|| {
            std::env::current_exe()
                .map_or_else(|_| "/usr/bin/skep-shim".into(), |path| path.with_file_name("skep-shim"))
        });
        let (Some(bridge_subnet), Some(infra_subnet), true) = (bridge, infra, problems.0.is_empty()) else {
            return Err(problems.0);
        };
        Ok(Self {
            root: absolute(settings.root.unwrap_or_else(|| "/var/lib/skep".into())),
            run_dir,
            node_name,
            hosts,
            listen,
            advertise,
            data_path,
            cgroup_parent,
            capacity,
            insecure_registries: settings.insecure_registry,
            labels,
            generic,
            shim,
            bridge_subnet,
            infra_subnet,
            wireguard_port,
            log: settings.log.unwrap_or_else(|| "info,openraft=warn".into()),
        })
    }
}

fn has_port(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok()
}

/// With the port of clusters; an IPv6 address may stand in brackets.
fn with_port(text: &str) -> String {
    if text.parse::<Ipv6Addr>().is_ok() { format!("[{text}]:{CLUSTER_PORT}") } else { format!("{text}:{CLUSTER_PORT}") }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn read_file(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_saphyr::from_str(&text).map_err(|error| UsageError(vec![format!("{}: {error}", path.display())]).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(yaml: &str) -> Settings {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let wrong =
            settings("host: ['tcp://0.0.0.0:2375']\ncapacity: cpus=many\nlabel: [novalue]\ncgroup-parent: ../up\n");
        let problems = Config::validate(wrong).unwrap_err();
        assert_eq!(problems.len(), 4, "{problems:#?}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = Settings { node_name: Some("a".into()), ..Settings::default() };
        let config = Config::validate(flags.over(settings("node-name: b\nrun-dir: /r\n"))).unwrap();
        assert_eq!((config.node_name.as_str(), config.run_dir.to_str().unwrap()), ("a", "/r"));
        assert_eq!(config.hosts, [ApiAddress::Unix("/r/docker.sock".into())]);
    }

    #[test]
    fn a_listen_address_has_the_port_of_clusters_when_it_names_none() {
        let listen = |text: &str| {
            let settings = Settings { listen_addr: Some(text.into()), ..Settings::default() };
            Config::validate(settings).map(|config| config.listen.to_string()).ok()
        };
        for (given, wanted) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:5000", "10.0.0.1:5000"),
            ("::", "[::]:2377"),
            ("[::]", "[::]:2377"),
            ("[2001:db8::5]:5000", "[2001:db8::5]:5000"),
        ] {
            assert_eq!(listen(given).as_deref(), Some(wanted));
        }
        assert_eq!(listen("here"), None);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_refused() {
        assert!(serde_saphyr::from_str::<Settings>("nodename: b").is_err());
    }

    #[test]
    fn capacities_are_read_in_dockers_units() {
        assert_eq!("cpus=1.5,memory=2GiB".parse(), Ok(Capacity { nano_cpus: 1_500_000_000, memory: 2 << 30 }));
        for wrong in ["cpus=-1", "cpus=", "memory=1X", "memory=99999999999TiB", "disk=1", "cpus=1.0000000001"] {
            assert!(wrong.parse::<Capacity>().is_err(), "{wrong}");
        }
    }
}
