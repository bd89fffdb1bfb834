//! What becomes of a volume: whether it is free, bound, let go of by its claim, or deleted with it.
//!
//! Data is at stake, so a claim that the cache does not show is asked for before its volume goes.

use client::{Error, Key, Requeue, write};
use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Api;
use serde_json::{Value, json};

use super::{
    Binder, claim_key,
    plan::{BOUND_BY_CONTROLLER, PROVISIONED_BY, has, mode, volume_ref},
    provision,
};

/// The reason of events about volumes that cannot be deleted.
const FAILED: &str = "VolumeFailedDelete";

/// What is to be done about a volume.
#[derive(Debug, PartialEq, Eq)]
enum VolumeAct {
    /// Report this phase, if it is another one.
    Phase(&'static str),
    /// Its claim is gone: report that, and do with it as its policy says.
    Release(Reclaim),
    /// Its claim has to be looked at first.
    AskClaim,
    /// It and its claim, which is bound to nothing yet, are of different modes.
    Mismatch,
    /// Its claim is bound elsewhere: it is free again, unless a user has reserved it.
    Unbind,
}

/// What becomes of a volume without its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reclaim {
    /// It stays as it is.
    Retain,
    /// Its data and itself are deleted.
    Delete,
    /// It is emptied for the next claim.
    Recycle,
}

