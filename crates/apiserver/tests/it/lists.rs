//! Lists: pages, selectors, versions, tables.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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
    let broken = c.get(&format!("{MAPS}?continue=%25")).await;
    assert_eq!(broken.code, 400);
    let why = broken.body["message"].as_str().unwrap();
    assert!(
        why.starts_with("invalid continue token: continue key is not valid: "),
        "{why}"
    );
    let token = |rv: i64, start: &str| {
        let text = json!({"v": "meta.k8s.io/v1", "rv": rv, "start": start}).to_string();
        URL_SAFE_NO_PAD.encode(text)
    };
    for (rv, start) in [(0, "a"), (5, ""), (5, "../secrets/")] {
        let uri = format!("{MAPS}?continue={}", token(rv, start));
        assert_eq!(c.get(&uri).await.code, 400, "{rv} {start}");
    }
    let latest = c
        .get(&format!("{MAPS}?continue={}", token(-1, "c\0")))
        .await;
    assert_eq!(names(&latest.body), ["d", "e"]);
}

/// Clients that were too slow go on with what there is now, if they say so.
#[tokio::test]
async fn an_expired_list_can_go_on_inconsistently() {
    let history = store::HistoryLimits {
        segment_events: 16,
        ..store::HistoryLimits::default()
    };
    let options = store::Options {
        history,
        ..store::Options::default()
    };
    let c = cluster_over(store::Embedded::in_memory_with(options)).await;
    for name in ["a", "b", "c"] {
        c.create(MAPS, &config_map(name)).await;
    }
    let first = c.get(&format!("{MAPS}?limit=1")).await.body;
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    for n in 0..40 {
        let change = json!({"data": {"n": n.to_string()}});
        c.merge(&format!("{MAPS}/a"), &change).await;
    }
    let expired = c.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!(
        (expired.code, &expired.body["reason"]),
        (410, &json!("Expired"))
    );
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{MAPS}?continue={token}")).await;
    assert_eq!(names(&rest.body), ["b", "c"]);
}

#[tokio::test]
async fn options_that_do_not_fit_are_refused_in_upstreams_words() {
    let c = cluster().await;
    let ask = async |query: &str| {
        let answer = c.get(&format!("{MAPS}?{query}")).await;
        let message = answer.body["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (answer.code, message)
    };
    let (code, message) = ask("resourceVersionMatch=Exact").await;
    assert_eq!(code, 422);
    assert!(message.contains("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"), "{message}");
    let (_, message) = ask("resourceVersion=0&resourceVersionMatch=Exact").await;
    assert!(
        message.contains("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""),
        "{message}"
    );
    let (_, message) = ask("resourceVersion=1&resourceVersionMatch=x").await;
    assert!(
        message.contains(
            "Unsupported value: \"x\": supported values: \"Exact\", \"NotOlderThan\", \"\""
        ),
        "{message}"
    );
    let (_, message) = ask("sendInitialEvents=true").await;
    assert!(
        message.contains("sendInitialEvents is forbidden for list"),
        "{message}"
    );
    let (code, message) = ask("watch=1&sendInitialEvents=true").await;
    assert_eq!(code, 422);
    assert!(
        message.contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        "{message}"
    );
    let (_, message) = ask("watch=1&resourceVersionMatch=NotOlderThan").await;
    assert!(
        message.contains(
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        ),
        "{message}"
    );
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

/// What is made when it is read answers in all forms, as what is stored.
#[tokio::test]
async fn component_statuses_are_read_like_other_objects() {
    const STATUSES: &str = "/api/v1/componentstatuses";
    let c = cluster().await;
    let list = c.get(STATUSES).await.body;
    assert_eq!(list["kind"], "ComponentStatusList");
    assert_eq!(list["metadata"], json!({}));
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let one = format!("{STATUSES}/etcd-0");
    let status = json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": "etcd-0"},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}]});
    assert_eq!(c.get(&one).await.body, status);
    assert_eq!(c.get(&format!("{STATUSES}/nope")).await.code, 404);
    for uri in [
        one,
        format!("{STATUSES}?fieldSelector=metadata.name%3Detcd-0"),
    ] {
        let request = http::Request::builder()
            .uri(uri)
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        let table = read(c.raw(request.body(Vec::new()).unwrap()).await)
            .await
            .body;
        let columns = table["columnDefinitions"].as_array().unwrap();
        let columns: Vec<&Value> = columns.iter().map(|column| &column["name"]).collect();
        assert_eq!(columns, ["Name", "Status", "Message", "Error"]);
        let rows = table["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["cells"], json!(["etcd-0", "Healthy", "ok", ""]));
    }
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
