//! `styr server`.

use std::sync::Arc;

use anyhow::Context;

use crate::config::{Cluster, ClusterArgs, Wishes};
use crate::control::Journal;
use crate::lock::ServerLock;
use crate::{preflight, scheduling, server};

/// Run the cluster in the foreground.
#[derive(clap::Args)]
pub struct Server {
    /// Port of the API server on this machine
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    api_port: Option<u16>,
    /// KubeSchedulerConfiguration of the scheduler, kept for later starts; "" for the defaults
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<std::path::PathBuf>,
    /// Leave the caller's session, as `up` wants it
    #[arg(long, hide = true)]
    detach: bool,
}

impl Server {
    /// Runs until told to stop.
    ///
    /// # Errors
    /// When something the cluster needs is not there.
    pub fn run(self, args: &ClusterArgs) -> anyhow::Result<()> {
        if self.detach {
            nix::unistd::setsid().context("leaving the caller's session")?;
        }
        preflight::root()?;
        preflight::kernel()?;
        let wishes = Wishes {
            api_port: self.api_port,
            scheduler_config: self.scheduler_config,
        };
        let cluster = args.load_or_create(&wishes, |cluster| {
            scheduling::configuration(cluster)?;
            Ok(preflight::space(&cluster.dir())?)
        })?;
        let run = cluster.path("run");
        std::fs::create_dir_all(&run).with_context(|| run.display().to_string())?;
        let _lock = match ServerLock::take(&run.join("server.lock"))? {
            Ok(lock) => lock,
            Err(pid) => anyhow::bail!(
                "the cluster {:?} is already running (process {pid}); stop it with `styr down{}`",
                cluster.name,
                cluster.flags(),
            ),
        };
        preflight::port(&cluster)?;
        log_to_stderr();
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(serve(cluster))
    }
}

async fn serve(cluster: Cluster) -> anyhow::Result<()> {
    let journal = Arc::new(Journal::new());
    let socket = cluster.path("run/control.sock");
    journal
        .listen(&socket)
        .with_context(|| socket.display().to_string())?;
    let result = server::run(cluster, journal.clone()).await;
    if let Err(error) = &result {
        journal.failed(&format!("{error:#}"));
    }
    result
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STYR_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}
