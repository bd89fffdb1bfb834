//! Devices by claim: who gets which, and when they are free again.

use serde_json::{Value, json};

use crate::apps::rig::{Rig, is_empty, text};

const CLAIMS: &str = "resource.k8s.io/v1/resourceclaims";
const SLICES: &str = "resource.k8s.io/v1/resourceslices";

/// A cluster of these nodes with the class `gpu`.
async fn rig(nodes: &[&str]) -> anyhow::Result<Rig> {
    let rig = Rig::start(nodes).await?;
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression":
            "device.driver == 'gpu.example.com' && device.attributes['gpu.example.com'].kind == 'gpu'"}}]}});
    rig.create("resource.k8s.io/v1/deviceclasses", class)
        .await?;
    Ok(rig)
}

/// Publishes devices of a node.
async fn publish(rig: &Rig, node: &str, devices: &[&str]) -> anyhow::Result<()> {
    let devices = devices
        .iter()
        .map(|name| json!({"name": name, "attributes": {"kind": {"string": "gpu"}}}));
    slice(rig, node, devices.collect()).await
}

async fn slice(rig: &Rig, node: &str, devices: Vec<Value>) -> anyhow::Result<()> {
    let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"name": format!("{node}-gpus")},
        "spec": {"driver": "gpu.example.com", "nodeName": node, "devices": devices,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}}});
    rig.create(SLICES, slice).await.map(drop)
}

async fn claim(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": name}, "spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}}]}}});
    rig.create(CLAIMS, claim).await.map(drop)
}

