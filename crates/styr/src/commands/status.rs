//! `styr status`.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};

use crate::access;
use crate::config::{Cluster, ClusterArgs};
use crate::control::{self, Phase};
use crate::lock;
use crate::output::say;

/// Say how the cluster is.
#[derive(clap::Args)]
pub struct Status {}

impl Status {
    /// Prints it.
    ///
    /// # Errors
    /// When there is no such cluster, or it runs but does not answer.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        let cluster = args.load()?;
        say!("cluster:     {}", cluster.name);
        say!("folder:      {}", cluster.dir().display());
        let Some(pid) = lock::holder(&cluster.path("run/server.lock"))? else {
            say!(
                "status:      stopped (start it with `styr up{}`)",
                args.flags()
            );
            return Ok(());
        };
        match control::phase(&cluster.path("run/control.sock")) {
            Phase::Ready => say!("status:      running (process {pid})"),
            Phase::Starting(done) if done.is_empty() => {
                say!("status:      starting (process {pid})");
                return Ok(());
            }
            Phase::Starting(done) => {
                say!(
                    "status:      starting (process {pid}); done: {}",
                    done.join(", ")
                );
                return Ok(());
            }
            Phase::Failed(why) => {
                say!("status:      ending (process {pid}), as it could not start: {why}");
                return Ok(());
            }
        }
        say!("API server:  https://{}", cluster.api_address());
        say!("node IP:     {}", cluster.node_ip());
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(seen_from_the_api(&cluster))
    }
}

async fn seen_from_the_api(cluster: &Cluster) -> anyhow::Result<()> {
    let client = access::admin(cluster)?;
    let version = client.apiserver_version().await?.git_version;
    say!("version:     {version}");
    let everything = ListParams::default();
    for node in Api::<Node>::all(client.clone()).list(&everything).await? {
        say!(
            "node:        {} {}",
            node.metadata.name.as_deref().unwrap_or_default(),
            if ready(&node) { "Ready" } else { "NotReady" },
        );
    }
    let pods = Api::<Pod>::all(client).list(&everything).await?;
    let running = pods.iter().filter(|p| phase(p) == Some("Running")).count();
    say!("pods:        {running} of {} running", pods.items.len());
    Ok(())
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Whether the node's Ready condition is true and pods may be scheduled to it.
pub fn ready(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let tainted = taints
        .filter(|t| t.key == "node.kubernetes.io/not-ready")
        .count();
    tainted == 0 && ready_condition(node)
}

fn ready_condition(node: &Node) -> bool {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True")
}
