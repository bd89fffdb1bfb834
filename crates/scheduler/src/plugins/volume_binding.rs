//! A pod's claims must be bound, or be such that they are bound once the pod has a node: to a
//! volume that the node reaches, or to one made for it there.
//!
//! Volumes chosen for a pod are held until its claims are bound, so that no other pod counts on
//! them meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use client::{Cache, Client, Error, Key, Scope, write};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Handle, selector};
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status, View},
    node::{NodeInfo, NodeSpec},
    pod::PodInfo,
    storage::{ClaimSpec, ClassSpec, Storage, VolumeSpec},
};

pub(super) const NAME: &str = "VolumeBinding";
/// The node a claim is to be bound for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a volume whose claim was written here.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Longest wait for the claims of a pod that has a node, in seconds, unless configured.
const BIND_LIMIT_SECONDS: u64 = 600;

const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
const WRONG_NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";

struct VolumeBinding {
    client: Client,
    storage: Arc<Storage>,
    claims: Cache<PersistentVolumeClaim>,
    /// Longest wait for the claims of a pod that has a node.
    limit: Duration,
    /// Volumes held for claims.
    held: Mutex<HashMap<String, Key>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    bind_timeout_seconds: u64,
    /// Of how full storage pools are compared; what drivers report is not looked at.
    #[serde(rename = "shape")]
    _shape: Option<Value>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            bind_timeout_seconds: BIND_LIMIT_SECONDS,
            _shape: None,
        }
    }
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    super::args::<Args>(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    let args: Args = super::args(args)?;
    Ok(Box::new(VolumeBinding {
        limit: Duration::from_secs(args.bind_timeout_seconds),
        client: handle.client.clone(),
        storage: Arc::clone(&handle.storage),
        claims: handle.caches.get(Scope::all()),
        held: Mutex::default(),
    }))
}

/// A pod's claims, looked up once per cycle.
struct Claims {
    /// Bound: the volume, where it exists.
    bound: Vec<Option<Arc<VolumeSpec>>>,
    /// To be bound when the pod has a node.
    delayed: Vec<Delayed>,
}

struct Delayed {
    key: Key,
    class: Option<Arc<ClassSpec>>,
    /// Volumes that would do, wherever they are; smallest first.
    volumes: Vec<Arc<VolumeSpec>>,
}

impl VolumeBinding {
    fn look(&self, pod: &PodInfo) -> Result<Claims, Status> {
        let mut found = Claims {
            bound: Vec::new(),
            delayed: Vec::new(),
        };
        for wanted in &pod.footprint.claims {
            let key = Key::new(Arc::clone(&pod.key.namespace), wanted.name.as_str());
            let claim = self.usable(wanted.ephemeral, &key)?;
            if let Some(volume) = &claim.volume {
                let volume = self.storage.volumes.get(&Key::cluster(volume.as_str()));
                found.bound.push(volume);
                continue;
            }
            let class = self.storage.class_of(&claim);
            if !class.as_ref().is_some_and(|c| c.late) || claim.names_volume {
                return Err(Status::unresolvable(UNBOUND));
            }
            let volumes = self.candidates(&key, &claim);
            found.delayed.push(Delayed {
                key,
                class,
                volumes,
            });
        }
        Ok(found)
    }

    fn usable(&self, ephemeral: bool, key: &Key) -> Result<Arc<ClaimSpec>, Status> {
        let name = &key.name;
        let Some(claim) = self.storage.claims.get(key) else {
            return Err(Status::unresolvable(if ephemeral {
                format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                )
            } else {
                format!("persistentvolumeclaim \"{name}\" not found")
            }));
        };
        if claim.lost {
            let volume = claim.volume.as_deref().unwrap_or_default();
            return Err(Status::unresolvable(format!(
                "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
            )));
        }
        if claim.deleting {
            return Err(Status::unresolvable(format!(
                "persistentvolumeclaim \"{name}\" is being deleted"
            )));
        }
        Ok(claim)
    }

    /// The volumes that would do for a claim; one reserved for it goes before all others.
    fn candidates(&self, key: &Key, claim: &ClaimSpec) -> Vec<Arc<VolumeSpec>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.storage.volumes.filter(|v| {
            v.class == claim.class
                && v.available
                && v.mode == claim.mode
                && v.capacity >= claim.request
                && claim.modes.iter().all(|m| v.modes.contains(m))
                && v.claim.as_ref().is_none_or(|c| c == key)
                && held.get(&v.name).is_none_or(|c| c == key)
                && (v.claim.is_some()
                    || claim
                        .selector
                        .as_ref()
                        .is_none_or(|s| s.matches(Some(&v.labels))))
        });
        all.sort_by(|a, b| {
            let order = |v: &VolumeSpec| (v.claim.is_none(), v.capacity);
            order(a).cmp(&order(b)).then_with(|| a.name.cmp(&b.name))
        });
        all
    }

    async fn bind_claims(&self, pod: &PodInfo, node: &str) -> Result<(), Error> {
        for wanted in &pod.footprint.claims {
            let key = Key::new(Arc::clone(&pod.key.namespace), wanted.name.as_str());
            let Some(claim) = self.storage.claims.get(&key) else {
                return Err(Error::Other(format!(
                    "persistentvolumeclaim \"{}\" not found",
                    wanted.name
                )));
            };
            if claim.volume.is_some() {
                continue;
            }
            match self.volume_held_for(&key) {
                Some(volume) => self.reserve_volume(&volume, &key, &claim).await?,
                None => self.select_node(&key, node).await?,
            }
        }
        let all_bound = |_: &Cache<PersistentVolumeClaim>| {
            pod.footprint.claims.iter().all(|wanted| {
                let key = Key::new(Arc::clone(&pod.key.namespace), wanted.name.as_str());
                self.storage
                    .claims
                    .get(&key)
                    .is_some_and(|c| c.volume.is_some())
            })
        };
        let waited = tokio::time::timeout(self.limit, self.claims.wait_for(all_bound)).await;
        waited.map_err(|_| Error::Other("timed out waiting for the condition".into()))?;
        self.release(pod);
        Ok(())
    }

    /// The binder binds the claim to a volume that is for it and no other.
    async fn reserve_volume(
        &self,
        volume: &str,
        key: &Key,
        claim: &ClaimSpec,
    ) -> Result<(), Error> {
        let known = self.storage.volumes.get(&Key::cluster(volume));
        if known.is_some_and(|v| v.claim.is_some()) {
            return Ok(());
        }
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": &*key.namespace, "name": &*key.name, "uid": claim.uid,
        });
        let patch = json!({
            "metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}},
            "spec": {"claimRef": reference},
        });
        let api = write::cluster::<PersistentVolume>(&self.client);
        write::patch(&api, volume, &patch).await?;
        Ok(())
    }

    async fn select_node(&self, key: &Key, node: &str) -> Result<(), Error> {
        let api = write::namespaced::<PersistentVolumeClaim>(&self.client, &key.namespace);
        let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
        write::patch(&api, &key.name, &patch).await?;
        Ok(())
    }

    fn volume_held_for(&self, key: &Key) -> Option<String> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let found = held.iter().find(|(_, claim)| *claim == key);
        found.map(|(volume, _)| volume.clone())
    }

    fn release(&self, pod: &PodInfo) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, key| {
            let claims = &pod.footprint.claims;
            key.namespace != pod.key.namespace || !claims.iter().any(|c| *c.name == *key.name)
        });
    }
}

