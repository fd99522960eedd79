//! One run of a container: what is made before it starts and taken away after it ended. Blocking.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prost::Message;
use skep_proto::model::engine::EtcFiles;
use skep_shim::protocol::{EXIT, ExitRecord, FORMAT, PARAMS, Params, SPEC};

use super::record::Record;
use super::{Config, ContainerError, ContainerFile, files};
use crate::runtime::cgroups::Cgroups;
use crate::runtime::devices;
use crate::runtime::rootfs::{self, Overlay};
use crate::runtime::spec::{self, Netns};
use crate::runtime::users::Accounts;

/// Bytes of a log file before it is rotated, and files kept, unless the container says otherwise.
pub const DEFAULT_LOG: (u64, u32) = (10 << 20, 3);

/// Paths of a container.
#[derive(Debug, Clone)]
pub struct Paths {
    /// All of it.
    pub dir: PathBuf,
}

impl Paths {
    /// Files of the current run.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    /// Mount point of the root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
    /// Changes to the image.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }
    /// The overlay's own directory.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }
    /// Where secrets and configs are while the container runs: a file system in memory.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }
    /// The log, named as Docker's.
    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}-json.log"))
    }
    /// Files given to the container.
    pub fn etc(&self) -> EtcFiles {
        let file = |name| self.dir.join(name);
        EtcFiles { hostname: file("hostname"), hosts: file("hosts"), resolv_conf: file("resolv.conf") }
    }
    /// Makes the directories of a new container.
    pub fn make(&self) -> io::Result<()> {
        // Closed to others: upper directories hold what containers keep private.
        fs::DirBuilder::new().recursive(true).mode(0o710).create(&self.dir)?;
        for dir in [self.rootfs(), self.upper(), self.work()] {
            fs::create_dir_all(dir)?;
        }
        Ok(())
    }
    /// How the last run ended, if its shim lived to tell.
    pub fn exit_record(&self) -> Option<ExitRecord> {
        ExitRecord::decode(fs::read(self.run().join(EXIT)).ok()?.as_slice()).ok()
    }
}

/// Log options: bytes before rotation (0: never) and files kept; `None` when nothing is to be written.
///
/// # Errors
/// A driver or an option that does not exist here.
pub fn log_options(
    driver: Option<&skep_proto::model::container::Driver>,
) -> Result<Option<(u64, u32)>, ContainerError> {
    let Some(driver) = driver else { return Ok(Some(DEFAULT_LOG)) };
    match driver.name.as_str() {
        "" | "json-file" => {}
        "none" => return Ok(None),
        other => return Err(ContainerError::Invalid(format!("logger: no log driver named '{other}' is registered"))),
    }
    let (mut size, mut files) = DEFAULT_LOG;
    for (name, value) in &driver.options {
        let bad = || ContainerError::Invalid(format!("invalid value for log-opt {name}: {value}"));
        match name.as_str() {
            "max-size" if value == "-1" => size = 0,
            "max-size" => size = parse_size(value).ok_or_else(bad)?,
            "max-file" => files = value.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?,
            // Shown by `docker logs --details` only.
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" => {}
            _ => {
                let text = format!("unknown log opt '{name}' for json-file log driver");
                return Err(ContainerError::Invalid(text));
            }
        }
    }
    Ok(Some((size, files)))
}

/// `10m`, `500k`, `1g`, `1048576`: bytes in powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches('b').trim_end_matches(['k', 'm', 'g']);
    let factor = match &lower[digits.len()..] {
        unit if unit.starts_with('k') => 1 << 10,
        unit if unit.starts_with('m') => 1 << 20,
        unit if unit.starts_with('g') => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Everything up to a shim that has a created container. On failure [`end`] takes back what was made.
pub fn begin(
    config: &Config,
    cgroups: &Cgroups,
    record: &Record,
    paths: &Paths,
    (netns, ipc): (&Netns, Option<&Path>),
    given: &[ContainerFile],
) -> Result<(), ContainerError> {
    let id = record.config.id.to_string();
    let run = paths.run();
    let failed = |context: &'static str| move |e: io::Error| ContainerError::internal(context, e);
    match fs::remove_dir_all(&run) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("clearing the last run")(e)),
        _ => fs::create_dir_all(&run).map_err(failed("making the run directory"))?,
    }
    let (rootfs, upper, work) = (paths.rootfs(), paths.upper(), paths.work());
    Overlay { layers: &record.layers, upper: &upper, work: &work, target: &rootfs }
        .mount(config.overlay)
        .map_err(failed("mounting the root file system"))?;
    let process = &record.process;
    let accounts = Accounts::read(&rootfs).map_err(failed("reading the container's users"))?;
    let user = accounts
        .resolve(&process.user, &record.config.spec.groups)
        .map_err(|e| ContainerError::StartFailed(e.to_string()))?;
    rootfs::make_dir_in(&rootfs, Path::new(&process.dir))
        .map_err(|e| ContainerError::StartFailed(format!("mkdir {}: {e}", process.dir)))?;
    let cgroup = cgroups.path(&id);
    let isolation = &record.config.isolation;
    let mut devices = if record.config.privileged { devices::all() } else { Vec::new() };
    devices.extend(devices::find(&isolation.devices).map_err(ContainerError::StartFailed)?);
    let limits = spec::limits(&record.config.spec.ulimits).map_err(|e| ContainerError::Invalid(e.to_string()))?;
    spec::can_be_set(&limits, may_raise_limits(), own_limit).map_err(|e| ContainerError::StartFailed(e.to_string()))?;
    let mounts = record.mounts();
    let given = files::write(&paths.files(), given).map_err(failed("writing secrets and configs"))?;
    let input = spec::Input {
        config: &record.config,
        process,
        user: &user,
        mounts: &mounts,
        files: &given,
        devices: &devices,
        // As Docker: where the container shares the node's processes, its first one is no pid 1.
        init: (record.config.spec.init == Some(true) && !isolation.host_pid).then_some(config.shim.as_path()),
        etc: &paths.etc(),
        netns,
        ipc,
        cgroup: &cgroup,
        unified: cgroups.version() == 2,
        rootfs: &rootfs,
    };
    let oci = spec::oci_spec(&input).map_err(|e| ContainerError::Invalid(e.to_string()))?;
    let params = params(cgroups, record, paths, &id)?;
    fs::write(run.join(SPEC), oci.to_string()).map_err(failed("writing the OCI configuration"))?;
    fs::write(run.join(PARAMS), params.encode_to_vec()).map_err(failed("writing the shim's parameters"))?;
    spawn(&config.shim, &run)
}

