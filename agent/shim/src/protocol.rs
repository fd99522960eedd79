//! Messages on a shim's socket and files in its run directory, as prost.
//!
//! A frame is its length (32 bit, big endian) and a [`Request`] or [`Reply`]. On a connection one request is under way
//! at a time. [`Attach`] and an attached [`Exec`] turn their connection into a stream: from then on the client sends
//! [`Stdin`] and [`CloseStdin`], the shim [`Output`] and at last [`Exited`]. [`Watch`] turns its connection into a list
//! of events. Every request carries the version, so that a shim started by an older release can still be spoken to.

use std::io::{self, Read};

use prost::Message;

/// Version of this protocol. A daemon speaks this one and those of the two releases before.
pub const VERSION: u32 = 1;
/// Format of [`Params`] and [`ExitRecord`].
pub const FORMAT: u32 = 1;
/// A frame longer than this is a broken peer.
pub const MAX_FRAME: usize = 1 << 20;

/// Name of the socket in the run directory.
pub const SOCKET: &str = "shim.sock";
/// Name of the [`Params`] file in the run directory.
pub const PARAMS: &str = "params";
/// Name of the OCI configuration in the run directory.
pub const SPEC: &str = "spec.json";
/// Name of the [`ExitRecord`] in the run directory.
pub const EXIT: &str = "exit";

/// What a shim is started with, written by the daemon to [`PARAMS`].
#[derive(Clone, PartialEq, Message)]
pub struct Params {
    /// [`FORMAT`].
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The container's id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Allocate a terminal.
    #[prost(bool, tag = "3")]
    pub tty: bool,
    /// Keep standard input open; else it is `/dev/null`.
    #[prost(bool, tag = "4")]
    pub open_stdin: bool,
    /// Close standard input when the first client that attached to it leaves.
    #[prost(bool, tag = "5")]
    pub stdin_once: bool,
    /// The json-file log; empty for none.
    #[prost(string, tag = "6")]
    pub log_path: String,
    /// Bytes after which the log is rotated; 0 for never.
    #[prost(uint64, tag = "7")]
    pub log_max_size: u64,
    /// Log files kept, the current one included.
    #[prost(uint32, tag = "8")]
    pub log_max_files: u32,
    /// Load the default seccomp profile into the container's processes.
    #[prost(bool, tag = "9")]
    pub seccomp: bool,
    /// Names of the container's capabilities (`CAP_CHOWN`).
    #[prost(string, repeated, tag = "10")]
    pub capabilities: Vec<String>,
    /// Directories of the container's cgroup, one per hierarchy.
    #[prost(string, repeated, tag = "11")]
    pub cgroups: Vec<String>,
    /// File whose `oom_kill` line counts the kernel's kills for want of memory; empty for none.
    #[prost(string, tag = "12")]
    pub oom_file: String,
    /// Directory of the container's cgroup of version 2 that needs a device program; empty where version 1 guards devices.
    #[prost(string, tag = "13")]
    pub device_cgroup: String,
    /// Score adjustment of the container's processes.
    #[prost(int32, tag = "14")]
    pub oom_score_adj: i32,
    /// The container's processes never get more privileges than they have (prctl(2), `PR_SET_NO_NEW_PRIVS`).
    #[prost(bool, tag = "15")]
    pub no_new_privileges: bool,
}

/// How the container ended, written by the shim to [`EXIT`] before anyone is told.
#[derive(Clone, PartialEq, Message)]
pub struct ExitRecord {
    /// [`FORMAT`].
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Exit code; signal + 128 when one killed it.
    #[prost(int32, tag = "2")]
    pub code: i32,
    /// The kernel killed a process of it for want of memory.
    #[prost(bool, tag = "3")]
    pub oom: bool,
    /// Nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub at_nanos: u64,
}

/// From the daemon.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// What is asked.
    #[prost(oneof = "Op", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub op: Option<Op>,
}

