//! The binary `skep`: client commands in Docker's grammar, and the daemon that answers them.

use std::process::ExitCode;

use clap::Parser;

mod client;
mod commands;
mod daemon;
mod lab;
mod output;
mod terminal;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => {
            // Nobody may be reading: then there is nobody to tell.
            let _ = said.print();
            return if said.use_stderr() { ExitCode::from(output::MISUSE) } else { ExitCode::SUCCESS };
        }
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skep: {}", output::chain(&error));
            output::exit_code(&error)
        }
    }
}
