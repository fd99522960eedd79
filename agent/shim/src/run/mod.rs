//! The shim of one container: creates it, holds its streams, writes its log, reaps it, records its end.
//!
//! One thread and one poll loop. Nothing in it waits for a client: what a client does not take is kept up to a bound,
//! and a client that takes nothing for [`STALL`] while its process waits for it is dropped. It leaves when the
//! container's end is on disk and every client has been told.

mod client;
mod create;
mod exec;
mod log;
mod process;
mod time;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use skep_shim::protocol::{
    Answer, Attach, Done, EXIT, Exec, ExitRecord, Exited, FORMAT, Kill, Op, Output, PARAMS, Params, Refused, Request,
    Resize, SOCKET, Started, Status, VERSION,
};

use self::client::{Client, HIGH, Role};
use self::create::{CONSOLE_SOCKET, ChildStreams, START_SOCKET};
use self::log::Log;
use self::process::{MAX_INPUT, Process, Report, read_report};
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

    fn request(&mut self, id: u32, request: Request) {
        let answer = match request.op {
            _ if request.version > VERSION => {
                refused(&format!("the request has version {}, this shim speaks {VERSION}", request.version))
            }
            None => refused("the request names nothing that this shim can do"),
            Some(Op::Stdin(bytes)) => return self.take_input(id, &bytes.bytes),
            Some(Op::CloseStdin(_)) => return self.end_input(id),
            Some(Op::Start(_)) => self.start(),
            Some(Op::Watch(_)) => self.watch(id),
            Some(Op::Kill(kill)) => self.kill(&kill),
            Some(Op::Attach(attach)) => self.attach(id, &attach),
            Some(Op::Resize(resize)) => self.resize(&resize),
            Some(Op::Exec(exec)) => match self.exec(id, &exec) {
                Ok(()) => return,
                Err(text) => refused(&text),
            },
            Some(Op::Shutdown(_)) => return self.shut_down(),
        };
        if let Some(client) = self.clients.get_mut(&id) {
            client.answer(answer);
        }
    }

    fn start(&mut self) -> Answer {
        if let Some(text) = &self.create_error {
            return refused(text);
        }
        let Some(pid) = self.processes.get(&INIT).and_then(|p| p.pid) else {
            return refused("the container has ended");
        };
        if self.started_at.is_none() {
            // The created init waits for a connection that ends. The address is short because it is relative.
            if let Err(e) = std::os::unix::net::UnixStream::connect(START_SOCKET) {
                return refused(&format!("starting the container: {e}"));
            }
            self.started_at = Some(time::now_nanos());
        }
        Answer::Started(Started { pid: pid_number(pid), at_nanos: self.started_at.unwrap_or_default() })
    }

    fn watch(&mut self, id: u32) -> Answer {
        if let Some(client) = self.clients.get_mut(&id) {
            client.role = Role::Watcher;
        }
        let init = self.processes.get(&INIT).and_then(|p| p.pid);
        Answer::Status(Status {
            pid: init.map_or(0, pid_number),
            started: self.started_at.is_some(),
            started_at_nanos: self.started_at.unwrap_or_default(),
            execs: self.processes.values().filter(|p| !p.exec.is_empty()).map(|p| p.exec.clone()).collect(),
        })
    }

    fn by_exec(&mut self, exec: &str) -> Option<&mut Process> {
        self.processes.values_mut().find(|p| p.exec == exec)
    }

    fn kill(&mut self, kill: &Kill) -> Answer {
        match self.by_exec(&kill.exec).map(|p| p.kill(kill.signal)) {
            Some(Ok(())) => Answer::Done(Done {}),
            Some(Err(e)) => refused(&e.to_string()),
            None => refused("process already finished"),
        }
    }

    fn resize(&mut self, resize: &Resize) -> Answer {
        let Some(process) = self.by_exec(&resize.exec) else { return refused("process already finished") };
        match process.terminal.as_ref().map(|t| exec::set_size(t, resize.rows, resize.columns)) {
            Some(Ok(())) => Answer::Done(Done {}),
            Some(Err(e)) => refused(&format!("resizing the terminal: {e}")),
            None => refused("the process has no terminal"),
        }
    }

    fn attach(&mut self, id: u32, attach: &Attach) -> Answer {
        if let Some(client) = self.clients.get_mut(&id) {
            let outputs = [attach.stdout, attach.stderr];
            client.role = Role::Stream { process: INIT, stdin: attach.stdin, outputs };
        }
        Answer::Done(Done {})
    }

    fn exec(&mut self, id: u32, exec: &Exec) -> Result<(), String> {
        let text = |e: io::Error| format!("starting a process: {e}");
        if exec.id.is_empty() || self.by_exec(&exec.id).is_some() {
            return Err("the exec session needs an id of its own".to_owned());
        }
        let init = self.processes.get(&INIT).filter(|_| self.started_at.is_some());
        let Some(init) = init.and_then(|p| p.pidfd.as_ref()) else {
            return Err("cannot exec in a stopped container".to_owned());
        };
        let (mut process, ends) = if exec.tty {
            (Process::with_terminal(&exec.id), None)
        } else {
            let (process, ends) = Process::with_pipes(&exec.id, exec.stdin).map_err(text)?;
            (process, Some(ends))
        };
        process.kill_on_leave = exec.kill_on_leave;
        process.launching = Some(exec::start(init.as_fd(), &self.params, exec, ends).map_err(text)?);
        let number = self.next;
        self.next = self.next.wrapping_add(1).max(1);
        self.processes.insert(number, process);
        if let Some(client) = self.clients.get_mut(&id) {
            let outputs = [exec.attach, exec.attach];
            client.role = Role::Stream { process: number, stdin: exec.attach && exec.stdin, outputs };
        }
        Ok(())
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

    /// Collects every child that has ended: an unreaped process of the container keeps its init from dying.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(code) = exit_code(status) else { continue };
            match self.processes.values_mut().find(|p| p.pid == Some(pid)) {
                Some(process) => process.exit = Some(code),
                None => self.unclaimed.push((pid, code)),
            }
        }
        if self.processes.values().all(|p| p.launching.is_none()) {
            self.unclaimed.clear();
        }
    }

    /// Tells of ends, drops clients that are gone or stuck.
    fn settle(&mut self) {
        let ended: Vec<u32> = self
            .processes
            .iter()
            .filter(|(_, p)| p.exit.is_some() && p.launching.is_none())
            .map(|(id, _)| *id)
            .collect();
        // Further processes first: they cannot outlive init, and their clients are told before everybody is.
        for id in ended.into_iter().rev() {
            self.end_process(id);
        }
        let leaving: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, c)| {
                let stuck = c.waiting() >= HIGH && c.stalled_since.is_some_and(|since| since.elapsed() >= STALL);
                c.broken || (c.closing && c.waiting() == 0) || (stuck && self.ended.is_none())
            })
            .map(|(id, _)| *id)
            .collect();
        for id in leaving {
            self.leave(id);
        }
    }

    /// A client's connection is over; its process's input may be too, or the process itself.
    fn leave(&mut self, id: u32) {
        if let Some(Client { role: Role::Stream { process, .. }, .. }) = self.clients.get(&id)
            && let Some(process) = self.processes.get_mut(process).filter(|p| p.kill_on_leave)
        {
            process.abandoned = true;
            process.kill_if_abandoned();
        }
        if let Some(Client { role: Role::Stream { stdin: true, .. }, .. }) = self.clients.get(&id) {
            self.end_input(id);
        }
        self.clients.remove(&id);
    }

    fn end_process(&mut self, id: u32) {
        self.drain(id);
        let Some(process) = self.processes.remove(&id) else { return };
        let code = process.exit.unwrap_or_default();
        let exit = ExitRecord { format: FORMAT, code, oom: id == INIT && self.was_oom(), at_nanos: time::now_nanos() };
        if id == INIT {
            if let Some(log) = &mut self.log {
                log.close();
            }
            // Without it the daemon that was away takes the shim for killed; there is nothing better to do here.
            if let Err(e) = process::write_whole(&self.dir.join(EXIT), &exit.encode_to_vec()) {
                eprintln!("writing the exit record: {e}");
            }
        }
        let exited = Exited { exec: process.exec, exit: Some(exit) };
        for client in self.clients.values_mut() {
            match client.role {
                Role::Stream { process, .. } if process == id => {
                    client.answer(Answer::Exited(exited.clone()));
                    client.closing = true;
                }
                Role::Watcher => client.answer(Answer::Exited(exited.clone())),
                Role::Control | Role::Stream { .. } => {}
            }
            if id == INIT {
                client.closing = true;
            }
        }
        if id == INIT {
            self.ended = Some(Instant::now());
        }
    }

    /// Takes what is left in the pipes of a process that has ended, however full its clients are: it is at most what the
    /// pipes hold. Children of it may still hold the other ends, so the end of file is not waited for.
    fn drain(&mut self, id: u32) {
        let mut buffer = std::mem::take(&mut self.buffer);
        for stream in 0..2 {
            for _ in 0..64 {
                match self.processes.get_mut(&id).map(|p| p.read_output(stream, &mut buffer)) {
                    Some(Ok(len @ 1..)) => self.deliver(id, stream, &buffer[..len]),
                    Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                    _ => break,
                }
            }
        }
        self.buffer = buffer;
    }

    fn was_oom(&self) -> bool {
        let Ok(text) = std::fs::read_to_string(&self.params.oom_file) else { return false };
        text.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0")
    }

    /// Kills what runs. The end of init then ends the shim as always.
    fn shut_down(&mut self) {
        match self.processes.get(&INIT) {
            // It has ended if this fails.
            Some(init) => drop(init.kill(libc::SIGKILL)),
            None => drop(self.ended.get_or_insert_with(Instant::now)),
        }
        let nothing_runs = self.ended.is_some();
        for client in self.clients.values_mut().filter(|c| nothing_runs || c.role == Role::Control) {
            client.closing = true;
        }
    }
}

fn refused(text: &str) -> Answer {
    Answer::Refused(Refused { text: text.to_owned() })
}

fn pid_number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// As a shell tells it: 128 + signal for a process that one killed.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|s| 128 + s))
}
