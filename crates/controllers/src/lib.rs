//! The controllers: each makes one aspect of the cluster as its objects say it should be.
//!
//! A controller is a module with a pure `plan` (from what is seen to what is to be done) and a
//! thin shell that turns watches into keys, looks, plans and acts. [`ALL`] lists them.
//!
//! Invariants:
//! - a controller sees the cluster through [`client`] alone;
//! - each is level-triggered: killed at any moment, it goes on from what it finds;
//! - after a write the shell waits until its cache shows it, so no plan is made on a state older
//!   than the controller's own last act.

mod amount;
mod catalogue;
mod claim;
mod conditions;
mod context;
mod digest;
mod history;
mod owners;
mod pod_control;
mod pods;
mod selectors;
#[cfg(test)]
mod testing;

pub mod attachments;
pub mod autoscaler;
pub mod bootstrap;
pub mod certificates;
pub mod clusterroles;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod device_taints;
pub mod disruption;
pub mod endpoints;
pub mod garbage;
pub mod job;
pub mod leases;
pub mod legacy_tokens;
pub mod namespaces;
pub mod node_ipam;
pub mod node_ttl;
pub mod nodes;
pub mod podgc;
pub mod replicaset;
pub mod replicationcontroller;
pub mod resourceclaims;
pub mod resourcequota;
pub mod root_ca;
pub mod serviceaccount;
pub mod serviceaddresses;
pub mod statefulset;
pub mod storage_migration;
pub mod tokens;
pub mod ttl;
pub mod volumes;

pub use context::{AccountToken, Config, Context, SignToken};

use std::time::Duration;

use client::Client;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A controller: its name, which is that of its service account upstream, and how to run it
/// until the shutdown of its context.
pub struct Controller {
    /// Such as `deployment-controller`.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(Context) -> BoxFuture<'static, ()>,
}

/// Every controller.
pub const ALL: &[Controller] = &[
    attachments::CONTROLLER,
    autoscaler::CONTROLLER,
    bootstrap::CLEANER,
    bootstrap::SIGNER,
    certificates::APPROVING,
    certificates::CLEANING,
    certificates::POD_CLEANING,
    certificates::SIGNING,
    certificates::TRUST,
    clusterroles::CONTROLLER,
    cronjob::CONTROLLER,
    daemonset::CONTROLLER,
    deployment::CONTROLLER,
    device_taints::CONTROLLER,
    disruption::CONTROLLER,
    disruption::STALE,
    endpoints::LEGACY,
    endpoints::MIRRORING,
    endpoints::SLICES,
    job::CONTROLLER,
    garbage::CONTROLLER,
    leases::CONTROLLER,
    legacy_tokens::CONTROLLER,
    namespaces::CONTROLLER,
    node_ipam::CONTROLLER,
    node_ttl::CONTROLLER,
    nodes::EVICTION,
    nodes::LIFECYCLE,
    podgc::CONTROLLER,
    replicaset::CONTROLLER,
    replicationcontroller::CONTROLLER,
    resourceclaims::CONTROLLER,
    resourcequota::CONTROLLER,
    root_ca::CONTROLLER,
    serviceaccount::CONTROLLER,
    serviceaddresses::RANGES,
    serviceaddresses::REPAIR,
    statefulset::CONTROLLER,
    storage_migration::CONTROLLER,
    tokens::CONTROLLER,
    ttl::CONTROLLER,
    volumes::ATTRIBUTES_PROTECTION,
    volumes::BINDER,
    volumes::CLAIM_PROTECTION,
    volumes::EPHEMERAL,
    volumes::EXPANDER,
    volumes::VOLUME_PROTECTION,
];

/// Longest wait for work under way at a shutdown.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Runs every controller until `shutdown`; answers when all have ended, or five
/// seconds later.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    let context = Context::new(client, config, shutdown);
    let mut tasks = JoinSet::new();
    for controller in ALL {
        tracing::debug!(controller = controller.name, "starting");
        tasks.spawn((controller.run)(context.for_controller(controller.name)));
    }
    context.shutdown.cancelled().await;
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    // What has not ended by then is dropped: the next start goes on from what it finds.
    let _ = tokio::time::timeout(END_LIMIT, all_ended).await;
}
