//! One connection to the shim: frames in, frames out, and what it has become.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use skep_shim::protocol::{Answer, Reply, Request, put_frame, take_frame};

/// Unsent bytes above which the client's process is no longer read.
pub const HIGH: usize = 256 * 1024;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One request after another.
    Control,
    /// Is told of every end.
    Watcher,
    /// Streams of a process, by its number.
    Stream {
        /// The process.
        process: u32,
        /// Sends input.
        stdin: bool,
        /// Gets output and error.
        outputs: [bool; 2],
    },
}

/// A connection.
pub struct Client {
    /// The socket; never blocks.
    pub socket: UnixStream,
    /// What it is for.
    pub role: Role,
    /// It leaves once everything is sent.
    pub closing: bool,
    /// It is of no more use.
    pub broken: bool,
    /// When it stopped taking what waits for it.
    pub stalled_since: Option<Instant>,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl Client {
    /// A new connection.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            role: Role::Control,
            closing: false,
            broken: false,
            stalled_since: None,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
        })
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Queues an answer and sends what can be sent.
    pub fn answer(&mut self, answer: Answer) {
        if self.broken {
            return;
        }
        put_frame(&mut self.output, &Reply::from(answer));
        self.flush();
    }

    /// Sends what can be sent.
    pub fn flush(&mut self) {
        while self.waiting() > 0 {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(n) => {
                    self.sent += n;
                    self.stalled_since = None;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled_since.get_or_insert_with(Instant::now);
                    break;
                }
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.output.shrink_to(4096);
            self.sent = 0;
        } else if self.sent > HIGH {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Reads what has come. At the end of file only what was read before counts.
    pub fn fill(&mut self) {
        let mut buffer = [0; 16 * 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.broken = true,
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => self.broken = true,
        }
    }

    /// The next request, if a whole one has come.
    pub fn next_request(&mut self) -> Option<Request> {
        take_frame(&mut self.input).unwrap_or_else(|_| {
            self.broken = true;
            None
        })
    }
}
