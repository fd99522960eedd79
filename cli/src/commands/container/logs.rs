//! `skep logs`, and the flags that it shares with `skep service logs`.

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use http::Method;
use jiff::Timestamp;

use crate::client::{Client, encode, output, whole};

/// Which lines of a log are wanted.
#[derive(Debug, Args)]
pub struct LogFlags {
    /// With the attributes of each line
    #[arg(long)]
    pub details: bool,
    /// Go on as lines come
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines since a time, or since so long ago (42m)
    #[arg(long, default_value = "")]
    since: String,
    /// Only so many lines from the end
    #[arg(short = 'n', long, default_value = "all")]
    tail: String,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Print a container's log
#[derive(Debug, Args)]
pub struct LogsCommand {
    #[command(flatten)]
    flags: LogFlags,
    /// Only lines before a time, or before so long ago (42m)
    #[arg(long, default_value = "")]
    until: String,
    /// The container
    container: String,
}

impl LogFlags {
    /// The query of a request for a log. Attributes of lines are in it only if the caller asks.
    ///
    /// # Errors
    /// A time that is none.
    pub fn query(&self, until: &str, details: bool) -> anyhow::Result<String> {
        let now = Timestamp::now();
        Ok(format!(
            "stdout=1&stderr=1&follow={}&timestamps={}&details={}&tail={}&since={}&until={}",
            u8::from(self.follow),
            u8::from(self.timestamps),
            u8::from(details),
            encode(&self.tail),
            moment("--since", &self.since, now)?,
            moment("--until", until, now)?
        ))
    }
}

/// Runs it.
pub async fn run(command: LogsCommand, client: &Client) -> anyhow::Result<()> {
    let query = command.flags.query(&command.until, command.flags.details)?;
    let path = format!("/containers/{}/logs?{query}", encode(&command.container));
    output::print(client.open(Method::GET, &path, &[], whole(Bytes::new())).await?).await
}

/// A time as the daemon takes it, seconds since the epoch with nanoseconds: of seconds, of a time with or without its
/// zone, or of how long ago (moby `api/types/time.GetTimestamp`). Without a zone it is the client's own.
fn moment(flag: &str, text: &str, now: Timestamp) -> anyhow::Result<String> {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Ok(text.to_owned());
    }
    let at = if let Ok(at) = text.parse::<Timestamp>() {
        at
    } else if let Ok(local) = text.parse::<jiff::civil::DateTime>() {
        local.to_zoned(jiff::tz::TimeZone::system()).with_context(|| format!("{flag} {text}"))?.timestamp()
    } else {
        let span: jiff::SignedDuration = text.parse().with_context(|| {
            format!("{flag} {text}: write a time like 2026-01-02T15:04:05Z, or a duration like 42m")
        })?;
        now.checked_sub(span).with_context(|| format!("{flag} {text} is too long ago"))?
    };
    Ok(format!("{}.{:09}", at.as_second(), at.subsec_nanosecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_spans_before_now() {
        let now = Timestamp::from_second(1000).unwrap();
        let read = |text: &str| moment("--since", text, now);
        assert_eq!(read("").unwrap(), "");
        assert_eq!(read("12.5").unwrap(), "12.5");
        assert_eq!(read("1m30s").unwrap(), "910.000000000");
        assert_eq!(read("1970-01-01T00:00:07.5Z").unwrap(), "7.500000000");
        assert!(read("yesterday").is_err());
    }
}
