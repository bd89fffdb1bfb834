//! DaemonSets.

use client::write;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet},
    core::v1::{Node, Pod},
};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use testkit::{Cluster, eventually, objects};

async fn settled(cluster: &Cluster, nodes: i32) -> anyhow::Result<Vec<Pod>> {
    let client = cluster.client();
    let sets = write::namespaced::<DaemonSet>(&client, "default");
    let waited = eventually(&format!("daemons on {nodes} nodes"), || async {
        let set = sets.get("agent").await?;
        let status = set.status.unwrap_or_default();
        let done = status.observed_generation == set.metadata.generation
            && status.desired_number_scheduled == nodes
            && status.updated_number_scheduled == Some(nodes)
            && status.number_available == Some(nodes)
            && status.number_misscheduled == 0;
        Ok(done.then_some(()))
    })
    .await;
    if waited.is_err() {
        for prefix in ["apps/", "pods/", "events/"] {
            println!("{}", cluster.dump(prefix).await);
        }
    }
    waited?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let mut all = pods.list(&ListParams::default()).await?.items;
    all.retain(|p| p.metadata.deletion_timestamp.is_none());
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_follow_the_nodes_and_roll() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _one = cluster.add_node("n1").await?;
    let _two = cluster.add_node("n2").await?;
    let client = cluster.client();
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}},
                "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
    });
    objects(&client, &[set]).await?;
    let pods = settled(&cluster, 2).await?;
    assert_eq!(pods.len(), 2);
    let _three = cluster.add_node("n3").await?;
    settled(&cluster, 3).await?;

    // A cordoned node keeps its daemon; a tainted one that nobody tolerates loses it.
    let nodes = write::cluster::<Node>(&client);
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    nodes.patch("n1", &PatchParams::default(), &cordon).await?;
    settled(&cluster, 3).await?;
    let taint = Patch::Merge(json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}));
    nodes.patch("n2", &PatchParams::default(), &taint).await?;
    let pods = settled(&cluster, 2).await?;
    assert_eq!(pods.len(), 2);

    let sets = write::namespaced::<DaemonSet>(&client, "default");
    let image = Patch::Strategic(json!({"spec": {"template": {"spec": {
        "containers": [{"name": "c", "image": "v2"}]}}}}));
    sets.patch("agent", &PatchParams::default(), &image).await?;
    let pods = settled(&cluster, 2).await?;
    let images = pods.iter().filter_map(|p| p.spec.as_ref());
    assert!(
        images
            .flat_map(|s| &s.containers)
            .all(|c| c.image.as_deref() == Some("v2"))
    );
    let revisions = write::namespaced::<ControllerRevision>(&client, "default");
    let all = revisions.list(&ListParams::default()).await?.items;
    let mut numbers: Vec<_> = all.iter().filter_map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2]);
    Ok(())
}
