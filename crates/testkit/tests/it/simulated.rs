//! Simulated nodes.

use std::collections::HashSet;

use client::write;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Node, Pod},
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    })
}

async fn pods(cluster: &Cluster, labels: &str) -> anyhow::Result<Vec<Pod>> {
    let api = write::namespaced::<Pod>(&cluster.client(), "default");
    Ok(api.list(&ListParams::default().labels(labels)).await?.items)
}

async fn ready(cluster: &Cluster, name: &str, replicas: i32) -> anyhow::Result<()> {
    let api = write::namespaced::<Deployment>(&cluster.client(), "default");
    eventually(&format!("{replicas} replicas of {name}"), || async {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok((status.available_replicas.unwrap_or(0) == replicas).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_deployment_run_on_simulated_nodes_and_go_when_deleted() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let profile = "nodes: {zones: [a, b, c], capacity: {cpu: '4', memory: 8Gi, pods: '20'}}";
    cluster.simulate(9, profile).await?;
    let client = cluster.client();
    objects(&client, &[deployment("web", 27)]).await?;
    ready(&cluster, "web", 27).await?;
    let all = pods(&cluster, "app=web").await?;
    let of = |pod: &Pod| pod.status.clone().unwrap_or_default();
    let addresses: HashSet<_> = all.iter().filter_map(|p| of(p).pod_ip).collect();
    assert_eq!(addresses.len(), 27, "each pod has an address of its own");
    let status = of(&all[0]);
    assert!(status.start_time.is_some() && status.host_ip.is_some());
    let container = &status.container_statuses.unwrap_or_default()[0];
    assert!(
        container.ready
            && container
                .state
                .as_ref()
                .is_some_and(|s| s.running.is_some())
    );

    let leases = write::namespaced::<Lease>(&client, "kube-node-lease");
    eventually("a lease of every node", || async {
        let found = leases.list(&ListParams::default()).await?.items.len();
        Ok((found == 9).then_some(()))
    })
    .await?;
    let deployments = write::namespaced::<Deployment>(&client, "default");
    deployments.delete("web", &DeleteParams::default()).await?;
    eventually("no pods", || async {
        Ok(pods(&cluster, "app=web").await?.is_empty().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_end_as_the_profile_says() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let profile = "pods:\n- match: {labels: {fate: bad}}\n  run: 10ms\n  failures: 1\n  exitCode: 42\n\
                   - match: {ownerKind: Job}\n  start: 0..20ms\n  run: 10ms..50ms\n";
    cluster.simulate(3, profile).await?;
    let client = cluster.client();
    let job = |name: &str, fate: &str| {
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"completions": 5, "parallelism": 5, "backoffLimit": 0, "template": {
                "metadata": {"labels": {"fate": fate}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
        })
    };
    objects(&client, &[job("fine", "good"), job("broken", "bad")]).await?;
    let jobs = write::namespaced::<Job>(&client, "default");
    for (name, condition) in [("fine", "Complete"), ("broken", "Failed")] {
        eventually(&format!("{name} to be {condition}"), || async {
            let status = jobs.get(name).await?.status.unwrap_or_default();
            let mut conditions = status.conditions.iter().flatten();
            let found = conditions.any(|c| c.type_ == condition && c.status == "True");
            Ok(found.then_some(()))
        })
        .await?;
    }
    let failed = pods(&cluster, "fate=bad").await?;
    let codes = failed.iter().flat_map(|p| {
        let statuses = p.status.clone().unwrap_or_default().container_statuses;
        statuses.into_iter().flatten()
    });
    let mut codes = codes.filter_map(|s| Some(s.state?.terminated?.exit_code));
    assert!(codes.any(|code| code == 42));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulation_follows_its_settings_and_leaves_other_nodes_alone() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let real = cluster.add_node("real").await?;
    let tainted = "nodes: {taints: [{key: simulated, effect: NoSchedule}]}";
    cluster.simulate(5, tainted).await?;
    let client = cluster.client();
    objects(&client, &[deployment("web", 8)]).await?;
    ready(&cluster, "web", 8).await?;
    let on_real = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some("real");
    assert!(pods(&cluster, "app=web").await?.iter().all(on_real));

    let nodes = write::cluster::<Node>(&client);
    cluster.simulate(3, "nodes: {labels: {tier: gold}}").await?;
    eventually("labels of the new profile and no taints", || async {
        let gold = ListParams::default().labels("tier=gold");
        let found = nodes.list(&gold).await?.items;
        let free = |n: &Node| n.spec.as_ref().is_none_or(|s| s.taints.is_none());
        Ok((found.len() == 3 && found.iter().all(free)).then_some(()))
    })
    .await?;
    // Settings nobody can follow change nothing, and an event says why.
    let maps = write::namespaced::<ConfigMap>(&client, sim::NAMESPACE);
    let wrong = Patch::Merge(json!({"data": {"profile": "pods: [{start: soon}]"}}));
    maps.patch(sim::NAME, &PatchParams::default(), &wrong)
        .await?;
    let events = write::namespaced::<Event>(&client, sim::NAMESPACE);
    eventually("an event about the settings", || async {
        let all = events.list(&ListParams::default()).await?.items;
        let said = |e: &Event| {
            e.message
                .as_deref()
                .is_some_and(|m| m.contains("pods[0].start"))
        };
        Ok(all.iter().any(said).then_some(()))
    })
    .await?;
    assert_eq!(nodes.list(&ListParams::default()).await?.items.len(), 4);

    cluster.simulate(0, "").await?;
    assert!(nodes.get_opt("real").await?.is_some());
    real.silence();
    Ok(())
}

/// Conformance: Conformance tests minimum number of nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_take_any_pod() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.simulate(2, "nodes: {zones: [a]}").await?;
    let nodes = write::cluster::<Node>(&cluster.client());
    let takes_any = |node: &Node| {
        let spec = node.spec.clone().unwrap_or_default();
        let conditions = node.status.as_ref().and_then(|s| s.conditions.clone());
        let ready = conditions
            .unwrap_or_default()
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        ready && !spec.unschedulable.unwrap_or(false) && spec.taints.unwrap_or_default().is_empty()
    };
    eventually("two nodes that take any pod", || async {
        let all = nodes.list(&ListParams::default()).await?.items;
        Ok((all.iter().filter(|n| takes_any(n)).count() >= 2).then_some(()))
    })
    .await
}
