//! Namespaces and links of a lab, made with `ip` and `nft`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::host_address;
use super::state::{LabState, NodeState, address6, prefix6};

/// Name of the bridge's own namespace; no node can have it.
const BRIDGE_NAMESPACE: &str = "bridge";

/// Where a namespace is pinned.
pub fn namespace_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("netns").join(name)
}

/// Every namespace of the lab.
pub fn namespaces(dir: &Path, state: &LabState) -> Vec<PathBuf> {
    let nodes = state.nodes.iter().map(|n| namespace_path(dir, &n.name));
    std::iter::once(namespace_path(dir, BRIDGE_NAMESPACE)).chain(nodes).collect()
}

/// The host's end of the pair that leads into the lab.
pub fn host_link(state: &LabState) -> String {
    format!("skl{}h", state.id)
}

/// The host's nftables table for the lab's way out.
pub fn host_table(state: &LabState) -> String {
    format!("skep_lab_{}", state.id)
}

/// Whether the kernel has IPv6 for new namespaces. The host's own may be turned off.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf/default").exists()
}

/// Whether this namespace takes addresses of IPv6.
fn takes_ipv6() -> bool {
    let read = |of: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6"));
    ["all", "default"].iter().all(|of| read(of).is_ok_and(|value| value.trim() == "0"))
}

/// Makes namespaces, links, addresses, routes and the way out.
pub fn build(dir: &Path, state: &LabState) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir.join("netns"))?;
    let bridge = namespace_path(dir, BRIDGE_NAMESPACE);
    pin_namespace(&bridge)?;
    let host = host_link(state);
    ip(None, &format!("link add {host} type veth peer name host netns {}", bridge.display()))?;
    ip(None, &format!("addr add {}/24 dev {host}", host_address(state.subnet)))?;
    if state.nodes.iter().any(|node| node.address6.is_some()) && takes_ipv6() {
        let own = address6(prefix6(&state.id), 1);
        ip(None, &format!("-6 addr add {own}/64 dev {host} nodad"))?;
    }
    ip(None, &format!("link set {host} up"))?;
    ip(Some(&bridge), "link add br0 type bridge forward_delay 0")?;
    ip(Some(&bridge), "link set lo up")?;
    ip(Some(&bridge), "link set br0 up")?;
    ip(Some(&bridge), "link set host master br0 up")?;
    state.nodes.iter().try_for_each(|node| plug(dir, state, node))?;
    way_out(dir, state)
}

/// Makes a node's namespace and joins it to the bridge.
pub fn plug(dir: &Path, state: &LabState, node: &NodeState) -> anyhow::Result<()> {
    let (bridge, namespace) = (namespace_path(dir, BRIDGE_NAMESPACE), namespace_path(dir, &node.name));
    pin_namespace(&namespace)?;
    let port = node.bridge_port();
    ip(Some(&bridge), &format!("link add {port} type veth peer name eth0 netns {}", namespace.display()))?;
    ip(Some(&bridge), &format!("link set {port} master br0 up"))?;
    ip(Some(&namespace), "link set lo up")?;
    ip(Some(&namespace), &format!("addr add {}/24 dev eth0", node.address))?;
    if let Some(address) = node.address6 {
        ip(Some(&namespace), &format!("-6 addr add {address}/64 dev eth0 nodad"))?;
    }
    ip(Some(&namespace), "link set eth0 up")?;
    ip(Some(&namespace), &format!("route add default via {}", host_address(state.subnet)))
}

/// Takes a node's link away, both ends. May be run again.
pub fn unplug(dir: &Path, node: &NodeState) -> anyhow::Result<()> {
    let (bridge, port) = (namespace_path(dir, BRIDGE_NAMESPACE), node.bridge_port());
    if !is_plugged(dir, node) {
        return Ok(());
    }
    ip(Some(&bridge), &format!("link delete {port}"))
}

/// Whether a node has its namespace: it has none after its power was cut.
pub fn is_plugged(dir: &Path, node: &NodeState) -> bool {
    let bridge = namespace_path(dir, BRIDGE_NAMESPACE);
    ip(Some(&bridge), &format!("link show {}", node.bridge_port())).is_ok()
}

