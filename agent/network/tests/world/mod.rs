//! Nodes for tests: network namespaces on a bridge, each with a [`NodeNetwork`], and a client outside.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses its part, and may panic")]

pub mod load;
pub mod served;
pub mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skep_network::{BridgeSpec, Config, FakeNames, NodeNetwork, OverlayAttachment, Place, SandboxId, SandboxSpec};
use skep_proto::model::network::{INGRESS_VNI, Subnet};
use skep_proto::model::service::{EndpointMode, PortConfig, Protocol, PublishMode, VirtualIp};
use skep_proto::model::view::{EndpointAddress, EndpointView, NetworkView, OverlayNetwork, Peer, ServiceView};
use skep_proto::model::{NetworkId, NodeId, ServiceId, TaskId};

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// Address of the client outside.
pub const CLIENT: &str = "10.99.0.9";
/// Its IPv6 address.
pub const CLIENT6: &str = "2001:db8:99::9";

/// A wire has no firewall: where br_netfilter is loaded, each new namespace would hand bridged packets to one.
const WIRE: &str = "net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0";

/// Nodes and a client on one wire.
pub struct World {
    tag: String,
    folder: tempfile::TempDir,
    pub nodes: Vec<Node>,
    pub view: NetworkView,
}

pub struct Node {
    pub netns: PathBuf,
    pub config: Config,
    pub network: NodeNetwork,
    pub names: Arc<FakeNames>,
    pub address: Ipv4Addr,
    pub id: NodeId,
}

/// IPv6 address of the node of that number on the wire.
pub fn node6(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0x10 + number)
}

/// Starts the network layer of a node.
pub fn start(netns: &Path, config: &Config, place: Place, names: &Arc<FakeNames>) -> NodeNetwork {
    let (settings, server) = (config.clone(), names.clone());
    within(netns, move || NodeNetwork::start(settings, place, server)).join().unwrap().unwrap()
}

pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs `f` on a thread of its own in the namespace.
pub fn within<T: Send + 'static>(netns: &Path, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let netns = netns.to_owned();
    thread::spawn(move || {
        let file = openat(CWD, &netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
        f()
    })
}

impl World {
    pub fn new(count: u16) -> Self {
        let tag = format!("net{}x{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let folder = tempfile::tempdir().unwrap();
        let hub = format!("{tag}-hub");
        run(&format!(
            "ip netns add {hub} && ip -n {hub} link set lo up && ip -n {hub} link add wire type bridge && \
             ip -n {hub} addr add {CLIENT}/24 dev wire && ip -n {hub} link set wire up && \
             ip -n {hub} addr add {CLIENT6}/64 dev wire nodad && \
             nsenter --net=/run/netns/{hub} sysctl -qew {WIRE}"
        ));
        let mut world = Self { tag, folder, nodes: Vec::new(), view: NetworkView::default() };
        for number in 1..=count {
            let (ns, address) = (world.ns(number), Ipv4Addr::new(10, 99, 0, 10 + u8::try_from(number).unwrap()));
            run(&format!(
                "ip netns add {ns} && ip -n {ns} link set lo up && \
                 ip -n {hub} link add n{number} type veth peer name uplink netns {ns} && \
                 ip -n {hub} link set n{number} master wire up && ip -n {ns} addr add {address}/24 dev uplink && \
                 ip -n {ns} link set uplink up && ip -n {ns} route add default via {CLIENT} && \
                 ip -n {ns} addr add {}/64 dev uplink nodad && ip -n {ns} route add default via {CLIENT6}",
                node6(number)
            ));
            let id = NodeId(u128::from(number));
            let config = Config {
                state_dir: world.folder.path().join(format!("n{number}")),
                run_dir: world.folder.path().join(format!("r{number}")),
                vxlan_port: 4789,
                wireguard_port: 51820,
                prefix: "skep".into(),
                bridge_subnet: "172.17.0.0/16".parse().unwrap(),
                infra: "100.64.0.0/10".parse().unwrap(),
                netd_exe: PathBuf::new(),
            };
            let netns = PathBuf::from(format!("/run/netns/{ns}"));
            let names = Arc::new(within(&netns, || FakeNames::with_tunnels().unwrap()).join().unwrap());
            let data_path = vec![IpAddr::V4(address)];
            let network = start(&netns, &config, Place { node: Some(id), data_path }, &names);
            let wireguard = Some(network.wireguard().unwrap());
            let told = vec![IpAddr::V4(address), IpAddr::V6(node6(number))];
            world.view.peers.insert(id, Peer { node: id, index: number, data_path: told, wireguard, ipv4_only: false });
            world.nodes.push(Node { netns, config, network, names, address, id });
        }
        world
    }

    fn ns(&self, number: u16) -> String {
        format!("{}-n{number}", self.tag)
    }

    pub fn hub(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}-hub", self.tag))
    }

    /// Starts the network layer of a node again, as a new process would.
    pub fn restart(&mut self, node: usize) {
        let at = &self.nodes[node];
        let place = Place { node: Some(at.id), data_path: vec![IpAddr::V4(at.address)] };
        self.nodes[node].network = start(&at.netns, &at.config, place, &at.names);
    }

