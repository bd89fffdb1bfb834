//! Watches: what is sent, from where, and how it ends.

use serde_json::json;

use crate::harness::*;

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_starts_with_what_there_is_and_follows() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let mut events = c.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(events.step().await, pair("ADDED", "a"));
    let b = c.create(MAPS, &config_map("b")).await;
    let added = events.next().await.unwrap();
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &b));
    c.merge(&format!("{MAPS}/b"), &json!({"data": {"x": "y"}}))
        .await;
    assert_eq!(events.step().await, pair("MODIFIED", "b"));
    c.delete(&format!("{MAPS}/b")).await;
    let deleted = events.next().await.unwrap();
    assert_eq!(deleted["type"], "DELETED");
    let version = |v: &serde_json::Value| {
        v["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(version(&deleted["object"]) > version(&b) + 1);
}

#[tokio::test]
async fn a_watch_goes_on_from_a_version() {
    let c = cluster().await;
    let a = c.create(MAPS, &config_map("a")).await;
    c.create(MAPS, &config_map("b")).await;
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = c
        .watch(&format!("{MAPS}?watch=1&resourceVersion={version}"))
        .await;
    assert_eq!(events.step().await, pair("ADDED", "b"));
    c.create(
        "/api/v1/namespaces/kube-system/configmaps",
        &config_map("elsewhere"),
    )
    .await;
    c.create(MAPS, &config_map("c")).await;
    assert_eq!(events.step().await, pair("ADDED", "c"));
}

#[tokio::test]
async fn objects_enter_and_leave_a_selection() {
    let c = cluster().await;
    let mut events = c
        .watch(&format!(
            "{MAPS}?watch=true&labelSelector=app%3Dx&resourceVersion=0"
        ))
        .await;
    c.create(MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    c.merge(&uri, &json!({"metadata": {"labels": {"app": "x"}}}))
        .await;
    assert_eq!(events.step().await, pair("ADDED", "a"));
    c.merge(&uri, &json!({"data": {"k": "v"}})).await;
    assert_eq!(events.step().await, pair("MODIFIED", "a"));
    c.merge(&uri, &json!({"metadata": {"labels": {"app": "y"}}}))
        .await;
    let left = events.next().await.unwrap();
    assert_eq!(left["type"], "DELETED");
    assert_eq!(left["object"]["metadata"]["labels"]["app"], "x");
    c.delete(&uri).await;
    labelled_again(&c).await;
    assert_eq!(events.step().await, pair("ADDED", "b"));
}

async fn labelled_again(c: &Cluster) {
    let mut map = config_map("b");
    map["metadata"]["labels"] = json!({"app": "x"});
    c.create(MAPS, &map).await;
}

#[tokio::test]
async fn the_end_of_initial_events_is_told() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let query = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut events = c.watch(&format!("{MAPS}?{query}")).await;
    assert_eq!(events.step().await, pair("ADDED", "a"));
    let bookmark = events.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert!(events.next().await.is_none());
    let wrong = c
        .get(&format!("{MAPS}?watch=true&sendInitialEvents=true"))
        .await;
    assert_eq!(wrong.code, 422);
}

#[tokio::test]
async fn tables_can_be_watched() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let request = http::Request::builder()
        .uri(format!("{MAPS}?watch=true&timeoutSeconds=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let answer = read(c.raw(request).await).await;
    assert_eq!(answer.body["type"], "ADDED");
    assert_eq!(answer.body["object"]["rows"][0]["cells"][0], "a");
    assert!(answer.body["object"]["columnDefinitions"].is_array());
}

#[tokio::test]
async fn stopping_the_server_ends_watches() {
    let c = cluster().await;
    let mut events = c.watch(&format!("{MAPS}?watch=true")).await;
    c.server.stop_streams();
    assert!(events.next().await.is_none());
}
