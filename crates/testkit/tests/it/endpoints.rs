//! Who answers for a service, as the older Endpoints tell it.

use serde_json::{Value, json};

use crate::apps::rig::{Rig, is_empty, text};

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
