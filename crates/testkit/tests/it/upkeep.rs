//! Budgets, replication controllers, aggregated roles, and Jobs that have had their time.

use client::write;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, ReplicationController},
    policy::v1::PodDisruptionBudget,
    rbac::v1::ClusterRole,
};
use kube::api::{EvictParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

async fn allowed(cluster: &Cluster, name: &str, count: i32) -> anyhow::Result<()> {
    let budgets = write::namespaced::<PodDisruptionBudget>(&cluster.client(), "default");
    let waited = eventually(&format!("{count} disruptions of {name}"), || async {
        let budget = budgets.get(name).await?;
        let status = budget.status.unwrap_or_default();
        let current = status.observed_generation == budget.metadata.generation;
        Ok((current && status.disruptions_allowed == Some(count)).then_some(()))
    })
    .await;
    if waited.is_err() {
        println!("{}", cluster.dump("poddisruptionbudgets/").await);
        println!("{}", cluster.dump("policy/").await);
        println!("{}", cluster.dump("events/").await);
    }
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_allow_what_can_be_spared() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let web = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
        "spec": {"replicas": 4, "selector": {"app": "web"},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    let budget = |name: &str, spec: Value| {
        let mut budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": name}, "spec": spec});
        budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
        budget
    };
    let spare = budget("spare", json!({"maxUnavailable": "25%"}));
    let keep = budget("keep", json!({"minAvailable": 5}));
    objects(&client, &[web, spare]).await?;
    let owners = write::namespaced::<ReplicationController>(&client, "default");
    eventually("four ready pods", || async {
        let status = owners.get("web").await?.status.unwrap_or_default();
        Ok((status.ready_replicas == Some(4)).then_some(()))
    })
    .await?;
    allowed(&cluster, "spare", 1).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let all = pods.list(&ListParams::default()).await?.items;
    let name = all[0].metadata.name.clone().unwrap_or_default();
    pods.evict(&name, &EvictParams::default()).await?;
    // The evicted pod is replaced, and another one may be disturbed.
    eventually("the pod to be replaced", || async {
        let status = owners.get("web").await?.status.unwrap_or_default();
        let gone = pods.get_opt(&name).await?.is_none();
        Ok((gone && status.ready_replicas == Some(4)).then_some(()))
    })
    .await?;
    allowed(&cluster, "spare", 1).await?;
    objects(&client, &[keep]).await?;
    allowed(&cluster, "keep", 0).await?;
    let scale = Patch::Merge(json!({"spec": {"replicas": 6}}));
    owners.patch("web", &PatchParams::default(), &scale).await?;
    allowed(&cluster, "keep", 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_gather_and_ended_jobs_go() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let whole = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "whole"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"part": "yes"}}]},
    });
    let part = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "part", "labels": {"part": "yes"}},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}],
    });
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "brief"},
        "spec": {"ttlSecondsAfterFinished": 0, "activeDeadlineSeconds": 1, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    });
    objects(&client, &[whole, part, job]).await?;
    let roles = write::cluster::<ClusterRole>(&client);
    eventually("the rules to be gathered", || async {
        let rules = roles.get("whole").await?.rules.unwrap_or_default();
        Ok((rules.len() == 1 && rules[0].verbs == ["get"]).then_some(()))
    })
    .await?;
    let role = roles.get("whole").await?;
    let managers = role.metadata.managed_fields.unwrap_or_default();
    let by = |who: &str| managers.iter().find(|m| m.manager.as_deref() == Some(who));
    let gathered = by("clusterrole-aggregation-controller");
    let operation = gathered.and_then(|m| m.operation.as_deref());
    assert_eq!(operation, Some("Apply"), "{managers:?}");
    let jobs = write::namespaced::<Job>(&client, "default");
    eventually("the job to end and go", || async {
        Ok(jobs.get_opt("brief").await?.is_none().then_some(()))
    })
    .await
}