/// What is asked of a shim.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Op {
    /// Lets the created container run. Answer: [`Started`].
    #[prost(message, tag = "2")]
    Start(Start),
    /// Tells state and ends. Answer: [`Status`], then an [`Exited`] for each process.
    #[prost(message, tag = "3")]
    Watch(Watch),
    /// Sends a signal. Answer: [`Done`].
    #[prost(message, tag = "4")]
    Kill(Kill),
    /// Runs a further process. Answer: [`Started`], then a stream if attached.
    #[prost(message, tag = "5")]
    Exec(Exec),
    /// Connects to the container's streams. Answer: [`Done`], then a stream.
    #[prost(message, tag = "6")]
    Attach(Attach),
    /// Sets a terminal's size. Answer: [`Done`].
    #[prost(message, tag = "7")]
    Resize(Resize),
    /// Closes standard input; on a stream only, no answer.
    #[prost(message, tag = "8")]
    CloseStdin(CloseStdin),
    /// Kills what runs and leaves. Answer: end of file.
    #[prost(message, tag = "9")]
    Shutdown(Shutdown),
    /// Bytes for standard input; on a stream only, no answer.
    #[prost(message, tag = "10")]
    Stdin(Stdin),
}

/// See [`Op::Start`].
#[derive(Clone, PartialEq, Message)]
pub struct Start {}

/// See [`Op::Watch`].
#[derive(Clone, PartialEq, Message)]
pub struct Watch {}

/// See [`Op::Kill`].
#[derive(Clone, PartialEq, Message)]
pub struct Kill {
    /// Exec session; empty for the container's init.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// Number of the signal.
    #[prost(int32, tag = "2")]
    pub signal: i32,
}

/// See [`Op::Exec`].
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    /// The session's id, chosen by the daemon.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Words of the command, at least one.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// Whole environment.
    #[prost(string, repeated, tag = "3")]
    pub env: Vec<String>,
    /// Working directory.
    #[prost(string, tag = "4")]
    pub dir: String,
    /// User.
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    /// Group.
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    /// Supplementary groups.
    #[prost(uint32, repeated, tag = "7")]
    pub groups: Vec<u32>,
    /// Names of capabilities.
    #[prost(string, repeated, tag = "8")]
    pub capabilities: Vec<String>,
    /// Resource limits.
    #[prost(message, repeated, tag = "9")]
    pub limits: Vec<Rlimit>,
    /// Allocate a terminal.
    #[prost(bool, tag = "10")]
    pub tty: bool,
    /// Connect standard input; else it is `/dev/null`.
    #[prost(bool, tag = "11")]
    pub stdin: bool,
    /// This connection becomes the process's stream.
    #[prost(bool, tag = "12")]
    pub attach: bool,
    /// Initial rows of the terminal; 0 for the default.
    #[prost(uint32, tag = "13")]
    pub rows: u32,
    /// Initial columns of the terminal.
    #[prost(uint32, tag = "14")]
    pub columns: u32,
    /// Kill the process and its group when this connection ends before it does.
    #[prost(bool, tag = "15")]
    pub kill_on_leave: bool,
}

/// A resource limit (setrlimit(2)).
#[derive(Clone, PartialEq, Message)]
pub struct Rlimit {
    /// `RLIMIT_*` as the kernel numbers them.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    /// Soft limit; the largest number for none.
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    /// Hard limit.
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// See [`Op::Attach`].
#[derive(Clone, PartialEq, Message)]
pub struct Attach {
    /// Standard input.
    #[prost(bool, tag = "1")]
    pub stdin: bool,
    /// Standard output.
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    /// Standard error.
    #[prost(bool, tag = "3")]
    pub stderr: bool,
}

/// See [`Op::Resize`].
#[derive(Clone, PartialEq, Message)]
pub struct Resize {
    /// Exec session; empty for the container's init.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// Rows.
    #[prost(uint32, tag = "2")]
    pub rows: u32,
    /// Columns.
    #[prost(uint32, tag = "3")]
    pub columns: u32,
}

/// See [`Op::CloseStdin`].
#[derive(Clone, PartialEq, Message)]
pub struct CloseStdin {}

/// See [`Op::Shutdown`].
#[derive(Clone, PartialEq, Message)]
pub struct Shutdown {}

/// See [`Op::Stdin`].
#[derive(Clone, PartialEq, Message)]
pub struct Stdin {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
}

/// From the shim.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// What it is.
    #[prost(oneof = "Answer", tags = "1, 2, 3, 4, 5, 6")]
    pub answer: Option<Answer>,
}