    /// Has every node tell the others its keys of now.
    pub fn announce(&mut self) {
        for node in &self.nodes {
            let peer = self.view.peers.get_mut(&node.id).unwrap();
            peer.wireguard = Some(node.network.wireguard().unwrap());
        }
    }

    /// Gives a node another address on the wire, as a new process of it would find.
    pub fn move_node(&mut self, node: usize, address: Ipv4Addr) {
        let at = &mut self.nodes[node];
        let inside = format!("nsenter --net={}", at.netns.display());
        run(&format!(
            "{inside} ip addr flush dev uplink scope global && {inside} ip addr add {address}/24 dev uplink && \
             {inside} ip route replace default via {CLIENT}"
        ));
        at.address = address;
        self.view.peers.get_mut(&at.id).unwrap().data_path = vec![IpAddr::V4(address)];
        self.restart(node);
    }

    /// Turns IPv6 off on a node, as a new process of it would find.
    pub fn turn_off_ipv6(&mut self, node: usize) {
        let at = &self.nodes[node];
        run(&format!("nsenter --net={} sysctl -qw net.ipv6.conf.all.disable_ipv6=1", at.netns.display()));
        let peer = self.view.peers.get_mut(&at.id).unwrap();
        peer.ipv4_only = true;
        peer.data_path.retain(IpAddr::is_ipv4);
        self.restart(node);
    }

    /// Takes IPv4 from a node's wire, as a new process of it would find.
    pub fn leave_ipv6_alone(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        let address = IpAddr::V6(node6(self.view.peers[&at.id].index));
        run(&format!("nsenter --net={} ip -4 addr flush dev uplink", at.netns.display()));
        self.view.peers.get_mut(&at.id).unwrap().data_path = vec![address];
        at.network = start(&at.netns, &at.config, Place { node: Some(at.id), data_path: vec![address] }, &at.names);
    }

    /// Gives a node another data path.
    pub async fn enter_with(&mut self, node: usize, data_path: Vec<IpAddr>) {
        let at = &self.nodes[node];
        at.network.enter(at.id, data_path).await.unwrap();
    }

    pub async fn apply(&self) {
        let view = Arc::new(self.view.clone());
        for node in &self.nodes {
            node.network.apply(view.clone()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        }
    }

    /// Adds a network `10.0.NUMBER.0/24` that is not encrypted.
    pub fn plain_network(&mut self, number: u8) -> NetworkId {
        let id = self.network(number);
        self.view.networks.get_mut(&id).unwrap().encrypted = false;
        id
    }

    /// Makes the routing mesh with or without encryption, as the operator may.
    pub fn mesh(&mut self, encrypted: bool) {
        let id = self.network(16);
        let mesh = self.view.networks.get_mut(&id).unwrap();
        (mesh.vni, mesh.encrypted) = (INGRESS_VNI, encrypted);
        mesh.subnets.clear();
    }

    /// Adds a network `10.0.NUMBER.0/24`.
    pub fn network(&mut self, number: u8) -> NetworkId {
        let id = NetworkId(u128::from(number));
        let subnet = Subnet {
            subnet: format!("10.0.{number}.0/24").parse().unwrap(),
            range: None,
            gateway: IpAddr::V4(Ipv4Addr::new(10, 0, number, 1)),
        };
        let network = OverlayNetwork {
            id,
            name: format!("net{number}"),
            vni: 4096 + u32::from(number),
            subnets: vec![subnet],
            internal: false,
            encrypted: true,
            mtu: None,
            port: 0,
        };
        self.view.networks.insert(id, network);
        id
    }

    /// Adds a network `10.0.NUMBER.0/24` and `fd00:NUMBER::/64`.
    pub fn dual_network(&mut self, number: u8) -> NetworkId {
        let id = self.network(number);
        let gateway: std::net::Ipv6Addr = format!("fd00:{number}::1").parse().unwrap();
        let subnet = format!("fd00:{number}::/64").parse().unwrap();
        let second = Subnet { subnet, range: None, gateway: IpAddr::V6(gateway) };
        self.view.networks.get_mut(&id).unwrap().subnets.push(second);
        id
    }

    /// Gives a service another virtual address.
    pub fn add_vip(&mut self, service: ServiceId, network: NetworkId, vip: &str) {
        let vip = VirtualIp { network, address: vip.parse().unwrap() };
        self.view.services.get_mut(&service).unwrap().virtual_ips.push(vip);
    }

    /// Adds a service with a virtual address on a network and published ports.
    pub fn service(
        &mut self,
        number: u128,
        network: NetworkId,
        vip: &str,
        ports: &[(Protocol, u16, u16)],
    ) -> ServiceId {
        let id = ServiceId(number);
        let ports = ports.iter().map(|(protocol, published, target)| PortConfig {
            name: String::new(),
            protocol: *protocol,
            target: *target,
            published: Some(*published),
            mode: PublishMode::Ingress,
        });
        let service = ServiceView {
            id,
            name: format!("service{number}"),
            mode: EndpointMode::Vip,
            virtual_ips: vec![VirtualIp { network, address: vip.parse().unwrap() }],
            aliases: BTreeMap::new(),
            ports: ports.collect(),
            redirects: Vec::new(),
        };
        self.view.services.insert(id, service);
        id
    }

    /// Makes the sandbox of a task and tells all nodes of it at the next [`World::apply`].
    pub async fn task(
        &mut self,
        number: u128,
        node: usize,
        service: Option<ServiceId>,
        network: NetworkId,
        address: &str,
    ) -> skep_network::Sandbox {
        self.task_at(number, node, service, network, &[address]).await
    }

    /// As [`World::task`], with an address of each family.
    pub async fn task_at(
        &mut self,
        number: u128,
        node: usize,
        service: Option<ServiceId>,
        network: NetworkId,
        addresses: &[&str],
    ) -> skep_network::Sandbox {
        let id = TaskId(number);
        let mut spec = SandboxSpec::new(SandboxId::of_task(id));
        let addresses: Vec<ipnet::IpNet> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        spec.overlays.push(OverlayAttachment::new(network, &addresses, Vec::new()).unwrap());
        spec.task = Some(id);
        let made = self.nodes[node].network.create_sandbox(spec).await;
        let sandbox = made.unwrap_or_else(|error| panic!("{}", chain(&error)));
        let endpoint = EndpointView {
            task: id,
            service,
            node: self.nodes[node].id,
            name: format!("task{number}"),
            addresses: addresses
                .into_iter()
                .map(|address| EndpointAddress { network, address, aliases: Vec::new(), names: Vec::new() })
                .collect(),
            mesh: sandbox.mesh,
            serving: true,
        };
        self.view.endpoints.insert(id, endpoint);
        sandbox
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &self.nodes {
            let network = node.network.clone();
            // A runtime of its own: the test's is busy unwinding.
            let cleared = thread::spawn(move || tokio::runtime::Runtime::new().unwrap().block_on(network.clear()));
            if let Err(error) = cleared.join().unwrap() {
                eprintln!("clear: {}", chain(&error));
            }
            let _ = Command::new("umount").args(["-R", "-l"]).arg(&node.config.state_dir).output();
        }
        let list = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        for name in list.filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with(&format!("{}-", self.tag)) {
                let _ = Command::new("ip").args(["netns", "del", &name]).output();
            }
        }
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

/// A TCP server that tells each client `NAME ADDRESS`, the address being the client's as the server sees it.
pub fn serve_tcp(netns: &Path, port: u16, name: &str) {
    let name = name.to_owned();
    let listener = within(netns, move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let peer = stream.peer_addr().unwrap();
            let _ = stream.write_all(format!("{name} {}", peer.ip().to_canonical()).as_bytes());
        }
    });
}

