//! Heartbeats: the nodes' leases, renewed in slices spread over the period, so that thousands of
//! nodes are a steady trickle of writes and not a flood.

use std::{sync::Arc, time::Duration};

use client::{Cache, Client, Clock, Key, Resource};
use futures::{StreamExt, stream};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::nodes::Fleet;

const NAMESPACE: &str = "kube-node-lease";
/// A lease holds for so many seconds, as a kubelet's.
const DURATION_SECONDS: u32 = 40;
/// Slices of a period: each renews its share together, so that the store writes them together.
const SLICES: u32 = 20;
/// Renewals under way at once.
const TOGETHER: usize = 64;

/// Renews leases.
pub struct Leases {
    pub client: Client,
    pub clock: Clock,
    pub nodes: Cache<Node>,
    pub fleet: Arc<Fleet>,
}

impl Leases {
    /// Renews every lease once a period until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let period = Duration::from_secs(self.fleet.profile.nodes.heartbeat_seconds.into());
        let mut ticks = tokio::time::interval(period / SLICES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut slice = 0;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => return,
            }
            let due = (slice..self.fleet.count).step_by(SLICES as usize);
            stream::iter(due)
                .for_each_concurrent(TOGETHER, |index| self.renew(index))
                .await;
            slice = (slice + 1) % SLICES;
        }
    }

    async fn renew(&self, index: u32) {
        let name = self.fleet.name(index);
        let Some(node) = self.nodes.entry(&Key::cluster(name.clone())) else {
            return;
        };
        let spec = json!({
            "holderIdentity": name,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": api::time::format_micro(self.clock.now()),
        });
        let renewed = match self.patch(&name, &spec).await {
            Err(error) if client::is_not_found(&error) => self.create(&name, &node.uid, spec).await,
            other => other,
        };
        if let Err(error) = renewed {
            tracing::debug!(node = name, %error, "lease not renewed");
        }
    }

    async fn patch(&self, name: &str, spec: &Value) -> kube::Result<()> {
        let patch = Patch::Merge(json!({"spec": {"renewTime": spec["renewTime"]}}));
        let path = Resource::of::<Lease>().path(NAMESPACE);
        let request = Request::new(path).patch(name, &PatchParams::default(), &patch);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request::<IgnoredAny>(request).await.map(drop)
    }

    async fn create(&self, name: &str, uid: &str, spec: Value) -> kube::Result<()> {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
            },
            "spec": spec,
        });
        let body = serde_json::to_vec(&lease).map_err(kube::Error::SerdeError)?;
        let path = Resource::of::<Lease>().path(NAMESPACE);
        let request = Request::new(path).create(&PostParams::default(), body);
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request::<IgnoredAny>(request).await.map(drop)
    }
}
