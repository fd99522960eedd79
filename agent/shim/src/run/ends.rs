//! Ends: children are reaped, their last output delivered, everybody told.

use std::io;
use std::time::Instant;

use prost::Message;
use rustix::process::{WaitOptions, WaitStatus, wait};
use skep_shim::protocol::{Answer, EXIT, ExitRecord, Exited, FORMAT};

use super::client::{Client, HIGH, Role};
use super::{INIT, STALL, Shim, process, time};

impl Shim {
    /// Collects every child that has ended: an unreaped process of the container keeps its init from dying.
    pub(super) fn reap(&mut self) {
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
    pub(super) fn settle(&mut self) {
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
    pub(super) fn leave(&mut self, id: u32) {
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

    pub(super) fn end_process(&mut self, id: u32) {
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
    pub(super) fn drain(&mut self, id: u32) {
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

    pub(super) fn was_oom(&self) -> bool {
        let Ok(text) = std::fs::read_to_string(&self.params.oom_file) else { return false };
        text.lines().filter_map(|l| l.strip_prefix("oom_kill ")).any(|n| n.trim() != "0")
    }
}

/// As a shell tells it: 128 + signal for a process that one killed.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| status.terminating_signal().map(|s| 128 + s))
}
