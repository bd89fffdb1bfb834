//! The tables of `resourceVersion`, `resourceVersionMatch`, `limit` and `sendInitialEvents`.

use serde_json::{Value, json};

use crate::custom::define;
use crate::harness::*;

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array();
    let name = |i| -> &str { i };
    items
        .into_iter()
        .flatten()
        .map(|i| name(i["metadata"]["name"].as_str().unwrap()))
        .collect()
}

#[tokio::test]
async fn lists_by_version_match_and_limit() {
    let c = cluster().await;
    let mut versions = Vec::new();
    for name in ["a", "b", "c"] {
        let made = c.create(MAPS, &config_map(name)).await;
        versions.push(
            made["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    let (old, latest) = (&versions[1], &versions[2]);
    let all = &["a", "b", "c"][..];
    let then = &["a", "b"][..];
    // query, what is listed, revision of the list if it must be a certain one
    for (query, listed, revision) in [
        ("".to_owned(), all, Some(latest)),
        ("resourceVersion=".to_owned(), all, Some(latest)),
        ("resourceVersion=0".to_owned(), all, None),
        (
            "resourceVersion=0&resourceVersionMatch=NotOlderThan".to_owned(),
            all,
            None,
        ),
        (format!("resourceVersion={old}"), all, None),
        (
            format!("resourceVersion={old}&resourceVersionMatch=NotOlderThan"),
            all,
            None,
        ),
        (
            format!("resourceVersion={old}&resourceVersionMatch=Exact"),
            then,
            Some(old),
        ),
        ("limit=2".to_owned(), then, Some(latest)),
        (
            "limit=2&resourceVersion=0&resourceVersionMatch=NotOlderThan".to_owned(),
            then,
            None,
        ),
        (
            format!("limit=2&resourceVersion={old}&resourceVersionMatch=NotOlderThan"),
            then,
            None,
        ),
        (format!("limit=5&resourceVersion={old}"), then, Some(old)),
        (
            format!("limit=5&resourceVersion={old}&resourceVersionMatch=Exact"),
            then,
            Some(old),
        ),
    ] {
        let answer = c.get(&format!("{MAPS}?{query}")).await;
        assert_eq!(answer.code, 200, "{query}: {}", answer.body);
        assert_eq!(names(&answer.body), listed, "{query}");
        if let Some(revision) = revision {
            assert_eq!(
                answer.body["metadata"]["resourceVersion"],
                revision.as_str(),
                "{query}"
            );
        }
    }
    let page = c.get(&format!("{MAPS}?limit=1")).await.body;
    let token = page["metadata"]["continue"].as_str().unwrap();
    for (query, code, why) in [
        (
            format!("continue={token}&resourceVersion={old}"),
            400,
            "specifying resource version is not allowed when using continue",
        ),
        (
            format!("continue={token}&resourceVersionMatch=Exact&resourceVersion=5"),
            422,
            "resourceVersionMatch is forbidden when continue is provided",
        ),
        (
            "resourceVersionMatch=NotOlderThan".to_owned(),
            422,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersion=0&resourceVersionMatch=Exact".to_owned(),
            422,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        ("resourceVersion=abc".to_owned(), 422, "abc"),
        ("limit=-1".to_owned(), 200, ""),
        ("limit=x".to_owned(), 400, "x"),
    ] {
        let answer = c.get(&format!("{MAPS}?{query}")).await;
        let message = answer.body["message"].as_str().unwrap_or_default();
        assert_eq!(answer.code, code, "{query}: {}", answer.body);
        assert!(message.contains(why), "{query}: {message}");
    }
    let continued = c
        .get(&format!("{MAPS}?continue={token}&resourceVersion=0"))
        .await;
    assert_eq!(names(&continued.body), ["b", "c"]);
    let one = c.get(&format!("{MAPS}/a?resourceVersion=0")).await;
    assert_eq!(one.code, 200);
    let future = c.get(&format!("{MAPS}/a?resourceVersion=99999999")).await;
    assert_eq!(
        (
            future.code,
            future.body["details"]["causes"][0]["reason"].as_str()
        ),
        (504, Some("ResourceVersionTooLarge"))
    );
}

#[tokio::test]
async fn watches_start_where_they_are_told() {
    let c = cluster().await;
    let a = c.create(MAPS, &config_map("a")).await;
    c.create(MAPS, &config_map("b")).await;
    let version = a["metadata"]["resourceVersion"].as_str().unwrap();
    let since = format!("resourceVersion={version}");
    let streamed =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    // query, what comes before the end
    for (query, seen) in [
        ("".to_owned(), &["ADDED a", "ADDED b"][..]),
        ("resourceVersion=0".to_owned(), &["ADDED a", "ADDED b"]),
        (since.clone(), &["ADDED b"]),
        (streamed.to_owned(), &["ADDED a", "ADDED b", "BOOKMARK "]),
        (
            format!("{streamed}&resourceVersion=0"),
            &["ADDED a", "ADDED b", "BOOKMARK "],
        ),
        (
            format!("{streamed}&{since}"),
            &["ADDED a", "ADDED b", "BOOKMARK "],
        ),
        (
            "sendInitialEvents=false&resourceVersionMatch=NotOlderThan".to_owned(),
            &[],
        ),
        (
            format!("sendInitialEvents=false&resourceVersionMatch=NotOlderThan&{since}"),
            &["ADDED b"],
        ),
    ] {
        let mut events = c
            .watch(&format!("{MAPS}?watch=1&timeoutSeconds=1&{query}"))
            .await;
        let mut got = Vec::new();
        while let Some(event) = events.next().await {
            let name = event["object"]["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            got.push(format!("{} {name}", event["type"].as_str().unwrap()));
        }
        assert_eq!(got, seen, "{query}");
    }
    for query in [
        "sendInitialEvents=true",
        "sendInitialEvents=false",
        "sendInitialEvents=true&resourceVersionMatch=Exact&resourceVersion=1",
        "resourceVersionMatch=NotOlderThan&resourceVersion=1",
    ] {
        let answer = c.get(&format!("{MAPS}?watch=1&{query}")).await;
        assert_eq!(answer.code, 422, "{query}: {}", answer.body);
    }
}

#[tokio::test]
async fn metadata_alone_can_be_watched() {
    let c = cluster().await;
    let made = c.create(MAPS, &config_map("a")).await;
    let request = http::Request::builder()
        .uri(format!("{MAPS}?watch=true&timeoutSeconds=1"))
        .header(
            "accept",
            "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io,application/json",
        )
        .body(Vec::new())
        .unwrap();
    let event = read(c.raw(request).await).await.body;
    assert_eq!(event["type"], "ADDED");
    let object = &event["object"];
    assert_eq!(
        (&object["kind"], &object["apiVersion"]),
        (&json!("PartialObjectMetadata"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(object["metadata"], made["metadata"]);
    assert_eq!(object.as_object().unwrap().len(), 3);
}

/// Everything that can be scaled shows its selector and takes replicas alone.
#[tokio::test]
async fn everything_scalable_is_scaled_alike() {
    let c = cluster().await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
    let version = json!({"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"size": {"type": "integer"}}},
            "status": {"type": "object", "properties": {"size": {"type": "integer"}, "chosen": {"type": "string"}}}}}},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.chosen"}}});
    let definition = json!({"metadata": {"name": "xs.scale.example.com"}, "spec": {"group": "scale.example.com", "scope": "Namespaced",
        "names": {"plural": "xs", "kind": "X"}, "versions": [version]}});
    define(&c, &definition).await;
    let apps = |resource: &str| format!("/apis/apps/v1/namespaces/default/{resource}");
    for (uri, spec, chosen) in [
        (
            apps("deployments"),
            json!({"selector": selector, "template": template}),
            "a=b,!x",
        ),
        (
            apps("replicasets"),
            json!({"selector": selector, "template": template}),
            "a=b,!x",
        ),
        (
            apps("statefulsets"),
            json!({"selector": selector, "serviceName": "s", "template": template}),
            "a=b,!x",
        ),
        (
            "/api/v1/namespaces/default/replicationcontrollers".to_owned(),
            json!({"selector": {"a": "b"}, "template": template}),
            "a=b",
        ),
        (
            "/apis/scale.example.com/v1/namespaces/default/xs".to_owned(),
            json!({"size": 1}),
            "k=v",
        ),
    ] {
        let custom = uri.ends_with("/xs");
        let mut object = json!({"metadata": {"name": "s"}, "spec": spec});
        if custom {
            object["kind"] = "X".into();
            object["apiVersion"] = "scale.example.com/v1".into();
        }
        c.create(&uri, &object).await;
        if custom {
            let status = json!({"status": {"size": 1, "chosen": "k=v"}});
            assert_eq!(c.merge(&format!("{uri}/s/status"), &status).await.code, 200);
        }
        let scale = format!("{uri}/s/scale");
        let now = c.get(&scale).await.body;
        assert_eq!(
            (&now["kind"], &now["apiVersion"]),
            (&json!("Scale"), &json!("autoscaling/v1")),
            "{uri}"
        );
        assert_eq!(now["spec"], json!({"replicas": 1}), "{uri}");
        assert_eq!(now["status"]["selector"], chosen, "{uri}");
        let mut next = now.clone();
        next["spec"]["replicas"] = 4.into();
        next["status"]["replicas"] = 9.into();
        let put = c.put(&scale, &next).await;
        assert_eq!(
            (put.code, &put.body["spec"]["replicas"]),
            (200, &json!(4)),
            "{uri}: {}",
            put.body
        );
        assert_eq!(
            put.body["status"]["replicas"], now["status"]["replicas"],
            "{uri}"
        );
        assert_eq!(c.put(&scale, &next).await.code, 409, "{uri}");
        let json_patch = json!([{"op": "test", "path": "/spec/replicas", "value": 4}, {"op": "replace", "path": "/spec/replicas", "value": 6}]);
        let patched = c
            .send("PATCH", &scale, "application/json-patch+json", &json_patch)
            .await;
        assert_eq!(patched.body["spec"]["replicas"], 6, "{uri}");
        let applied = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "s", "namespace": "default"}, "spec": {"replicas": 2}});
        let applied = c
            .send(
                "PATCH",
                &format!("{scale}?fieldManager=m&force=true"),
                "application/apply-patch+yaml",
                &applied,
            )
            .await;
        assert_eq!(
            (applied.code, &applied.body["spec"]["replicas"]),
            (200, &json!(2)),
            "{uri}: {}",
            applied.body
        );
        let negative = c.merge(&scale, &json!({"spec": {"replicas": -1}})).await;
        assert_eq!(negative.code, 422, "{uri}");
        let why = negative.body["message"].as_str().unwrap();
        assert!(
            why.contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            "{uri}: {why}"
        );
        let seen = c.get(&format!("{uri}/s")).await.body;
        let size = if custom {
            &seen["spec"]["size"]
        } else {
            &seen["spec"]["replicas"]
        };
        assert_eq!(size, 2, "{uri}");
    }
}
