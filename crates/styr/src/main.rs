//! Styr: Kubernetes in one binary.
//!
//! This crate only configures, starts and supervises: command line, configuration, certificates,
//! kubeconfig, and the server process that holds every component. What components do is in their
//! own crates.

use std::process::ExitCode;

use clap::Parser;

mod access;
mod commands;
mod config;
mod control;
mod files;
mod kubeconfig;
mod lock;
mod network;
mod output;
mod pki;
mod preflight;
mod progress;
mod scheduling;
mod server;

/// A third of a request's time goes to allocations with the C library's allocator, and after large
/// lists it keeps what it got.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Kubernetes in one binary.
#[derive(Parser)]
#[command(
    name = "styr",
    version,
    about,
    propagate_version = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    cluster: config::ClusterArgs,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    // A pod's shim is this binary re-executed; it must stay single-threaded, so it leaves before
    // anything else is set up.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|a| a == oci::SHIM_ARGUMENT) {
        let arguments: Vec<_> = arguments.collect();
        oci::shim_main(arguments);
    }
    let cli = Cli::parse();
    match cli.command.run(&cli.cluster) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
