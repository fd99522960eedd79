//! What people see: error chains and exit codes.

pub mod human;
pub mod table;

use std::process::ExitCode;

/// Exit code for a command line or configuration that makes no sense (sysexits.h, `EX_USAGE`).
pub const USAGE: u8 = 64;

/// A command line or configuration that makes no sense, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n      "))]
pub struct UsageError(pub Vec<String>);

/// The whole chain of an error in one line, without parts that a cause repeats.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

/// The exit code that an error stands for.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<UsageError>().is_some() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
