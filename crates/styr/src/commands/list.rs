//! `styr list`.

use crate::config::{self, Cluster, ClusterArgs};
use crate::control::{self, Phase};
use crate::lock;
use crate::output::say;

/// List the clusters on this machine.
#[derive(clap::Args)]
pub struct List {}

impl List {
    /// Prints a line a cluster.
    ///
    /// # Errors
    /// When the data folder cannot be read.
    pub fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let names = config::names(&cluster.data_dir)?;
        if names.is_empty() {
            say!("No clusters in {}.", cluster.data_dir.display());
            return Ok(());
        }
        say!("{:<20} {:<8} {:<16} SERVER", "NAME", "STATUS", "IP");
        for name in names {
            let args = ClusterArgs {
                name,
                data_dir: cluster.data_dir.clone(),
            };
            match args.load() {
                Ok(found) => say!(
                    "{:<20} {:<8} {:<16} https://{}",
                    found.name,
                    state(&found)?,
                    found.node_ip(),
                    found.api_address(),
                ),
                Err(error) => say!("{:<20} {:<8} {error}", args.name, "damaged"),
            }
        }
        Ok(())
    }
}

fn state(cluster: &Cluster) -> anyhow::Result<&'static str> {
    if lock::holder(&cluster.path("run/server.lock"))?.is_none() {
        return Ok("stopped");
    }
    Ok(match control::phase(&cluster.path("run/control.sock")) {
        Phase::Starting(_) => "starting",
        Phase::Ready => "running",
        Phase::Failed(_) => "ending",
    })
}