/// What a shim says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    /// It was done.
    #[prost(message, tag = "1")]
    Done(Done),
    /// It was not done.
    #[prost(message, tag = "2")]
    Refused(Refused),
    /// The process runs.
    #[prost(message, tag = "3")]
    Started(Started),
    /// Where the container stands.
    #[prost(message, tag = "4")]
    Status(Status),
    /// Output of the stream's process.
    #[prost(message, tag = "5")]
    Output(Output),
    /// A process has ended.
    #[prost(message, tag = "6")]
    Exited(Exited),
}

/// See [`Answer::Done`].
#[derive(Clone, PartialEq, Message)]
pub struct Done {}

/// See [`Answer::Refused`].
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// Why, in the OCI runtimes' words.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// See [`Answer::Started`].
#[derive(Clone, PartialEq, Message)]
pub struct Started {
    /// Pid in the shim's pid namespace.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "2")]
    pub at_nanos: u64,
}

/// See [`Answer::Status`].
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Pid of the container's init; 0 when it could not be created.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// It was let run.
    #[prost(bool, tag = "2")]
    pub started: bool,
    /// When, in nanoseconds since the Unix epoch.
    #[prost(uint64, tag = "3")]
    pub started_at_nanos: u64,
    /// Exec sessions that run.
    #[prost(string, repeated, tag = "4")]
    pub execs: Vec<String>,
}

/// See [`Answer::Output`].
#[derive(Clone, PartialEq, Message)]
pub struct Output {
    /// Standard error instead of standard output.
    #[prost(bool, tag = "1")]
    pub stderr: bool,
    /// The bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub bytes: Vec<u8>,
}

/// See [`Answer::Exited`].
#[derive(Clone, PartialEq, Message)]
pub struct Exited {
    /// Exec session; empty for the container's init.
    #[prost(string, tag = "1")]
    pub exec: String,
    /// How.
    #[prost(message, optional, tag = "2")]
    pub exit: Option<ExitRecord>,
}

impl Request {
    /// A request of this version.
    pub fn new(op: Op) -> Self {
        Self { version: VERSION, op: Some(op) }
    }
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { answer: Some(answer) }
    }
}

/// Appends `message` as a frame.
pub fn put_frame(out: &mut Vec<u8>, message: &impl Message) {
    let len = u32::try_from(message.encoded_len()).expect("messages are bounded by the sizes of our buffers");
    out.extend_from_slice(&len.to_be_bytes());
    message.encode(out).expect("a Vec grows as needed");
}

/// Takes the first frame off `buffer`; `None` while it is incomplete.
///
/// # Errors
/// `InvalidData` for a frame over [`MAX_FRAME`] and for one that is no message; the connection is then of no more use.
pub fn take_frame<M: Message + Default>(buffer: &mut Vec<u8>) -> io::Result<Option<M>> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*head) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes; {MAX_FRAME} at most")));
    }
    let Some(body) = buffer.get(4..4 + len) else { return Ok(None) };
    let message = M::decode(body).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    buffer.drain(..4 + len);
    Ok(Some(message))
}

/// Reads one frame, waiting for it.
///
/// # Errors
/// As [`take_frame`], and `UnexpectedEof`.
pub fn read_frame<M: Message + Default>(from: &mut impl Read) -> io::Result<M> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let len = u32::from_be_bytes(head) as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes; {MAX_FRAME} at most")));
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body)?;
    M::decode(body.as_slice()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_when_it_is_whole() {
        let request = Request::new(Op::Kill(Kill { exec: String::new(), signal: 15 }));
        let mut bytes = Vec::new();
        put_frame(&mut bytes, &request);
        let whole = bytes.clone();
        for cut in 0..whole.len() {
            let mut part = whole[..cut].to_vec();
            assert_eq!(take_frame::<Request>(&mut part).unwrap(), None);
            assert_eq!(part.len(), cut);
        }
        bytes.extend_from_slice(&[0, 0]);
        assert_eq!(take_frame(&mut bytes).unwrap(), Some(request));
        assert_eq!(bytes, [0, 0]);
    }

    #[test]
    fn a_frame_that_is_too_long_or_no_message_is_an_error() {
        assert!(take_frame::<Request>(&mut vec![0xff; 8]).is_err());
        assert!(take_frame::<Request>(&mut vec![0, 0, 0, 2, 0xff, 0xff]).is_err());
    }
}
