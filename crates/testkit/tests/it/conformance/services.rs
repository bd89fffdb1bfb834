//! Services, their endpoints and slices.

use serde_json::{Value, json};

use super::life::Life;
use super::world::*;

fn services() -> String {
    at("v1", "services")
}

fn service() -> Value {
    json!({"spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 80}]}})
}

/// Conformance: Service, complete ServiceStatus lifecycle
#[tokio::test]
async fn services_have_a_status() {
    let mut object = service();
    object["spec"]["type"] = "LoadBalancer".into();
    Life::namespaced("v1", "Service", "services", object)
        .status(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}))
        .live()
        .await;
}

/// Conformance: Service, deletes a collection of services
#[tokio::test]
async fn services_are_deleted_as_a_collection() {
    let world = World::api().await;
    for (called, labels) in [
        ("a", json!({"e2e": "yes"})),
        ("b", json!({"e2e": "yes"})),
        ("c", json!({"e2e": "no"})),
    ] {
        let mut object = service();
        object["metadata"] = json!({"name": called, "labels": labels});
        world.create(&services(), object).await;
    }
    let chosen = format!("{}?labelSelector=e2e%3Dyes", services());
    assert_eq!(world.items(&chosen).await.len(), 2);
    world.delete(&chosen).await.ok(200);
    assert!(world.items(&chosen).await.is_empty());
    world.object(&format!("{}/c", services())).await;
}

/// Conformance: Kubernetes Service
/// Conformance: Find Kubernetes Service in default Namespace
#[tokio::test]
async fn the_api_is_a_service() {
    let world = World::api().await;
    let own = world.object(&format!("{}/kubernetes", services())).await;
    assert_eq!(own["spec"]["ports"][0]["port"], 443);
    let all = world.items("/api/v1/services").await;
    assert!(
        all.iter()
            .any(|s| name(s) == "kubernetes" && text(s, "/metadata/namespace") == "default")
    );
}

async fn web(world: &World, count: usize, ports: Value) -> String {
    for number in 0..count {
        let mut pod = template(&json!({"app": "web"}));
        pod["metadata"]["name"] = format!("web-{number}").into();
        pod["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}]);
        world.create(&at("v1", "pods"), pod).await;
    }
    let object =
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}});
    world.create(&services(), object).await;
    format!(
        "{}?labelSelector=kubernetes.io%2Fservice-name%3Dweb",
        at("discovery.k8s.io/v1", "endpointslices")
    )
}

fn addresses(slices: &Value) -> usize {
    let slices = slices["items"].as_array().into_iter().flatten();
    slices
        .flat_map(|s| s["endpoints"].as_array().cloned().unwrap_or_default())
        .filter(|e| e["conditions"]["ready"] == true)
        .count()
}

/// Conformance: EndpointSlice, creation/deletion
#[tokio::test]
async fn slices_follow_services() {
    let world = World::whole(&["n1"]).await;
    let slices = web(
        &world,
        1,
        json!([{"name": "http", "port": 80, "targetPort": 8080}]),
    )
    .await;
    world.until(&slices, |list| addresses(list) == 1).await;
    let endpoints = format!("{}/web", at("v1", "endpoints"));
    world
        .until(&endpoints, |e| {
            e["subsets"][0]["addresses"][0]["targetRef"]["name"] == "web-0"
        })
        .await;
    world.delete(&format!("{}/web", services())).await.ok(200);
    world.until_count(&slices, 0).await;
    world.until_gone(&endpoints).await;
}

/// Conformance: EndpointSlice, "empty" Service
/// Conformance: Endpoints, "empty" Service
#[tokio::test]
async fn a_service_of_no_pods_has_empty_endpoints() {
    let world = World::whole(&[]).await;
    let slices = web(&world, 0, json!([{"name": "http", "port": 80}])).await;
    let found = world.until_count(&slices, 1).await;
    assert!(found[0]["endpoints"].as_array().is_none_or(Vec::is_empty));
    world
        .until(&format!("{}/web", at("v1", "endpoints")), |e| {
            e["kind"] == "Endpoints"
        })
        .await;
}

/// Conformance: EndpointSlice, single IP, multiple ports
#[tokio::test]
async fn one_pod_of_many_ports() {
    slices_have(1).await;
}

/// Conformance: EndpointSlice, multiple IPs, multiple ports
#[tokio::test]
async fn many_pods_of_many_ports() {
    slices_have(3).await;
}

async fn slices_have(count: usize) {
    let world = World::whole(&["n1"]).await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}, {"name": "admin", "port": 81, "targetPort": 9090}]);
    let slices = web(&world, count, ports).await;
    let ported = |list: &Value| {
        let slices = list["items"].as_array().into_iter().flatten();
        let mut found: Vec<(String, u64)> = slices
            .flat_map(|s| s["ports"].as_array().cloned().unwrap_or_default())
            .map(|p| {
                (
                    text(&p, "/name").to_owned(),
                    p["port"].as_u64().unwrap_or(0),
                )
            })
            .collect();
        found.sort_unstable();
        found == [("admin".to_owned(), 9090), ("http".to_owned(), 8080)]
    };
    let right = |list: &Value| addresses(list) == count && ported(list);
    world.until(&slices, right).await;
}

/// Conformance (partly): Service, change type, ClusterIP to ExternalName
/// Conformance (partly): Service, change type, ExternalName to ClusterIP
/// Conformance (partly): Service, change type, ExternalName to NodePort
/// Conformance (partly): Service, change type, NodePort to ExternalName
#[tokio::test]
async fn services_change_their_type() {
    let world = World::api().await;
    let mut object = service();
    object["metadata"] = json!({"name": "s"});
    world.create(&services(), object).await;
    let one = format!("{}/s", services());
    let external = json!({"spec": {"type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null}});
    for kind in ["ClusterIP", "NodePort"] {
        let changed = world.merge(&one, external.clone()).await;
        assert_eq!(text(&changed, "/spec/clusterIP"), "");
        assert!(changed["spec"]["ports"][0].get("nodePort").is_none());
        let back = json!({"spec": {"type": kind, "externalName": null}});
        let changed = world.merge(&one, back).await;
        assert_ne!(text(&changed, "/spec/clusterIP"), "");
        assert_eq!(
            changed["spec"]["ports"][0]["nodePort"].is_u64(),
            kind == "NodePort"
        );
    }
    world.merge(&one, external).await;
}
