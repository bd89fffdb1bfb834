//! How a large cluster fares: 5,000 simulated nodes whose pods run.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use serde_json::{Value, json};

use crate::load::{Load, until};
use crate::{figure, shapes};

const NODES: u32 = 5000;
/// Pods of the full cluster.
const PODS: u32 = 150_000;
/// Replicas of each Deployment in it.
const REPLICAS: u32 = 10_000;
/// The full cluster stands still for so long, to be measured.
const STILL: Duration = Duration::from_secs(60);

fn deployment(name: &str) -> Value {
    let mut pod = shapes::default();
    pod["metadata"] = json!({"labels": {"app": name}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": pod["metadata"], "spec": pod["spec"]}},
    })
}

/// Creates a Deployment and waits until all replicas are ready.
async fn roll_out(load: &Load, namespace: &str, name: &str) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    load.create(&path, &deployment(name), 1).await?;
    let api: Api<Deployment> = Api::namespaced(load.client.clone(), namespace);
    until("the Deployment", || async {
        let status = api.get(name).await?.status.unwrap_or_default();
        Ok(status.ready_replicas == Some(REPLICAS as i32))
    })
    .await?;
    Ok(began.elapsed())
}

async fn nodes(load: &Load) -> anyhow::Result<()> {
    load.nodes(NODES, "").await?;
    load.namespace("measured").await
}

/// A Deployment of 10,000 replicas until all are ready.
pub async fn rollout(load: &Load) -> anyhow::Result<()> {
    nodes(load).await?;
    println!("begin");
    let took = roll_out(load, "measured", "web").await?;
    println!("end");
    figure("ready", took.as_secs_f64(), "s");
    Ok(())
}

/// A namespace of 10,000 running pods until it is gone.
pub async fn namespace(load: &Load) -> anyhow::Result<()> {
    nodes(load).await?;
    roll_out(load, "measured", "web").await?;
    println!("begin");
    let began = Instant::now();
    load.send("DELETE", "/api/v1/namespaces/measured", Vec::new())
        .await?;
    let all: Api<Namespace> = Api::all(load.client.clone());
    until("the end of the namespace", || async {
        Ok(all.get_opt("measured").await?.is_none())
    })
    .await?;
    println!("end");
    figure("gone", began.elapsed().as_secs_f64(), "s");
    Ok(())
}

/// 150,000 running pods, then a while in which nothing happens.
pub async fn full(load: &Load) -> anyhow::Result<()> {
    nodes(load).await?;
    let began = Instant::now();
    for number in 0..PODS / REPLICAS {
        roll_out(load, "measured", &format!("web-{number}")).await?;
    }
    figure("ready", began.elapsed().as_secs_f64(), "s");
    tokio::time::sleep(STILL / 4).await;
    println!("begin");
    tokio::time::sleep(STILL).await;
    println!("end");
    figure("pods", f64::from(PODS), "pods");
    Ok(())
}
