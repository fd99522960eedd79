//! Streams of a process between a client of the daemon and the container's shim.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use skep_proto::model::engine::{Output, OutputStream};
use skep_shim::protocol::{Answer, CloseStdin, ExitRecord, Op, Stdin};
use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::mpsc;

use super::shim::{Connection, Reader, Writer};

/// Pieces of output that wait for a client before its shim is held up.
const PIECES: usize = 16;
/// Bytes of input that wait for the shim.
const INPUT: usize = 16 * 1024;

/// Which streams a client attaches to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// The streams of a process.
pub struct Attached {
    /// Its terminal is one stream of bytes.
    pub tty: bool,
    /// Standard input; dropping it closes that end. `None` when it was not asked for.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Output until the process ends.
    pub output: BoxStream<'static, io::Result<Output>>,
}

/// The daemon's end of [`Attached`].
pub struct Ends {
    /// What the client wants.
    pub wanted: Wanted,
    output: mpsc::Sender<io::Result<Output>>,
    input: Option<DuplexStream>,
}

impl Ends {
    /// The client left.
    pub fn is_abandoned(&self) -> bool {
        self.output.is_closed()
    }
}

/// Both ends of new streams.
pub fn pair(wanted: Wanted, tty: bool) -> (Attached, Ends) {
    let (output, pieces) = mpsc::channel(PIECES);
    let (theirs, ours) = tokio::io::duplex(INPUT);
    let input = wanted.stdin.then_some(theirs).map(|i| Box::new(i) as Box<dyn AsyncWrite + Send + Unpin>);
    let stream = futures_util::stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|p| (p, pieces)) });
    let ends = Ends { wanted, output, input: wanted.stdin.then_some(ours) };
    (Attached { tty, input, output: stream.boxed() }, ends)
}

/// Carries bytes both ways until the process ends or the client is gone. `ended` is called with the exit code before the
/// client sees the end of its streams.
pub async fn pump(connection: Connection, ends: Ends, ended: impl FnOnce(i32)) {
    let Connection { reader, writer } = connection;
    let Ends { output, input, wanted } = ends;
    let sends = tokio::spawn(send_input(writer, input));
    if let Some(exit) = receive(reader, &output, wanted).await {
        ended(exit.code);
    }
    sends.abort();
}

/// Sends what the client types. Keeps the connection's sending half until it is told to stop: its end would be taken for
/// the client's leave.
async fn send_input(mut writer: Writer, input: Option<DuplexStream>) {
    if let Some(mut input) = input {
        let mut buffer = vec![0; INPUT];
        loop {
            let op = match input.read(&mut buffer).await {
                Ok(0) | Err(_) => Op::CloseStdin(CloseStdin {}),
                Ok(len) => Op::Stdin(Stdin { bytes: buffer[..len].to_vec() }),
            };
            let last = matches!(op, Op::CloseStdin(_));
            if writer.send(op).await.is_err() || last {
                break;
            }
        }
    }
    // Until aborted.
    let _keep = writer;
    std::future::pending::<()>().await;
}

async fn receive(mut reader: Reader, output: &mpsc::Sender<io::Result<Output>>, wanted: Wanted) -> Option<ExitRecord> {
    loop {
        let answer = tokio::select! {
            answer = reader.next() => answer,
            () = output.closed(), if wanted.stdout || wanted.stderr => return None,
        };
        match answer {
            Ok(Some(Answer::Output(piece))) => {
                let stream = if piece.stderr { OutputStream::Stderr } else { OutputStream::Stdout };
                // A client that left is noticed above.
                let _ = output.send(Ok(Output { stream, bytes: Bytes::from(piece.bytes) })).await;
            }
            Ok(Some(Answer::Exited(exited))) => return exited.exit,
            Ok(Some(_)) => {}
            Ok(None) => {
                let text = "the container's shim dropped this client: it did not take the output for a second";
                let _ = output.send(Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))).await;
                return None;
            }
            Err(e) => {
                let _ = output.send(Err(io::Error::other(e))).await;
                return None;
            }
        }
    }
}
