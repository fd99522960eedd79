//! Flags of `create` and `run`, turned into the Engine API's `ContainerCreateRequest`.

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::{ArgAction, Args};
use serde_json::{Map, Value, json};

use super::ports;
use crate::commands::service::{bytes, mount, nano_cpus, nanoseconds};
use crate::commands::{pairs, text_lines};

/// Flags that both commands share.
#[derive(Debug, Default, Args)]
#[allow(clippy::struct_excessive_bools, reason = "Docker's flags")]
pub struct ContainerFlags {
    /// Add a line to /etc/hosts, NAME:IP; may be repeated
    #[arg(long)]
    add_host: Vec<String>,
    /// Attach to stdin, stdout or stderr; may be repeated
    #[arg(short, long)]
    attach: Vec<String>,
    /// Add a capability; may be repeated
    #[arg(long)]
    cap_add: Vec<String>,
    /// Take a capability away; may be repeated
    #[arg(long)]
    cap_drop: Vec<String>,
    /// Write the container's id to this file
    #[arg(long)]
    pub cidfile: Option<PathBuf>,
    /// Limit of CPUs
    #[arg(long)]
    cpus: Option<f64>,
    /// Name server; may be repeated
    #[arg(long)]
    dns: Vec<String>,
    /// Option of the resolver; may be repeated
    #[arg(long, visible_alias = "dns-opt")]
    dns_option: Vec<String>,
    /// Search domain; may be repeated
    #[arg(long)]
    dns_search: Vec<String>,
    /// Replaces the image's entry point
    #[arg(long)]
    entrypoint: Option<String>,
    /// Variable, NAME=VALUE, or NAME of one of the client's; may be repeated
    #[arg(short, long)]
    env: Vec<String>,
    /// File of variables, one a line; may be repeated
    #[arg(long)]
    env_file: Vec<PathBuf>,
    /// Declare a port, or a range; may be repeated
    #[arg(long)]
    expose: Vec<String>,
    /// Further group of the user; may be repeated
    #[arg(long)]
    group_add: Vec<String>,
    /// Command line that checks the container's health
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between two checks (ns|us|ms|s|m|h)
    #[arg(long)]
    health_interval: Option<String>,
    /// Failures in a row that make it unhealthy
    #[arg(long)]
    health_retries: Option<u64>,
    /// Time in which failures do not count (ns|us|ms|s|m|h)
    #[arg(long)]
    health_start_period: Option<String>,
    /// Time that a check may take (ns|us|ms|s|m|h)
    #[arg(long)]
    health_timeout: Option<String>,
    /// Host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// Run an init that reaps processes
    #[arg(long)]
    init: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Address on the network, IPv4
    #[arg(long)]
    ip: Option<String>,
    /// Address on the network, IPv6
    #[arg(long)]
    ip6: Option<String>,
    /// Label, KEY=VALUE; may be repeated
    #[arg(short, long)]
    label: Vec<String>,
    /// File of labels, one a line; may be repeated
    #[arg(long)]
    label_file: Vec<PathBuf>,
    /// Where logs go
    #[arg(long)]
    log_driver: Option<String>,
    /// Option of the log driver, KEY=VALUE; may be repeated
    #[arg(long)]
    log_opt: Vec<String>,
    /// Limit of memory
    #[arg(short, long)]
    memory: Option<String>,
    /// Mount, type=bind|volume|tmpfs,source=…,target=…; may be repeated
    #[arg(long)]
    mount: Vec<String>,
    /// Name
    #[arg(long)]
    pub name: Option<String>,
    /// Network to join, host, none or container:NAME; may be repeated
    #[arg(long, visible_alias = "net")]
    network: Vec<String>,
    /// Further name on the first network; may be repeated
    #[arg(long, visible_alias = "net-alias")]
    network_alias: Vec<String>,
    /// Do not check the container's health
    #[arg(long)]
    no_healthcheck: bool,
    /// Limit of processes
    #[arg(long)]
    pids_limit: Option<i64>,
    /// Platform, linux/amd64
    #[arg(long, env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<String>,
    /// All capabilities and devices
    #[arg(long)]
    privileged: bool,
    /// Port to publish, [[IP:]HOST:]CONTAINER[/PROTOCOL]; may be repeated
    #[arg(short, long)]
    publish: Vec<String>,
    /// Publish every declared port
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Pull the image first: always, missing, never
    #[arg(long, default_value = "missing")]
    pub pull: String,
    /// Do not show how a pull goes
    #[arg(short, long)]
    pub quiet: bool,
    /// Mount the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// no, on-failure[:N], always, unless-stopped
    #[arg(long, default_value = "no")]
    restart: String,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Signal that stops it
    #[arg(long)]
    stop_signal: Option<String>,
    /// Seconds before it is killed
    #[arg(long)]
    stop_timeout: Option<i64>,
    /// Parameter of the kernel, KEY=VALUE; may be repeated
    #[arg(long)]
    sysctl: Vec<String>,
    /// Memory as a file system, PATH[:OPTIONS]; may be repeated
    #[arg(long)]
    tmpfs: Vec<String>,
    /// Allocate a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Limit of a process, NAME=SOFT[:HARD]; may be repeated
    #[arg(long)]
    ulimit: Vec<String>,
    /// User, name or number, with :GROUP if wanted
    #[arg(short, long)]
    user: Option<String>,
    /// Volume or directory, [SOURCE:]TARGET[:OPTIONS]; may be repeated
    #[arg(short, long)]
    volume: Vec<String>,
    /// Working directory
    #[arg(short, long)]
    workdir: Option<String>,
    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image, and what replaces its command
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    image_and_command: Vec<String>,
}

