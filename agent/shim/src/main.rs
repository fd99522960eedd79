//! `skep-shim`: the parent and reaper of one container, and the program of the built-in image.
//!
//! ```text
//! skep-shim run DIR        the shim of the container whose run directory is DIR
//! skep-shim init -- WORD…   pid 1 of a container that asked for one: starts the words, reaps orphans
//! skep-shim whoami [...]   an HTTP server that tells who it is and who asks
//! sh -c 'whoami ...'       the same, in the built-in image
//! ```

mod devices;
mod init;
mod launch;
mod run;
mod seccomp;
mod sys;
mod whoami;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The command line is wrong (sysexits.h).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    if Path::new(&program).file_name().is_some_and(|name| name == "sh") {
        return whoami::shell(&words);
    }
    let outcome = match words.split_first() {
        Some((mode, [dir])) if mode == "run" => run::run(Path::new(dir)).map_err(|e| e.to_string()),
        Some((mode, words)) if mode == "init" => return init::main(words),
        Some((mode, options)) if mode == "whoami" => return whoami::main(options),
        _ => {
            eprintln!("usage: skep-shim run DIR | skep-shim init -- WORD... | skep-shim whoami [OPTION]...");
            return ExitCode::from(EX_USAGE);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("skep-shim: {text}");
            ExitCode::FAILURE
        }
    }
}
