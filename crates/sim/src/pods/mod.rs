//! Simulated pods: what each does next, and doing it.

mod plan;
mod status;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::{Cache, Client, Clock, Entry, Error, Key, Reconcile, Requeue, Resource};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::Request;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::{PodRule, addresses::Addresses, nodes::Fleet};
use plan::Step;
use view::PodView;

/// Moves pods through their life.
pub struct Pods {
    pub client: Client,
    pub clock: Clock,
    pub pods: Cache<Pod>,
    pub fleet: Arc<Fleet>,
    pub addresses: Arc<Mutex<Addresses>>,
    pub fallback: PodRule,
}

impl Reconcile for Pods {
    type Key = Key;

    fn name(&self) -> &'static str {
        "simulated pods"
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(entry) = self.pods.entry(key) else {
            return Ok(Requeue::OnChange);
        };
        let Some(node) = entry.node.as_deref().and_then(|n| self.fleet.index_of(n)) else {
            return Ok(Requeue::OnChange);
        };
        let pod: PodView<'_> =
            serde_json::from_slice(entry.bytes()).map_err(|source| Error::Decode {
                key: key.clone(),
                source,
            })?;
        self.keep_address(&pod);
        let rule = plan::rule(&self.fleet.profile.pods, &self.fallback, &pod);
        let now = self.clock.now();
        match plan::plan(&pod, rule, now) {
            Step::Rest => Ok(Requeue::OnChange),
            Step::Wait(at) => Ok(wait(at, now)),
            step => self.act(&entry, &pod, node, step, now).await,
        }
    }
}

fn wait(until: Timestamp, now: Timestamp) -> Requeue {
    let left = until.duration_since(now).try_into();
    left.map_or(Requeue::OnChange, Requeue::After)
}

impl Pods {
    async fn act(
        &self,
        entry: &Entry,
        pod: &PodView<'_>,
        node: u32,
        step: Step,
        now: Timestamp,
    ) -> Result<Requeue, Error> {
        let status = match step {
            Step::Remove => return self.remove(&entry.key, pod).await,
            Step::Start { ready } => match self.place(pod, node) {
                Some((host, own)) => {
                    let place = status::Place {
                        host: &host,
                        pod: &own,
                    };
                    status::started(pod, &place, ready, now)
                }
                None => return Err(Error::Other("no address is free on the node".into())),
            },
            Step::Ready => status::ready(pod, now),
            Step::Restart(outcome) => status::restarted(pod, outcome, now),
            Step::End(outcome) => status::ended(pod, outcome, now),
            Step::Expire => status::expired(pod, now),
            Step::Rest | Step::Wait(_) => return Ok(Requeue::OnChange),
        };
        self.write(entry, pod, status).await?;
        Ok(Requeue::OnChange)
    }

    /// Refused where the pod has changed since it was looked at: the step may not be the next any
    /// more, and is not to undo the one after it.
    async fn write(&self, entry: &Entry, pod: &PodView<'_>, mut status: Value) -> kube::Result<()> {
        if let Some(generation) = pod.metadata.generation {
            status["observedGeneration"] = generation.into();
        }
        let version = entry.revision.to_string();
        let body = json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": version},
            "status": status,
        });
        let path = Resource::of::<Pod>().path(&entry.key.namespace);
        let request = Request::new(path).patch_subresource(
            "status",
            &entry.key.name,
            &PatchParams::default(),
            &Patch::Strategic(body),
        );
        let request = request.map_err(kube::Error::BuildRequest)?;
        let written = self.client.request::<IgnoredAny>(request).await;
        client::write::tolerate_missing(written).map(drop)
    }

    async fn remove(&self, key: &Key, pod: &PodView<'_>) -> Result<Requeue, Error> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod.metadata.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let path = Resource::of::<Pod>().path(&key.namespace);
        let request = Request::new(path)
            .delete(&key.name, &params)
            .map_err(kube::Error::BuildRequest)?;
        tolerate(self.client.request::<IgnoredAny>(request).await)?;
        Ok(Requeue::OnChange)
    }

    /// The addresses of the node and of the pod.
    fn place(&self, pod: &PodView<'_>, node: u32) -> Option<(String, String)> {
        let mut all = self.lock();
        let host = all.of_node(node).to_string();
        if pod.spec.host_network {
            return Some((host.clone(), host));
        }
        let own = all.take(&Arc::from(&*pod.metadata.uid), node)?;
        Some((host, own.to_string()))
    }

    /// What was given out before a restart is not given out again.
    fn keep_address(&self, pod: &PodView<'_>) {
        let uid = &*pod.metadata.uid;
        if pod.is_over() {
            self.lock().release(uid);
        } else if !pod.status.pod_ip.is_empty() && !pod.spec.host_network {
            self.lock().keep(uid, &pod.status.pod_ip);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod is gone, or another one has its name: its own change says what is to be done.
fn tolerate(written: kube::Result<IgnoredAny>) -> kube::Result<()> {
    match written {
        Ok(_) => Ok(()),
        Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => Ok(()),
        Err(e) => Err(e),
    }
}
