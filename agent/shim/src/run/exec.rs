//! A further process in the running container: joins its cgroup and namespaces, then ends like its init does.
//!
//! Two processes are needed, because a pid namespace is entered by children only: the first joins and forks, the second
//! becomes the program. Both report on one socket; its end without an error means that execve(2) was reached.

use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::thread::ThreadNameSpaceType;
use skep_shim::protocol::{Exec, Params};

use crate::launch::{Confinement, LaunchError};
use crate::sys::{self, Fork};

/// First byte of a report: the pid follows, four bytes, little endian.
pub const PID: u8 = b'p';
/// First byte of a report: the terminal's master side comes with it.
pub const TERMINAL: u8 = b't';
/// First byte of a report: the text of an error follows.
pub const ERROR: u8 = b'e';

/// Magic number of a devpts file system (linux/magic.h).
const DEVPTS: i64 = 0x1cd1;

/// Starts the process. The returned socket carries reports until the program runs or could not.
///
/// `streams` are the process's own ends of input, output and error; `None` for a terminal.
///
/// # Errors
/// When not even the first process can be made.
pub fn start(
    init: BorrowedFd<'_>,
    params: &Params,
    exec: &Exec,
    streams: Option<[OwnedFd; 3]>,
) -> std::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    match sys::fork()? {
        Fork::Child => {
            drop(ours);
            sys::reset_signals();
            if let Err(e) = join_and_fork(init, params, exec, streams, &theirs) {
                report_error(&theirs, &e);
            }
            sys::exit_now(0)
        }
        Fork::Parent(_) => {
            rustix::io::ioctl_fionbio(&ours, true)?;
            Ok(ours)
        }
    }
}

fn step(step: &'static str) -> impl Fn(rustix::io::Errno) -> LaunchError {
    move |e| LaunchError::Step { step, source: e.into() }
}

fn report_error(to: &OwnedFd, error: &LaunchError) {
    let mut text = vec![ERROR];
    text.extend_from_slice(error.to_string().as_bytes());
    // Nobody to tell if the shim is gone.
    let _ = rustix::io::write(to, &text);
}

fn join_and_fork(
    init: BorrowedFd<'_>,
    params: &Params,
    exec: &Exec,
    streams: Option<[OwnedFd; 3]>,
    report: &OwnedFd,
) -> Result<(), LaunchError> {
    let confinement = Confinement::new(params, &exec.capabilities)?;
    for cgroup in &params.cgroups {
        fs::write(Path::new(cgroup).join("cgroup.procs"), "0")
            .map_err(|source| LaunchError::Step { step: "joining the container's cgroup", source })?;
    }
    // Best effort, as lowering it below the caller's takes a capability that a nested engine may lack.
    let _ = fs::write("/proc/self/oom_score_adj", params.oom_score_adj.to_string());
    // Nothing in the container may look into this process while it holds the node's descriptors.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("hiding from the container"))?;
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(init, all).map_err(step("joining the container's namespaces"))?;
    let terminal = if exec.tty { Some(open_terminal(exec, report)?) } else { None };
    match sys::fork().map_err(|source| LaunchError::Step { step: "starting a process in the container", source })? {
        Fork::Child => {
            let failed = become_program(&confinement, exec, streams, terminal);
            report_error(report, &failed);
            sys::exit_now(255)
        }
        Fork::Parent(pid) => {
            let mut message = vec![PID];
            message.extend_from_slice(&pid.as_raw_nonzero().get().to_le_bytes());
            // Nobody to tell if the shim is gone.
            let _ = rustix::io::write(report, &message);
            Ok(())
        }
    }
}

/// Opens a terminal of the container's own devpts, so that its name means something inside. Gives the process's side.
fn open_terminal(exec: &Exec, report: &OwnedFd) -> Result<OwnedFd, LaunchError> {
    let failed = step("opening a terminal in the container");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(&failed)?;
    // What the container put in that place must not be taken for a terminal (CVE-2025-52565).
    if rustix::fs::fstatfs(&master).map_err(&failed)?.f_type != DEVPTS {
        return Err(failed(rustix::io::Errno::NOTTY));
    }
    rustix::pty::unlockpt(&master).map_err(&failed)?;
    if exec.rows > 0 && exec.columns > 0 {
        set_size(&master, exec.rows, exec.columns).map_err(&failed)?;
    }
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer).map_err(&failed)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    rights.push(SendAncillaryMessage::ScmRights(&fds));
    let body = [IoSlice::new(&[TERMINAL])];
    rustix::net::sendmsg(report, &body, &mut rights, SendFlags::empty()).map_err(&failed)?;
    Ok(slave)
}

/// Sets the size of the terminal behind `terminal`.
pub fn set_size(terminal: impl AsFd, rows: u32, columns: u32) -> rustix::io::Result<()> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize { ws_row: clamp(rows), ws_col: clamp(columns), ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

fn become_program(
    confinement: &Confinement,
    exec: &Exec,
    streams: Option<[OwnedFd; 3]>,
    terminal: Option<OwnedFd>,
) -> LaunchError {
    let run = || -> Result<std::convert::Infallible, LaunchError> {
        rustix::process::setsid().map_err(step("starting a session"))?;
        set_streams(exec, streams, terminal)?;
        for limit in &exec.limits {
            sys::set_limit(limit.resource, limit.soft, limit.hard)
                .map_err(|source| LaunchError::Step { step: "setting resource limits", source })?;
        }
        set_user(exec).map_err(step("changing the user"))?;
        let all = caps::read(None, caps::CapSet::Permitted).unwrap_or_default();
        caps::set(None, caps::CapSet::Effective, &all)
            .map_err(|e| LaunchError::Step { step: "raising capabilities", source: std::io::Error::other(e) })?;
        rustix::process::chdir(exec.dir.as_str()).map_err(step("changing to the working directory"))?;
        sys::close_on_exec().map_err(|source| LaunchError::Step { step: "closing descriptors", source })?;
        confinement.exec(&exec.args, &exec.env)
    };
    match run() {
        Ok(never) => match never {},
        Err(e) => e,
    }
}

fn set_streams(exec: &Exec, streams: Option<[OwnedFd; 3]>, terminal: Option<OwnedFd>) -> Result<(), LaunchError> {
    let failed = step("connecting the process's streams");
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(&terminal).map_err(&failed)?;
        let (uid, gid) = (Some(Uid::from_raw(exec.uid)), None::<Gid>);
        rustix::fs::fchown(&terminal, uid, gid).map_err(&failed)?;
        rustix::stdio::dup2_stdin(&terminal).map_err(&failed)?;
        rustix::stdio::dup2_stdout(&terminal).map_err(&failed)?;
        rustix::stdio::dup2_stderr(&terminal).map_err(&failed)?;
    } else if let Some([stdin, stdout, stderr]) = streams {
        rustix::stdio::dup2_stdin(&stdin).map_err(&failed)?;
        rustix::stdio::dup2_stdout(&stdout).map_err(&failed)?;
        rustix::stdio::dup2_stderr(&stderr).map_err(&failed)?;
    }
    // The report must not be lost in a buffer of a stream that the program will own.
    std::io::stdout().flush().map_err(|source| LaunchError::Step { step: "connecting the process's streams", source })
}

fn set_user(exec: &Exec) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = exec.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(exec.uid), Gid::from_raw(exec.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)
}
