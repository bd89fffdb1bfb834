//! What is written of claims: the devices they get, the pods they are held for.

use std::sync::Arc;

use client::{Client, Error, EventType, Key, Recorder, is_conflict, write};
use k8s_openapi::{
    api::resource::v1::{
        AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim,
        ResourceClaimConsumerReference,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{DynamicResources, Reserved, is_allocated, is_reserved_for, locked};
use crate::{devices::claims, pod::PodInfo};

/// What keeps an allocated claim from vanishing.
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// Tries to write a claim that others write too.
const TRIES: usize = 5;

/// Whether nobody, or only this pod, holds the claim.
pub(super) fn is_idle(claim: &ResourceClaim, pod: &str) -> bool {
    let status = claim.status.as_ref();
    let holders = status.and_then(|s| s.reserved_for.as_deref());
    match holders.unwrap_or_default() {
        [] => true,
        [only] => only.uid == pod,
        _ => false,
    }
}

/// Takes the devices of a claim that nobody uses.
pub(super) async fn deallocate(client: &Client, claim: &ResourceClaim) -> kube::Result<()> {
    let key = Key::of(claim);
    let api = write::namespaced::<ResourceClaim>(client, &key.namespace);
    let meta = &claim.metadata;
    let body = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": {"allocation": null, "reservedFor": null, "devices": null},
    });
    write::patch_status(&api, &key.name, &body).await.map(drop)
}

