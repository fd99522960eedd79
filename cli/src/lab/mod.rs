//! A whole cluster on this machine.
//!
//! One network namespace a node, on a bridge in a namespace of its own, which a veth pair connects to the host:
//!
//! ```text
//!   host                lab bridge namespace            node m1
//!   skl<id>h .1 ------- host --+-- br0 --+-- p-m1 ------ eth0 .11    daemon, netd, shims, containers
//!                                        +-- p-w1 ------ eth0 .21    …
//! ```
//!
//! The lab's state is one file, `lab.json`; all that the kernel holds for it is found again from its id alone, so that
//! `down` works after any crash. Names of links, tables and cgroups carry the id: labs coexist.

mod cluster;
mod daemons;
mod network;
mod state;
mod sys;
mod teardown;

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use state::LabState;

/// What a new lab looks like.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Managers.
    pub managers: u16,
    /// Workers.
    pub workers: u16,
    /// Registries without TLS.
    pub insecure_registries: Vec<String>,
    /// Further arguments of every daemon.
    pub daemon_args: Vec<String>,
    /// Whether `swarm init` and `swarm join` are called.
    pub form_cluster: bool,
    /// UDP port of networks that are not encrypted, as for `swarm init`; 0 for the usual one.
    pub data_path_port: u16,
}

/// A lab that exists.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    state: LabState,
}

/// The most nodes that the addresses of a lab allow: .11 to .109 are managers, .111 to .249 workers.
const MOST_MANAGERS: u16 = 99;
const MOST_WORKERS: u16 = 139;

impl Lab {
    /// Makes a lab and waits until every node is ready. What it made is removed again when it fails.
    pub fn up(dir: &Path, options: &UpOptions) -> anyhow::Result<Self> {
        ensure!(options.managers >= 1, "a lab needs at least one manager: --managers 1");
        ensure!(
            options.managers <= MOST_MANAGERS && options.workers <= MOST_WORKERS,
            "a lab has at most {MOST_MANAGERS} managers and {MOST_WORKERS} workers"
        );
        require_root()?;
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        if LabState::path(&dir).exists() {
            bail!("{} holds a lab already: `skep lab down --dir {0}` removes it", dir.display());
        }
        let state = LabState::plan(&dir, options)?;
        state.save(&dir)?;
        let mut lab = Self { dir, state };
        if let Err(error) = lab.build(options) {
            for node in &lab.state.nodes {
                if let Some(tail) = daemons::log_tail(&lab.dir, &node.name) {
                    eprintln!("--- last lines of the daemon of {}\n{tail}", node.name);
                }
            }
            if let Err(second) = teardown::run(&lab.dir, &lab.state) {
                eprintln!("and while taking the lab down: {second:#}");
            }
            return Err(error);
        }
        Ok(lab)
    }

    fn build(&mut self, options: &UpOptions) -> anyhow::Result<()> {
        network::build(&self.dir, &self.state)?;
        let names: Vec<String> = self.state.nodes.iter().map(|n| n.name.clone()).collect();
        for name in &names {
            daemons::spawn(&self.dir, &mut self.state, name)?;
        }
        self.state.save(&self.dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(cluster::wait_for_sockets(&self.state))?;
        if options.form_cluster {
            runtime.block_on(cluster::form(&self.state, options.data_path_port))?;
        }
        Ok(())
    }

    /// The lab of a directory.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("{} does not exist: is there a lab?", dir.display()))?;
        let state = LabState::load(&dir)?;
        Ok(Self { dir, state })
    }

    /// Removes every trace of a lab, also of one whose making or removal was interrupted.
    pub fn down(dir: &Path) -> anyhow::Result<()> {
        require_root()?;
        let lab = Self::open(dir)?;
        teardown::run(&lab.dir, &lab.state)
    }

    /// SIGKILL for a node's daemon.
    pub fn kill(&mut self, node: &str) -> anyhow::Result<()> {
        let state = self.state.node_mut(node)?;
        ensure!(daemons::kill(state)?, "the daemon of {node} does not run");
        self.state.save(&self.dir)
    }

    /// Cuts a node's power: every process, mount, link and namespace of it is gone, its files stay.
    pub fn power_off(&mut self, node: &str) -> anyhow::Result<()> {
        teardown::power_off(&self.dir, &self.state, self.state.node(node)?)?;
        self.state.node_mut(node)?.process = None;
        self.state.save(&self.dir)
    }

    /// Starts a node's daemon and waits until it answers. A node without power is booted first.
    pub fn start(&mut self, node: &str) -> anyhow::Result<()> {
        let known = self.state.node(node)?;
        ensure!(!daemons::is_running(known), "the daemon of {node} runs already");
        if !network::is_plugged(&self.dir, known) {
            network::plug(&self.dir, &self.state, known)?;
        }
        daemons::spawn(&self.dir, &mut self.state, node)?;
        self.state.save(&self.dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(cluster::wait_for_socket(self.state.node(node)?))
    }

    /// Cuts or heals one node, or a pair.
    pub fn set_cut(&self, a: &str, b: Option<&str>, cut: bool) -> anyhow::Result<()> {
        let a = self.state.node(a)?;
        match b {
            None => network::set_node_cut(&self.dir, a, cut),
            Some(b) => network::set_pair_cut(&self.dir, a, self.state.node(b)?, cut),
        }
    }

    /// Becomes a command on that node. Returns only when that fails.
    pub fn exec(&self, node: &str, command: &[String]) -> anyhow::Error {
        let attempt = || -> anyhow::Result<std::convert::Infallible> {
            let node = self.state.node(node)?;
            let (program, args) = command.split_first().context("no command")?;
            network::enter(&self.dir, &node.name)?;
            let error = Command::new(program).args(args).env("DOCKER_HOST", node.docker_host()).exec();
            Err(error).with_context(|| format!("running {program}"))
        };
        match attempt() {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    /// Prints the nodes.
    pub fn print_status(&self, as_json: bool) -> anyhow::Result<()> {
        let rows = self.state.nodes.iter().map(|n| (n, if daemons::is_running(n) { "running" } else { "stopped" }));
        if as_json {
            let nodes: Vec<_> = rows
                .map(|(n, state)| {
                    json!({"name": n.name, "role": n.role(), "address": n.address, "address6": n.address6, "socket": n.socket, "pid": n.pid(), "state": state})
                })
                .collect();
            println!("{}", serde_json::to_string(&json!({ "nodes": nodes }))?);
            return Ok(());
        }
        println!("{:<6} {:<8} {:<16} {:<8} {:<8} SOCKET", "NODE", "ROLE", "ADDRESS", "PID", "STATE");
        for (n, state) in rows {
            println!(
                "{:<6} {:<8} {:<16} {:<8} {state:<8} {}",
                n.name,
                n.role(),
                n.address,
                n.pid(),
                n.socket.display()
            );
        }
        Ok(())
    }

    /// Prints what a person needs next.
    pub fn print_summary(&self) {
        for node in &self.state.nodes {
            let second = node.address6.map(|address| address.to_string()).unwrap_or_default();
            println!("{}", format!("{:<6} {:<8} {:<16} {second}", node.name, node.role(), node.address).trim_end());
        }
        if let Some(first) = self.state.nodes.first() {
            println!("\nexport DOCKER_HOST={}", first.docker_host());
        }
    }
}

/// A lab makes namespaces, links and cgroups.
fn require_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a lab needs root: it makes network namespaces, links and cgroups (try sudo)"
    );
    Ok(())
}

/// The host's address in a lab's subnet.
fn host_address(subnet: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = subnet.octets();
    Ipv4Addr::new(a, b, c, 1)
}
