//! Creates the container: libcontainer, in a forked child that lives no longer than that.
//!
//! libcontainer changes the process that calls it (dumpable flag, score adjustment, working directory), so it never runs
//! in the shim itself. What it would do last, [`Confinement::exec`] does instead: libcontainer loads no filter without a
//! C library, and none at all for further processes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::ThreadNameSpaceType;
use skep_shim::protocol::{Params, SPEC};

use crate::launch::{Confinement, find};
use crate::sys::{self, Fork};

/// Id under which libcontainer knows the container: one shim has one, and short names keep socket paths short.
const NAME: &str = "c";
/// libcontainer's state directory, and the socket in it whose reader is the created container.
const STATE: &str = "state";
/// Connecting and closing lets the container run.
pub const START_SOCKET: &str = "state/c/notify.sock";
/// The socket over which a terminal's master side comes.
pub const CONSOLE_SOCKET: &str = "console.sock";

/// The container's ends of its streams.
pub enum ChildStreams {
    /// A terminal; it comes over [`CONSOLE_SOCKET`].
    Terminal,
    /// Input, output, error.
    Pipes([OwnedFd; 3]),
}

/// Creates the container described by the files in `dir`; gives the pid of its init, a child of this process.
///
/// # Errors
/// A text in the words of OCI runtimes.
pub fn create(dir: &Path, params: &Params, streams: ChildStreams) -> Result<Pid, String> {
    let text = |e: std::io::Error| format!("starting a helper process: {e}");
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| text(e.into()))?;
    match sys::fork().map_err(text)? {
        Fork::Child => {
            sys::reset_signals();
            let answer = match build(dir, params, streams) {
                Ok(pid) => format!("+{pid}"),
                Err(text) => format!("-{text}"),
            };
            // Nobody to tell if the shim is gone.
            let _ = File::from(write).write_all(answer.as_bytes());
            sys::exit_now(0)
        }
        Fork::Parent(child) => {
            drop((write, streams));
            // The created init still holds the pipe's writing end, so end of file never comes: one read after the end.
            while let Err(rustix::io::Errno::INTR) = waitpid(Some(child), WaitOptions::empty()) {}
            let mut buffer = vec![0; 16 * 1024];
            let len = match rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK) {
                Ok(()) => File::from(read).read(&mut buffer).unwrap_or(0),
                Err(_) => 0,
            };
            let answer = String::from_utf8_lossy(&buffer[..len]);
            match answer.strip_prefix('+').and_then(|p| p.parse().ok()).and_then(Pid::from_raw) {
                Some(pid) => Ok(pid),
                None if answer.is_empty() => Err("the helper that creates containers died".to_owned()),
                None => Err(answer.trim_start_matches('-').to_owned()),
            }
        }
    }
}

fn build(dir: &Path, params: &Params, streams: ChildStreams) -> Result<Pid, String> {
    let confinement = Confinement::new(params, &params.capabilities).map_err(|e| e.to_string())?;
    let spec = write_bundle(dir)?;
    let builder = ContainerBuilder::new(NAME.to_owned(), SyscallType::default())
        .with_root_path(dir.join(STATE))
        .map_err(|e| describe(&e))?
        .with_executor(Launch { confinement });
    let builder = match streams {
        ChildStreams::Terminal => builder.with_console_socket(Some(dir.join(CONSOLE_SOCKET))),
        ChildStreams::Pipes([stdin, stdout, stderr]) => {
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
    };
    let built = builder.as_init(dir.join("bundle")).with_systemd(false).as_sibling(true).with_detach(true).build();
    let pid = built.map_err(|e| describe(&e))?.pid().ok_or("the runtime did not tell the container's pid")?;
    let pid = Pid::from_raw(pid.as_raw()).ok_or("the runtime told no valid pid")?;
    complete(&spec, params, pid).inspect_err(|_| {
        // It waits for its start, which must never come.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    })?;
    Ok(pid)
}

/// What libcontainer leaves out: device rules on cgroup version 2, and a loopback device that is up.
fn complete(spec: &serde_json::Value, params: &Params, init: Pid) -> Result<(), String> {
    if !params.device_cgroup.is_empty() {
        crate::devices::guard(spec, Path::new(&params.device_cgroup)).map_err(|e| {
            format!(
                "devices cannot be guarded on this kernel, so the container is not started: loading a BPF program: {e}"
            )
        })?;
    }
    let namespaces = spec.pointer("/linux/namespaces").and_then(|n| n.as_array());
    if namespaces.is_some_and(|all| all.iter().any(|n| n["type"] == "network" && n.get("path").is_none())) {
        let up = || -> std::io::Result<()> {
            let init = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty())?;
            rustix::thread::move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::NETWORK)?;
            sys::loopback_up()
        };
        up().map_err(|e| format!("bringing the loopback device up: {e}"))?;
    }
    Ok(())
}

/// Writes the configuration that libcontainer gets: the container's own without what [`Confinement`] does. Gives it.
fn write_bundle(dir: &Path) -> Result<serde_json::Value, String> {
    let text = |e: &dyn std::fmt::Display| format!("reading the container's configuration: {e}");
    let spec = fs::read(dir.join(SPEC)).map_err(|e| text(&e))?;
    let mut spec: serde_json::Value = serde_json::from_slice(&spec).map_err(|e| text(&e))?;
    if let Some(process) = spec.get_mut("process").and_then(|p| p.as_object_mut()) {
        process.remove("capabilities");
    }
    if let Some(linux) = spec.get_mut("linux").and_then(|l| l.as_object_mut()) {
        linux.remove("seccomp");
    }
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle).map_err(|e| text(&e))?;
    fs::write(bundle.join("config.json"), spec.to_string()).map_err(|e| text(&e))?;
    Ok(spec)
}

/// The error and its causes in one line; only the last part where a process could not be launched.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let part = e.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = e.source();
    }
    match text.find("exec: \"") {
        Some(at) => text[at..].trim_end_matches(['"', ')']).to_owned(),
        None => text,
    }
}

/// What libcontainer calls instead of its own execve.
#[derive(Clone)]
struct Launch {
    confinement: Confinement,
}

impl Executor for Launch {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, env) = words(spec);
        match self.confinement.exec(&args, &env) {
            Ok(never) => match never {},
            Err(e) => {
                // The container counts as started: like other runtimes, tell on its own standard error.
                eprintln!("{e}");
                sys::exit_now(255)
            }
        }
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = words(spec);
        let name = args.first().map_or("", String::as_str);
        find(name, &env).map(|_| ()).map_err(|e| ExecutorValidationError::ArgValidationError(e.to_string()))
    }

    /// The environment goes to execve(2) directly.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

fn words(spec: &Spec) -> (Vec<String>, Vec<String>) {
    let process = spec.process().as_ref();
    let args = process.and_then(|p| p.args().clone()).unwrap_or_default();
    let env = process.and_then(|p| p.env().clone()).unwrap_or_default();
    (args, env)
}
