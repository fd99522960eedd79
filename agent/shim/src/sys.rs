//! System calls without a safe wrapper: fork, execve, signal set-up, signalfd, loading of filters.
#![allow(unsafe_code)] // These calls have no safe form; each use says why it is sound here.

use std::convert::Infallible;
use std::ffi::{CString, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::Pid;
use seccompiler::sock_filter;

/// Which side of a fork this is.
pub enum Fork {
    /// The new process.
    Child,
    /// The old one, with the pid of the new one.
    Parent(Pid),
}

/// fork(2). Only for a process with a single thread: the child goes on to use the heap.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: this program never starts a thread before its last fork, so no lock can be held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid::from_raw(pid).expect("fork gives a positive pid"))),
    }
}

/// Ends this process at once, without the parent's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// All signals to their defaults and none blocked: a container must not inherit what this process ignores or blocks.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid disposition; the calls for SIGKILL, SIGSTOP and the C library's own signals fail without effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(libc::SIG_SETMASK, &[]);
}

/// Blocks the signals that end daemons, and gives a descriptor that is readable when a child has ended.
pub fn signal_fd() -> io::Result<OwnedFd> {
    let blocked =
        [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];
    set_mask(libc::SIG_BLOCK, &blocked);
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; sigaddset gets a valid set and valid numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

fn set_mask(how: c_int, signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: the set is initialised; no old mask is asked for. It fails only for an unknown `how`.
    unsafe { libc::sigprocmask(how, &raw const set, std::ptr::null_mut()) };
}

/// Loads a seccomp program into this process. Without no_new_privs that takes CAP_SYS_ADMIN.
pub fn load_seccomp(program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        // The kernel only reads it; both types are `struct sock_filter` of linux/filter.h.
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the program lives until the call returns, and the kernel copies it.
    let rc = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Marks every descriptor above standard error to be closed by execve(2).
pub fn close_on_exec() -> io::Result<()> {
    // SAFETY: only flags of descriptors change; they stay open until execve.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Replaces this process by `path`. Returns only on failure.
pub fn execve(path: &CString, args: &[CString], env: &[CString]) -> Result<Infallible, io::Error> {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// setrlimit(2) by the kernel's number of the resource.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the struct is initialised and only read.
    let rc = unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The signals that end a program, blocked, to be waited for. A pid 1 has no default handlers: without this it cannot be
/// asked to stop.
pub struct EndSignals(libc::sigset_t);

impl EndSignals {
    /// Blocks them in this thread and those that it starts.
    pub fn block() -> Self {
        let signals = [libc::SIGTERM, libc::SIGINT];
        set_mask(libc::SIG_BLOCK, &signals);
        Self(signal_set(&signals))
    }

    /// Waits for one; `false` when none came in time.
    pub fn wait(&self, limit: std::time::Duration) -> bool {
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: set and limit are initialised and only read; what came is not asked for.
        unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), &raw const limit) > 0 }
    }
}
