//! One process of the container as the shim sees it: its pid, its streams, its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// Input that waits for the process to read it. More stays with the client.
pub const MAX_INPUT: usize = 64 * 1024;

/// A process and the shim's ends of its streams.
pub struct Process {
    /// Exec session; empty for the container's init.
    pub exec: String,
    /// The process, once known and until reaped.
    pub pid: Option<Pid>,
    /// Held as long as `pid` is.
    pub pidfd: Option<OwnedFd>,
    /// Its terminal's master side.
    pub terminal: Option<OwnedFd>,
    /// Writing end of its standard input, when it has no terminal.
    pub stdin: Option<File>,
    /// Reading ends of its output and error, when it has no terminal.
    pub outputs: [Option<File>; 2],
    /// Bytes that it has not read yet.
    pub input: VecDeque<u8>,
    /// No more input will come.
    pub input_ended: bool,
    /// Socket on which it reports while it is being launched.
    pub launching: Option<OwnedFd>,
    /// Exit code, once it was reaped.
    pub exit: Option<i32>,
    /// It does not outlive the connection that asked for it.
    pub kill_on_leave: bool,
    /// That connection is gone.
    pub abandoned: bool,
}

/// The other ends of the streams.
pub type Ends = [OwnedFd; 3];

impl Process {
    /// A process without terminal and pipes for it. Without `stdin` it reads `/dev/null`.
    pub fn with_pipes(exec: &str, stdin: bool) -> io::Result<(Self, Ends)> {
        let (in_read, in_write) = if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&write, true)?;
            (read, Some(File::from(write)))
        } else {
            (File::open("/dev/null")?.into(), None)
        };
        let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
        for end in [&out_read, &err_read] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let mut process = Self::with_terminal(exec);
        process.stdin = in_write;
        process.outputs = [Some(out_read.into()), Some(err_read.into())];
        Ok((process, [in_read, out_write, err_write]))
    }

    /// A process whose terminal comes later.
    pub fn with_terminal(exec: &str) -> Self {
        Self {
            exec: exec.to_owned(),
            pid: None,
            pidfd: None,
            terminal: None,
            stdin: None,
            outputs: [None, None],
            input: VecDeque::new(),
            input_ended: false,
            launching: None,
            exit: None,
            kill_on_leave: false,
            abandoned: false,
        }
    }

    /// Takes note of its pid.
    pub fn set_pid(&mut self, pid: Pid) -> io::Result<()> {
        self.pidfd = Some(pidfd_open(pid, PidfdFlags::empty())?);
        self.pid = Some(pid);
        Ok(())
    }

    /// Takes note of its terminal.
    pub fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.outputs[0] = Some(File::from(master.try_clone()?));
        self.terminal = Some(master);
        Ok(())
    }

    /// Sends a signal; nothing happens when it has ended.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidInput, format!("invalid signal: {signal}"));
        let signal = Signal::from_named_raw(signal).ok_or_else(unknown)?;
        match &self.pidfd {
            Some(pidfd) if self.exit.is_none() => Ok(pidfd_send_signal(pidfd, signal)?),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "process already finished")),
        }
    }

    /// Kills it and what it started, as far as that stayed in its process group, once its connection is gone.
    pub fn kill_if_abandoned(&self) {
        // Before the launch is over it may not lead a group of its own; after its end the number may be another's.
        if let (true, None, None, Some(pid)) = (self.abandoned, &self.launching, self.exit, self.pid) {
            // It has just ended if this fails.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    /// The descriptor that takes its input.
    pub fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd).or_else(|| self.stdin.as_ref().map(AsFd::as_fd))
    }

    /// Writes waiting input as far as the process takes it.
    pub fn write_input(&mut self) {
        while !self.input.is_empty() {
            let Some(fd) = self.input_fd() else { return self.input.clear() };
            match rustix::io::write(fd, self.input.as_slices().0) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    // It closed its input: what comes is for nobody.
                    self.input.clear();
                    self.stdin = None;
                }
            }
        }
        if self.input_ended {
            self.stdin = None;
        }
    }

    /// Reads from one of its streams; 0 at the end, after which the stream is closed.
    pub fn read_output(&mut self, stream: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(file) = &mut self.outputs[stream] else { return Ok(0) };
        let read = match file.read(buffer) {
            // A terminal whose other side is closed.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        };
        if let Ok(0) = read {
            self.outputs[stream] = None;
        }
        read
    }
}

/// A report of a process that is being launched.
pub enum Report {
    /// Its pid.
    Pid(Pid),
    /// Its terminal's master side.
    Terminal(OwnedFd),
    /// Why it could not be launched.
    Failed(String),
    /// It runs, or its helper died.
    End,
}

/// Reads the next report; `None` when there is none yet.
pub fn read_report(from: impl AsFd) -> Option<Report> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; 8 * 1024];
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let len = match rustix::net::recvmsg(&from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
        Err(_) => 0,
    };
    let terminal = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let body = buffer.get(..len)?;
    Some(match (body.split_first(), terminal) {
        (Some((&super::exec::TERMINAL, _)), Some(master)) => Report::Terminal(master),
        (Some((&super::exec::PID, pid)), _) => {
            let pid = pid.first_chunk().map(|p| i32::from_le_bytes(*p)).and_then(Pid::from_raw)?;
            Report::Pid(pid)
        }
        (Some((&super::exec::ERROR, text)), _) => Report::Failed(String::from_utf8_lossy(text).into_owned()),
        _ => Report::End,
    })
}

/// Receives the one descriptor that comes over a terminal's socket.
pub fn receive_terminal(listener: &std::os::unix::net::UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 256];
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    master.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
}

/// Writes a file so that it is there whole or not at all.
pub fn write_whole(path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    File::create(&temporary)?.write_all(bytes)?;
    std::fs::rename(temporary, path)
}
