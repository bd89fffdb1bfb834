//! Autoscalers, with custom resources in place of a metrics server.

use client::{Clock, write};
use k8s_openapi::api::{
    apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod,
};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{Cluster, eventually, objects};

/// Serves `pods` of the resource metrics API as whatever is created there.
fn stand_in() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pods.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {"group": "metrics.k8s.io", "scope": "Namespaced",
            "names": {"plural": "pods", "singular": "pod", "kind": "PodMetrics", "listKind": "PodMetricsList"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    })
}

async fn measure(client: &client::Client, pod: &Pod, cpu: &str) -> anyhow::Result<()> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    // Measured well after the pod was ready, or it would be taken to be starting.
    let now = Clock::system().now() + jiff::SignedDuration::from_mins(1);
    let metrics = json!({
        "apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetrics",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "timestamp": now.to_string(), "window": "30s",
        "containers": [{"name": "c", "usage": {"cpu": cpu, "memory": "1Mi"}}],
    });
    let path = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";
    let request = kube::core::Request::new(path)
        .create(&Default::default(), serde_json::to_vec(&metrics)?)?;
    let _: Value = client.request(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_follows_its_use() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let _node = cluster.add_node("n1").await?;
    let client = cluster.client();
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i",
                    "resources": {"requests": {"cpu": "100m"}}}]}}},
    });
    objects(&client, &[stand_in(), web]).await?;
    let pods = write::namespaced::<Pod>(&client, "default");
    let ready = |count: usize| {
        let pods = pods.clone();
        async move {
            eventually(&format!("{count} ready pods"), || async {
                let all = pods.list(&ListParams::default()).await?.items;
                let ready = |p: &&Pod| {
                    let status = p.status.as_ref();
                    status.and_then(|s| s.pod_ip.as_ref()).is_some()
                };
                let enough = all.iter().filter(ready).count() == count;
                Ok(enough.then_some(all))
            })
            .await
        }
    };
    for pod in ready(2).await? {
        eventually("the metrics to be taken", || async {
            Ok(measure(&client, &pod, "90m").await.ok())
        })
        .await?;
    }
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"minReplicas": 1, "maxReplicas": 10,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 50}}}]},
    });
    let lost = |name: &str, version: &str, kind: &str| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {"maxReplicas": 10,
                "scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "nowhere"}},
        })
    };
    let [lost, odd] = [
        lost("lost", "apps/v1", "Deployment"),
        lost("odd", "example.com/v1", "Shirt"),
    ];
    objects(&client, &[scaler, lost, odd]).await?;
    let scalers = write::namespaced::<HorizontalPodAutoscaler>(&client, "default");
    let waited = eventually("the deployment to grow", || async {
        let status = scalers.get("web").await?.status.unwrap_or_default();
        Ok((status.desired_replicas == 4).then_some(status))
    })
    .await;
    if waited.is_err() {
        println!("{}", cluster.dump("autoscaling").await);
        println!("{}", cluster.dump("horizontalpodautoscalers").await);
        println!("{}", cluster.dump("events/").await);
    }
    let status = waited?;
    let conditions = status.conditions.unwrap_or_default();
    let reason = |kind: &str| {
        let found = conditions.iter().find(|c| c.type_ == kind);
        found.and_then(|c| c.reason.clone()).unwrap_or_default()
    };
    assert_eq!(reason("AbleToScale"), "SucceededRescale");
    assert_eq!(reason("ScalingActive"), "ValidMetricFound");
    assert_eq!(reason("ScalingLimited"), "DesiredWithinRange");
    let metrics = status.current_metrics.unwrap_or_default();
    let current = metrics[0].resource.as_ref().map(|r| &r.current);
    assert_eq!(current.and_then(|c| c.average_utilization), Some(90));
    ready(4).await?;
    let deployments = write::namespaced::<Deployment>(&client, "default");
    let web = deployments.get("web").await?;
    assert_eq!(web.spec.replicas, Some(4));
    for (name, why) in [
        ("lost", "deployments.apps \"nowhere\" not found"),
        (
            "odd",
            "no matches for kind \"Shirt\" in group \"example.com\"",
        ),
    ] {
        let said = eventually("the others to say why they cannot scale", || async {
            let status = scalers.get(name).await?.status.unwrap_or_default();
            let all = status.conditions.unwrap_or_default();
            Ok(all.first().and_then(|c| c.message.clone()))
        })
        .await?;
        let expected =
            format!("the HPA controller was unable to get the target's current scale: {why}");
        assert_eq!(said, expected);
    }
    Ok(())
}

/// Serves the external metric `depth` as whatever is created there.
fn depths() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "depth.external.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {"group": "external.metrics.k8s.io", "scope": "Namespaced",
            "names": {"plural": "depth", "singular": "depth", "kind": "Depth", "listKind": "DepthList"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
    })
}

/// An empty queue needs no pods, and a filled one brings them back: it was the autoscaler that
/// took them away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_without_work_has_no_pods() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let client = cluster.client();
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    objects(&client, &[depths(), web]).await?;
    const DEPTHS: &str = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/depth";
    let depth = |value: &str| {
        json!({"apiVersion": "external.metrics.k8s.io/v1beta1", "kind": "Depth",
            "metadata": {"name": "queue"}, "metricName": "depth", "value": value})
    };
    eventually("the depth to be taken", || async {
        let body = serde_json::to_vec(&depth("0"))?;
        let request = kube::core::Request::new(DEPTHS).create(&Default::default(), body)?;
        Ok(client.request::<Value>(request).await.ok())
    })
    .await?;
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {"minReplicas": 0, "maxReplicas": 5,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            "metrics": [{"type": "External", "external": {"metric": {"name": "depth"},
                "target": {"type": "AverageValue", "averageValue": "5"}}}]},
    });
    objects(&client, &[scaler]).await?;
    let scalers = write::namespaced::<HorizontalPodAutoscaler>(&client, "default");
    let deployments = write::namespaced::<Deployment>(&client, "default");
    let settled = |replicas: i32, asleep: &'static str| {
        let (scalers, deployments, cluster) = (scalers.clone(), deployments.clone(), &cluster);
        async move {
            let waited = eventually(&format!("{replicas} replicas"), || async {
                let scaler = scalers.get("web").await?;
                let status = scaler.status.unwrap_or_default();
                let seen = status.observed_generation == scaler.metadata.generation;
                let all = status.conditions.unwrap_or_default();
                let told = all.iter().any(|c| {
                    c.type_ == "ScaledToZero"
                        && c.status == asleep
                        && c.observed_generation == scaler.metadata.generation
                });
                let has = deployments.get("web").await?.spec.replicas;
                Ok((seen && told && has == Some(replicas)).then_some(()))
            })
            .await;
            if waited.is_err() {
                println!("{}", cluster.dump("horizontalpodautoscalers").await);
            }
            waited
        }
    };
    settled(0, "True").await?;
    let filled = serde_json::to_vec(&json!({"value": "10"}))?;
    let request = http::Request::patch(format!("{DEPTHS}/queue"))
        .header("content-type", "application/merge-patch+json")
        .body(filled)?;
    let _: Value = client.request(request).await?;
    // A change of the autoscaler makes it look at once.
    let more = Patch::Merge(json!({"spec": {"maxReplicas": 6}}));
    scalers.patch("web", &PatchParams::default(), &more).await?;
    settled(2, "False").await
}
