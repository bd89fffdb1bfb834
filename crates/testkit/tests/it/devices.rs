//! Claims of devices.

use serde_json::{Value, json};

use crate::apps::rig::{Rig, is_empty, name, text};

const CLAIMS: &str = "resource.k8s.io/v1/resourceclaims";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_come_of_templates_and_go_with_their_pod() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}],
            "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpus"}]}});
    rig.create("v1/pods", pod).await?;
    rig.until_all(
        "v1/events",
        "",
        "to tell that there is no template",
        |all| {
            all.iter()
                .any(|e| e["reason"] == "FailedResourceClaimCreation")
        },
    )
    .await?;
    let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "gpus"}, "spec": {"spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}}]}}}});
    rig.create("resource.k8s.io/v1/resourceclaimtemplates", template)
        .await?;
    let pod = rig
        .until("v1/pods", "p", "to name its claim", |p| {
            p["status"]["resourceClaimStatuses"][0]["resourceClaimName"].is_string()
        })
        .await?;
    let claim = text(&pod, "/status/resourceClaimStatuses/0/resourceClaimName").to_owned();
    let made = rig.get(CLAIMS, &claim).await?;
    assert!(claim.starts_with("p-gpu-"));
    assert_eq!(
        text(&made, "/metadata/ownerReferences/0/uid"),
        text(&pod, "/metadata/uid")
    );
    assert_eq!(rig.list(CLAIMS, "").await?.len(), 1);

    // A claim of one's own is let go when the pod that used it is gone.
    let own = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "own"}, "spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}}]}}});
    rig.create(CLAIMS, own).await?;
    let gone = json!([{"resource": "pods", "name": "gone", "uid": "0000"}]);
    let patch = json!({"status": {"reservedFor": gone, "allocation": {"devices": {}}}});
    rig.merge(CLAIMS, "own/status", patch).await?;
    rig.until(CLAIMS, "own", "to be free", |c| {
        is_empty(&c["status"]["reservedFor"]) && c["status"]["allocation"].is_null()
    })
    .await?;
    rig.delete("v1/pods", "p", json!({"gracePeriodSeconds": 0}))
        .await?;
    rig.until_all(CLAIMS, "", "to be only the other", |all| {
        all.len() == 1 && name(&all[0]) == "own"
    })
    .await?;
    rig.delete(CLAIMS, "own", Value::Null).await?;
    rig.until_gone(CLAIMS, "own").await
}
