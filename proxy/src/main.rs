//! The command line; everything behind it is the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    pgsplice::cli::main(pgsplice::cli::Cli::parse())
}
