//! One entry of a json-file log.

use serde::Deserialize;
use skep_proto::model::engine::{LogLine, OutputStream};

#[derive(Deserialize)]
struct Entry {
    log: String,
    stream: String,
    time: jiff::Timestamp,
}

/// Parses one entry; `None` for what is none, such as the rest of a line that a crash tore.
pub fn parse(text: &[u8]) -> Option<LogLine> {
    let entry: Entry = serde_json::from_slice(text).ok()?;
    Some(LogLine {
        stream: if entry.stream == "stderr" { OutputStream::Stderr } else { OutputStream::Stdout },
        at_nanos: u64::try_from(entry.time.as_nanosecond()).ok()?,
        bytes: entry.log.into_bytes().into(),
    })
}