/// Whether the devices of a claim are ready for a pod to be bound.
///
/// # Errors
/// What went wrong with one of them.
pub(super) fn is_prepared(claim: &ResourceClaim) -> Result<bool, String> {
    let status = claim.status.as_ref();
    let results = claims::allocation(claim).and_then(|a| a.devices.as_ref());
    let results = results.and_then(|d| d.results.as_ref());
    let said = status
        .and_then(|s| s.devices.as_deref())
        .unwrap_or_default();
    for result in results.into_iter().flatten() {
        let wanted = result.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let Some(device) = said.iter().find(|d| is_about(d, result)) else {
            return Ok(false);
        };
        let holds = |name: &String| {
            let conditions = device.conditions.iter().flatten();
            conditions
                .into_iter()
                .find(|c| c.type_ == *name && c.status == "True")
        };
        let mut failures = result.binding_failure_conditions.iter().flatten();
        if let Some(Condition {
            reason, message, ..
        }) = failures.find_map(holds)
        {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            return Err(format!(
                "claim {name} binding failed: reason={reason}, message={message:?}"
            ));
        }
        if !wanted.iter().all(|name| holds(name).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_about(device: &AllocatedDeviceStatus, result: &DeviceRequestAllocationResult) -> bool {
    device.driver == result.driver
        && device.pool == result.pool
        && device.device == result.device
        && device.share_id == result.share_id
}

fn has_conditions(claim: &ResourceClaim) -> bool {
    let devices = claims::allocation(claim).and_then(|a| a.devices.as_ref());
    let mut results = devices.iter().flat_map(|d| d.results.iter().flatten());
    results.any(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

impl DynamicResources {
    fn api(&self, key: &Key) -> Api<ResourceClaim> {
        write::namespaced(&self.client, &key.namespace)
    }

    /// Writes what was decided about the claims of a pod, and waits until their devices are ready.
    pub(super) async fn bind_claims(&self, pod: &PodInfo, node: &str) -> Result<(), Error> {
        let held = locked(&self.reserved).get(pod.uid()).cloned();
        let mut wait = Vec::new();
        for (i, mut one) in held.into_iter().flatten().enumerate() {
            if let Some(special) = &one.special {
                one.claim = self.create(special).await?;
                one.key = Key::of(&*one.claim);
                if let Some(held) = locked(&self.reserved).get_mut(pod.uid()) {
                    held[i].claim = Arc::clone(&one.claim);
                }
            }
            let mut claim = Arc::clone(&one.claim);
            if !is_reserved_for(&claim, pod.uid()) {
                claim = self.bind_claim(pod, &one).await?;
                // Should binding fail, this is what has to be undone.
                if let Some(held) = locked(&self.reserved).get_mut(pod.uid()) {
                    held[i].claim = Arc::clone(&claim);
                }
            }
            if let Some(special) = &one.special {
                self.devices.claims.settle(claims::uid(&special.claim));
                self.tell_pod(pod, special, &claim).await?;
            }
            if has_conditions(&claim) {
                wait.push(one.key);
            }
        }
        if !wait.is_empty() {
            self.wait_until_prepared(pod, node, &wait).await?;
        }
        locked(&self.reserved).remove(pod.uid());
        Ok(())
    }

    /// Gives a claim to the pod, with its devices if it has none yet.
    async fn bind_claim(
        &self,
        pod: &PodInfo,
        held: &Reserved,
    ) -> Result<Arc<ResourceClaim>, Error> {
        let mut claim = Arc::clone(&held.claim);
        for _ in 1..TRIES {
            match self.write_claim(pod, held, &claim).await {
                Err(Error::Api(e)) if is_conflict(&e) => {
                    claim = Arc::new(self.api(&held.key).get(&held.key.name).await?);
                }
                other => return other,
            }
        }
        self.write_claim(pod, held, &claim).await
    }

    async fn write_claim(
        &self,
        pod: &PodInfo,
        held: &Reserved,
        claim: &ResourceClaim,
    ) -> Result<Arc<ResourceClaim>, Error> {
        let key = &held.key;
        let fail = |what: &str| Error::Other(format!("claim {key} {what}"));
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(fail("got deleted in the meantime"));
        }
        let mut version = claim.metadata.resource_version.clone();
        let mut allocation = claims::allocation(claim).cloned();
        if let Some(new) = &held.allocation {
            if is_allocated(claim) {
                return Err(fail("got allocated elsewhere in the meantime"));
            }
            version = self.protect(key, claim).await?;
            allocation = Some(new.clone());
        }
        if let Some(allocation) = &mut allocation {
            let now = || k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.clock.now());
            allocation.allocation_timestamp.get_or_insert_with(now);
        }
        let status = claim.status.clone().unwrap_or_default();
        let mut holders = status.reserved_for.unwrap_or_default();
        holders.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.key.name.to_string(),
            uid: pod.uid().to_string(),
        });
        let body = json!({
            "metadata": {"uid": claim.metadata.uid, "resourceVersion": version},
            "status": {"allocation": allocation, "reservedFor": holders},
        });
        let params = PatchParams::default();
        let body = Patch::Merge(&body);
        let written = Arc::new(
            self.api(key)
                .patch_status(&key.name, &params, &body)
                .await?,
        );
        self.devices.claims.set(key, Arc::clone(&written));
        self.devices.claims.settle(claims::uid(&written));
        Ok(written)
    }

    /// The claim cannot vanish while it is allocated; answers its version.
    async fn protect(&self, key: &Key, claim: &ResourceClaim) -> Result<Option<String>, Error> {
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        let version = &claim.metadata.resource_version;
        if finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(version.clone());
        }
        finalizers.push(FINALIZER.to_owned());
        let body = json!({"metadata": {"uid": claim.metadata.uid, "resourceVersion": version,
            "finalizers": finalizers}});
        let params = PatchParams::default();
        let body = Patch::Merge(&body);
        let written = self.api(key).patch(&key.name, &params, &body).await?;
        Ok(written.metadata.resource_version)
    }

    /// Waits until drivers say that the devices are ready.
    async fn wait_until_prepared(
        &self,
        pod: &PodInfo,
        node: &str,
        keys: &[Key],
    ) -> Result<(), Error> {
        let state = || {
            let mut all = true;
            for key in keys {
                match self.devices.claims.get(key) {
                    Some(claim) => all &= is_prepared(&claim)?,
                    None => return Err(format!("resourceclaim {key} is gone")),
                }
            }
            Ok(all)
        };
        if state() == Ok(true) {
            return Ok(());
        }
        let clock = self.clock.clone();
        Recorder::new(self.client.clone(), &pod.scheduler, "", clock).event(
            &pod.reference,
            EventType::Normal,
            "BindingConditionsPending",
            format!("waiting for binding conditions for device on node {node}"),
        );
        let settled = self.watched.wait_for(|_| state() != Ok(false));
        let waited = tokio::time::timeout(self.limits.binding, settled).await;
        waited.map_err(|_| Error::Other("device binding timeout".to_owned()))?;
        state().map(drop).map_err(Error::Other)
    }

    /// The pod does not get its node: a claim that was held for it is so no more.
    pub(super) fn let_go_later(&self, pod: &PodInfo, held: Reserved) {
        let uid = Arc::clone(pod.uid());
        if !is_reserved_for(&held.claim, &uid) {
            return;
        }
        let api = self.api(&held.key);
        let body: Value = json!({
            "metadata": {"uid": held.claim.metadata.uid},
            "status": {"reservedFor": [{"$patch": "delete", "uid": &*uid}]},
        });
        self.tasks.spawn(async move {
            let params = PatchParams::default();
            let body = Patch::Strategic(body);
            let written = api.patch_status(&held.key.name, &params, &body).await;
            if let Err(error) = write::tolerate_missing(written) {
                tracing::warn!(claim = %held.key, %error, "still held for a pod without a node");
            }
        });
    }
}
