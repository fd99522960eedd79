//! What people see: error chains and exit codes.

pub mod format;
pub mod human;
pub mod table;

use std::process::ExitCode;

/// Exit code for a command line or configuration that makes no sense (sysexits.h, `EX_USAGE`).
pub const USAGE: u8 = 64;

/// Exit code for a command line that cannot be read, as the docker CLI's.
pub const MISUSE: u8 = 125;

/// A command line or configuration that makes no sense, with every reason.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n      "))]
pub struct UsageError(pub Vec<String>);

/// A failure that ends with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The exit code.
    pub code: u8,
    /// What to tell.
    pub message: String,
}

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
    if let Some(status) = error.downcast_ref::<Status>() {
        return ExitCode::from(status.code);
    }
    if error.downcast_ref::<UsageError>().is_some() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
