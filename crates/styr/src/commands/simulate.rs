//! `styr simulate`.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};

use super::is_ready;
use crate::access;
use crate::config::ClusterArgs;
use crate::lock;

/// How long no further node may become ready before the command gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Simulate nodes beside the real one, to see how things behave in a large cluster.
///
/// Simulated nodes are Ready, renew their leases, and take the pods the scheduler gives them from
/// Pending to Running to their end, without running anything. They stay until `--nodes 0`.
#[derive(clap::Args)]
pub struct Simulate {
    /// How many nodes to simulate; 0 removes them
    #[arg(long)]
    nodes: u32,
    /// YAML file that says what the nodes look like and how their pods fare
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

impl Simulate {
    /// Asks the running cluster for the nodes and waits until they are ready.
    ///
    /// # Errors
    /// When the profile is wrong, the cluster does not run, or the nodes do not come.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        let profile = match &self.profile {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?,
            None => String::new(),
        };
        let settings = sim::Settings::new(self.nodes, &profile).with_context(|| {
            let file = self.profile.as_deref().map(|p| p.display().to_string());
            file.unwrap_or_else(|| "the settings".into())
        })?;
        let cluster = args.load()?;
        if lock::holder(&cluster.path("run/server.lock"))?.is_none() {
            bail!(
                "the cluster does not run; start it with `styr up{}`",
                args.flags()
            );
        }
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let client = access::admin(&cluster)?;
                ask(&client, settings.nodes, &profile).await?;
                wait(client, settings.nodes as usize).await
            })?;
        match settings.nodes {
            0 => println!("no nodes are simulated"),
            1 => println!("1 simulated node is ready"),
            n => println!("{n} simulated nodes are ready"),
        }
        Ok(())
    }
}

async fn ask(client: &kube::Client, nodes: u32, profile: &str) -> anyhow::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), sim::NAMESPACE);
    let map = sim::Settings::config_map(nodes, profile);
    let params = PatchParams::apply("styr-simulate").force();
    maps.patch(sim::NAME, &params, &Patch::Apply(map))
        .await
        .context("writing the settings of the simulation")?;
    Ok(())
}

async fn wait(client: kube::Client, wanted: usize) -> anyhow::Result<()> {
    let config = watcher::Config::default().labels(&format!("{}=true", sim::LABEL));
    let (reader, writer) = kube::runtime::reflector::store::<Node>();
    let stream = watcher(Api::<Node>::all(client), config).default_backoff();
    let mut events = pin!(kube::runtime::reflector(writer, stream));
    let mut listed = false;
    loop {
        let event = tokio::time::timeout(PATIENCE, events.try_next()).await;
        let Ok(event) = event else {
            let ready = reader.state().iter().filter(|n| is_ready(n)).count();
            bail!("{ready} of {wanted} simulated nodes are ready, and no more become so");
        };
        match event.context("watching the nodes")? {
            Some(watcher::Event::InitDone) => listed = true,
            Some(_) => {}
            None => bail!("the watch of the nodes ended"),
        }
        // Looking at all is only worth while where the number is right.
        if listed && reader.len() == wanted && reader.state().iter().all(|n| is_ready(n)) {
            return Ok(());
        }
    }
}
