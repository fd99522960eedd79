//! The shim of one container: creates it, holds its streams, writes its log, reaps it, records its end.
//!
//! One thread and one poll loop. Nothing in it waits for a client: what a client does not take is kept up to a bound,
//! and a client that takes nothing for [`STALL`] while its process waits for it is dropped. It leaves when the
//! container's end is on disk and every client has been told.

mod client;
mod create;
mod ends;
mod exec;
mod log;
mod process;
mod requests;
mod time;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use skep_shim::protocol::{Answer, FORMAT, Output, PARAMS, Params, SOCKET, Started};

use self::client::{Client, HIGH, Role};
use self::create::{CONSOLE_SOCKET, ChildStreams};
use self::log::Log;
use self::process::{MAX_INPUT, Process, Report, read_report};
use self::requests::refused;
use crate::sys::{self, Fork};

/// How long a client may take nothing while its process waits for it.
const STALL: Duration = Duration::from_secs(1);
/// How long clients get to take the last output after the container's end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Score adjustment of shims: killed for want of memory after everything else.
const OWN_SCORE: &str = "-999";
/// Number of the container's init among the processes.
const INIT: u32 = 0;

/// Runs the shim of the container whose run directory is `dir`. The caller's process returns once the socket exists; a
/// child of it, in a session of its own, goes on.
///
/// # Errors
/// When it cannot begin. What happens later is told to clients.
pub fn run(dir: &Path) -> io::Result<()> {
    std::env::set_current_dir(dir)?;
    let dir = std::env::current_dir()?;
    let invalid = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{PARAMS}: {e}"));
    let params = Params::decode(std::fs::read(PARAMS)?.as_slice()).map_err(invalid)?;
    if params.format != FORMAT {
        let text = format!("{PARAMS} has format {}; this shim knows {FORMAT}", params.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    // The daemon lives without huge pages and its children inherit that; a container gets what the machine is set to.
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    // Relative: the path may be longer than a socket's address.
    let listener = UnixListener::bind(SOCKET)?;
    listener.set_nonblocking(true)?;
    if let Fork::Parent(_) = sys::fork()? {
        return Ok(());
    }
    // From here on nobody sees an error that is returned.
    detach()?;
    let mut shim = Shim::new(dir, params, listener)?;
    shim.create();
    shim.serve()
}

/// Leaves the starter's session and streams, and becomes the parent of orphans.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    // A panic's text must end somewhere that can be looked at.
    let errors = std::fs::File::create("shim.err")?;
    rustix::stdio::dup2_stderr(&errors)?;
    // A nested engine may lack the right to lower it.
    let _ = std::fs::write("/proc/self/oom_score_adj", OWN_SCORE);
    Ok(())
}

struct Shim {
    dir: PathBuf,
    params: Params,
    listener: UnixListener,
    signals: OwnedFd,
    log: Option<Log>,
    clients: BTreeMap<u32, Client>,
    processes: BTreeMap<u32, Process>,
    next: u32,
    create_error: Option<String>,
    /// When it leaves though nobody asked why there is no container: its daemon is gone.
    give_up_at: Option<Instant>,
    started_at: Option<u64>,
    /// Ends of children that are not known yet: a process may end before its pid is read.
    unclaimed: Vec<(Pid, i32)>,
    /// Since when it has nothing left to do but to tell its clients.
    ended: Option<Instant>,
    buffer: Vec<u8>,
}

/// What a descriptor in the poll set belongs to.
enum Source {
    Signals,
    Listener,
    Client(u32),
    Output(u32, usize),
    Input(u32),
    Launch(u32),
}

impl Shim {
    fn new(dir: PathBuf, params: Params, listener: UnixListener) -> io::Result<Self> {
        let log = match params.log_path.as_str() {
            "" => None,
            path => Some(Log::open(Path::new(path), params.log_max_size, params.log_max_files)?),
        };
        Ok(Self {
            dir,
            params,
            listener,
            signals: sys::signal_fd()?,
            log,
            clients: BTreeMap::new(),
            processes: BTreeMap::new(),
            next: 1,
            create_error: None,
            give_up_at: None,
            started_at: None,
            unclaimed: Vec::new(),
            ended: None,
            buffer: vec![0; 32 * 1024],
        })
    }

    fn create(&mut self) {
        match self.try_create() {
            Ok(init) => drop(self.processes.insert(INIT, init)),
            Err(text) => {
                self.create_error = Some(text);
                self.give_up_at = Some(Instant::now() + FAREWELL);
            }
        }
    }

    fn try_create(&self) -> Result<Process, String> {
        let text = |e: io::Error| format!("preparing the container's streams: {e}");
        let (mut init, streams, console) = if self.params.tty {
            let console = UnixListener::bind(CONSOLE_SOCKET).map_err(text)?;
            (Process::with_terminal(""), ChildStreams::Terminal, Some(console))
        } else {
            let (init, ends) = Process::with_pipes("", self.params.open_stdin).map_err(text)?;
            (init, ChildStreams::Pipes(ends), None)
        };
        let pid = create::create(&self.dir, &self.params, streams)?;
        init.set_pid(pid).map_err(text)?;
        if let Some(console) = console {
            init.set_terminal(process::receive_terminal(&console).map_err(text)?).map_err(text)?;
        }
        Ok(init)
    }

    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.wait()?;
            self.reap();
            self.settle();
            if let Some(since) = self.ended
                && (self.clients.is_empty() || since.elapsed() > FAREWELL)
            {
                return Ok(());
            }
            if self.clients.is_empty() && self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(());
            }
        }
    }

    /// Waits until something can be done, and does it.
    fn wait(&mut self) -> io::Result<()> {
        let (sources, ready) = {
            let (sources, mut fds) = self.sources();
            let timeout = self.timeout();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            (sources, fds.iter().map(PollFd::revents).collect::<Vec<_>>())
        };
        for (source, ready) in sources.into_iter().zip(ready) {
            if ready.is_empty() {
                continue;
            }
            match source {
                Source::Signals => drop(rustix::io::read(&self.signals, &mut [0; 128])),
                Source::Listener => self.accept(),
                Source::Client(id) => self.serve_client(id, ready),
                Source::Output(id, stream) => self.read_output(id, stream),
                Source::Input(id) => {
                    if let Some(process) = self.processes.get_mut(&id) {
                        process.write_input();
                    }
                }
                Source::Launch(id) => self.read_reports(id),
            }
        }
        Ok(())
    }

    fn sources<'a>(&'a self) -> (Vec<Source>, Vec<PollFd<'a>>) {
        let (mut sources, mut fds) = (Vec::new(), Vec::new());
        let mut add = |source, fd: BorrowedFd<'a>, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        add(Source::Signals, self.signals.as_fd(), PollFlags::IN);
        if self.ended.is_none() {
            add(Source::Listener, self.listener.as_fd(), PollFlags::IN);
        }
        for (id, client) in &self.clients {
            let mut flags = PollFlags::empty();
            if client.waiting() > 0 {
                flags |= PollFlags::OUT;
            }
            if !self.input_is_full(client) {
                flags |= PollFlags::IN;
            }
            add(Source::Client(*id), client.socket.as_fd(), flags);
        }
        for (id, process) in &self.processes {
            if let Some(launching) = &process.launching {
                add(Source::Launch(*id), launching.as_fd(), PollFlags::IN);
                continue;
            }
            if !self.clients_are_full(*id) {
                for (stream, output) in process.outputs.iter().enumerate() {
                    if let Some(output) = output {
                        add(Source::Output(*id, stream), output.as_fd(), PollFlags::IN);
                    }
                }
            }
            if let Some(fd) = process.input_fd().filter(|_| !process.input.is_empty()) {
                add(Source::Input(*id), fd, PollFlags::OUT);
            }
        }
        (sources, fds)
    }

    fn timeout(&self) -> Option<Timespec> {
        let stalled = self.clients.values().filter(|c| c.waiting() >= HIGH).filter_map(|c| c.stalled_since);
        let limit = stalled.map(|since| STALL.saturating_sub(since.elapsed())).min();
        let farewell = self.ended.map(|since| FAREWELL.saturating_sub(since.elapsed()));
        let give_up =
            self.give_up_at.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_millis(100)));
        let wait = limit.into_iter().chain(farewell).chain(give_up).min()? + Duration::from_millis(1);
        Timespec::try_from(wait).ok()
    }

    fn input_is_full(&self, client: &Client) -> bool {
        match client.role {
            Role::Stream { process, .. } => self.processes.get(&process).is_some_and(|p| p.input.len() >= MAX_INPUT),
            Role::Control | Role::Watcher => false,
        }
    }

    fn clients_are_full(&self, id: u32) -> bool {
        self.clients.values().any(|c| {
            matches!(c.role, Role::Stream { process, .. } if process == id) && !c.broken && c.waiting() >= HIGH
        })
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if let Ok(client) = Client::new(socket) {
                self.clients.insert(self.next, client);
                self.next = self.next.wrapping_add(1).max(1);
            }
        }
    }

    fn serve_client(&mut self, id: u32, ready: PollFlags) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if ready.contains(PollFlags::OUT) {
            client.flush();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            client.fill();
            while let Some(request) = self.clients.get_mut(&id).and_then(Client::next_request) {
                self.request(id, request);
            }
        }
    }

    fn read_reports(&mut self, id: u32) {
        while let Some(process) = self.processes.get_mut(&id) {
            let Some(report) = process.launching.as_ref().and_then(read_report) else { return };
            match report {
                Report::Pid(pid) => {
                    let claimed = self.unclaimed.iter().position(|(p, _)| *p == pid);
                    // Without a pidfd it only cannot be signalled: the process is gone or descriptors ran out.
                    if process.set_pid(pid).is_err() {
                        process.pid = Some(pid);
                    }
                    process.exit = claimed.map(|at| self.unclaimed.swap_remove(at).1);
                }
                Report::Terminal(master) => drop(process.set_terminal(master)),
                Report::Failed(text) => return self.launch_failed(id, &text),
                Report::End => {
                    process.launching = None;
                    return match process.pid {
                        Some(pid) => self.launched(id, pid),
                        None => self.launch_failed(id, "the helper that starts processes died"),
                    };
                }
            }
        }
    }

    fn launched(&mut self, id: u32, pid: Pid) {
        let answer = Answer::Started(Started { pid: pid_number(pid), at_nanos: time::now_nanos() });
        for client in self.streams_of(id) {
            client.answer(answer.clone());
            if let Role::Stream { outputs: [false, false], stdin: false, .. } = client.role {
                client.role = Role::Control;
            }
        }
        if let Some(process) = self.processes.get(&id) {
            process.kill_if_abandoned();
        }
    }

    fn launch_failed(&mut self, id: u32, text: &str) {
        for client in self.streams_of(id) {
            client.answer(refused(text));
            client.role = Role::Control;
        }
        self.processes.remove(&id);
    }

    fn streams_of(&mut self, id: u32) -> impl Iterator<Item = &mut Client> {
        self.clients.values_mut().filter(move |c| matches!(c.role, Role::Stream { process, .. } if process == id))
    }

    fn take_input(&mut self, id: u32, bytes: &[u8]) {
        let Some(Role::Stream { process, stdin: true, .. }) = self.clients.get(&id).map(|c| c.role) else { return };
        if let Some(process) =
            self.processes.get_mut(&process).filter(|p| p.input_fd().is_some() || p.launching.is_some())
        {
            process.input.extend(bytes);
            if process.launching.is_none() {
                process.write_input();
            }
        }
    }

    /// The client has no more input. A terminal stays open: it has no half of it to close.
    fn end_input(&mut self, id: u32) {
        let Some(Role::Stream { process, stdin: true, .. }) = self.clients.get(&id).map(|c| c.role) else { return };
        if process == INIT && !self.params.stdin_once {
            return;
        }
        if let Some(process) = self.processes.get_mut(&process).filter(|p| p.terminal.is_none()) {
            process.input_ended = true;
            if process.launching.is_none() {
                process.write_input();
            }
        }
    }

    fn read_output(&mut self, id: u32, stream: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.processes.get_mut(&id).map_or(Ok(0), |p| p.read_output(stream, &mut buffer));
        if let Ok(len @ 1..) = read {
            self.deliver(id, stream, &buffer[..len]);
        }
        self.buffer = buffer;
    }

    fn deliver(&mut self, id: u32, stream: usize, bytes: &[u8]) {
        if id == INIT
            && let Some(log) = &mut self.log
        {
            log.write(stream, bytes);
        }
        for client in self.streams_of(id) {
            if matches!(client.role, Role::Stream { outputs, .. } if outputs[stream]) {
                client.answer(Answer::Output(Output { stderr: stream == 1, bytes: bytes.to_vec() }));
            }
        }
    }
}

fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