/// Decides about a volume, given the claim of the name it refers to.
fn decide(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeAct {
    let Some(reference) = volume_ref(volume) else {
        return VolumeAct::Phase("Available");
    };
    if reference.uid.as_deref().unwrap_or_default().is_empty() {
        return match claim {
            Some(_) => VolumeAct::AskClaim,
            None => VolumeAct::Phase("Available"),
        };
    }
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let reclaim = match policy {
        Some("Delete") => Reclaim::Delete,
        Some("Recycle") => Reclaim::Recycle,
        _ => Reclaim::Retain,
    };
    let Some(claim) = claim.filter(|c| c.metadata.uid == reference.uid) else {
        return VolumeAct::Release(reclaim);
    };
    let wanted = claim.spec.as_ref();
    let named = wanted.and_then(|s| s.volume_name.as_deref());
    match named.unwrap_or_default() {
        "" => {
            let offered = spec.and_then(|s| s.volume_mode.as_ref());
            let asked = wanted.and_then(|s| s.volume_mode.as_ref());
            match mode(offered) == mode(asked) {
                true => VolumeAct::AskClaim,
                false => VolumeAct::Mismatch,
            }
        }
        name if Some(name) == volume.metadata.name.as_deref() => VolumeAct::Phase("Bound"),
        // It was made for this claim, and for no other.
        _ if reclaim == Reclaim::Delete && has(&volume.metadata, PROVISIONED_BY) => {
            VolumeAct::Release(reclaim)
        }
        _ => VolumeAct::Unbind,
    }
}

/// What makes a volume free whose claim is bound elsewhere: one that a user has reserved stays so.
pub(super) fn unbound(volume: &PersistentVolume) -> Value {
    let version = &volume.metadata.resource_version;
    if has(&volume.metadata, BOUND_BY_CONTROLLER) {
        let annotations = json!({BOUND_BY_CONTROLLER: null});
        json!({
            "metadata": {"resourceVersion": version, "annotations": annotations},
            "spec": {"claimRef": null},
        })
    } else {
        json!({
            "metadata": {"resourceVersion": version},
            "spec": {"claimRef": {"uid": null}},
        })
    }
}

/// Why nobody deletes a volume that is to go with its claim; `None`: somebody else will.
fn undeletable(volume: &PersistentVolume) -> Option<String> {
    let annotations = volume.metadata.annotations.as_ref();
    let by = annotations.and_then(|a| a.get(PROVISIONED_BY));
    if by.is_some_and(|by| !by.is_empty()) {
        return None;
    }
    let folder = volume.spec.as_ref().and_then(|s| s.host_path.as_ref());
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if folder.is_some_and(|f| f.path.starts_with("/tmp/")) {
        return None;
    }
    Some(match folder {
        Some(folder) => format!(
            "host_path deleter only supports /tmp/.+ but received provided {}",
            folder.path
        ),
        None => format!(
            "error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched"
        ),
    })
}

impl Binder {
    /// Looks at a volume.
    pub(super) async fn volume(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(volume) = self.volumes.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let claim_key = volume_ref(&volume).map(claim_key);
        let claim = match &claim_key {
            Some(claim) => self.claims.get(claim)?,
            None => None,
        };
        let mut act = decide(&volume, claim.as_ref());
        if matches!(act, VolumeAct::Release(_)) && !is_released(&volume) {
            // Data is at stake, and the cache may not show a claim yet that was made just now.
            let claim = self.claim_by_now(claim_key.as_ref()).await?;
            act = decide(&volume, claim.as_ref());
        }
        match act {
            VolumeAct::Phase(phase) => self.volume_phase(key, &volume, phase).await?,
            VolumeAct::Mismatch => self.tell_mismatch(&volume, claim.as_ref()),
            VolumeAct::Unbind => {
                let api: Api<PersistentVolume> = write::cluster(&self.context.client);
                write::patch(&api, &key.name, &unbound(&volume)).await?;
                self.volume_phase(key, &volume, "Available").await?;
            }
            VolumeAct::AskClaim => {
                if let Some(claim) = claim_key {
                    Box::pin(self.claim(&claim)).await?;
                }
            }
            VolumeAct::Release(reclaim) => {
                self.volume_phase(key, &volume, "Released").await?;
                match reclaim {
                    Reclaim::Retain => {}
                    Reclaim::Delete => self.delete(key, &volume).await?,
                    Reclaim::Recycle => return self.recycle(key, &volume).await,
                }
            }
        }
        Ok(Requeue::OnChange)
    }

    async fn claim_by_now(
        &self,
        key: Option<&Key>,
    ) -> Result<Option<PersistentVolumeClaim>, Error> {
        let Some(key) = key else { return Ok(None) };
        let api = write::namespaced(&self.context.client, &key.namespace);
        Ok(write::tolerate_missing(api.get(&key.name).await)?)
    }

    fn tell_mismatch(&self, volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) {
        let Some(claim) = claim else { return };
        let name = |meta: &ObjectMeta| meta.name.clone().unwrap_or_default();
        let (offered, asked) = (name(&volume.metadata), name(&claim.metadata));
        let of_volume = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{asked}\" due to incompatible volumeMode."
        );
        let of_claim = format!(
            "Cannot bind PersistentVolume \"{offered}\" to requested PersistentVolumeClaim due to incompatible volumeMode."
        );
        self.recorder.warning(volume, "VolumeMismatch", of_volume);
        self.recorder.warning(claim, "VolumeMismatch", of_claim);
    }

    pub(super) async fn volume_phase(
        &self,
        key: &Key,
        volume: &PersistentVolume,
        phase: &str,
    ) -> Result<(), Error> {
        let current = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if current == Some(phase) || phase == "Released" && current == Some("Failed") {
            return Ok(());
        }
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        let patch = json!({"status": {"phase": phase}});
        let written = write::patch_status(&api, &key.name, &patch).await?;
        self.volumes
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await
    }

    async fn delete(&self, key: &Key, volume: &PersistentVolume) -> Result<(), Error> {
        match provision::remove_data(&self.context, volume).await {
            Ok(true) => {}
            Ok(false) => {
                if let Some(why) = undeletable(volume) {
                    self.fail(key, volume, FAILED, &why).await?;
                }
                return Ok(());
            }
            Err(error) => {
                self.fail(key, volume, FAILED, &error.to_string()).await?;
                return Err(error);
            }
        }
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        write::delete(&api, &key.name, volume.metadata.uid.as_deref()).await?;
        Ok(())
    }

    /// Says once why a volume cannot be deleted or emptied.
    pub(super) async fn fail(
        &self,
        key: &Key,
        volume: &PersistentVolume,
        reason: &str,
        why: &str,
    ) -> Result<(), Error> {
        let status = volume.status.as_ref();
        let told = status.and_then(|s| Some((s.phase.as_deref()?, s.message.as_deref()?)));
        if told == Some(("Failed", why)) {
            return Ok(());
        }
        let api: Api<PersistentVolume> = write::cluster(&self.context.client);
        let patch = json!({"status": {"phase": "Failed", "message": why}});
        let written = write::patch_status(&api, &key.name, &patch).await?;
        self.recorder.warning(volume, reason, why);
        let revision = written.as_ref().map_or(0, write::revision_of);
        self.volumes.caught_up(revision).await
    }
}