fn reaches(volume: &VolumeSpec, node: &NodeSpec) -> bool {
    let required = volume.nodes.as_ref();
    required.is_none_or(|r| selector::matches(r, &node.name, &node.labels))
}

/// Whether the class makes volumes that this node reaches.
fn provisions(class: Option<&ClassSpec>, node: &NodeSpec) -> bool {
    class.is_some_and(|c| {
        c.provisions()
            && (c.topologies.is_empty()
                || c.topologies.iter().any(|term| {
                    let mut all = term.match_label_expressions.iter().flatten();
                    all.all(|e| {
                        node.labels
                            .get(&e.key)
                            .is_some_and(|v| e.values.contains(v))
                    })
                }))
    })
}

/// A volume on this node for each claim, as far as there is one; `None`: some claim gets nothing.
fn assign<'a>(
    delayed: &'a [Delayed],
    node: &NodeSpec,
) -> Option<Vec<(&'a Delayed, Option<&'a str>)>> {
    let mut taken: Vec<&str> = Vec::new();
    let mut all = Vec::new();
    for one in delayed {
        let volume = one
            .volumes
            .iter()
            .find(|v| !taken.contains(&v.name.as_str()) && reaches(v, node));
        match volume {
            Some(volume) => {
                taken.push(&volume.name);
                all.push((one, Some(volume.name.as_str())));
            }
            None if provisions(one.class.as_deref(), node) => all.push((one, None)),
            None => return None,
        }
    }
    Some(all)
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
        if pod.footprint.claims.is_empty() {
            return PreFilter::Skip;
        }
        match self.look(pod) {
            Ok(claims) => {
                cycle.state.write(NAME, claims);
                PreFilter::Continue
            }
            Err(status) => PreFilter::Reject(status),
        }
    }

    fn filter(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> Status {
        let (Some(claims), Some(spec)) = (view.state.read::<Claims>(NAME), &node.spec) else {
            return Status::Success;
        };
        for volume in &claims.bound {
            match volume {
                None => return Status::unresolvable(LOST),
                Some(volume) if !reaches(volume, spec) => {
                    return Status::unresolvable(WRONG_NODE);
                }
                Some(_) => {}
            }
        }
        match assign(&claims.delayed, spec) {
            Some(_) => Status::Success,
            None => Status::unresolvable(NO_VOLUME),
        }
    }

    fn reserve(&self, cycle: &mut Cycle<'_>, pod: &PodInfo, node: &str) -> Status {
        if pod.footprint.claims.is_empty() {
            return Status::Success;
        }
        let claims = match self.look(pod) {
            Ok(claims) => claims,
            Err(status) => return status,
        };
        let spec = cycle.world.node_named(node).and_then(|n| n.spec.clone());
        let Some(all) = spec.and_then(|spec| {
            let all = assign(&claims.delayed, &spec)?;
            let owned = all
                .iter()
                .map(|(d, v)| (d.key.clone(), v.map(str::to_owned)));
            Some(owned.collect::<Vec<_>>())
        }) else {
            return Status::unresolvable(NO_VOLUME);
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, volume) in all {
            if let Some(volume) = volume {
                held.insert(volume, key);
            }
        }
        Status::Success
    }

    fn unreserve(&self, pod: &PodInfo, _: &str) {
        if !pod.footprint.claims.is_empty() {
            self.release(pod);
        }
    }

    fn pre_bind<'a>(&'a self, pod: &'a PodInfo, node: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        if pod.footprint.claims.is_empty() {
            return std::future::ready(Ok(())).boxed();
        }
        self.bind_claims(pod, node).boxed()
    }
}
