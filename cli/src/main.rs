//! The binary `skep`: client commands in Docker's grammar, and the daemon that answers them.

use std::process::ExitCode;

use clap::Parser;

mod client;
mod commands;
mod daemon;
mod lab;
mod output;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skep: {}", output::chain(&error));
            output::exit_code(&error)
        }
    }
}
