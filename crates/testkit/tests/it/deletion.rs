//! What goes when something is deleted.

use client::write;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Namespace, Pod},
};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

use crate::apps::rig::{Rig, text};

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

/// A server that is not there takes nothing else along: its objects are not known, those of others
/// go, and the namespace waits until it is back or nobody expects it any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_is_down_keeps_namespaces_and_nothing_else() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let down = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.example.com"},
        "spec": {"group": "metrics.example.com", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"name": "nobody", "namespace": "default"}}});
    let services = "/apis/apiregistration.k8s.io/v1/apiservices";
    rig.raw(http::Method::POST, services, down).await?;
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    rig.raw(http::Method::POST, path, definition).await?;
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "1234"});
    let orphan = json!({"apiVersion": "example.com/v1", "kind": "Widget",
        "metadata": {"name": "left", "ownerReferences": [owner]}});
    eventually("the widget to be taken", || async {
        Ok(rig
            .create("example.com/v1/widgets", orphan.clone())
            .await
            .ok())
    })
    .await?;
    rig.until_gone("example.com/v1/widgets", "left").await?;

    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    rig.create("v1/namespaces", namespace).await?;
    rig.delete("v1/namespaces", "shop", Value::Null).await?;
    let condition = |n: &Value| {
        let all = n["status"]["conditions"].as_array()?.iter();
        let mut all = all.filter(|c| c["type"] == "NamespaceDeletionDiscoveryFailure");
        all.next().cloned()
    };
    let waiting = rig
        .until("v1/namespaces", "shop", "to say why it waits", |n| {
            condition(n).is_some_and(|c| c["status"] == "True")
        })
        .await?;
    let why = condition(&waiting).unwrap_or_default();
    let start = "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: metrics.example.com/v1beta1: ";
    assert!(text(&why, "/message").starts_with(start), "{why}");
    let path = format!("{services}/v1beta1.metrics.example.com");
    rig.raw(http::Method::DELETE, &path, Value::Null).await?;
    rig.until_gone("v1/namespaces", "shop").await
}
