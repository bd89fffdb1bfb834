//! What goes when something is deleted.

use client::write;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

fn deployment(namespace: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    })
}

async fn pods_of(cluster: &Cluster, namespace: &str, count: usize) -> anyhow::Result<()> {
    let pods = write::namespaced::<Pod>(&cluster.client(), namespace);
    let waited = eventually(&format!("{count} pods"), || async {
        Ok((pods.list(&ListParams::default()).await?.items.len() == count).then_some(()))
    })
    .await;
    if waited.is_err() {
        println!("{}", cluster.dump("pods/").await);
    }
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_follow_their_owner_in_each_way() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let deployments = write::namespaced::<Deployment>(&client, "default");
    let sets = write::namespaced::<ReplicaSet>(&client, "default");
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        objects(&client, &[deployment("default")]).await?;
        pods_of(&cluster, "default", 2).await?;
        deployments.delete("web", &params).await?;
        pods_of(&cluster, "default", 0).await?;
        eventually("the deployment and its sets to go", || async {
            let left = sets.list(&ListParams::default()).await?.items.len();
            let gone = deployments.get_opt("web").await?.is_none();
            Ok((gone && left == 0).then_some(()))
        })
        .await?;
    }
    objects(&client, &[deployment("default")]).await?;
    pods_of(&cluster, "default", 2).await?;
    deployments.delete("web", &DeleteParams::orphan()).await?;
    eventually("the sets to be orphans", || async {
        let all = sets.list(&ListParams::default()).await?.items;
        let free = all.iter().all(|s| {
            s.metadata
                .owner_references
                .as_deref()
                .unwrap_or_default()
                .is_empty()
        });
        Ok((all.len() == 1 && free && deployments.get_opt("web").await?.is_none()).then_some(()))
    })
    .await?;
    pods_of(&cluster, "default", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_owners_that_never_were_go() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "1234"});
    objects(
        &client,
        &[json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "left", "ownerReferences": [owner]}})],
    )
    .await?;
    let maps = write::namespaced::<ConfigMap>(&client, "default");
    eventually("it to go", || async {
        Ok(maps.get_opt("left").await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    objects(
        &client,
        &[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})],
    )
    .await?;
    let accounts = write::namespaced::<k8s_openapi::api::core::v1::ServiceAccount>(&client, "shop");
    eventually("its account", || async {
        Ok(accounts.get_opt("default").await?)
    })
    .await?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    objects(&client, &[service, deployment("shop")]).await?;
    pods_of(&cluster, "shop", 2).await?;
    let namespaces = write::cluster::<Namespace>(&client);
    namespaces.delete("shop", &DeleteParams::default()).await?;
    let gone = eventually("the namespace to go", || async {
        Ok(namespaces.get_opt("shop").await?.is_none().then_some(()))
    })
    .await;
    if gone.is_err() {
        println!("{}", cluster.dump("").await);
    }
    gone
}
