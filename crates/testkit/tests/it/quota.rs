//! What a namespace may use, as it is counted while things come and go.

use serde_json::{Value, json};

use crate::apps::rig::{Rig, text};

const QUOTAS: &str = "v1/resourcequotas";

async fn quota(rig: &Rig, named: &str, spec: Value) -> anyhow::Result<()> {
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": named, "labels": {"e2e": "quota"}}, "spec": spec});
    rig.create(QUOTAS, quota).await?;
    used(rig, named, &[]).await
}

/// Waits until a quota counts this.
async fn used(rig: &Rig, named: &str, amounts: &[(&str, &str)]) -> anyhow::Result<()> {
    rig.until(QUOTAS, named, &format!("to count {amounts:?}"), |q| {
        q["status"]["hard"].is_object() && amounts.iter().all(|(k, v)| q["status"]["used"][k] == *v)
    })
    .await?;
    Ok(())
}

/// One thing of a kind is counted, a second one refused, and room is made when the first goes.
async fn counts(key: &str, resource: &str, mut object: Value) -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    // A namespace gets this one a moment after it is there.
    rig.until("v1/configmaps", "kube-root-ca.crt", "to be there", |_| true)
        .await?;
    let before = rig.list(resource, "").await?.len();
    let mut hard = json!({});
    hard[key] = json!((before + 1).to_string());
    let (none, one) = (before.to_string(), (before + 1).to_string());
    quota(&rig, "test", json!({"hard": hard})).await?;
    used(&rig, "test", &[(key, &none)]).await?;
    object["metadata"]["name"] = json!("first");
    rig.create(resource, object.clone()).await?;
    used(&rig, "test", &[(key, &one)]).await?;
    let mut second = object;
    second["metadata"]["name"] = json!("second");
    let refused = rig.create(resource, second).await.unwrap_err();
    let said = format!("{refused:#}");
    let expected = format!(
        "exceeded quota: test, requested: {key}=1, used: {key}={one}, limited: {key}={one}"
    );
    assert!(said.contains(&expected), "{said}");
    rig.delete(resource, "first", json!({"gracePeriodSeconds": 0}))
        .await?;
    rig.until_gone(resource, "first").await?;
    used(&rig, "test", &[(key, &none)]).await
}

/// Conformance: ResourceQuota, object count quota, configmap
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_are_counted() -> anyhow::Result<()> {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
    counts("configmaps", "v1/configmaps", map).await
}

/// Conformance: ResourceQuota, object count quota, secret
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_counted() -> anyhow::Result<()> {
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "stringData": {"a": "b"}});
    counts("secrets", "v1/secrets", secret).await
}

/// Conformance: ResourceQuota, object count quota, replicationController
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controllers_are_counted() -> anyhow::Result<()> {
    let controller = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {},
        "spec": {"replicas": 0, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    counts(
        "replicationcontrollers",
        "v1/replicationcontrollers",
        controller,
    )
    .await
}

/// Conformance: ResourceQuota, object count quota, replicaSet
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_sets_are_counted() -> anyhow::Result<()> {
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    counts("count/replicasets.apps", "apps/v1/replicasets", set).await
}

/// Conformance: ResourceQuota, object count quota, service
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_counted_by_type() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let hard = json!({"services": "3", "services.nodeports": "1", "services.loadbalancers": "1"});
    quota(&rig, "test", json!({"hard": hard})).await?;
    let service = |name: &str, kind: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "ports": [{"port": 80}]}})
    };
    // The cluster's own is there already.
    used(
        &rig,
        "test",
        &[("services", "1"), ("services.nodeports", "0")],
    )
    .await?;
    rig.create("v1/services", service("plain", "ClusterIP"))
        .await?;
    used(&rig, "test", &[("services", "2")]).await?;
    rig.create("v1/services", service("node", "NodePort"))
        .await?;
    used(
        &rig,
        "test",
        &[("services", "3"), ("services.nodeports", "1")],
    )
    .await?;
    let refused = rig
        .create("v1/services", service("balanced", "LoadBalancer"))
        .await
        .unwrap_err();
    assert!(format!("{refused:#}").contains("exceeded quota: test"));
    for name in ["plain", "node"] {
        rig.delete("v1/services", name, Value::Null).await?;
    }
    used(
        &rig,
        "test",
        &[
            ("services", "1"),
            ("services.nodeports", "0"),
            ("services.loadbalancers", "0"),
        ],
    )
    .await
}

fn pod(name: &str, requests: Value, more: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": requests}}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Conformance: ResourceQuota, object count quota, pod
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_what_they_request_are_counted() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let hard =
        json!({"pods": "2", "cpu": "1", "memory": "500Mi", "requests.ephemeral-storage": "50Gi"});
    quota(&rig, "test", json!({"hard": hard})).await?;
    let requests = json!({"cpu": "500m", "memory": "252Mi", "ephemeral-storage": "30Gi"});
    rig.create("v1/pods", pod("first", requests, json!({})))
        .await?;
    let with_it = [
        ("pods", "1"),
        ("cpu", "500m"),
        ("memory", "252Mi"),
        ("requests.ephemeral-storage", "30Gi"),
    ];
    used(&rig, "test", &with_it).await?;
    let greedy = json!({"cpu": "600m", "memory": "100Mi"});
    let refused = rig
        .create("v1/pods", pod("greedy", greedy, json!({})))
        .await
        .unwrap_err();
    assert!(
        format!("{refused:#}")
            .contains("exceeded quota: test, requested: cpu=600m, used: cpu=500m, limited: cpu=1")
    );
    let vague = rig
        .create("v1/pods", pod("vague", json!({}), json!({})))
        .await
        .unwrap_err();
    assert!(format!("{vague:#}").contains("must specify"), "{vague:#}");
    used(&rig, "test", &with_it).await?;
    // A pod that has ended uses nothing.
    rig.until("v1/pods", "first", "to run", |p| {
        p["status"]["phase"] == "Running"
    })
    .await?;
    rig.end("first", 0).await?;
    used(
        &rig,
        "test",
        &[
            ("pods", "0"),
            ("cpu", "0"),
            ("memory", "0"),
            ("requests.ephemeral-storage", "0"),
        ],
    )
    .await
}

