//! What the cluster's scheduler is told: the file given with `--scheduler-config`, read at each start.

use std::path::Path;

use anyhow::Context;
use scheduler::Configuration;

use crate::config::Cluster;

/// The configuration of the cluster's scheduler; without a file, upstream's defaults.
///
/// # Errors
/// When the file cannot be read or is no valid configuration.
pub fn configuration(cluster: &Cluster) -> anyhow::Result<Configuration> {
    match &cluster.choices.scheduler_config {
        Some(path) => read(path),
        None => Ok(Configuration::default()),
    }
}

/// # Errors
/// When the file cannot be read or is no valid configuration.
fn read(path: &Path) -> anyhow::Result<Configuration> {
    let within = || format!("--scheduler-config {}", path.display());
    let text = std::fs::read_to_string(path).with_context(within)?;
    Configuration::parse(&text).with_context(within)
}
