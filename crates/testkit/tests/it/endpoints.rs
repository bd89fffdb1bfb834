//! Who answers for a service, as the older Endpoints tell it.

use serde_json::{Value, json};
use testkit::eventually;

use crate::apps::rig::{Rig, is_empty, text, workload};

const ENDPOINTS: &str = "v1/endpoints";
const SERVICES: &str = "v1/services";

fn service(named: &str, label: &str, port: Value) -> Value {
    let mut selector = json!({});
    selector[label] = json!("on");
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": named},
        "spec": {"selector": selector, "publishNotReadyAddresses": true,
            "ports": [{"name": "http", "port": 80, "targetPort": port}]}})
}

/// Addresses and their port, sorted.
fn answers(endpoints: &Value) -> Vec<(String, i64)> {
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    let mut all: Vec<(String, i64)> = subsets
        .flat_map(|s| {
            let port = s["ports"][0]["port"].as_i64().unwrap_or(0);
            let addresses = s["addresses"].as_array().into_iter().flatten();
            addresses.map(move |a| (text(a, "/ip").to_owned(), port))
        })
        .collect();
    all.sort();
    all
}

/// Conformance: Endpoints, creation/deletion
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_name_the_pods_by_their_ports() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1"]).await?;
    let mut ips = Vec::new();
    for (named, port) in [("pod1", 3000), ("pod2", 3001)] {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": named,
            "labels": {"shared12": "on"}},
            "spec": {"containers": [{"name": "c", "image": "i",
                "ports": [{"name": "example-name", "containerPort": port}]}]}});
        pod["metadata"]["labels"][named] = json!("on");
        rig.create("v1/pods", pod).await?;
        let runs = rig
            .until("v1/pods", named, "to have an address", |p| {
                p["status"]["podIP"].is_string()
            })
            .await?;
        ips.push(text(&runs, "/status/podIP").to_owned());
    }
    let expect = async |named: &str, expected: &[(String, i64)]| {
        let found = rig
            .until(ENDPOINTS, named, "to be right", |e| answers(e) == expected)
            .await?;
        let subsets = found["subsets"].as_array().into_iter().flatten();
        for address in subsets.flat_map(|s| s["addresses"].as_array().into_iter().flatten()) {
            assert_eq!(text(address, "/targetRef/kind"), "Pod");
            assert_eq!(text(address, "/nodeName"), "n1");
        }
        anyhow::Ok(())
    };
    rig.create(SERVICES, service("single", "pod1", json!(3000)))
        .await?;
    expect("single", &[(ips[0].clone(), 3000)]).await?;
    rig.create(
        SERVICES,
        service("named", "shared12", json!("example-name")),
    )
    .await?;
    let mut both = vec![(ips[0].clone(), 3000), (ips[1].clone(), 3001)];
    both.sort();
    expect("named", &both).await?;
    rig.create(SERVICES, service("nobody", "pod3", json!(8080)))
        .await?;
    expect("nobody", &[]).await?;
    // A pod that goes answers no longer.
    rig.delete("v1/pods", "pod1", json!({"gracePeriodSeconds": 0}))
        .await?;
    expect("single", &[]).await?;
    expect("named", &[(ips[1].clone(), 3001)]).await
}

/// Conformance: Endpoints, "empty" Service
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_there_for_a_service_without_pods() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    rig.create(SERVICES, service("empty", "nothing", json!(80)))
        .await?;
    let found = rig
        .until(ENDPOINTS, "empty", "to be there", Value::is_object)
        .await?;
    assert!(is_empty(&found["subsets"]));
    rig.delete(SERVICES, "empty", Value::Null).await?;
    rig.until_gone(ENDPOINTS, "empty").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_that_people_write_are_mirrored_and_go_with_their_service() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let bare = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "own"},
        "spec": {"ports": [{"port": 80}]}});
    rig.create(SERVICES, bare).await?;
    let written = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "own", "annotations": {"note": "mine"}},
        "subsets": [{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80}]}]});
    rig.create(ENDPOINTS, written).await?;
    let mirrored = eventually("a slice to be there", || async {
        let slices = "discovery.k8s.io/v1/endpointslices";
        let found = rig.list(slices, "kubernetes.io/service-name=own").await?;
        Ok(found.first().cloned())
    })
    .await?;
    assert_eq!(mirrored["metadata"]["annotations"], json!({"note": "mine"}));
    rig.delete(SERVICES, "own", Value::Null).await?;
    rig.until_gone(ENDPOINTS, "own").await
}

/// The zones that the endpoints of a Service are meant for, sorted.
async fn meant_for(rig: &Rig) -> anyhow::Result<Vec<String>> {
    let slices = "discovery.k8s.io/v1/endpointslices";
    let found = rig.list(slices, "kubernetes.io/service-name=web").await?;
    let endpoints = found.iter().flat_map(|s| s["endpoints"].as_array());
    let zone = |e: &Value| text(e, "/hints/forZones/0/name").to_owned();
    let mut zones: Vec<String> = endpoints.flatten().map(zone).collect();
    zones.sort();
    Ok(zones)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zones_share_endpoints_as_their_nodes_share_the_cpu() -> anyhow::Result<()> {
    let rig = Rig::start(&["n1", "n2"]).await?;
    let zone = |name: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": name}}});
    rig.merge("v1/nodes", "n1", zone("a")).await?;
    // All pods are in one zone; the other gets its share of them.
    let spec = json!({"replicas": 4});
    let mut web = workload("Deployment", "web", "i", spec);
    web["spec"]["template"]["spec"]["nodeName"] = json!("n1");
    rig.create("apps/v1/deployments", web).await?;
    let auto = "service.kubernetes.io/topology-mode";
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "annotations": {auto: "Auto"}},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    rig.create(SERVICES, service).await?;
    let expect = async |expected: &[&str]| {
        testkit::eventually(&format!("hints for {expected:?}"), || async {
            let found = meant_for(&rig).await?;
            Ok((found == expected).then_some(()))
        })
        .await
    };
    // A node without a zone: nobody can tell.
    expect(&[""; 4]).await?;
    rig.merge("v1/nodes", "n2", zone("b")).await?;
    expect(&["a", "a", "b", "b"]).await?;
    let off = json!({"metadata": {"annotations": {auto: null}}, "spec": {"trafficDistribution": "PreferClose"}});
    rig.merge(SERVICES, "web", off).await?;
    expect(&["a"; 4]).await?;
    // The node moves, and its pods with it.
    rig.merge("v1/nodes", "n1", zone("c")).await?;
    expect(&["c"; 4]).await
}