/// A TCP connection from a given port of a client.
pub fn hold_tcp(netns: &Path, from: u16, to: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let to = to.into();
    within(netns, move || {
        let (family, any) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let fd = socket(family, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&fd, true)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(PATIENCE))?;
        bind(&fd, &SocketAddr::new(any, from))?;
        connect(&fd, &SocketAddr::new(to, port))?;
        Ok(TcpStream::from(fd))
    })
    .join()
    .unwrap()
}

/// All that comes by a connection.
pub fn read(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The same for UDP.
pub fn serve_udp(netns: &Path, port: u16, name: &str) {
    let name = name.to_owned();
    let socket = within(netns, move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).join().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
}

const PATIENCE: Duration = Duration::from_secs(3);

/// What a TCP server answers to a client in the namespace.
pub fn ask_tcp(netns: &Path, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    within(netns, move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .join()
    .unwrap()
}

/// What a UDP server answers to a client in the namespace.
pub fn ask_udp(netns: &Path, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    within(netns, move || {
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
    .join()
    .unwrap()
}

/// Whether one ping is answered, where it should be: on a busy machine packets wait for a processor, and so does who
/// counts the seconds.
pub fn reaches(netns: &Path, to: &str) -> bool {
    ping(netns, to, 10)
}

/// Whether one ping is answered soon, where it may not be.
pub fn pings(netns: &Path, to: &str) -> bool {
    ping(netns, to, 2)
}

fn ping(netns: &Path, to: &str, seconds: u32) -> bool {
    let net = format!("--net={}", netns.display());
    let output = Command::new("nsenter")
        .args([net.as_str(), "busybox", if to.contains(':') { "ping6" } else { "ping" }])
        .args(["-c1", "-W", &seconds.to_string(), to])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let no_route = String::from_utf8_lossy(&output.stderr).contains("Network is unreachable");
    assert!(text.contains("1 packets transmitted") || no_route, "no ping was tried: {output:?}");
    output.status.success()
}

/// Waits until a condition holds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what} did not happen within 10 s");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A local bridge to make.
pub fn bridge(name: &str, subnet: Option<&str>, internal: bool) -> BridgeSpec {
    let subnet = subnet.map(|subnet| subnet.parse().unwrap());
    BridgeSpec { name: name.into(), subnet, internal, ..BridgeSpec::default() }
}
