//! Addresses and ports of services.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::harness::*;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn the_kubernetes_service_has_the_first_address() {
    let c = cluster_with(|config| config.advertise_address = "10.42.0.1".parse().unwrap()).await;
    let kubernetes = c.get(&format!("{SERVICES}/kubernetes")).await.body;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let endpoints = c
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .body;
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.42.0.1");
    let slice = c
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .body;
    assert_eq!(slice["ports"][0]["port"], 6443);
}

#[tokio::test]
async fn addresses_are_taken_and_given_back() {
    let c = cluster().await;
    let fixed = service("dns", json!({"clusterIP": "10.43.0.10"}));
    assert_eq!(
        c.create(SERVICES, &fixed).await["spec"]["clusterIPs"],
        json!(["10.43.0.10"])
    );
    let other = service("dns2", json!({"clusterIP": "10.43.0.10"}));
    let refused = c.post(SERVICES, &other).await;
    assert_eq!(refused.code, 422);
    assert!(
        refused.body["message"]
            .as_str()
            .unwrap()
            .contains("failed to allocate IP 10.43.0.10: provided IP is already allocated")
    );
    assert_eq!(
        c.get("/apis/networking.k8s.io/v1/ipaddresses/10.43.0.10")
            .await
            .body["spec"]["parentRef"]["name"],
        "dns"
    );
    let outside = c
        .post(SERVICES, &service("x", json!({"clusterIP": "10.9.0.1"})))
        .await;
    assert!(
        outside.body["message"]
            .as_str()
            .unwrap()
            .contains("is not in the valid range. The range of valid IPs is 10.43.0.0/16")
    );
    assert_eq!(c.delete(&format!("{SERVICES}/dns")).await.code, 200);
    c.create(SERVICES, &other).await;
    let headless = c
        .create(SERVICES, &service("h", json!({"clusterIP": "None"})))
        .await;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let random = c.create(SERVICES, &service("r", json!({}))).await;
    assert!(
        random["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.43.")
    );
    assert_eq!(random["spec"]["ipFamilies"], json!(["IPv4"]));
}

#[tokio::test]
async fn many_at_once_get_different_addresses_and_ports() {
    let c = cluster_with(|config| {
        config.service_cidr = "10.99.0.0/27".parse().unwrap();
        config.node_ports = 30000..=30019;
    })
    .await;
    let bodies: Vec<Value> = (0..20)
        .map(|i| service(&format!("s{i}"), json!({"type": "NodePort"})))
        .collect();
    let made = futures::future::join_all(bodies.iter().map(|b| c.create(SERVICES, b))).await;
    let addresses: HashSet<String> = made
        .iter()
        .map(|s| s["spec"]["clusterIP"].to_string())
        .collect();
    let ports: HashSet<String> = made
        .iter()
        .map(|s| s["spec"]["ports"][0]["nodePort"].to_string())
        .collect();
    assert_eq!((addresses.len(), ports.len()), (20, 20));
    let full = c
        .post(SERVICES, &service("one-more", json!({"type": "NodePort"})))
        .await;
    assert_eq!(full.code, 422);
    assert_eq!(c.delete(&format!("{SERVICES}/s3")).await.code, 200);
    c.create(SERVICES, &service("one-more", json!({"type": "NodePort"})))
        .await;
}

#[tokio::test]
async fn node_ports_are_checked() {
    let c = cluster().await;
    let port = |n: u32| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": n}]});
    c.create(SERVICES, &service("a", port(30080))).await;
    let taken = c.post(SERVICES, &service("b", port(30080))).await;
    assert!(
        taken.body["message"].as_str().unwrap().contains(
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        ),
        "{}",
        taken.body
    );
    let low = c.post(SERVICES, &service("b", port(80))).await;
    assert!(low.body["message"].as_str().unwrap().contains(
        "provided port is not in the valid range. The range of valid ports is 30000-32767"
    ));
    let back = c
        .merge(
            &format!("{SERVICES}/a"),
            &json!({"spec": {"type": "ClusterIP"}}),
        )
        .await;
    assert_eq!(back.code, 200, "{}", back.body);
    assert!(back.body["spec"]["ports"][0].get("nodePort").is_none());
    c.create(SERVICES, &service("b", port(30080))).await;
    let replaced = c
        .put(
            &format!("{SERVICES}/b"),
            &service("b", json!({"type": "NodePort"})),
        )
        .await;
    assert_eq!(
        replaced.body["spec"]["ports"][0]["nodePort"], 30080,
        "{}",
        replaced.body
    );
}

/// Conformance: kubernetes.default Endpoints and EndpointSlices
#[tokio::test]
async fn endpoints_and_slices_of_the_api_agree() {
    const NODE: [u8; 4] = [192, 0, 2, 10];
    let c = cluster_with(|config| config.advertise_address = NODE.into()).await;
    let get = async |group: &str, plural: &str| {
        let uri = format!("/{group}/namespaces/default/{plural}/kubernetes");
        let answer = c.get(&uri).await;
        assert_eq!(answer.code, 200, "{}", answer.body);
        answer.body
    };
    get("api/v1", "services").await;
    let endpoints = get("api/v1", "endpoints").await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes";
    let slices = c.get(slices).await.body["items"].clone();
    let [slice] = slices.as_array().unwrap().as_slice() else {
        panic!("{slices}");
    };
    let subset = &endpoints["subsets"][0];
    assert_eq!(subset["addresses"][0]["ip"], "192.0.2.10");
    assert_eq!(slice["addressType"], "IPv4");
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["192.0.2.10"]));
    assert_eq!(slice["endpoints"][0]["conditions"]["ready"], true);
    assert_eq!(slice["ports"], subset["ports"]);
    assert_eq!(subset["ports"][0]["name"], "https");
}