async fn pod(rig: &Rig, name: &str, claim: Value, extra: Value) -> anyhow::Result<()> {
    let mut source = json!({"name": "gpu"});
    for (key, value) in claim.as_object().into_iter().flatten() {
        source[key] = value.clone();
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "resourceClaims": [source], "containers": [
            {"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}]}});
    for (key, value) in extra.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    rig.create("v1/pods", pod).await.map(drop)
}

async fn runs_on(rig: &Rig, pod: &str) -> anyhow::Result<String> {
    let bound = |p: &Value| p["spec"]["nodeName"].is_string();
    let pod = rig.until("v1/pods", pod, "to have a node", bound).await?;
    Ok(text(&pod, "/spec/nodeName").to_owned())
}

/// Waits until a pod is refused for this reason: nodes that have just come are not ready at first.
async fn refused(rig: &Rig, pod: &str, why: &str) -> anyhow::Result<()> {
    let said = |p: &Value| {
        let all = p["status"]["conditions"].as_array().into_iter().flatten();
        let mut all = all.filter(|c| c["reason"] == "Unschedulable");
        all.any(|c| text(c, "/message").starts_with(why))
    };
    let what = format!("to be refused: {why}");
    rig.until("v1/pods", pod, &what, said).await.map(drop)
}

fn devices(claim: &Value) -> Vec<String> {
    let results = claim.pointer("/status/allocation/devices/results");
    let results = results.and_then(Value::as_array).into_iter().flatten();
    results
        .map(|r| format!("{}/{}", text(r, "/pool"), text(r, "/device")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_go_to_pods_and_come_back_with_them() -> anyhow::Result<()> {
    let rig = rig(&["n1", "n2"]).await?;
    let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "gpus"}, "spec": {"spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu"}}]}}}});
    rig.create("resource.k8s.io/v1/resourceclaimtemplates", template)
        .await?;
    let by_template = || json!({"resourceClaimTemplateName": "gpus"});
    pod(&rig, "a", by_template(), json!({})).await?;
    let why = "0/2 nodes are available: 2 cannot allocate all claims. still not schedulable, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    refused(&rig, "a", why).await?;
    publish(&rig, "n2", &["gpu-0"]).await?;
    assert_eq!(runs_on(&rig, "a").await?, "n2");
    let held = rig.get("v1/pods", "a").await?;
    let name = text(&held, "/status/resourceClaimStatuses/0/resourceClaimName").to_owned();
    let claim = rig.get(CLAIMS, &name).await?;
    assert_eq!(devices(&claim), ["n2/gpu-0"]);
    assert_eq!(
        claim["status"]["reservedFor"][0]["uid"],
        held["metadata"]["uid"]
    );
    assert_eq!(
        text(&claim, "/metadata/finalizers/0"),
        "resource.kubernetes.io/delete-protection"
    );
    assert!(claim["status"]["allocation"]["allocationTimestamp"].is_string());

    pod(&rig, "b", by_template(), json!({})).await?;
    refused(&rig, "b", "0/2 nodes are available: 2 cannot allocate").await?;
    rig.delete("v1/pods", "a", Value::Null).await?;
    assert_eq!(runs_on(&rig, "b").await?, "n2", "the device is free again");
    rig.until_gone(CLAIMS, &name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_share_a_claim_where_its_device_is() -> anyhow::Result<()> {
    let rig = rig(&["n1", "n2"]).await?;
    publish(&rig, "n1", &["gpu-0"]).await?;
    let mine = || json!({"resourceClaimName": "mine"});
    pod(&rig, "a", mine(), json!({})).await?;
    pod(&rig, "b", mine(), json!({})).await?;
    // Without its claim a pod is not even looked at.
    pod(
        &rig,
        "free",
        json!({"resourceClaimName": "other"}),
        json!({}),
    )
    .await?;
    claim(&rig, "mine").await?;
    assert_eq!(runs_on(&rig, "a").await?, "n1");
    assert_eq!(runs_on(&rig, "b").await?, "n1");
    let held = rig
        .until(CLAIMS, "mine", "to be held for both", |c| {
            c["status"]["reservedFor"].as_array().map_or(0, Vec::len) == 2
        })
        .await?;
    assert_eq!(devices(&held), ["n1/gpu-0"]);
    let waits = rig.get("v1/pods", "free").await?;
    assert!(is_empty(&waits["status"]["conditions"]), "{waits}");
    for name in ["a", "b"] {
        rig.delete("v1/pods", name, Value::Null).await?;
    }
    rig.until(CLAIMS, "mine", "to be free", |c| {
        c["status"]["allocation"].is_null() && is_empty(&c["metadata"]["finalizers"])
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_claim_is_moved_to_where_a_pod_needs_it() -> anyhow::Result<()> {
    let rig = rig(&["n1", "n2"]).await?;
    publish(&rig, "n1", &["gpu-0"]).await?;
    publish(&rig, "n2", &["gpu-0"]).await?;
    claim(&rig, "mine").await?;
    let elsewhere = json!({"status": {"allocation": {
        "devices": {"results": [{"request": "one", "driver": "gpu.example.com", "pool": "n1", "device": "gpu-0"}]},
        "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}}}});
    rig.merge(CLAIMS, "mine/status", elsewhere).await?;
    let here = json!({"nodeSelector": {"kubernetes.io/hostname": "n2"}});
    pod(&rig, "a", json!({"resourceClaimName": "mine"}), here).await?;
    assert_eq!(runs_on(&rig, "a").await?, "n2");
    let moved = rig.get(CLAIMS, "mine").await?;
    assert_eq!(devices(&moved), ["n2/gpu-0"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_bound_when_its_device_is_prepared() -> anyhow::Result<()> {
    let rig = rig(&["n1"]).await?;
    let device = json!({"name": "gpu-0", "attributes": {"kind": {"string": "gpu"}},
        "bindsToNode": true, "bindingConditions": ["dra.example.com/attached"],
        "bindingFailureConditions": ["dra.example.com/failed"]});
    slice(&rig, "n1", vec![device]).await?;
    claim(&rig, "mine").await?;
    pod(&rig, "a", json!({"resourceClaimName": "mine"}), json!({})).await?;
    rig.until_all("v1/events", "", "to tell what the pod waits for", |all| {
        all.iter().any(|e| {
            e["reason"] == "BindingConditionsPending"
                && e["message"] == "waiting for binding conditions for device on node n1"
        })
    })
    .await?;
    let waiting = rig.get("v1/pods", "a").await?;
    assert!(waiting["spec"]["nodeName"].is_null());
    let ready = json!({"status": {"devices": [{"driver": "gpu.example.com", "pool": "n1", "device": "gpu-0",
        "conditions": [{"type": "dra.example.com/attached", "status": "True", "reason": "Attached",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}]}});
    rig.merge(CLAIMS, "mine/status", ready).await?;
    assert_eq!(runs_on(&rig, "a").await?, "n1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_stand_for_resources_that_nodes_do_not_have() -> anyhow::Result<()> {
    let rig = rig(&["n1", "n2"]).await?;
    let named = json!({"spec": {"extendedResourceName": "example.com/gpu"}});
    rig.merge("resource.k8s.io/v1/deviceclasses", "gpu", named)
        .await?;
    publish(&rig, "n2", &["gpu-0", "gpu-1"]).await?;
    let amount = json!({"example.com/gpu": "2"});
    let asks = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i",
            "resources": {"requests": amount, "limits": amount}}]}});
    rig.create("v1/pods", asks.clone()).await?;
    assert_eq!(runs_on(&rig, "a").await?, "n2");
    let pod = rig.get("v1/pods", "a").await?;
    let status = &pod["status"]["extendedResourceClaimStatus"];
    assert_eq!(
        status["requestMappings"],
        json!([{"containerName": "c", "requestName": "container-0-request-0", "resourceName": "example.com/gpu"}])
    );
    let name = text(status, "/resourceClaimName");
    assert!(name.starts_with("a-extended-resources-"), "{name}");
    let claim = rig.get(CLAIMS, name).await?;
    assert_eq!(devices(&claim), ["n2/gpu-0", "n2/gpu-1"]);
    let annotation =
        &claim["metadata"]["annotations"]["resource.kubernetes.io/extended-resource-claim"];
    assert_eq!(annotation, "true");

    let mut second = asks;
    second["metadata"]["name"] = json!("b");
    rig.create("v1/pods", second).await?;
    let why = "0/2 nodes are available: 2 cannot allocate all claims.";
    refused(&rig, "b", why).await?;
    rig.delete("v1/pods", "a", Value::Null).await?;
    assert_eq!(runs_on(&rig, "b").await?, "n2");
    rig.until_gone(CLAIMS, name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_for_administration_need_a_namespace_that_is_meant_for_it() -> anyhow::Result<()> {
    let rig = rig(&["n1"]).await?;
    publish(&rig, "n1", &["gpu-0"]).await?;
    let admin = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "admin"}, "spec": {"devices": {"requests": [
            {"name": "one", "exactly": {"deviceClassName": "gpu", "adminAccess": true}}]}}});
    let refused = rig.create(CLAIMS, admin.clone()).await;
    let refused = refused.err().map(|e| format!("{e:#}")).unwrap_or_default();
    let why = "admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    assert!(refused.contains(why), "{refused}");
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    rig.merge("v1/namespaces", "default", label).await?;
    rig.create(CLAIMS, admin).await?;
    claim(&rig, "mine").await?;
    pod(
        &rig,
        "user",
        json!({"resourceClaimName": "mine"}),
        json!({}),
    )
    .await?;
    runs_on(&rig, "user").await?;
    pod(
        &rig,
        "admin",
        json!({"resourceClaimName": "admin"}),
        json!({}),
    )
    .await?;
    assert_eq!(
        runs_on(&rig, "admin").await?,
        "n1",
        "beside whoever uses it"
    );
    let held = rig.get(CLAIMS, "admin").await?;
    assert_eq!(
        held["status"]["allocation"]["devices"]["results"][0]["adminAccess"],
        true
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taints_of_devices_drive_pods_away() -> anyhow::Result<()> {
    const RULES: &str = "resource.k8s.io/v1/devicetaintrules";
    let rig = rig(&["n1"]).await?;
    publish(&rig, "n1", &["gpu-0"]).await?;
    claim(&rig, "mine").await?;
    pod(&rig, "a", json!({"resourceClaimName": "mine"}), json!({})).await?;
    runs_on(&rig, "a").await?;
    let rule = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule",
        "metadata": {"name": "broken"}, "spec": {"deviceSelector": {"device": "gpu-0"},
            "taint": {"key": "example.com/broken", "effect": "None"}}});
    let made = rig.create(RULES, rule).await?;
    assert!(made["spec"]["taint"]["timeAdded"].is_string(), "{made}");
    // It is told once, and the controller may not have heard of the claim by then: how many is not asked.
    rig.until(RULES, "broken", "to say what it would do", |r| {
        let condition = &r["status"]["conditions"][0];
        let message = text(condition, "/message");
        condition["type"] == "EvictionInProgress"
            && condition["reason"] == "NoEffect"
            && message.contains(" if the effect was NoExecute.")
    })
    .await?;
    assert!(rig.get("v1/pods", "a").await?["metadata"]["deletionTimestamp"].is_null());
    let hard = json!({"spec": {"taint": {"effect": "NoExecute"}}});
    rig.merge(RULES, "broken", hard).await?;
    rig.until_gone("v1/pods", "a").await?;
    rig.until_all("v1/events", "", "to tell why it went", |all| {
        let told = |e: &Value| {
            e["reason"] == "DeviceTaintManagerEviction" && e["message"] == "Marking for deletion"
        };
        all.iter().any(told)
    })
    .await?;
    rig.until(CLAIMS, "mine", "to be free", |c| {
        c["status"]["allocation"].is_null()
    })
    .await?;
    pod(&rig, "b", json!({"resourceClaimName": "mine"}), json!({})).await?;
    refused(
        &rig,
        "b",
        "0/1 nodes are available: 1 cannot allocate all claims.",
    )
    .await
}