fn params(cgroups: &Cgroups, record: &Record, paths: &Paths, id: &str) -> Result<Params, ContainerError> {
    let spec = &record.config.spec;
    let text = |p: PathBuf| p.display().to_string();
    let log = log_options(record.config.log.as_ref())?;
    let (log_max_size, log_max_files) = log.unwrap_or_default();
    let capabilities =
        spec::capabilities(spec, record.config.privileged).map_err(|e| ContainerError::Invalid(e.to_string()))?;
    Ok(Params {
        format: FORMAT,
        id: id.to_owned(),
        tty: spec.tty,
        open_stdin: spec.open_stdin,
        stdin_once: record.config.stdin_once,
        log_path: log.map_or_else(String::new, |_| text(paths.log(id))),
        log_max_size,
        log_max_files,
        seccomp: !(record.config.privileged || record.config.isolation.seccomp_unconfined),
        no_new_privileges: record.config.isolation.no_new_privileges,
        capabilities,
        cgroups: cgroups.dirs(id).into_iter().map(text).collect(),
        oom_file: cgroups.oom_file(id).map_or_else(String::new, text),
        device_cgroup: cgroups.device_dir(id).map_or_else(String::new, text),
        oom_score_adj: 0,
    })
}

/// Starts the shim; it has left this process's session when the call returns, and its socket exists.
fn spawn(shim: &Path, run: &Path) -> Result<(), ContainerError> {
    let mut command = Command::new(shim);
    command.arg("run").arg(run).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Nothing of the daemon's environment is the container's business.
    command.env_clear();
    let output = command.output().map_err(|e| ContainerError::internal("starting the shim", e))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ContainerError::internal("starting the shim", io::Error::other(text)))
}

/// Ends what a run left running: processes and cgroup. May be repeated.
pub fn end_processes(cgroups: &Cgroups, id: &str) -> io::Result<()> {
    cgroups.kill_all(id);
    cgroups.remove(id)
}

/// Takes away what a run left in the file system: the mount, which waits for the kernel, and the run directory. May be
/// repeated.
pub fn end_files(paths: &Paths) -> io::Result<()> {
    rootfs::detach(&paths.rootfs())?;
    rootfs::detach(&paths.files())?;
    remove_all(&paths.run())
}

/// Removes all of a container that has ended.
pub fn remove_files(paths: &Paths) -> io::Result<()> {
    end_files(paths)?;
    remove_all(&paths.dir)
}

fn remove_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn may_raise_limits() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// The daemon's own hard limit; `None` where it has none.
fn own_limit(number: u32) -> Option<u64> {
    use rustix::process::{Resource as R, getrlimit};
    // In the kernel's order (asm-generic/resource.h).
    let all = [
        R::Cpu,
        R::Fsize,
        R::Data,
        R::Stack,
        R::Core,
        R::Rss,
        R::Nproc,
        R::Nofile,
        R::Memlock,
        R::As,
        R::Locks,
        R::Sigpending,
        R::Msgqueue,
        R::Nice,
        R::Rtprio,
        R::Rttime,
    ];
    getrlimit(*all.get(number as usize)?).maximum
}

/// Resource limits as the shim's protocol has them.
pub fn rlimits(limits: BTreeMap<u32, (u64, u64)>) -> Vec<skep_shim::protocol::Rlimit> {
    limits.into_iter().map(|(resource, (soft, hard))| skep_shim::protocol::Rlimit { resource, soft, hard }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_dockers() {
        let driver = |name: &str, options: &[(&str, &str)]| skep_proto::model::container::Driver {
            name: name.into(),
            options: options.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        };
        assert_eq!(log_options(None).unwrap(), Some(DEFAULT_LOG));
        assert_eq!(log_options(Some(&driver("none", &[]))).unwrap(), None);
        let given = driver("json-file", &[("max-size", "100k"), ("max-file", "5")]);
        assert_eq!(log_options(Some(&given)).unwrap(), Some((102_400, 5)));
        for bad in [driver("syslog", &[]), driver("", &[("max-size", "big")]), driver("", &[("colour", "red")])] {
            assert!(log_options(Some(&bad)).is_err());
        }
    }
}