/// Lets the nodes reach what the host reaches.
fn way_out(dir: &Path, state: &LabState) -> anyhow::Result<()> {
    const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
    let before = std::fs::read_to_string(FORWARDING).context("reading net.ipv4.ip_forward")?;
    if before.trim() != "1" {
        let mut changed = state.clone();
        changed.forwarding_before = Some(false);
        changed.save(dir)?;
        std::fs::write(FORWARDING, "1").context("setting net.ipv4.ip_forward")?;
    }
    let (table, link, subnet) = (host_table(state), host_link(state), state.subnet);
    nft(
        None,
        &format!(
            "table ip {table} {{
               chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
                 ip saddr {subnet}/24 oifname != \"{link}\" masquerade
               }}
             }}"
        ),
    )?;
    if let Some(chain) = dropping_forward_chain() {
        eprintln!(
            "warning: the host's firewall drops forwarded packets (nftables chain {chain}): the lab's nodes will not reach \
             the internet. To allow it: nft insert rule {chain} ip saddr {subnet}/24 accept"
        );
    }
    Ok(())
}

/// The first chain of the host that drops forwarded packets by policy: an accept of ours cannot overrule it.
fn dropping_forward_chain() -> Option<String> {
    let output = Command::new("nft").args(["list", "chains", "ip"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut table, mut chain) = (String::new(), String::new());
    for line in text.lines().map(str::trim) {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["table", family, name, ..] => table = format!("{family} {name}"),
            ["chain", name, ..] => chain = (*name).to_owned(),
            words if words.contains(&"forward") && line.contains("policy drop") => {
                return Some(format!("{table} {chain}"));
            }
            _ => {}
        }
    }
    None
}

/// Takes a node's port down, or up again.
pub fn set_node_cut(dir: &Path, node: &NodeState, cut: bool) -> anyhow::Result<()> {
    let bridge = namespace_path(dir, BRIDGE_NAMESPACE);
    ip(Some(&bridge), &format!("link set {} {}", node.bridge_port(), if cut { "down" } else { "up" }))
}

/// Drops frames between two ports, or lets them pass again.
pub fn set_pair_cut(dir: &Path, a: &NodeState, b: &NodeState, cut: bool) -> anyhow::Result<()> {
    let bridge = namespace_path(dir, BRIDGE_NAMESPACE);
    let (a, b) = (a.bridge_port(), b.bridge_port());
    let verb = if cut { "add" } else { "delete" };
    nft(
        Some(&bridge),
        &format!(
            "table bridge cuts {{
               set pairs {{ type ifname . ifname; }}
               chain forward {{ type filter hook forward priority 0; policy accept; }}
             }}
             flush chain bridge cuts forward
             add rule bridge cuts forward iifname . oifname @pairs drop
             add element bridge cuts pairs {{ \"{a}\" . \"{b}\", \"{b}\" . \"{a}\" }}
             {verb} element bridge cuts pairs {{ \"{a}\" . \"{b}\", \"{b}\" . \"{a}\" }}"
        ),
    )
}

/// Moves the calling thread into a node's namespace; processes that it starts are born there.
pub fn enter(dir: &Path, node: &str) -> anyhow::Result<()> {
    enter_path(&namespace_path(dir, node))
}

fn enter_path(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering the namespace {}", path.display()))
}

/// Makes a network namespace and pins it to a file, on a thread that ends afterwards: the caller's own does not change.
fn pin_namespace(path: &Path) -> anyhow::Result<()> {
    File::create(path).with_context(|| format!("making {}", path.display()))?;
    let target = path.to_owned();
    let made = std::thread::spawn(move || -> std::io::Result<()> {
        super::sys::new_network_namespace()?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &target)?;
        Ok(())
    });
    made.join().expect("the thread does not panic").with_context(|| format!("making the namespace {}", path.display()))
}

/// Runs `ip`, in a namespace or here. The arguments are ours and hold no blanks.
pub fn ip(namespace: Option<&Path>, arguments: &str) -> anyhow::Result<()> {
    run(namespace, Command::new("ip").args(arguments.split_whitespace()), None)
        .with_context(|| format!("ip {arguments}"))
}

/// Runs `nft -f -`.
pub fn nft(namespace: Option<&Path>, script: &str) -> anyhow::Result<()> {
    run(namespace, Command::new("nft").args(["-f", "-"]), Some(script)).context("nft")
}

fn run(namespace: Option<&Path>, command: &mut Command, input: Option<&str>) -> anyhow::Result<()> {
    command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let spawn = |command: &mut Command| {
        command.spawn().with_context(|| format!("{program} cannot be started: install it (Debian: iproute2, nftables)"))
    };
    let mut child = match namespace {
        None => spawn(command)?,
        Some(path) => std::thread::scope(|scope| {
            scope.spawn(|| enter_path(path).and_then(|()| spawn(command))).join().expect("the thread does not panic")
        })?,
    };
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
