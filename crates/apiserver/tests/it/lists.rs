//! Lists: pages, selectors, versions, tables.

use serde_json::{Value, json};

use crate::harness::*;

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["metadata"]["name"].as_str().unwrap())
        .collect()
}

async fn labelled(c: &Cluster, name: &str, app: &str) {
    let mut map = config_map(name);
    map["metadata"]["labels"] = json!({"app": app});
    c.create(MAPS, &map).await;
}

#[tokio::test]
async fn pages_come_from_one_snapshot() {
    let c = cluster().await;
    for name in ["a", "b", "c", "d", "e"] {
        labelled(&c, name, "x").await;
    }
    let first = c.get(&format!("{MAPS}?limit=2")).await.body;
    assert_eq!(
        (first["kind"].as_str(), first["apiVersion"].as_str()),
        (Some("ConfigMapList"), Some("v1"))
    );
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert!(first["items"][0].get("kind").is_none());
    labelled(&c, "bb", "x").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = c
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .body;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = c
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .body;
    assert_eq!(names(&third), ["e"]);
    assert!(third["metadata"].get("continue").is_none());
    assert_eq!(c.get(&format!("{MAPS}?continue=%25")).await.code, 400);
}

#[tokio::test]
async fn selectors_choose() {
    let c = cluster().await;
    for (name, app) in [("a", "x"), ("b", "y"), ("c", "x")] {
        labelled(&c, name, app).await;
    }
    let list = |q: &str| format!("{MAPS}?{q}");
    assert_eq!(
        names(&c.get(&list("labelSelector=app%3Dx")).await.body),
        ["a", "c"]
    );
    let page = c.get(&list("labelSelector=app%3Dx&limit=1")).await.body;
    assert_eq!(names(&page), ["a"]);
    assert!(page["metadata"].get("remainingItemCount").is_none());
    assert_eq!(
        names(&c.get(&list("fieldSelector=metadata.name%3Db")).await.body),
        ["b"]
    );
    assert_eq!(
        names(
            &c.get("/api/v1/configmaps?fieldSelector=metadata.name%3Db")
                .await
                .body
        ),
        ["b"]
    );
    assert_eq!(
        names(&c.get(&list("fieldSelector=metadata.name!%3Db")).await.body),
        ["a", "c"]
    );
    assert_eq!(c.get(&list("fieldSelector=data.a%3Db")).await.code, 400);
    assert_eq!(c.get(&list("labelSelector=%3D%3D")).await.code, 400);
    let gone = c.delete(&list("labelSelector=app%3Dx")).await;
    assert_eq!(names(&gone.body), ["a", "c"]);
    assert_eq!(names(&c.get(MAPS).await.body), ["b"]);
}

#[tokio::test]
async fn versions_of_lists() {
    let c = cluster().await;
    let a = c.create(MAPS, &config_map("a")).await;
    c.create(MAPS, &config_map("b")).await;
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = c
        .get(&format!(
            "{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact"
        ))
        .await;
    assert_eq!(names(&exact.body), ["a"]);
    assert_eq!(
        names(
            &c.get(&format!("{MAPS}?resourceVersion={version}"))
                .await
                .body
        ),
        ["a", "b"]
    );
    let future = c.get(&format!("{MAPS}?resourceVersion=99999")).await;
    assert_eq!(future.code, 504);
    assert_eq!(
        future.body["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    assert_eq!(
        c.get(&format!("{MAPS}?resourceVersionMatch=Exact"))
            .await
            .code,
        422
    );
}

#[tokio::test]
async fn tables_and_metadata_alone() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let ask = async |accept: &str, uri: &str| {
        let request = http::Request::builder()
            .uri(uri)
            .header("accept", accept)
            .body(Vec::new())
            .unwrap();
        read(c.raw(request).await).await.body
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io", MAPS).await;
    assert_eq!(
        (table["kind"].as_str(), table["apiVersion"].as_str()),
        (Some("Table"), Some("meta.k8s.io/v1"))
    );
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert!(table["rows"][0]["object"]["metadata"]["resourceVersion"].is_string());
    let full = ask(
        "application/json;as=Table;v=v1;g=meta.k8s.io",
        &format!("{MAPS}?includeObject=Object"),
    )
    .await;
    assert_eq!(full["rows"][0]["object"]["data"]["a"], "b");
    let list = ask(
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        MAPS,
    )
    .await;
    assert_eq!(
        (
            list["kind"].as_str(),
            list["items"][0]["metadata"]["name"].as_str()
        ),
        (Some("PartialObjectMetadataList"), Some("a"))
    );
    assert!(list["items"][0].get("data").is_none());
}

#[tokio::test]
async fn events_are_one_resource_in_two_groups() {
    let c = cluster().await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "message": "hello", "type": "Normal", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 1,
        "source": {"component": "kubelet"}});
    c.create("/api/v1/namespaces/default/events", &event).await;
    let new = c
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await;
    assert_eq!(new.body["apiVersion"], "events.k8s.io/v1");
    let chosen = c
        .get("/api/v1/events?fieldSelector=involvedObject.name%3Dp,reason%3DStarted")
        .await;
    assert_eq!(names(&chosen.body), ["e"]);
}

#[tokio::test]
async fn events_do_not_stay() {
    let c = cluster_with(|config| config.event_ttl = std::time::Duration::from_millis(300)).await;
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    let uri = "/api/v1/namespaces/default/events";
    c.create(uri, &event).await;
    let mut events = c.watch(&format!("{uri}?watch=true")).await;
    assert_eq!(events.step().await.0, "ADDED");
    assert_eq!(events.step().await.0, "DELETED");
    assert_eq!(names(&c.get(uri).await.body), Vec::<&str>::new());
}

#[tokio::test]
async fn long_lists_are_whole_selected_and_of_one_revision() {
    const MANY: usize = 700;
    let c = cluster().await;
    for n in 0..MANY {
        let mut map = config_map(&format!("m{n:04}"));
        map["metadata"]["labels"] = json!({"half": if n % 2 == 0 { "even" } else { "odd" }});
        map["data"] = json!({"filler": "x".repeat(400)});
        c.create(MAPS, &map).await;
    }
    let list = c.get(MAPS).await;
    assert_eq!(list.headers["content-type"], "application/json");
    let all = list.body;
    assert_eq!(all["kind"], "ConfigMapList");
    assert_eq!(names(&all).len(), MANY);
    assert!(names(&all).is_sorted());
    assert!(all["items"][0].get("kind").is_none());
    let revision = all["metadata"]["resourceVersion"].as_str().unwrap();
    let odd = c
        .get(&format!("{MAPS}?labelSelector=half%3Dodd"))
        .await
        .body;
    assert_eq!(names(&odd).len(), MANY / 2);
    c.delete(&format!("{MAPS}/m0000")).await;
    let then = format!("{MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(c.get(&then).await.body, all);
    assert_eq!(names(&c.get(MAPS).await.body).len(), MANY - 1);
}
