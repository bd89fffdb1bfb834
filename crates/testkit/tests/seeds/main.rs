//! Deterministic simulation: whole clusters on a virtual clock, one for each seed.
//!
//! A seed decides everything: what work the cluster gets, what breaks and when, and in which order
//! whatever happens at once happens. Each cluster must come to the state that its objects ask for and
//! break no invariant on its way; a seed that fails does so again, exactly, when it is run alone:
//!
//! ```text
//! STYR_SEED=17 cargo test -p testkit --test seeds     one seed, with its trace
//! STYR_SEEDS=1000 cargo test -p testkit --test seeds  so many, from 0
//! ```
//!
//! See `docs/deterministic-simulation.md`.

mod chance;
mod checks;
mod cluster;
mod faults;
mod fork;
mod network;
mod oracle;
mod run;
mod seed;
mod user;
mod work;
mod world;

fn main() -> std::process::ExitCode {
    match run::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
