//! A pod's claims must be bound, or be such that they are bound once the pod has a node: to a
//! volume that the node reaches, or to one made for it there.
//!
//! Volumes chosen for a pod are held until its claims are bound, so that no other pod counts on
//! them meanwhile.

mod fit;
#[cfg(test)]
mod tests;

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

use super::{Handle, strategy::Shape};
use crate::{
    framework::{Cycle, Happening, Plugin, PreFilter, Status, View},
    node::NodeInfo,
    pod::PodInfo,
    storage::{ClaimSpec, SELECTED_NODE, Storage, VolumeSpec},
};
use fit::{Claims, Delayed, NO_VOLUME, place};

pub(super) const NAME: &str = "VolumeBinding";
/// On a volume whose claim was written here.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Longest wait for the claims of a pod that has a node, in seconds, unless configured.
const BIND_LIMIT_SECONDS: i64 = 600;

const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
struct VolumeBinding {
    client: Client,
    storage: Arc<Storage>,
    claims: Cache<PersistentVolumeClaim>,
    /// Longest wait for the claims of a pod that has a node.
    limit: Duration,
    /// How good a use of what there is.
    shape: Shape,
    /// Volumes held for claims.
    held: Mutex<HashMap<String, Key>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Args {
    bind_timeout_seconds: i64,
    shape: Option<Shape>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            bind_timeout_seconds: BIND_LIMIT_SECONDS,
            shape: None,
        }
    }
}

fn parse(args: Value) -> Result<(Duration, Shape), String> {
    let args: Args = super::args(args)?;
    let limit = u64::try_from(args.bind_timeout_seconds).map_err(|_| {
        let given = args.bind_timeout_seconds;
        format!(
            "bindTimeoutSeconds: Invalid value: {given}: invalid BindTimeoutSeconds, should not be a negative value"
        )
    })?;
    // The emptier, the better.
    let shape = args
        .shape
        .unwrap_or_else(|| Shape::of(&[(0, 10), (100, 0)]));
    shape.check("shape")?;
    Ok((Duration::from_secs(limit), shape))
}

pub(super) fn check(args: &Value) -> Result<(), String> {
    parse(args.clone()).map(drop)
}

pub(super) fn make(handle: &Handle, args: Value) -> Result<Box<dyn Plugin>, String> {
    let (limit, shape) = parse(args)?;
    Ok(Box::new(VolumeBinding {
        limit,
        shape,
        client: handle.client.clone(),
        storage: Arc::clone(&handle.storage),
        claims: handle.caches.get(Scope::all()),
        held: Mutex::default(),
    }))
}

