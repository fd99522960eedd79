//! System calls without a safe wrapper: fork, execve, signal set-up, signalfd, loading of filters.
#![allow(unsafe_code)] // These calls have no safe form; each use says why it is sound here.

use std::convert::Infallible;
use std::ffi::{CString, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

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

/// Every signal, blocked, to be waited for.
pub struct AllSignals(libc::sigset_t);

impl AllSignals {
    /// Blocks them. Those that a process gets by its own fault are left: blocked, they would end it all the same.
    pub fn block() -> Self {
        let faults =
            [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
        let signals: Vec<c_int> = (1..=31).filter(|signal| !faults.contains(signal)).collect();
        set_mask(libc::SIG_BLOCK, &signals);
        Self(signal_set(&signals))
    }

    /// Waits for the next; `None` when something else ended the wait.
    pub fn wait(&self) -> Option<c_int> {
        // SAFETY: the set is initialised and only read; nothing more of the signal is asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) };
        (signal > 0).then_some(signal)
    }
}

/// `struct bpf_insn` of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BpfInstruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

impl BpfInstruction {
    /// An instruction.
    pub fn new(code: u8, destination: u8, source: u8, offset: i16, constant: i32) -> Self {
        Self { code, registers: destination | source << 4, offset, constant }
    }

    /// A jump that is taken or not (class `BPF_JMP32`).
    pub fn is_jump(self) -> bool {
        self.code & 0x07 == 0x06
    }

    /// Sets how many instructions a jump leaves out.
    pub fn set_offset(&mut self, offset: i16) {
        self.offset = offset;
    }
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`, up to what is used.
#[repr(C)]
struct BpfLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct BpfAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
pub fn load_device_program(program: &[BpfInstruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    let load = BpfLoad {
        program_type: CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"skep_devices\0\0\0\0",
    };
    // SAFETY: the struct is a prefix of union bpf_attr of the size given; program and licence outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<BpfLoad>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = c_int::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup of version 2, beside those of its parents.
pub fn attach_device_program(cgroup: &impl AsRawFd, program: &OwnedFd) -> io::Result<()> {
    const BPF_PROG_ATTACH: c_int = 8;
    const DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let number = |fd: c_int| u32::try_from(fd).expect("an open descriptor is not negative");
    let (target, program) = (number(cgroup.as_raw_fd()), number(program.as_raw_fd()));
    let attach = BpfAttach { target, program, attach_type: DEVICE, flags: ALLOW_MULTI };
    // SAFETY: the struct is a prefix of union bpf_attr of the size given; both descriptors are open.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<BpfAttach>()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings the loopback device of this process's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).expect("ASCII fits");
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("flags fit");
    // SAFETY: the request is initialised and outlives the call; the kernel reads it.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
