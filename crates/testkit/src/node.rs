//! A node that registers, keeps its lease, and pretends: pods bound to it become ready at once
//! and end when they are deleted. A pod with an image called `broken` never starts.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use anyhow::Context;
use client::{Caches, Client, Clock, Key, Queue, Reconcile, Requeue, Scope, write};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Container, Node, Pod},
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::agent::Agent;

/// Seconds between renewals of the lease.
const RENEW_SECONDS: u64 = 10;
/// The image that cannot be had.
const BROKEN: &str = "broken";

/// A pretended node; it goes silent when dropped.
pub struct FakeNode {
    name: String,
    client: Client,
    shutdown: CancellationToken,
    _tasks: Vec<AbortOnDropHandle<()>>,
    _agent: Option<Agent>,
}

impl FakeNode {
    pub(crate) async fn start(
        client: Client,
        name: &str,
        agent: Option<Agent>,
    ) -> anyhow::Result<Self> {
        let nodes = write::cluster::<Node>(&client);
        let node: Node = serde_json::from_value(node(name))?;
        nodes
            .create(&PostParams::default(), &node)
            .await
            .context("registering the node")?;
        let status = Patch::Merge(json!({"status": status(agent.as_ref())}));
        nodes
            .patch_status(name, &PatchParams::default(), &status)
            .await?;
        let shutdown = CancellationToken::new();
        let mut this = Self {
            name: name.to_owned(),
            client,
            shutdown: shutdown.clone(),
            _tasks: Vec::new(),
            _agent: agent,
        };
        this.renew().await?;
        let caches = Caches::new(this.client.clone());
        let pods = caches.get::<Pod>(Scope::all().fields(format!("spec.nodeName={name}")));
        let queue = Queue::default();
        let to = queue.clone();
        pods.on_change(move |change| to.add(change.key.clone()));
        let kubelet = Pretender {
            client: this.client.clone(),
            pods,
            next: AtomicU32::new(2),
            clock: Clock::system(),
        };
        let run = client::run_workers(Arc::new(kubelet), queue, 4, shutdown);
        this._tasks.push(AbortOnDropHandle::new(tokio::spawn(run)));
        let (client, name) = (this.client.clone(), this.name.clone());
        this._tasks
            .push(AbortOnDropHandle::new(tokio::spawn(async move {
                loop {
                    tokio::time::sleep(std::time::Duration::from_secs(RENEW_SECONDS)).await;
                    let _ = renew(&client, &name).await;
                }
            })));
        Ok(this)
    }

    /// Renews the lease now.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn renew(&self) -> anyhow::Result<()> {
        renew(&self.client, &self.name).await
    }

    /// Stops pretending: the node falls silent.
    pub fn silence(self) {
        self.shutdown.cancel();
    }
}

async fn renew(client: &Client, name: &str) -> anyhow::Result<()> {
    let leases = write::namespaced::<Lease>(client, "kube-node-lease");
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": 40,
        "renewTime": api::time::format_micro(Clock::system().now()),
    });
    let lease: Lease = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
    let made = leases.create(&PostParams::default(), &lease).await;
    if write::tolerate_existing(made)?.is_none() {
        let patch = Patch::Merge(json!({"spec": spec}));
        leases.patch(name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
    })
}

fn status(agent: Option<&Agent>) -> Value {
    let amounts = json!({"cpu": "4", "memory": "8Gi", "ephemeral-storage": "50Gi", "pods": "110"});
    let now = api::time::format(Clock::system().now());
    let mut status = json!({
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
            "message": "pretending", "lastHeartbeatTime": now, "lastTransitionTime": now}],
    });
    if let Some(agent) = agent {
        status["addresses"] = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": agent.port}});
    }
    status
}

struct Pretender {
    client: Client,
    pods: client::Cache<Pod>,
    next: AtomicU32,
    clock: Clock,
}

impl Reconcile for Pretender {
    type Key = Key;

    fn name(&self) -> &'static str {
        "pretended kubelet"
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, client::Error> {
        let Some(pod) = self.pods.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let api = write::namespaced::<Pod>(&self.client, &key.namespace);
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            };
            write::tolerate_missing(api.delete(&key.name, &now).await)?;
            return Ok(Requeue::OnChange);
        }
        let spec = pod.spec.unwrap_or_default();
        let broken = |c: &Container| c.image.as_deref() == Some(BROKEN);
        let status = pod.status.unwrap_or_default();
        let begun = status.pod_ip.is_some() || status.phase.as_deref() != Some("Pending");
        if begun || spec.containers.iter().any(broken) {
            return Ok(Requeue::OnChange);
        }
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let ip = format!("10.42.{}.{}", n / 250, n % 250);
        let now = api::time::format(self.clock.now());
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
        let patch = Patch::Strategic(json!({"status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": now,
            "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady")],
        }}));
        let written = api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await;
        write::tolerate_missing(written)?;
        Ok(Requeue::OnChange)
    }
}