/// Streams that a client attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl ContainerFlags {
    /// The image.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// Streams to attach to. What is not named depends on whether the client stays.
    ///
    /// # Errors
    /// A stream that does not exist.
    pub fn attach(&self, detached: bool) -> anyhow::Result<Attach> {
        if self.attach.is_empty() {
            return Ok(Attach { stdin: self.interactive && !detached, stdout: !detached, stderr: !detached });
        }
        ensure!(!detached, "conflicting options: cannot specify both --attach and --detach");
        let mut attach = Attach { stdin: false, stdout: false, stderr: false };
        for stream in &self.attach {
            match stream.to_ascii_lowercase().as_str() {
                "stdin" => attach.stdin = true,
                "stdout" => attach.stdout = true,
                "stderr" => attach.stderr = true,
                _ => bail!(
                    "invalid argument {stream:?} for \"-a, --attach\" flag: valid streams are STDIN, STDOUT and STDERR"
                ),
            }
        }
        Ok(attach)
    }

    /// The request's body.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn request(&self, detached: bool) -> anyhow::Result<Value> {
        let attach = self.attach(detached)?;
        let mut body = json!({
            "Image": self.image(),
            "Hostname": self.hostname.clone().unwrap_or_default(),
            "User": self.user.clone().unwrap_or_default(),
            "WorkingDir": self.workdir.clone().unwrap_or_default(),
            "AttachStdin": attach.stdin, "AttachStdout": attach.stdout, "AttachStderr": attach.stderr,
            "Tty": self.tty,
            "OpenStdin": self.interactive,
            "StdinOnce": self.interactive && attach.stdin,
            "Env": self.environment()?,
            "Labels": pairs(&[text_lines(&self.label_file)?, self.label.clone()].concat()),
            "StopSignal": self.stop_signal.clone().unwrap_or_default(),
        });
        if self.image_and_command.len() > 1 {
            body["Cmd"] = json!(self.image_and_command[1..]);
        }
        if let Some(entrypoint) = &self.entrypoint {
            body["Entrypoint"] = json!([entrypoint]);
        }
        if let Some(seconds) = self.stop_timeout {
            body["StopTimeout"] = json!(seconds);
        }
        for port in &self.expose {
            for name in ports::exposed(port)? {
                body["ExposedPorts"][name] = json!({});
            }
        }
        if let Some(check) = self.healthcheck()? {
            body["Healthcheck"] = check;
        }
        let mut host = self.host()?;
        self.volumes(&mut body, &mut host)?;
        body["HostConfig"] = host;
        body["NetworkingConfig"] = self.networks()?;
        Ok(body)
    }

    fn environment(&self) -> anyhow::Result<Vec<String>> {
        let lines = [text_lines(&self.env_file)?, self.env.clone()].concat();
        // A name alone stands for the client's own variable; one that is not set leaves nothing.
        let value = |line: String| match line.contains('=') {
            true => Some(line),
            false => std::env::var(&line).ok().map(|value| format!("{line}={value}")),
        };
        Ok(lines.into_iter().filter_map(value).collect())
    }

    fn healthcheck(&self) -> anyhow::Result<Option<Value>> {
        let given = [&self.health_cmd, &self.health_interval, &self.health_start_period, &self.health_timeout];
        let is_given = given.iter().any(|flag| flag.is_some()) || self.health_retries.is_some();
        if self.no_healthcheck {
            ensure!(!is_given, "--no-healthcheck conflicts with --health-* options");
            return Ok(Some(json!({"Test": ["NONE"]})));
        }
        if !is_given {
            return Ok(None);
        }
        let mut check = json!({"Retries": self.health_retries.unwrap_or(0)});
        if let Some(command) = &self.health_cmd {
            check["Test"] = json!(["CMD-SHELL", command]);
        }
        for (key, flag, value) in [
            ("Interval", "--health-interval", &self.health_interval),
            ("Timeout", "--health-timeout", &self.health_timeout),
            ("StartPeriod", "--health-start-period", &self.health_start_period),
        ] {
            check[key] = json!(nanoseconds(flag, value.as_ref())?.unwrap_or(0));
        }
        Ok(Some(check))
    }

    fn host(&self) -> anyhow::Result<Value> {
        let mut bindings = Map::new();
        for port in &self.publish {
            ports::publish(&mut bindings, port)?;
        }
        let (policy, retries) = self.restart.split_once(':').unwrap_or((&self.restart, "0"));
        let retries: u32 =
            retries.parse().with_context(|| format!("invalid restart policy format: {:?}", self.restart))?;
        let mut host = json!({
            "AutoRemove": self.rm,
            "CapAdd": self.cap_add, "CapDrop": self.cap_drop,
            "ContainerIDFile": self.cidfile.as_ref().map(|f| f.display().to_string()).unwrap_or_default(),
            "Dns": self.dns, "DnsOptions": self.dns_option, "DnsSearch": self.dns_search,
            "ExtraHosts": self.add_host,
            "GroupAdd": self.group_add,
            "LogConfig": {"Type": self.log_driver.clone().unwrap_or_default(), "Config": pairs(&self.log_opt)},
            "Memory": bytes("--memory", self.memory.as_ref())?.unwrap_or(0),
            "NanoCpus": self.cpus.map_or(0, nano_cpus),
            "NetworkMode": self.network.first().map_or("default", |n| network_name(n)),
            "PortBindings": bindings,
            "Privileged": self.privileged,
            "PublishAllPorts": self.publish_all,
            "ReadonlyRootfs": self.read_only,
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries},
            "Sysctls": pairs(&self.sysctl),
            "Ulimits": self.ulimit.iter().map(|u| ulimit(u)).collect::<anyhow::Result<Vec<_>>>()?,
        });
        if self.init {
            host["Init"] = json!(true);
        }
        if let Some(limit) = self.pids_limit {
            host["PidsLimit"] = json!(limit);
        }
        let mounts = self.mount.iter().map(|m| mount::parse(m)).collect::<anyhow::Result<Vec<_>>>()?;
        if !mounts.is_empty() {
            host["Mounts"] = json!(mounts);
        }
        for tmpfs in &self.tmpfs {
            let (path, options) = tmpfs.split_once(':').unwrap_or((tmpfs, ""));
            host["Tmpfs"][path] = json!(options);
        }
        Ok(host)
    }

    /// `-v SOURCE:TARGET` binds; `-v TARGET` is an anonymous volume.
    fn volumes(&self, body: &mut Value, host: &mut Value) -> anyhow::Result<()> {
        let mut binds = Vec::new();
        for volume in &self.volume {
            match volume.split_once(':') {
                None => body["Volumes"][volume] = json!({}),
                Some((source, rest)) if source.starts_with('.') => {
                    let path = std::path::absolute(source).with_context(|| format!("the directory of {volume}"))?;
                    binds.push(format!("{}:{rest}", path.components().collect::<PathBuf>().display()));
                }
                Some(_) => binds.push(volume.clone()),
            }
        }
        host["Binds"] = json!(binds);
        Ok(())
    }

    fn networks(&self) -> anyhow::Result<Value> {
        let mut endpoints = Map::new();
        for network in &self.network {
            endpoints.insert(network_name(network).to_owned(), network_options(network)?);
        }
        let first = self.network.first().map_or("default", |n| network_name(n));
        if !self.network_alias.is_empty() || self.ip.is_some() || self.ip6.is_some() {
            let endpoint = endpoints.entry(first).or_insert_with(|| json!({}));
            if !self.network_alias.is_empty() {
                endpoint["Aliases"] = json!(self.network_alias);
            }
            for (key, address) in [("IPv4Address", &self.ip), ("IPv6Address", &self.ip6)] {
                if let Some(address) = address {
                    endpoint["IPAMConfig"][key] = json!(address);
                }
            }
        }
        // Modes are no networks.
        endpoints.retain(|name, _| !["host", "none"].contains(&name.as_str()) && !name.starts_with("container:"));
        Ok(json!({"EndpointsConfig": endpoints}))
    }
}

