//! The command line of the built-in image's program.

use std::ffi::OsString;
use std::time::Duration;

/// Shown with an error.
pub const USAGE: &str = "usage: whoami [--port N] [--name TEXT] [--sleep SECONDS] [--crash-after SECONDS] [--exit-code N] \
                         [--healthy-after SECONDS] [--unhealthy-after SECONDS] [--tcp-echo PORT]... [--udp-echo PORT]...";

const KNOWN: [&str; 9] = [
    "--port",
    "--name",
    "--sleep",
    "--crash-after",
    "--exit-code",
    "--healthy-after",
    "--unhealthy-after",
    "--tcp-echo",
    "--udp-echo",
];

/// What it was told.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Port of the HTTP server.
    pub port: u16,
    /// Shown in answers; empty for none.
    pub name: String,
    /// How long it waits before it listens.
    pub sleep: Duration,
    /// When it ends by itself.
    pub crash_after: Option<Duration>,
    /// With what code it then ends.
    pub exit_code: u8,
    /// Until then `/health` answers 503.
    pub healthy_after: Duration,
    /// From then on `/health` answers 503.
    pub unhealthy_after: Option<Duration>,
    /// Ports that send back what comes.
    pub tcp_echo: Vec<u16>,
    /// Ports that send back datagrams.
    pub udp_echo: Vec<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 80,
            name: String::new(),
            sleep: Duration::ZERO,
            crash_after: None,
            exit_code: 1,
            healthy_after: Duration::ZERO,
            unhealthy_after: None,
            tcp_echo: Vec::new(),
            udp_echo: Vec::new(),
        }
    }
}

impl Options {
    /// Reads `--option value` and `--option=value`.
    ///
    /// # Errors
    /// A text that names the word at fault.
    pub fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut words = words.iter().map(|w| w.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let (name, given) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if !KNOWN.contains(&name.as_str()) {
                return Err(format!("unknown option {name:?}"));
            }
            let value = given.or_else(|| words.next()).ok_or_else(|| format!("{name} needs a value"))?;
            let bad = || format!("{name}: {value:?} is not a number in its range");
            match name.as_str() {
                "--port" => options.port = value.parse().map_err(|_| bad())?,
                "--sleep" => options.sleep = seconds(&value).ok_or_else(bad)?,
                "--crash-after" => options.crash_after = Some(seconds(&value).ok_or_else(bad)?),
                "--exit-code" => options.exit_code = value.parse().map_err(|_| bad())?,
                "--healthy-after" => options.healthy_after = seconds(&value).ok_or_else(bad)?,
                "--unhealthy-after" => options.unhealthy_after = Some(seconds(&value).ok_or_else(bad)?),
                "--tcp-echo" => options.tcp_echo.push(value.parse().map_err(|_| bad())?),
                "--udp-echo" => options.udp_echo.push(value.parse().map_err(|_| bad())?),
                _ => options.name = value,
            }
        }
        Ok(options)
    }
}

/// Seconds, with a fraction if need be: `2`, `0.5`, `2s`.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim_end_matches('s').parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_read_in_both_forms() {
        let want = Options {
            port: 81,
            name: "a".into(),
            sleep: Duration::from_millis(500),
            tcp_echo: vec![7, 8],
            ..Options::default()
        };
        assert_eq!(parse("--port 81 --name=a --sleep 0.5 --tcp-echo 7 --tcp-echo=8"), Ok(want));
        for bad in ["--port", "--port x", "--colour red", "--sleep -1", "extra"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
