//! The server process: every component of the cluster, started in order and supervised.
//!
//! ```text
//! network -> store -> API server -> runtime -> node, proxy, DNS, controllers, scheduler -> ready
//! ```
//!
//! The process may be killed at any instant: what is on disk and in the kernel is found again by
//! the next start. A termination signal only makes the end tidier.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Cluster;
use crate::control::Journal;
use crate::network::HostNetwork;
use crate::pki::Pki;

mod control_plane;
mod dns_service;
pub mod node;
mod ready;
mod supervise;
mod tls;

use control_plane::ControlPlane;
use supervise::Supervisor;

/// How long components may take to end.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// Runs the cluster until a termination signal.
///
/// # Errors
/// When the start fails; the message says what to do.
pub async fn run(cluster: Cluster, journal: Arc<Journal>) -> anyhow::Result<()> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // A second installation in the same process is the same provider.
    let _ = provider.install_default();
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    let pki = Arc::new(Pki::open(&cluster.path("pki"))?);
    journal.step("certificates");
    let network = HostNetwork::open(&cluster).context("making the pod network")?;
    journal.step("pod network");
    let control_plane = ControlPlane::open(&cluster, &pki).await?;
    control_plane.serve(&cluster, &pki, &shutdown).await?;
    journal.step("API server");
    let mut supervisor = Supervisor::new(shutdown.clone());
    control_plane.start_deciders(&cluster, &pki, &mut supervisor)?;
    let node = node::Parts {
        cluster: &cluster,
        pki: &pki,
        network,
        control_plane: &control_plane,
    };
    node.start(&mut supervisor).await?;
    journal.step("container runtime");
    let waiting = ready::wait(&cluster, &control_plane, &journal);
    tokio::select! {
        result = waiting => result?,
        () = shutdown.cancelled() => {}
    }
    journal.ready();
    shutdown.cancelled().await;
    tracing::info!("stopping");
    supervisor.finished(END_PATIENCE).await;
    control_plane.api.stop_streams();
    control_plane.store.close().await;
    Ok(())
}

fn stop_on_signals(shutdown: &CancellationToken) -> anyhow::Result<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("listening for signals")?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}