/// Conformance: ResourceQuota, object count quota, resourcequotas
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_counted_anew_when_it_changes() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    quota(
        &rig,
        "test",
        json!({"hard": {"resourcequotas": "2", "pods": "5"}}),
    )
    .await?;
    used(&rig, "test", &[("pods", "0"), ("resourcequotas", "1")]).await?;
    let q = rig.get(QUOTAS, "test").await?;
    assert_eq!(text(&q, "/status/hard/pods"), "5");
    Ok(())
}

async fn scoped(with: &str, without: &str, inside: Value, outside: Value) -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    for scope in [with, without] {
        let spec = json!({"hard": {"pods": "5"}, "scopes": [scope]});
        quota(&rig, &scope.to_lowercase(), spec).await?;
    }
    let (with, without) = (with.to_lowercase(), without.to_lowercase());
    rig.create("v1/pods", inside).await?;
    used(&rig, &with, &[("pods", "1")]).await?;
    used(&rig, &without, &[("pods", "0")]).await?;
    rig.delete("v1/pods", "inside", json!({"gracePeriodSeconds": 0}))
        .await?;
    used(&rig, &with, &[("pods", "0")]).await?;
    rig.create("v1/pods", outside).await?;
    used(&rig, &without, &[("pods", "1")]).await?;
    used(&rig, &with, &[("pods", "0")]).await?;
    rig.delete("v1/pods", "outside", json!({"gracePeriodSeconds": 0}))
        .await?;
    used(&rig, &without, &[("pods", "0")]).await
}

/// Conformance: ResourceQuota, quota scope, BestEffort and NotBestEffort scope
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_is_about_the_effort() -> anyhow::Result<()> {
    let inside = pod("inside", json!({}), json!({}));
    let outside = pod("outside", json!({"cpu": "500m"}), json!({}));
    scoped("BestEffort", "NotBestEffort", inside, outside).await
}

/// Conformance: ResourceQuota, quota scope, Terminating and NotTerminating scope
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scope_is_about_the_end() -> anyhow::Result<()> {
    let inside = pod("inside", json!({}), json!({"activeDeadlineSeconds": 3600}));
    let outside = pod("outside", json!({}), json!({}));
    scoped("Terminating", "NotTerminating", inside, outside).await
}

/// Conformance: ResourceQuota, update and delete
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_is_updated_and_deleted() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    quota(
        &rig,
        "test",
        json!({"hard": {"cpu": "1", "memory": "500Mi"}}),
    )
    .await?;
    client::write::retry_on_conflict(|| async {
        let mut quota = rig.get(QUOTAS, "test").await?;
        quota["spec"]["hard"] = json!({"cpu": "2", "memory": "1Gi"});
        rig.replace(QUOTAS, "test", quota).await
    })
    .await?;
    rig.until(QUOTAS, "test", "to follow", |q| {
        q["status"]["hard"] == json!({"cpu": "2", "memory": "1Gi"})
    })
    .await?;
    rig.delete(QUOTAS, "test", Value::Null).await?;
    rig.until_gone(QUOTAS, "test").await
}

/// Conformance: ResourceQuota, manage lifecycle of a ResourceQuota
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_lives() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    quota(
        &rig,
        "test",
        json!({"hard": {"cpu": "1", "memory": "500Mi"}}),
    )
    .await?;
    let read = rig.get(QUOTAS, "test").await?;
    assert_eq!(text(&read, "/spec/hard/memory"), "500Mi");
    assert_eq!(rig.list(QUOTAS, "e2e=quota").await?.len(), 1);
    let patch =
        json!({"metadata": {"labels": {"test": "patched"}}, "spec": {"hard": {"memory": "750Mi"}}});
    let patched = rig.strategic(QUOTAS, "test", patch).await?;
    assert_eq!(text(&patched, "/spec/hard/memory"), "750Mi");
    rig.delete_all(QUOTAS, "test=patched").await?;
    rig.until_gone(QUOTAS, "test").await
}

/// Conformance: ResourceQuota, apply changes to a ResourceQuota status
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_a_quota_is_a_resource_of_its_own() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    quota(
        &rig,
        "test",
        json!({"hard": {"cpu": "500m", "memory": "500Mi"}}),
    )
    .await?;
    let updated = client::write::retry_on_conflict(|| async {
        let mut quota = rig.get(QUOTAS, "test/status").await?;
        quota["status"]["hard"]["cpu"] = json!("1");
        rig.replace(QUOTAS, "test/status", quota).await
    })
    .await?;
    assert_eq!(text(&updated, "/status/hard/cpu"), "1");
    let seen = rig
        .happened(QUOTAS, &json!({"metadata": {"resourceVersion": "1"}}))
        .await?;
    assert!(
        seen.iter()
            .any(|(_, q)| q["metadata"]["uid"] == updated["metadata"]["uid"])
    );
    // Whatever is written, the limits in force are those of the specification.
    rig.until(QUOTAS, "test", "to be right again", |q| {
        q["status"]["hard"]["cpu"] == "500m"
    })
    .await?;
    Ok(())
}
