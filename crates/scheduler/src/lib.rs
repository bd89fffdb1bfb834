//! The scheduler: gives each pod that has none a node.
//!
//! A pure core (the queue, the snapshot of nodes, the plugins) decides one pod at a time; the
//! shell in this file watches, binds in the background and reports. A decision is assumed at
//! once, so that the next pod sees it; if binding fails, the assumption is taken back.

pub mod classes;
pub mod config;
pub mod devices;
mod diagnosis;
pub mod extender;
pub mod framework;
mod lean;
pub mod node;
pub mod plugins;
pub mod pod;
mod points;
pub mod profile;
pub mod queue;
pub mod search;
mod shell;
pub mod storage;
pub mod terms;
#[cfg(test)]
mod tests;
pub mod topology;
mod watch;
pub mod why;
pub mod world;

pub use config::Configuration;

use client::{Caches, Client, Clock, Jitter};
use tokio_util::sync::CancellationToken;

/// What the scheduler needs to know.
#[derive(Clone)]
pub struct Config {
    /// Profiles, extenders and waits.
    pub configuration: Configuration,
    /// The wall clock.
    pub clock: Clock,
    /// Chooses between equal nodes.
    pub jitter: Jitter,
    /// Caches shared with other parts of this process; `None`: the scheduler keeps its own.
    pub caches: Option<Caches>,
}

impl Default for Config {
    /// One profile, `default-scheduler`.
    fn default() -> Self {
        Self {
            configuration: Configuration::default(),
            clock: Clock::system(),
            jitter: Jitter::random(),
            caches: None,
        }
    }
}

/// Runs the scheduler until `shutdown`.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    match shell::Scheduler::start(client, config) {
        Ok(scheduler) => scheduler.run(shutdown).await,
        Err(error) => tracing::error!(error, "the scheduler cannot start"),
    }
}
