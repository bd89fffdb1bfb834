//! Addresses of services and the ranges they are from.

use http::Method;
use serde_json::{Value, json};
use testkit::eventually;

use crate::apps::rig::{Rig, text};

const RANGES: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, ip: &str) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}]}});
    if !ip.is_empty() {
        service["spec"]["clusterIP"] = json!(ip);
    }
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_range_gives_addresses_and_stays_while_they_are_used() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let early = rig
        .create("v1/services", service("early", "10.99.0.5"))
        .await
        .unwrap_err();
    assert!(
        format!("{early:#}").contains("not in the valid range"),
        "{early:#}"
    );
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.99.0.0/24"]}});
    rig.raw(Method::POST, RANGES, range).await?;
    let path = format!("{RANGES}/more");
    let get =
        async || client::write::tolerate_missing(rig.raw(Method::GET, &path, Value::Null).await);
    eventually("the range to be ready", || async {
        let range = get().await?.unwrap_or_default();
        let ready = text(&range, "/status/conditions/0/status") == "True";
        Ok((ready && range["metadata"]["finalizers"].is_array()).then_some(()))
    })
    .await?;
    let made = rig
        .create("v1/services", service("in-it", "10.99.0.5"))
        .await?;
    assert_eq!(text(&made, "/spec/clusterIPs/0"), "10.99.0.5");
    rig.raw(Method::DELETE, &path, Value::Null).await?;
    eventually("the range to wait", || async {
        let range = get().await?.unwrap_or_default();
        Ok((text(&range, "/status/conditions/0/reason") == "Terminating").then_some(()))
    })
    .await?;
    rig.delete("v1/services", "in-it", Value::Null).await?;
    eventually("the range to go", || async {
        Ok(get().await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_deleted_by_hand_comes_back() -> anyhow::Result<()> {
    let rig = Rig::start(&[]).await?;
    let made = rig.create("v1/services", service("web", "")).await?;
    let path = format!("{ADDRESSES}/{}", text(&made, "/spec/clusterIP"));
    let before = rig.raw(Method::GET, &path, Value::Null).await?;
    rig.raw(Method::DELETE, &path, Value::Null).await?;
    let after = eventually("the address to come back", || async {
        let found = rig.raw(Method::GET, &path, Value::Null).await;
        Ok(client::write::tolerate_missing(found)?)
    })
    .await?;
    assert_ne!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(after["metadata"]["labels"], before["metadata"]["labels"]);
    Ok(())
}