/// Whether a volume is known to have lost its claim.
fn is_released(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Released" | "Failed"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use client::Scope;

    use super::*;
    use crate::testing::{list, pv, pvc, stand_in};
    use crate::{Context, volumes::users::Users};

    #[test]
    fn volumes_follow_their_claims() {
        let claim = pvc(json!({"volumeName": "v"}));
        let bound = |policy: &str| {
            pv(
                "v",
                "5Gi",
                json!({"persistentVolumeReclaimPolicy": policy,
                "claimRef": {"namespace": "n", "name": "c", "uid": "u"}}),
            )
        };
        assert_eq!(
            decide(&pv("v", "1Gi", json!({})), None),
            VolumeAct::Phase("Available")
        );
        assert_eq!(
            decide(&bound("Retain"), Some(&claim)),
            VolumeAct::Phase("Bound")
        );
        assert_eq!(
            decide(&bound("Retain"), None),
            VolumeAct::Release(Reclaim::Retain)
        );
        assert_eq!(
            decide(&bound("Delete"), None),
            VolumeAct::Release(Reclaim::Delete)
        );
        assert_eq!(
            decide(&bound("Recycle"), None),
            VolumeAct::Release(Reclaim::Recycle)
        );
        assert_eq!(
            decide(&bound("Retain"), Some(&pvc(json!({})))),
            VolumeAct::AskClaim
        );
        assert_eq!(
            decide(&bound("Retain"), Some(&pvc(json!({"volumeMode": "Block"})))),
            VolumeAct::Mismatch
        );
        let elsewhere = pvc(json!({"volumeName": "w"}));
        let act = decide(&bound("Delete"), Some(&elsewhere));
        assert_eq!(act, VolumeAct::Unbind);
        let mut made = bound("Delete");
        made.metadata.annotations = Some([(PROVISIONED_BY.to_owned(), "p".to_owned())].into());
        let act = decide(&made, Some(&elsewhere));
        assert_eq!(act, VolumeAct::Release(Reclaim::Delete));
        let reserved = unbound(&bound("Retain"));
        assert_eq!(reserved["spec"]["claimRef"], json!({"uid": null}));
        let mut ours = bound("Retain");
        ours.metadata.annotations =
            Some([(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned())].into());
        let free = unbound(&ours);
        assert_eq!(free["spec"]["claimRef"], Value::Null);
        assert_eq!(
            free["metadata"]["annotations"][BOUND_BY_CONTROLLER],
            Value::Null
        );
    }

    #[test]
    fn a_volume_that_nobody_can_delete_says_why() {
        let of = |source: Value| undeletable(&pv("v", "5Gi", source));
        assert_eq!(
            of(json!({"hostPath": {"path": "/data"}})).as_deref(),
            Some("host_path deleter only supports /tmp/.+ but received provided /data")
        );
        assert_eq!(
            of(json!({"csi": {"driver": "d", "volumeHandle": "h"}})).as_deref(),
            Some(
                "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched"
            )
        );
        let mut made = pv("v", "5Gi", json!({}));
        made.metadata.annotations = Some([(PROVISIONED_BY.to_owned(), "p".to_owned())].into());
        assert_eq!(undeletable(&made), None);
    }

    /// Else what a provisioner has made just now would be deleted for want of its claim.
    #[tokio::test]
    async fn a_volume_stays_with_a_claim_that_the_cache_does_not_know_yet() {
        let (client, writes) = stand_in(|path, _| match path {
            "/api/v1/persistentvolumes" => Some(list(json!([{
                "metadata": {"name": "v", "uid": "v", "resourceVersion": "5"},
                "spec": {"persistentVolumeReclaimPolicy": "Delete",
                    "claimRef": {"namespace": "n", "name": "c", "uid": "c"}},
                "status": {"phase": "Bound"}}]))),
            path if path.ends_with("/persistentvolumeclaims/c") => Some(json!({
                "metadata": {"name": "c", "namespace": "n", "uid": "c"}, "spec": {"volumeName": "v"}})),
            _ => None,
        });
        let context = Context::new(client, Default::default(), Default::default());
        let caches = &context.caches;
        let binder = Binder {
            recorder: context.recorder(),
            claims: caches.get(Scope::all()),
            volumes: caches.get(Scope::all()),
            classes: caches.get(Scope::all()),
            nodes: caches.get(Scope::all()),
            users: Users::follow(caches.get(Scope::all()), |_| ()),
            context: context.clone(),
        };
        binder.claims.synced().await;
        binder.volumes.synced().await;
        binder.volume(&Key::cluster("v")).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 0);
    }
}
