//! What clients ask of a container's shim.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use skep_shim::protocol::{Answer, Attach, Done, Exec, Kill, Op, Refused, Request, Resize, Started, Status, VERSION};

use super::client::Role;
use super::create::START_SOCKET;
use super::process::Process;
use super::{INIT, Shim, exec, pid_number, time};

impl Shim {
    pub(super) fn request(&mut self, id: u32, request: Request) {
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

    pub(super) fn start(&mut self) -> Answer {
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

    pub(super) fn watch(&mut self, id: u32) -> Answer {
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

    pub(super) fn by_exec(&mut self, exec: &str) -> Option<&mut Process> {
        self.processes.values_mut().find(|p| p.exec == exec)
    }

    pub(super) fn kill(&mut self, kill: &Kill) -> Answer {
        match self.by_exec(&kill.exec).map(|p| p.kill(kill.signal)) {
            Some(Ok(())) => Answer::Done(Done {}),
            Some(Err(e)) => refused(&e.to_string()),
            None => refused("process already finished"),
        }
    }

    pub(super) fn resize(&mut self, resize: &Resize) -> Answer {
        let Some(process) = self.by_exec(&resize.exec) else { return refused("process already finished") };
        match process.terminal.as_ref().map(|t| exec::set_size(t, resize.rows, resize.columns)) {
            Some(Ok(())) => Answer::Done(Done {}),
            Some(Err(e)) => refused(&format!("resizing the terminal: {e}")),
            None => refused("the process has no terminal"),
        }
    }

    pub(super) fn attach(&mut self, id: u32, attach: &Attach) -> Answer {
        if let Some(client) = self.clients.get_mut(&id) {
            let outputs = [attach.stdout, attach.stderr];
            client.role = Role::Stream { process: INIT, stdin: attach.stdin, outputs };
        }
        Answer::Done(Done {})
    }

    pub(super) fn exec(&mut self, id: u32, exec: &Exec) -> Result<(), String> {
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

    /// Kills what runs. The end of init then ends the shim as always.
    pub(super) fn shut_down(&mut self) {
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

pub(super) fn refused(text: &str) -> Answer {
    Answer::Refused(Refused { text: text.to_owned() })
}
