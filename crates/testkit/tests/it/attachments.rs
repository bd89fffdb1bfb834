//! Volumes of drivers are attached to nodes and detached from them; the test stands in for the
//! driver's attacher and for what nodes say they have mounted.

use serde_json::{Value, json};

use crate::apps::rig::{Rig, name, text};

const ATTACHMENTS: &str = "storage.k8s.io/v1/volumeattachments";
const DEVICE: &str = "kubernetes.io/csi/csi.example.com^handle";

/// Nodes whose volumes are attached for them, and a claim `data` bound to a volume of a driver.
async fn rig(nodes: &[&str]) -> anyhow::Result<Rig> {
    let rig = Rig::start(nodes).await?;
    let managed = json!({"metadata": {"annotations":
        {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}}});
    for node in nodes {
        rig.merge("v1/nodes", node, managed.clone()).await?;
    }
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
            "csi": {"driver": "csi.example.com", "volumeHandle": "handle"}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
            "resources": {"requests": {"storage": "1Gi"}}}});
    rig.create("v1/persistentvolumes", volume).await?;
    rig.create("v1/persistentvolumeclaims", claim).await?;
    let bound = |c: &Value| c["status"]["phase"] == "Bound";
    rig.until("v1/persistentvolumeclaims", "data", "to be bound", bound)
        .await?;
    Ok(rig)
}

async fn pod(rig: &Rig, name: &str, node: &str) -> anyhow::Result<()> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "nodeSelector": {"kubernetes.io/hostname": node},
            "containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    rig.create("v1/pods", pod).await.map(drop)
}

/// The attachment to a node, once it is there.
async fn attachment(rig: &Rig, node: &str) -> anyhow::Result<Value> {
    let to = |a: &Value| a["spec"]["nodeName"] == node;
    let all = rig
        .until_all(ATTACHMENTS, "", "to have the one that is wanted", |all| {
            all.iter().any(to)
        })
        .await?;
    Ok(all.into_iter().find(to).unwrap_or_default())
}

/// The driver says how it went.
async fn answer(rig: &Rig, attachment: &Value, status: Value) -> anyhow::Result<()> {
    let name = format!("{}/status", name(attachment));
    rig.merge(ATTACHMENTS, &name, json!({"status": status}))
        .await?;
    Ok(())
}

async fn told(rig: &Rig, reason: &str, message: &str) -> anyhow::Result<()> {
    let what = format!("to tell: {message}");
    rig.until_all("v1/events", "", &what, |all| {
        let same = |e: &Value| e["reason"] == reason && text(e, "/message").trim() == message;
        all.iter().any(same)
    })
    .await
    .map(drop)
}

async fn in_use(rig: &Rig, node: &str, devices: Value) -> anyhow::Result<()> {
    let node = format!("{node}/status");
    let status = json!({"status": {"volumesInUse": devices}});
    rig.merge("v1/nodes", &node, status).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_attached_while_a_pod_needs_it() -> anyhow::Result<()> {
    let rig = rig(&["n1"]).await?;
    pod(&rig, "a", "n1").await?;
    let made = attachment(&rig, "n1").await?;
    assert_eq!(text(&made, "/spec/attacher"), "csi.example.com");
    assert_eq!(text(&made, "/spec/source/persistentVolumeName"), "v");
    answer(
        &rig,
        &made,
        json!({"attached": false, "attachError": {"message": "no disk left"}}),
    )
    .await?;
    let failed = "AttachVolume.Attach failed for volume \"v\" : no disk left";
    told(&rig, "FailedAttachVolume", failed).await?;
    answer(&rig, &made, json!({"attached": true, "attachError": null})).await?;
    let reported = |n: &Value| n["status"]["volumesAttached"][0]["name"] == DEVICE;
    rig.until("v1/nodes", "n1", "to be told", reported).await?;
    let done = "AttachVolume.Attach succeeded for volume \"v\"";
    told(&rig, "SuccessfulAttachVolume", done).await?;

    in_use(&rig, "n1", json!([DEVICE])).await?;
    rig.delete("v1/pods", "a", Value::Null).await?;
    rig.until_gone("v1/pods", "a").await?;
    let kept = rig.get(ATTACHMENTS, name(&made)).await?;
    assert!(
        kept["metadata"]["deletionTimestamp"].is_null(),
        "it is still mounted"
    );
    in_use(&rig, "n1", json!([])).await?;
    rig.until_gone(ATTACHMENTS, name(&made)).await?;
    let node = rig.get("v1/nodes", "n1").await?;
    assert!(!reported(&node), "{node}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_for_one_node_is_not_attached_to_two() -> anyhow::Result<()> {
    let rig = rig(&["n1", "n2"]).await?;
    pod(&rig, "a", "n1").await?;
    let first = attachment(&rig, "n1").await?;
    answer(&rig, &first, json!({"attached": true})).await?;
    pod(&rig, "b", "n2").await?;
    let why = "Multi-Attach error for volume \"v\" Volume is already used by pod(s) a";
    told(&rig, "FailedAttachVolume", why).await?;
    rig.delete("v1/pods", "a", Value::Null).await?;
    let second = attachment(&rig, "n2").await?;
    assert_ne!(name(&first), name(&second));
    rig.until_gone(ATTACHMENTS, name(&first)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_out_of_service_loses_its_volumes_mounted_or_not() -> anyhow::Result<()> {
    let rig = rig(&["n1"]).await?;
    pod(&rig, "a", "n1").await?;
    let made = attachment(&rig, "n1").await?;
    answer(&rig, &made, json!({"attached": true})).await?;
    in_use(&rig, "n1", json!([DEVICE])).await?;
    rig.delete("v1/pods", "a", json!({"gracePeriodSeconds": 0}))
        .await?;
    let down = json!({"spec": {"taints": [
        {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]}});
    rig.merge("v1/nodes", "n1", down).await?;
    rig.until_gone(ATTACHMENTS, name(&made)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_of_others_are_left_alone() -> anyhow::Result<()> {
    let rig = rig(&["n1"]).await?;
    let theirs = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": "theirs"}, "spec": {"attacher": "csi.example.com", "nodeName": "n1",
            "source": {"persistentVolumeName": "other"}}});
    rig.create(ATTACHMENTS, theirs).await?;
    pod(&rig, "a", "n1").await?;
    let made = |all: &[Value]| all.len() == 2;
    let all = rig.until_all(ATTACHMENTS, "", "to be two", made).await?;
    assert!(all.iter().any(|a| name(a) == "theirs"));
    Ok(())
}