/// The network of `NAME` or of `name=NAME,alias=…`.
fn network_name(text: &str) -> &str {
    if !text.contains('=') {
        return text;
    }
    text.split(',').find_map(|part| part.strip_prefix("name=")).unwrap_or(text)
}

fn network_options(text: &str) -> anyhow::Result<Value> {
    let mut endpoint = json!({});
    for part in text.split(',').filter(|_| text.contains('=')) {
        match part.split_once('=') {
            Some(("name", _)) => {}
            Some(("alias", alias)) => {
                let list = endpoint.as_object_mut().context("ours")?.entry("Aliases").or_insert_with(|| json!([]));
                list.as_array_mut().context("lists are ours")?.push(json!(alias));
            }
            Some(("ip", address)) => endpoint["IPAMConfig"]["IPv4Address"] = json!(address),
            Some(("ip6", address)) => endpoint["IPAMConfig"]["IPv6Address"] = json!(address),
            _ => bail!("--network {text}: there is no key {part:?} that skep knows"),
        }
    }
    Ok(endpoint)
}

/// `NAME=SOFT[:HARD]`.
fn ulimit(text: &str) -> anyhow::Result<Value> {
    let wrong = || format!("invalid ulimit argument: {text}");
    let (name, values) = text.split_once('=').with_context(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard): (i64, i64) = (soft.parse().with_context(wrong)?, hard.parse().with_context(wrong)?);
    Ok(json!({"Name": name, "Soft": soft, "Hard": hard}))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Create {
        #[command(flatten)]
        flags: ContainerFlags,
    }

    fn read(line: &str) -> ContainerFlags {
        Create::try_parse_from(std::iter::once("create").chain(line.split(' '))).unwrap().flags
    }

    #[test]
    fn what_follows_the_image_is_the_command_whatever_it_looks_like() {
        let flags = read("--rm -it busybox ls --rm -l");
        assert_eq!(flags.request(false).unwrap()["Cmd"], json!(["ls", "--rm", "-l"]));
        assert_eq!((flags.image(), flags.rm, flags.tty, flags.interactive), ("busybox", true, true, true));
        assert!(Create::try_parse_from(["create", "--gpus", "all", "busybox"]).is_err());
    }

    #[test]
    fn a_command_line_becomes_the_request_that_dockers_client_sends() {
        let body = read("-h web --name w -v /data -v vol:/v -p 80 --restart on-failure:3 -m 64M --ulimit nofile=1:2 x")
            .request(true)
            .unwrap();
        assert_eq!((&body["Hostname"], &body["AttachStdout"]), (&json!("web"), &json!(false)));
        assert_eq!(body["Volumes"], json!({"/data": {}}));
        let host = &body["HostConfig"];
        assert_eq!(host["Binds"], json!(["vol:/v"]));
        assert_eq!(host["RestartPolicy"], json!({"Name": "on-failure", "MaximumRetryCount": 3}));
        assert_eq!((&host["Memory"], &host["NetworkMode"]), (&json!(64 << 20), &json!("default")));
        assert_eq!(host["Ulimits"], json!([{"Name": "nofile", "Soft": 1, "Hard": 2}]));
    }

    #[test]
    fn networks_take_names_addresses_and_aliases() {
        let body = read("--network name=a,alias=b --network c --ip 10.0.0.2 x").request(true).unwrap();
        let endpoints = &body["NetworkingConfig"]["EndpointsConfig"];
        assert_eq!(endpoints["a"], json!({"Aliases": ["b"], "IPAMConfig": {"IPv4Address": "10.0.0.2"}}));
        assert_eq!((&endpoints["c"], &body["HostConfig"]["NetworkMode"]), (&json!({}), &json!("a")));
        let host = read("--network host x").request(true).unwrap();
        assert_eq!(host["NetworkingConfig"]["EndpointsConfig"], json!({}));
    }

    #[test]
    fn a_client_that_stays_attaches_to_the_output_and_with_i_to_the_input() {
        let all = Attach { stdin: true, stdout: true, stderr: true };
        assert_eq!(read("-i x").attach(false).unwrap(), all);
        assert_eq!(read("x").attach(false).unwrap(), Attach { stdin: false, ..all });
        assert_eq!(read("-a stderr x").attach(false).unwrap(), Attach { stdin: false, stdout: false, stderr: true });
        assert!(read("-a stderr x").attach(true).is_err() && read("-a x x").attach(false).is_err());
    }
}
