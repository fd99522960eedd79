//! The harness of the end-to-end tests: a lab of real daemons, and the stock docker CLI as its client.
//!
//! The programs are those that `deploy/test` has built: `$SKEP` (else `skep` beside the test's own target folder), the
//! shim that `$SKEP_SHIM` names, and `$DOCKER` (else `docker`).

pub mod answers;
pub mod api;
pub mod capture;
pub mod chaos;
pub mod churn;
pub mod host;
pub mod images;
pub mod load;
pub mod registry;
pub mod stand_ins;
pub mod terminal;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// How long a cluster may take to do what it was told. Generous: machines that run tests are shared.
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// A lab that is taken down when it is dropped.
pub struct Lab {
    dir: TempDir,
    status: Value,
}

fn skep() -> PathBuf {
    std::env::var_os("SKEP").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().expect("a test knows its own path");
        own.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join("skep")
    })
}

/// The docker CLI.
pub fn docker_program() -> PathBuf {
    std::env::var_os("DOCKER").map_or_else(|| "docker".into(), PathBuf::from)
}

impl Lab {
    /// Starts a lab. `more` are further arguments of `skep lab up`.
    ///
    /// # Panics
    /// When it does not come up: a test cannot go on.
    pub fn up(managers: u16, workers: u16, more: &[&str]) -> Self {
        Self::up_below(&std::env::temp_dir(), managers, workers, more)
    }

    /// The same, with its files below a directory.
    ///
    /// # Panics
    /// As [`Self::up`].
    pub fn up_below(parent: &Path, managers: u16, workers: u16, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("skep-e2e-").tempdir_in(parent).expect("a temporary directory");
        let output = Command::new(skep())
            .args(["lab", "up", "--managers", &managers.to_string(), "--workers", &workers.to_string()])
            .arg("--dir")
            .arg(dir.path())
            .args(more)
            .output()
            .expect("skep can be started");
        assert!(output.status.success(), "the lab does not come up: {}", String::from_utf8_lossy(&output.stderr));
        let mut lab = Self { dir, status: Value::Null };
        lab.refresh();
        lab
    }

    fn refresh(&mut self) {
        let text = self.lab(&["status", "--json"]).expect("the lab has a status");
        self.status = serde_json::from_str(&text).expect("the status is JSON");
    }

    /// Runs `skep lab …` on this lab.
    ///
    /// # Errors
    /// What it says.
    pub fn lab(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (verb, rest) = arguments.split_first().context("a verb")?;
        run(Command::new(skep()).args(["lab", verb, "--dir"]).arg(self.dir.path()).args(rest))
    }

