//! The terminal of the person: raw mode, size, input, questions.

pub mod session;

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::Context;
use bytes::Bytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Bytes read at a time.
const CHUNK: usize = 32 << 10;

/// Rows and columns of the terminal behind standard output; `None` when there is none.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Whether standard input is a terminal.
pub fn is_input_a_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Passes every key on as it is pressed, until it is dropped.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal behind standard input raw; `None` when there is none.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> anyhow::Result<Option<Self>> {
        if !is_input_a_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin()).context("asking the terminal for its modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("making the terminal raw")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone, and then nobody misses its modes.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What comes on standard input; the channel ends where the input does.
///
/// A thread reads it that is left behind at the end: nothing can interrupt a read of a terminal, and a runtime would wait
/// for it.
pub fn input() -> mpsc::Receiver<Bytes> {
    let (send, receive) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if send.blocking_send(Bytes::copy_from_slice(&buffer[..n])).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receive
}

/// Asks for a line.
///
/// # Errors
/// When none can be read.
pub fn ask(question: &str) -> anyhow::Result<String> {
    eprint!("{question}");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("reading the answer")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks for a line that is not shown.
///
/// # Errors
/// When there is no terminal to hide it on, or none can be read.
pub fn ask_hidden(question: &str) -> anyhow::Result<String> {
    let before = tcgetattr(io::stdin()).context("a password can be asked for only on a terminal")?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(io::stdin(), OptionalActions::Now, &hidden).context("hiding the password")?;
    let answer = ask(question);
    tcsetattr(io::stdin(), OptionalActions::Now, &before).context("showing what is typed again")?;
    eprintln!();
    answer
}
