//! `styr down`.

use std::time::Duration;

use anyhow::Context;

use crate::config::{Cluster, ClusterArgs};
use crate::network::HostNetwork;
use crate::output::say;
use crate::server::node;
use crate::{lock, preflight};

/// How long the server may take to end before it is killed.
const SERVER_PATIENCE: Duration = Duration::from_secs(15);

/// Stop the cluster; everything in it is kept for the next `up`.
#[derive(clap::Args)]
pub struct Down {
    /// Stop only the control plane: containers and services go on
    #[arg(long)]
    keep_pods: bool,
}

/// What becomes of the pods' containers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pods {
    /// They are stopped.
    Stop,
    /// They go on.
    Keep,
}

impl Down {
    /// Stops the cluster.
    ///
    /// # Errors
    /// When there is no such cluster, or something cannot be stopped.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        preflight::root()?;
        let cluster = args.load()?;
        let pods = if self.keep_pods {
            Pods::Keep
        } else {
            Pods::Stop
        };
        let was_running = stop(&cluster, pods)?;
        let (name, flags) = (&cluster.name, args.flags());
        match (was_running, pods) {
            (false, _) => say!("Cluster {name:?} is stopped already."),
            (true, Pods::Stop) => say!("Cluster {name:?} is stopped."),
            (true, Pods::Keep) => say!("Cluster {name:?} is stopped; its pods go on."),
        }
        say!("Everything is kept: `styr up{flags}` brings it back.");
        Ok(())
    }
}

/// Stops the server and, unless they are kept, the pods and their network. Gives whether a server
/// was running. Works as well after the server was killed.
///
/// # Errors
/// When something cannot be stopped.
pub fn stop(cluster: &Cluster, pods: Pods) -> anyhow::Result<bool> {
    let was_running = lock::stop_holder(&cluster.path("run/server.lock"), SERVER_PATIENCE)
        .context("stopping the server")?;
    if pods == Pods::Stop {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(node::stop_pods(cluster))?;
        traffic::proxy::cleanup(&cluster.table()).context("removing the services' rules")?;
        HostNetwork::remove(cluster).context("removing the pod network")?;
        oci::remove_cgroup(&cluster.cgroup()).context("removing the cgroups")?;
    }
    Ok(was_running)
}
