//! The project's own chores: `cargo xtask COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod conformance;
mod host;
mod images;
mod run;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own chores")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test: format, lints, tidiness, unit, integration and end to end
    Test(test::Test),
    /// Print the project's figures, measured on a release build
    Bench(bench::Bench),
    /// Make the container images that tests and walkthroughs use, from Debian packages
    Images(images::Images),
    /// Write the page of covered conformance entries from the tests' doc comments
    Conformance(conformance::Conformance),
    /// Check what compilers do not: crate arrows, file lengths, left-over marks, stale pages
    Tidy(tidy::Tidy),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Images(command) => command.run(),
        Command::Conformance(command) => command.run(),
        Command::Tidy(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