    /// Names of the nodes, managers first.
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        nodes.iter().filter_map(|n| n["name"].as_str().map(str::to_owned)).collect()
    }

    fn field(&self, node: &str, field: &str) -> &Value {
        let nodes = self.status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        nodes.iter().find(|n| n["name"] == node).map_or(&Value::Null, |n| &n[field])
    }

    /// Address of a node.
    pub fn address(&self, node: &str) -> String {
        self.field(node, "address").as_str().expect("every node has an address").to_owned()
    }

    /// IPv6 address of a node.
    pub fn address6(&self, node: &str) -> String {
        self.field(node, "address6")
            .as_str()
            .expect("every node has an IPv6 address where the kernel has IPv6")
            .to_owned()
    }

    /// Path of a node's socket.
    pub fn socket(&self, node: &str) -> &str {
        self.field(node, "socket").as_str().expect("every node has a socket")
    }

    /// Address of the host, as the nodes see it.
    pub fn gateway(&self) -> String {
        let address = self.address("m1");
        format!("{}.1", address.rsplit_once('.').map_or("", |(subnet, _)| subnet))
    }

    /// The lab's cgroup, below the root of each hierarchy.
    pub fn cgroup(&self) -> String {
        let text = std::fs::read(self.dir.path().join("lab.json")).expect("the lab has its file");
        let state: Value = serde_json::from_slice(&text).expect("lab.json is JSON");
        format!("skep-lab-{}", state["id"].as_str().expect("a lab has an id"))
    }

    /// The root folder of a node's daemon, `--root`.
    pub fn daemon_root(&self, node: &str) -> PathBuf {
        self.root(node).join("root")
    }

    /// Gives a node whose daemon is down another address; its daemon is told at its next start.
    pub fn move_node(&mut self, node: &str, address: &str) {
        let old = self.address(node);
        self.lab(&["exec", node, "--", "ip", "address", "del", &format!("{old}/24"), "dev", "eth0"])
            .expect("the node gives its address up");
        self.lab(&["exec", node, "--", "ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])
            .expect("the node takes another address");
        let file = self.dir.path().join("lab.json");
        let text = std::fs::read_to_string(&file).expect("the lab has its file");
        std::fs::write(&file, text.replace(&format!("\"{old}\""), &format!("\"{address}\"")))
            .expect("the file is ours");
        self.refresh();
    }

    /// The network namespace of a node, or of the `bridge` between them.
    pub fn namespace(&self, name: &str) -> PathBuf {
        self.dir.path().join("netns").join(name)
    }

    /// The directory that holds all of a node: its root, its sockets, its log.
    pub fn root(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    /// The pid of a node's daemon.
    pub fn pid(&mut self, node: &str) -> u64 {
        self.refresh();
        self.field(node, "pid").as_u64().expect("every node has a pid")
    }

    /// Runs the docker CLI against a node.
    ///
    /// # Errors
    /// What it writes to its standard error.
    pub fn docker(&self, node: &str, arguments: &[&str]) -> anyhow::Result<String> {
        run(&mut self.docker_command(node, arguments))
    }

    /// The same, with a text on its standard input.
    ///
    /// # Errors
    /// What it writes to its standard error.
    pub fn docker_with_input(&self, node: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.docker_command(node, arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().context("the input is a pipe")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a config by the docker CLI.
    ///
    /// # Errors
    /// What it writes to its standard error.
    pub fn create_config(&self, node: &str, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let mut command = self.docker_command(node, &["config", "create", name, "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        // A client that is refused may end before it has read all; what it says comes next.
        let _ = child.stdin.take().context("it has a standard input")?.write_all(content);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// The same, with all that the CLI says.
    pub fn docker_output(&self, node: &str, arguments: &[&str]) -> Output {
        self.docker_command(node, arguments).output().expect("the docker CLI can be started")
    }

    fn docker_command(&self, node: &str, arguments: &[&str]) -> Command {
        let socket = self.socket(node);
        let mut command = Command::new(docker_program());
        command.arg("-H").arg(format!("unix://{socket}")).args(arguments).stdin(Stdio::null());
        // The user's own settings must not change what a test sees.
        command
            .env("DOCKER_CONFIG", self.dir.path().join("docker-config"))
            .env_remove("DOCKER_HOST")
            .env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs skep's own client against a node.
    ///
    /// # Errors
    /// What it writes to its standard error.
    pub fn skep(&self, node: &str, arguments: &[&str]) -> anyhow::Result<String> {
        run(&mut self.skep_command(node, arguments))
    }

    /// A command of skep's own client, not started yet.
    pub fn skep_command(&self, node: &str, arguments: &[&str]) -> Command {
        let socket = self.field(node, "socket").as_str().expect("every node has a socket");
        let mut command = Command::new(skep());
        command.arg("-H").arg(format!("unix://{socket}")).args(arguments).stdin(Stdio::null());
        command.env("DOCKER_CONFIG", self.dir.path().join("docker-config"));
        command
    }

    /// Asks a published port of a node, from the host, for a path.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn http(&self, node: &str, port: u16, path: &str) -> anyhow::Result<String> {
        http(&format!("{}:{port}", self.address(node)), path)
    }

    /// One request to a node's socket, with a JSON body unless that is empty; the body of the answer.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn api(&self, node: &str, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
        let mut stream = UnixStream::connect(self.socket(node)).context("connecting")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).context("no HTTP answer")
    }

    /// Tasks of a service that run and are meant to, as `ID NODE` lines.
    pub fn running(&self, node: &str, service: &str) -> Vec<String> {
        let format = "{{.ID}} {{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let listed =
            self.docker(node, &["service", "ps", "--no-trunc", "--format", format, service]).unwrap_or_default();
        let is_running = |line: &&str| line.contains(" Running Running ");
        let names = |line: &str| line.split(" Running").next().unwrap_or_default().to_owned();
        listed.lines().filter(is_running).map(names).collect()
    }

    /// Waits until a service has exactly so many running tasks.
    pub fn wait_for_running(&self, node: &str, service: &str, count: usize) {
        eventually(&format!("{service} has {count} running tasks"), || {
            let running = self.running(node, service);
            if running.len() == count {
                return Ok(());
            }
            let all = self.docker(node, &["service", "ps", "--no-trunc", service]).unwrap_or_else(|e| e.to_string());
            bail!("{} run:\n{all}", running.len())
        });
    }

    /// Last lines of every daemon's log, for a failing test.
    pub fn logs(&self) -> String {
        let tail = |node: &String| {
            let text = std::fs::read_to_string(self.dir.path().join(node).join("daemon.log")).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {node}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        self.nodes().iter().map(tail).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.lab(&["down"]) {
            // A second panic would abort the run; the message is enough to find it.
            eprintln!("the lab does not go down: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// One HTTP/1.0 request.
///
/// # Errors
/// When nobody answers in two seconds.
pub fn http(address: &str, path: &str) -> anyhow::Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).context("no HTTP answer")
}

/// Waits until `check` succeeds.
///
/// # Panics
/// With the last failure, when it does not in [`PATIENCE`].
pub fn eventually(what: &str, mut check: impl FnMut() -> anyhow::Result<()>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Ok(()) => return,
            Err(error) if Instant::now() > deadline => panic!("not in {} s: {what}: {error:#}", PATIENCE.as_secs()),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}
