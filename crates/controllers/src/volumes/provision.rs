//! Volumes on demand: a folder of this machine each, below one root. They reach the node that the
//! claim's first pod was given, and go with their claim.

use std::path::{Path, PathBuf};

use client::{Error, write};
use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{Api, api::PostParams};
use serde_json::{Value, json};

use super::plan::{self, PROVISIONED_BY};
use crate::Context;

/// The name of the provisioner in storage classes.
pub const PROVISIONER: &str = "styr.dev/host-path";
/// On a claim: who is to make its volume.
const ASKED: &str = "volume.kubernetes.io/storage-provisioner";
const CLASS: &str = "standard";

/// Makes the default class, if volumes can be made here and it is not there.
pub async fn ensure_class(context: &Context) {
    if context.config.volumes.is_none() {
        return;
    }
    let class = json!({
        "metadata": {"name": CLASS, "annotations": {super::DEFAULT_CLASS: "true"}},
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    let Ok(class) = serde_json::from_value::<StorageClass>(class) else {
        return;
    };
    let api: Api<StorageClass> = write::cluster(&context.client);
    if let Err(error) = write::tolerate_existing(api.create(&PostParams::default(), &class).await) {
        tracing::warn!(%error, "the default storage class could not be made");
    }
}

/// Notes on the claim which external provisioner has to act.
pub async fn ask_external(
    context: &Context,
    claim: &PersistentVolumeClaim,
    provisioner: &str,
) -> Result<(), Error> {
    if plan::has(&claim.metadata, ASKED) {
        return Ok(());
    }
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = write::namespaced(&context.client, namespace);
    let patch = json!({"metadata": {"annotations": {
        ASKED: provisioner,
        "volume.beta.kubernetes.io/storage-provisioner": provisioner,
    }}});
    write::patch(&api, name, &patch).await?;
    Ok(())
}

/// Makes a folder and the volume that stands for it, reserved for the claim.
pub async fn make(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&plan::Node>,
) -> Result<PersistentVolume, Error> {
    let folders = context.config.volumes.as_ref();
    let folders =
        folders.ok_or_else(|| Error::Other("no folder for volumes is configured".into()))?;
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let path = folders.root().join(&name);
    folders.make(path.clone()).await.map_err(told)?;
    let volume = describe(&name, &path, claim, class, node);
    let volume: PersistentVolume =
        serde_json::from_value(volume).map_err(|e| Error::Other(e.to_string()))?;
    let api: Api<PersistentVolume> = write::cluster(&context.client);
    match write::tolerate_existing(api.create(&PostParams::default(), &volume).await)? {
        Some(made) => Ok(made),
        None => Ok(api.get(&name).await?),
    }
}

fn told(error: std::io::Error) -> Error {
    Error::Other(error.to_string())
}

fn describe(
    name: &str,
    path: &Path,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&plan::Node>,
) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = spec.resources.and_then(|r| r.requests).unwrap_or_default();
    let mut volume = json!({
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": requests.get("storage")},
            "accessModes": spec.access_modes,
            "volumeMode": "Filesystem",
            "storageClassName": class.metadata.name,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "mountOptions": class.mount_options,
            "hostPath": {"path": path, "type": "DirectoryOrCreate"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": claim.metadata.uid,
            },
        },
    });
    if let Some(node) = node {
        let host = node
            .labels
            .get("kubernetes.io/hostname")
            .unwrap_or(&node.name);
        let here = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [host]});
        volume["spec"]["nodeAffinity"] =
            json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}});
    }
    volume
}

/// Whether a volume was made here.
pub fn is_made_here(volume: &PersistentVolume) -> bool {
    let annotations = volume.metadata.annotations.as_ref();
    let by = annotations.and_then(|a| a.get(PROVISIONED_BY));
    by.is_some_and(|by| by == PROVISIONER)
}

/// Deletes the folder of a volume made here; `false`: it was not made here.
pub async fn remove_data(context: &Context, volume: &PersistentVolume) -> Result<bool, Error> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let path = volume
        .spec
        .as_ref()
        .and_then(|s| s.host_path.as_ref())
        .map(|h| PathBuf::from(&h.path));
    let (Some(folders), true, Some(path)) = (&context.config.volumes, is_made_here(volume), path)
    else {
        return Ok(false);
    };
    // Whoever may write volumes must not be able to have other folders deleted.
    if path != folders.root().join(&name) || !name.starts_with("pvc-") || name.contains('/') {
        return Err(Error::Other(format!(
            "{} is not a folder of this provisioner",
            path.display()
        )));
    }
    folders.remove(path).await.map_err(told)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_reserved_for_its_claim_and_stays_on_its_node() {
        let claim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap();
        let class = serde_json::from_value(
            json!({"metadata": {"name": "standard"}, "provisioner": PROVISIONER}),
        )
        .unwrap();
        let node = plan::Node {
            name: "m".into(),
            labels: Default::default(),
        };
        let made = describe("pvc-u", Path::new("/v/pvc-u"), &claim, &class, Some(&node));
        assert_eq!(made["spec"]["claimRef"]["uid"], "u");
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
        let volume: PersistentVolume = serde_json::from_value(made).unwrap();
        assert!(volume.spec.unwrap().node_affinity.is_some());
    }
}
