//! The health check of the built-in image.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: whoami probe [--port N] [--path PATH] [--hang]";
/// Answers of Docker's health checks: well, not well.
const UNWELL: u8 = 1;
/// As of a shell whose command is not there.
const NO_COMMAND: u8 = 127;
/// How long a server may take to say something.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read.
const MOST: u64 = 64 * 1024;

/// Asks a server of this network namespace. The exit code is 0 when it answers with 200, else 1.
pub fn main(words: &[OsString]) -> ExitCode {
    let (mut port, mut path) = (80, "/health".to_owned());
    let mut words = words.iter().map(|w| w.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let read = match word.as_str() {
            "--port" => words.next().and_then(|n| n.parse().ok()).map(|n| port = n),
            "--path" => words.next().map(|given| path = given),
            // For tests of what happens to a probe that does not end.
            "--hang" => loop {
                std::thread::sleep(PATIENCE);
            },
            _ => None,
        };
        if read.is_none() {
            eprintln!("whoami probe: {word:?} is unknown or lacks its value\n{USAGE}");
            return ExitCode::from(crate::EX_USAGE);
        }
    }
    match ask(port, &path) {
        Ok(answer) => {
            println!("{}", answer.lines().next().unwrap_or_default());
            if answer.split(' ').nth(1) == Some("200") { ExitCode::SUCCESS } else { ExitCode::from(UNWELL) }
        }
        Err(e) => {
            println!("127.0.0.1:{port}: {e}");
            ExitCode::from(UNWELL)
        }
    }
}

fn ask(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Called as `sh`: runs `-c "whoami …"`, and explains itself otherwise.
pub fn shell(words: &[OsString]) -> ExitCode {
    let words: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let line = match words.as_slice() {
        [option, line] if option == "-c" => line.as_str(),
        _ => "",
    };
    let plain = |line: &str| line.chars().all(|c| c.is_ascii_alphanumeric() || " -_./=:?&".contains(c));
    match line.strip_prefix("whoami ").filter(|rest| plain(rest)) {
        Some(rest) => super::main(&rest.split_ascii_whitespace().map(OsString::from).collect::<Vec<_>>()),
        None => {
            eprintln!("sh: this image has no shell; all that runs here is: sh -c 'whoami OPTION...'");
            ExitCode::from(NO_COMMAND)
        }
    }
}
