//! Reading of json-file logs, over rotated files, while they are written.
//!
//! The shim writes and rotates (`log`, `log.1`, …, highest number oldest); this side only reads, and holds open what it
//! has not read yet, so that a rotation takes nothing from it. A torn last line is what the shim is about to finish, or
//! what a crash left: it is waited for when following and left out otherwise.

mod files;
mod line;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use skep_proto::model::engine::{LogLine, LogQuery, OutputStream};
use tokio::sync::mpsc;

use self::files::Files;

/// Lines that wait for a slow client before reading pauses.
const LINES: usize = 256;
/// Pause between looks for new lines: short at first, longer while nothing comes.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Lines of the log at `path`, oldest first. When following, the stream ends after `ended` resolves and what was written
/// until then has been read. A log that does not exist is an empty one.
pub fn read(
    path: PathBuf,
    query: LogQuery,
    ended: impl Future<Output = ()> + Send + 'static,
) -> BoxStream<'static, io::Result<LogLine>> {
    let (sender, lines) = mpsc::channel(LINES);
    tokio::spawn(async move {
        if let Err(e) = send_lines(path, query, ended, &sender).await {
            // The client left if this fails.
            let _ = sender.send(Err(e)).await;
        }
    });
    futures_util::stream::unfold(lines, |mut lines| async { lines.recv().await.map(|l| (l, lines)) }).boxed()
}

async fn send_lines(
    path: PathBuf,
    query: LogQuery,
    ended: impl Future<Output = ()> + Send + 'static,
    to: &mpsc::Sender<io::Result<LogLine>>,
) -> io::Result<()> {
    let mut ended = std::pin::pin!(ended);
    let mut is_over = !query.follow;
    let tail = query.tail;
    let mut files = on_disk(move || Files::open(path, tail)).await?;
    let mut pause = PAUSES.0;
    loop {
        let lines;
        (files, lines) = on_disk(move || files.next_lines().map(|lines| (files, lines))).await?;
        if lines.is_empty() {
            if is_over {
                return Ok(());
            }
            tokio::select! {
                () = &mut ended => is_over = true,
                () = to.closed() => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSES.1),
            }
            continue;
        }
        pause = PAUSES.0;
        for line in lines {
            if query.until_nanos.is_some_and(|until| line.at_nanos > until) {
                return Ok(());
            }
            if is_wanted(&query, &line) && to.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
    }
}

fn is_wanted(query: &LogQuery, line: &LogLine) -> bool {
    let stream = match line.stream {
        OutputStream::Stdout => query.stdout,
        OutputStream::Stderr => query.stderr,
    };
    stream && query.since_nanos.is_none_or(|since| line.at_nanos >= since)
}

/// Runs file work off the runtime's threads.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
