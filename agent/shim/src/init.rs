//! `docker run --init`: a pid 1 that starts the container's program, hands signals on to it, and reaps what is left of
//! others. The kernel gives a pid 1 no default signal handlers, and makes it the parent of every orphan.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, setpgid, wait};

use crate::launch::{LaunchError, find};
use crate::sys::{self, AllSignals, Fork};

/// Exit codes of shells: the program is not there, or cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 126;

/// Runs `words`, which may begin with `--`, and ends as they do.
pub fn main(words: &[OsString]) -> ExitCode {
    let words = match words.split_first() {
        Some((first, rest)) if first == "--" => rest,
        _ => words,
    };
    let signals = AllSignals::block();
    match sys::fork() {
        Ok(Fork::Child) => sys::exit_now(become_program(words)),
        Ok(Fork::Parent(child)) => ExitCode::from(attend(child, &signals)),
        Err(error) => {
            eprintln!("init: starting the program: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns only on failure, with the code to exit with.
fn become_program(words: &[OsString]) -> i32 {
    // A process group of its own, in front of the terminal if there is one: what is typed reaches it alone. Both fail
    // without harm where there is none.
    let _ = setpgid(None, None);
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpid());
    sys::reset_signals();
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let text: Vec<String> = env.iter().map(|(k, v)| format!("{}={}", k.display(), v.display())).collect();
    let name = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let path = match find(&name, &text) {
        Ok(path) => path,
        Err(error) => {
            eprintln!("init: {error}");
            return match error {
                LaunchError::NotInPath(_) | LaunchError::NoFile(_) => NOT_FOUND,
                _ => NOT_RUN,
            };
        }
    };
    // Words and variables came by execve(2): there is no zero byte in them.
    let words: Vec<CString> = words.iter().filter_map(|word| CString::new(word.clone().into_vec()).ok()).collect();
    let env: Vec<CString> = env
        .into_iter()
        .filter_map(|(key, value)| CString::new([key.into_vec(), value.into_vec()].join(&b'=')).ok())
        .collect();
    let Ok(file) = CString::new(path.into_os_string().into_vec()) else { return NOT_RUN };
    let Err(error) = sys::execve(&file, &words, &env);
    eprintln!("init: exec {name}: {error}");
    NOT_RUN
}

/// Hands signals on and reaps until `child` has ended; its exit code.
fn attend(child: Pid, signals: &AllSignals) -> u8 {
    loop {
        match signals.wait().and_then(Signal::from_named_raw) {
            Some(Signal::CHILD) => {
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    if pid == child
                        && let Some(code) = code(status)
                    {
                        return code;
                    }
                }
            }
            // Of the terminal, and meant for this process: it neither reads nor writes.
            Some(Signal::TTIN | Signal::TTOU) | None => {}
            Some(signal) => {
                // It may have ended just now, which the next SIGCHLD tells.
                let _ = kill_process(child, signal);
            }
        }
    }
}

fn code(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))?;
    Some(u8::try_from(code).unwrap_or(u8::MAX))
}