impl VolumeBinding {
    fn look(&self, pod: &PodInfo) -> Result<Claims, Status> {
        let mut found = Claims::default();
        for wanted in &pod.footprint.claims {
            let key = Key::new(Arc::clone(&pod.key.namespace), wanted.name.as_str());
            let claim = self.usable(pod, wanted.ephemeral, &key)?;
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
                class: (claim.class.clone(), class),
                request: claim.request,
                node: claim.node.clone(),
                volumes,
            });
        }
        Ok(found)
    }

    fn usable(&self, pod: &PodInfo, ephemeral: bool, key: &Key) -> Result<Arc<ClaimSpec>, Status> {
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
        if ephemeral && claim.owner.as_deref() != Some(&**pod.uid()) {
            return Err(Status::unresolvable(format!(
                "PVC {key} was not created for pod {} (pod is not owner)",
                pod.key
            )));
        }
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
        let mut made = Vec::new();
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
                None => {
                    self.select_node(&key, &claim, node).await?;
                    made.push(key);
                }
            }
        }
        let settled = self
            .claims
            .wait_for(|_| self.progress(pod, node, &made) != Ok(false));
        let waited = tokio::time::timeout(self.limit, settled).await;
        let failed = |why: String| Error::Other(format!("binding volumes: {why}"));
        waited.map_err(|_| failed("context deadline exceeded".to_owned()))?;
        self.progress(pod, node, &made).map_err(failed)?;
        self.release(pod);
        Ok(())
    }

    /// Whether all claims of a pod are bound; `made`: those whose volumes are to be made.
    ///
    /// # Errors
    /// A volume cannot be made for the node, so another one has to be found.
    fn progress(&self, pod: &PodInfo, node: &str, made: &[Key]) -> Result<bool, String> {
        let mut all = true;
        for wanted in &pod.footprint.claims {
            let key = Key::new(Arc::clone(&pod.key.namespace), wanted.name.as_str());
            let Some(claim) = self.storage.claims.get(&key) else {
                return Err(format!("persistentvolumeclaim \"{}\" not found", key.name));
            };
            let name = &key.name;
            match claim.node.as_deref() {
                _ if !made.contains(&key) => {}
                Some(selected) if selected == node => {}
                Some(_) => return Err(format!("provisioning failed for PVC \"{name}\"")),
                None if claim.volume.is_some() => {}
                None => return Err(format!("selectedNode annotation reset for PVC \"{name}\"")),
            }
            all &= claim.volume.is_some();
        }
        Ok(all)
    }

    /// The binder binds the claim to a volume that is for it and no other.
    async fn reserve_volume(
        &self,
        volume: &str,
        key: &Key,
        claim: &ClaimSpec,
    ) -> Result<(), Error> {
        let known = self.storage.volumes.get(&Key::cluster(volume));
        if known.as_ref().is_some_and(|v| v.claim.is_some()) {
            return Ok(());
        }
        let reference = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "namespace": &*key.namespace, "name": &*key.name, "uid": claim.uid,
        });
        let patch = json!({
            // Somebody else may have taken it since.
            "metadata": {
                "resourceVersion": known.and_then(|v| v.version.clone()),
                "annotations": {BOUND_BY_CONTROLLER: "yes"},
            },
            "spec": {"claimRef": reference},
        });
        let api = write::cluster::<PersistentVolume>(&self.client);
        write::patch(&api, volume, &patch).await?;
        Ok(())
    }

    async fn select_node(&self, key: &Key, claim: &ClaimSpec, node: &str) -> Result<(), Error> {
        let api = write::namespaced::<PersistentVolumeClaim>(&self.client, &key.namespace);
        // A node may have been chosen meanwhile, for which the volume is being made already.
        let patch = json!({"metadata": {"uid": claim.uid, "resourceVersion": claim.version,
            "annotations": {SELECTED_NODE: node}}});
        let written = write::patch(&api, &key.name, &patch).await?;
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.claims.caught_up(revision).await
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

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn weight(&self) -> i64 {
        1
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
        match place(claims, &self.storage, spec) {
            Ok(_) => Status::Success,
            Err(reasons) => Status::Unresolvable(reasons.into_iter().map(str::to_owned).collect()),
        }
    }

    fn pre_score(&self, cycle: &mut Cycle<'_>, _: &PodInfo, _: &[&NodeInfo]) -> bool {
        let claims = cycle.state.read::<Claims>(NAME);
        claims.is_some_and(|c| !c.delayed.is_empty())
    }

    fn score(&self, view: &View<'_>, _: &PodInfo, node: &NodeInfo) -> i64 {
        let (Some(claims), Some(spec)) = (view.state.read::<Claims>(NAME), &node.spec) else {
            return 0;
        };
        place(claims, &self.storage, spec).map_or(0, |p| p.score(&self.shape))
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
            let place = place(&claims, &self.storage, &spec).ok()?;
            let chosen = place.chosen.iter();
            let chosen = chosen.map(|(d, v)| (d.key.clone(), v.name.clone()));
            Some(chosen.collect::<Vec<_>>())
        }) else {
            return Status::unresolvable(NO_VOLUME);
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, volume) in all {
            held.insert(volume, key);
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
