//! Kinds of storage.k8s.io, volumes and claims, resource.k8s.io.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

/// Conformance: CSIDriver, lifecycle
#[tokio::test]
async fn csi_drivers() {
    let spec = json!({"volumeLifecycleModes": ["Ephemeral", "Persistent"], "fsGroupPolicy": "ReadWriteOnceWithFSType"});
    Life::cluster(
        "storage.k8s.io/v1",
        "CSIDriver",
        "csidrivers",
        json!({"spec": spec}),
    )
    .live()
    .await;
}

/// Conformance: CSINode, lifecycle
#[tokio::test]
async fn csi_nodes() {
    Life::cluster(
        "storage.k8s.io/v1",
        "CSINode",
        "csinodes",
        json!({"spec": {"drivers": []}}),
    )
    .live()
    .await;
}

/// Conformance: CSIStorageCapacity API
#[tokio::test]
async fn csi_storage_capacities() {
    let object = json!({"storageClassName": "fast", "capacity": "1Gi"});
    Life::namespaced(
        "storage.k8s.io/v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        object,
    )
    .live()
    .await;
}

/// Conformance: StorageClass, lifecycle
#[tokio::test]
async fn storage_classes() {
    let object = json!({"provisioner": "e2e-fake-provisioner"});
    Life::cluster(
        "storage.k8s.io/v1",
        "StorageClass",
        "storageclasses",
        object,
    )
    .live()
    .await;
}

/// Conformance: VolumeAttributesClass, lifecycle
#[tokio::test]
async fn volume_attributes_classes() {
    let object = json!({"driverName": "e2e-fake-driver", "parameters": {"iops": "100"}});
    // Somebody has to see that nobody names it before it goes.
    let world = World::whole(&[]).await;
    let classes = Life::cluster(
        "storage.k8s.io/v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        object,
    );
    classes.live_in(&world).await;
}

fn attachment() -> Value {
    json!({"spec": {"attacher": "e2e-fake", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}})
}

/// Conformance: VolumeAttachment, lifecycle
#[tokio::test]
async fn volume_attachments() {
    Life::cluster(
        "storage.k8s.io/v1",
        "VolumeAttachment",
        "volumeattachments",
        attachment(),
    )
    .live()
    .await;
}

/// Conformance: VolumeAttachment, apply changes to a volumeattachment status
#[tokio::test]
async fn statuses_of_volume_attachments() {
    Life::cluster(
        "storage.k8s.io/v1",
        "VolumeAttachment",
        "volumeattachments",
        attachment(),
    )
    .status(json!({"attached": true, "attachmentMetadata": {"key": "value"}}))
    .live()
    .await;
}

fn volume() -> Value {
    json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/tmp/e2e"}}})
}

fn claim() -> Value {
    json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "none",
        "resources": {"requests": {"storage": "1Gi"}}}})
}

/// Conformance: PersistentVolumes(Claims), lifecycle
#[tokio::test]
async fn volumes_and_claims() {
    let world = World::whole(&[]).await;
    let volumes = Life::cluster("v1", "PersistentVolume", "persistentvolumes", volume());
    volumes.live_in(&world).await;
    let claims = Life::namespaced(
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        claim(),
    );
    claims.live_in(&world).await;
}

/// Conformance: PersistentVolumes(Claims), apply changes to a pv/pvc status
#[tokio::test]
async fn statuses_of_volumes_and_claims() {
    let world = World::whole(&[]).await;
    Life::cluster("v1", "PersistentVolume", "persistentvolumes", volume())
        .status(json!({"reason": "E2E", "message": "set by a test"}))
        .live_in(&world)
        .await;
    let condition = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "set by a test"});
    Life::namespaced(
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        claim(),
    )
    .status(json!({"conditions": [condition]}))
    .live_in(&world)
    .await;
}

/// Conformance: CSIInlineVolumes should support Pods with inline volumes
#[tokio::test]
async fn pods_with_inline_volumes() {
    let mut object = template(&json!({}));
    object["spec"]["volumes"] = json!([
        {"name": "v1", "csi": {"driver": "e2e.example.com"}},
        {"name": "v2", "csi": {"driver": "e2e.example.com", "fsType": "ext4", "readOnly": true}}]);
    object["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v1", "mountPath": "/mnt/vol1"}, {"name": "v2", "mountPath": "/mnt/vol2"}]);
    Life::namespaced("v1", "Pod", "pods", object).live().await;
}

const RESOURCE: &str = "resource.k8s.io/v1";

fn request() -> Value {
    json!({"devices": {"requests": [{"name": "req", "exactly": {"deviceClassName": "my-class"}}]}})
}

/// Conformance: CRUD operations for deviceclasses
#[tokio::test]
async fn device_classes() {
    let object = json!({"spec": {"selectors": [{"cel": {"expression": "device.driver == 'dra.example.com'"}}]}});
    Life::cluster(RESOURCE, "DeviceClass", "deviceclasses", object)
        .live()
        .await;
}

/// Conformance: CRUD operations for resourceclaims
#[tokio::test]
async fn resource_claims() {
    let result = json!({"driver": "dra.example.com", "pool": "p", "device": "d", "request": "req"});
    Life::namespaced(
        RESOURCE,
        "ResourceClaim",
        "resourceclaims",
        json!({"spec": request()}),
    )
    .status(json!({"allocation": {"devices": {"results": [result]}}}))
    .live()
    .await;
}

/// Conformance: CRUD operations for resourceclaimtemplates
#[tokio::test]
async fn resource_claim_templates() {
    let object = json!({"spec": {"spec": request()}});
    Life::namespaced(
        RESOURCE,
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        object,
    )
    .live()
    .await;
}

/// Conformance: CRUD operations for resoureslices
#[tokio::test]
async fn resource_slices() {
    let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
    let object = json!({"spec": {"driver": "dra.example.com", "nodeName": "n", "pool": pool,
        "devices": [{"name": "d"}]}});
    Life::cluster(RESOURCE, "ResourceSlice", "resourceslices", object)
        .live()
        .await;
}
