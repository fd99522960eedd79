//! A program on a terminal of its own, with a person who types and reads.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::eventually;

/// The terminal and its program.
pub struct Terminal {
    master: File,
    child: Child,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts `command` on a new terminal, as the leader of its session.
    ///
    /// # Errors
    /// When there is no terminal to be had.
    pub fn start(command: &Command) -> anyhow::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?;
        let slave: File = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?.into();
        // It takes its standard input as the terminal of its session, which signals of resizing need.
        let mut session = Command::new("setsid");
        session.env("TERM", "xterm").args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            session.env(name, value.context("variables are set, not removed")?);
        }
        let child = session.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave).spawn()?;
        let master = File::from(master);
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut reader, shown) = (master.try_clone()?, screen.clone());
        // Ends with the terminal: reading fails when the last program has left it.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Ok(Self { master, child, screen })
    }

    /// Types.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn type_in(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Makes the terminal so many rows high and columns wide.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> anyhow::Result<()> {
        Ok(tcsetwinsize(&self.master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
    }

    /// What has been shown so far.
    pub fn screen(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a text is shown.
    ///
    /// # Panics
    /// When it does not come.
    pub fn shows(&self, text: &str) {
        eventually(&format!("the terminal shows {text:?}"), || {
            ensure!(self.screen().contains(text), "it shows {:?}", self.screen());
            Ok(())
        });
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program on the terminal ends", || {
            status = self.child.try_wait()?;
            status.map(drop).with_context(|| format!("it shows {:?}", self.screen()))
        });
        status.expect("it has ended")
    }
}
