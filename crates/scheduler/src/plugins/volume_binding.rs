//! A pod's claims must be bound, or be such that they are bound once the pod has a node.

use std::{sync::Arc, time::Duration};

use client::{Cache, Client, Error, Key, Scope, write};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::json;

use super::{Handle, selector};
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status},
    node::NodeInfo,
    pod::PodInfo,
};

const NAME: &str = "VolumeBinding";
/// The node a claim is to be bound for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BOUND: &str = "pv.kubernetes.io/bind-completed";
/// Longest wait for the claims of a pod that has a node.
const BIND_LIMIT: Duration = Duration::from_secs(600);

const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
const WRONG_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";

struct VolumeBinding {
    client: Client,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
}

pub(super) fn make(handle: &Handle) -> Box<dyn Plugin> {
    Box::new(VolumeBinding {
        client: handle.client.clone(),
        claims: handle.caches.get(Scope::all()),
        volumes: handle.caches.get(Scope::all()),
        classes: handle.caches.get(Scope::all()),
    })
}

/// A pod's claims, looked up once per cycle.
struct Claims {
    /// Bound: the volume, where it exists.
    bound: Vec<Option<PersistentVolume>>,
    /// To be bound when the pod has a node.
    delayed: Vec<Delayed>,
}

struct Delayed {
    claim: PersistentVolumeClaim,
    can_provision: bool,
}

impl VolumeBinding {
    fn look(&self, pod: &PodInfo) -> Result<Claims, Status> {
        let mut found = Claims {
            bound: Vec::new(),
            delayed: Vec::new(),
        };
        for wanted in &pod.claims {
            let name = &wanted.name;
            let key = Key::new(pod.key.namespace.clone(), name.as_str());
            let claim = self
                .claims
                .get(&key)
                .map_err(|e| Status::Error(e.to_string()))?;
            let Some(claim) = claim else {
                return Err(Status::unresolvable(if wanted.ephemeral {
                    format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    )
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                }));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(Status::unresolvable(format!(
                    "persistentvolumeclaim \"{name}\" is being deleted"
                )));
            }
            if let Some(volume) = volume_of(&claim) {
                let volume = self.volumes.get(&Key::cluster(volume));
                found
                    .bound
                    .push(volume.map_err(|e| Status::Error(e.to_string()))?);
                continue;
            }
            let class = self.class(&claim)?;
            let late = class
                .as_ref()
                .and_then(|c| c.volume_binding_mode.as_deref());
            if late != Some("WaitForFirstConsumer") {
                return Err(Status::unresolvable(UNBOUND));
            }
            let can_provision =
                class.is_some_and(|c| c.provisioner != "kubernetes.io/no-provisioner");
            found.delayed.push(Delayed {
                claim,
                can_provision,
            });
        }
        Ok(found)
    }

    fn class(&self, claim: &PersistentVolumeClaim) -> Result<Option<StorageClass>, Status> {
        let name = claim
            .spec
            .as_ref()
            .and_then(|s| s.storage_class_name.as_deref());
        let Some(name) = name.filter(|n| !n.is_empty()) else {
            return Ok(None);
        };
        self.classes
            .get(&Key::cluster(name))
            .map_err(|e| Status::Error(e.to_string()))
    }

    /// Whether a volume is free for the claim on this node.
    fn has_volume(&self, claim: &PersistentVolumeClaim, node: &NodeInfo) -> bool {
        let class = |n: Option<&String>| n.cloned().unwrap_or_default();
        let wanted = class(
            claim
                .spec
                .as_ref()
                .and_then(|s| s.storage_class_name.as_ref()),
        );
        self.volumes.list().iter().any(|volume| {
            let spec = volume.spec.as_ref();
            let free = spec.is_some_and(|s| match &s.claim_ref {
                None => true,
                Some(c) => c.name == claim.metadata.name && c.namespace == claim.metadata.namespace,
            });
            free && class(spec.and_then(|s| s.storage_class_name.as_ref())) == wanted
                && reaches(volume, node)
        })
    }

    async fn bind_claims(&self, pod: &PodInfo, node: &str) -> Result<(), Error> {
        for wanted in &pod.claims {
            let key = Key::new(pod.key.namespace.clone(), wanted.name.as_str());
            let Some(claim) = self.claims.get(&key)? else {
                return Err(Error::Other(format!(
                    "persistentvolumeclaim \"{}\" not found",
                    wanted.name
                )));
            };
            if volume_of(&claim).is_some() {
                continue;
            }
            let api = write::namespaced::<PersistentVolumeClaim>(&self.client, &key.namespace);
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            write::patch(&api, &key.name, &patch).await?;
        }
        let all_bound = |claims: &Cache<PersistentVolumeClaim>| {
            pod.claims.iter().all(|wanted| {
                let key = Key::new(pod.key.namespace.clone(), wanted.name.as_str());
                matches!(claims.get(&key), Ok(Some(claim)) if volume_of(&claim).is_some())
            })
        };
        let waited = tokio::time::timeout(BIND_LIMIT, self.claims.wait_for(all_bound)).await;
        waited.map_err(|_| Error::Other("timed out waiting for the condition".into()))
    }
}

/// The volume a claim is bound to, once that is settled.
fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    let volume = claim.spec.as_ref()?.volume_name.as_deref()?;
    (annotations.contains_key(BOUND) && !volume.is_empty()).then_some(volume)
}

fn reaches(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let (Some(required), Some(spec)) = (affinity.and_then(|a| a.required.as_ref()), &node.spec)
    else {
        return true;
    };
    selector::matches(required, &spec.name, &spec.labels)
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn happenings(&self) -> &'static [Happening] {
        &[
            Happening::Volumes,
            Happening::NodeAdd,
            Happening::NodeLabels,
        ]
    }

    fn pre_filter(&self, cycle: &mut Cycle<'_>, pod: &PodInfo) -> PreFilter {
        if pod.claims.is_empty() {
            return PreFilter::Skip;
        }
        match self.look(pod) {
            Ok(claims) => {
                cycle.state.write(NAME, Arc::new(claims));
                PreFilter::Continue
            }
            Err(status) => PreFilter::Reject(status),
        }
    }

    fn filter(&self, cycle: &Cycle<'_>, _: &PodInfo, node: &NodeInfo) -> Status {
        let Some(claims) = cycle.state.read::<Arc<Claims>>(NAME) else {
            return Status::Success;
        };
        for volume in &claims.bound {
            match volume {
                None => return Status::unresolvable(LOST),
                Some(volume) if !reaches(volume, node) => return Status::unresolvable(WRONG_NODE),
                Some(_) => {}
            }
        }
        for delayed in &claims.delayed {
            if !self.has_volume(&delayed.claim, node) && !delayed.can_provision {
                return Status::unresolvable(NO_VOLUME);
            }
        }
        Status::Success
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        if pod.claims.is_empty() {
            return std::future::ready(Ok(())).boxed();
        }
        self.bind_claims(pod, node).boxed()
    }
}
