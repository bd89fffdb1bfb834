//! Create, get, update, patch, delete.

use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let c = cluster().await;
    let made = c.create(MAPS, &config_map("a")).await;
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].as_str().unwrap().len() == 36);
    let version = made["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();

    let got = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(got.body, made);
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["cache-control"], "no-cache, private");

    let twice = c.post(MAPS, &config_map("a")).await;
    assert_eq!(
        (twice.code, twice.body["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    assert_eq!(twice.body["message"], "configmaps \"a\" already exists");

    let mut next = made.clone();
    next["data"]["x"] = "y".into();
    let updated = c.put(&format!("{MAPS}/a"), &next).await;
    assert_eq!(updated.code, 200);
    assert_ne!(updated.body["metadata"]["resourceVersion"], version);
    let stale = c.put(&format!("{MAPS}/a"), &next).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.body["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let gone = c.delete(&format!("{MAPS}/a")).await;
    assert_eq!(
        (gone.code, gone.body["status"].as_str()),
        (200, Some("Success"))
    );
    assert_eq!(gone.body["details"]["kind"], "configmaps");
    let missing = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(
        (missing.code, missing.body["message"].as_str()),
        (404, Some("configmaps \"a\" not found"))
    );
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_version() {
    let c = cluster().await;
    let made = c.create(MAPS, &config_map("a")).await;
    let same = c.put(&format!("{MAPS}/a"), &config_map("a")).await;
    assert_eq!(
        same.body["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let same = c
        .merge(&format!("{MAPS}/a"), &json!({"data": {"a": "b"}}))
        .await;
    assert_eq!(same.body, made);
}

#[tokio::test]
async fn generated_names_differ() {
    let c = cluster().await;
    let map = json!({"metadata": {"generateName": "x-"}});
    let (a, b) = (c.create(MAPS, &map).await, c.create(MAPS, &map).await);
    let name = a["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("x-") && name.len() == 7);
    assert_ne!(a["metadata"]["name"], b["metadata"]["name"]);
}

#[tokio::test]
async fn patches_of_all_types() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    // Operators add their finalizer in this way: what is not there is null.
    let json_patch = json!([{"op": "test", "path": "/metadata/finalizers", "value": null}, {"op": "add", "path": "/data/c", "value": "d"}]);
    assert_eq!(
        c.send("PATCH", &uri, "application/json-patch+json", &json_patch)
            .await
            .body["data"],
        json!({"a": "b", "c": "d"})
    );
    assert_eq!(
        c.merge(&uri, &json!({"data": {"a": null}})).await.body["data"],
        json!({"c": "d"})
    );
    let strategic = json!({"data": {"$patch": "replace", "e": "f"}});
    assert_eq!(
        c.send(
            "PATCH",
            &uri,
            "application/strategic-merge-patch+json",
            &strategic
        )
        .await
        .body["data"],
        json!({"e": "f"})
    );
    let apply = c
        .send(
            "PATCH",
            &uri,
            "application/apply-patch+cbor",
            &config_map("a"),
        )
        .await;
    assert_eq!(
        (apply.code, apply.body["reason"].as_str()),
        (415, Some("UnsupportedMediaType"))
    );
    let pinned = c
        .merge(
            &uri,
            &json!({"metadata": {"resourceVersion": "1"}, "data": {"z": "z"}}),
        )
        .await;
    assert_eq!(pinned.code, 409);
}

#[tokio::test]
async fn unknown_fields_warn_or_fail() {
    let c = cluster().await;
    let mut map = config_map("a");
    map["foo"] = 1.into();
    let strict = c
        .post(&format!("{MAPS}?fieldValidation=Strict"), &map)
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.body["message"]
            .as_str()
            .unwrap()
            .ends_with("strict decoding error: unknown field \"foo\"")
    );
    let warned = c.post(MAPS, &map).await;
    assert_eq!(warned.code, 201);
    assert_eq!(
        warned.headers["warning"],
        "299 - \"unknown field \\\"foo\\\"\""
    );
    assert!(warned.body.get("foo").is_none());
    let silent = c
        .post(
            &format!("{MAPS}?fieldValidation=Ignore"),
            &json!({"metadata": {"name": "b"}, "foo": 1}),
        )
        .await;
    assert!(silent.headers.get("warning").is_none());
}

#[tokio::test]
async fn dry_runs_leave_no_trace() {
    let c = cluster().await;
    assert_eq!(
        c.post(&format!("{MAPS}?dryRun=All"), &config_map("a"))
            .await
            .code,
        201
    );
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 404);
    c.create(MAPS, &config_map("a")).await;
    assert_eq!(c.delete(&format!("{MAPS}/a?dryRun=All")).await.code, 200);
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 200);
    assert_eq!(
        c.post(&format!("{MAPS}?dryRun=maybe"), &config_map("b"))
            .await
            .code,
        422
    );
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let c = cluster().await;
    let mut map = config_map("a");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.create(MAPS, &map).await;
    let uri = format!("{MAPS}/a");
    let dying = c.delete(&uri).await;
    assert!(dying.body["metadata"]["deletionTimestamp"].is_string());
    let more = c
        .merge(
            &uri,
            &json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}),
        )
        .await;
    assert_eq!(more.code, 422);
    assert!(
        more.body["message"]
            .as_str()
            .unwrap()
            .contains("no new finalizers can be added if the object is being deleted")
    );
    assert_eq!(
        c.merge(&uri, &json!({"metadata": {"finalizers": null}}))
            .await
            .code,
        200
    );
    assert_eq!(c.get(&uri).await.code, 404);
}

#[tokio::test]
async fn propagation_becomes_finalizers_and_preconditions_hold() {
    let c = cluster().await;
    let made = c.create(MAPS, &config_map("a")).await;
    let uri = format!("{MAPS}/a");
    let wrong = c
        .send(
            "DELETE",
            &uri,
            "application/json",
            &json!({"preconditions": {"uid": "x"}}),
        )
        .await;
    assert_eq!(wrong.code, 409);
    assert!(
        wrong.body["message"]
            .as_str()
            .unwrap()
            .contains("Precondition failed: UID in precondition: x, UID in object meta: ")
    );
    let right = json!({"preconditions": {"uid": made["metadata"]["uid"]}, "propagationPolicy": "Foreground"});
    let dying = c.send("DELETE", &uri, "application/json", &right).await;
    assert_eq!(
        dying.body["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
}

#[tokio::test]
async fn pods_die_gracefully_once_they_run_somewhere() {
    let c = cluster().await;
    with_account(&c).await;
    c.create(PODS, &pod("idle")).await;
    assert_eq!(c.delete(&format!("{PODS}/idle")).await.code, 200);
    assert_eq!(c.get(&format!("{PODS}/idle")).await.code, 404);
    let mut bound = pod("busy");
    bound["spec"]["nodeName"] = "n1".into();
    c.create(PODS, &bound).await;
    let uri = format!("{PODS}/busy");
    let dying = c.delete(&uri).await;
    assert_eq!(dying.body["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(c.get(&uri).await.code, 200);
    assert_eq!(
        c.send(
            "DELETE",
            &uri,
            "application/json",
            &json!({"gracePeriodSeconds": 0})
        )
        .await
        .code,
        200
    );
    assert_eq!(c.get(&uri).await.code, 404);
}

#[tokio::test]
async fn bodies_and_answers_of_other_types_are_refused() {
    let c = cluster().await;
    let xml = c
        .send("POST", MAPS, "application/xml", &config_map("a"))
        .await;
    assert_eq!(
        (xml.code, xml.body["reason"].as_str()),
        (415, Some("UnsupportedMediaType"))
    );
    let request = http::Request::builder()
        .uri(MAPS)
        .header("accept", "text/html")
        .body(Vec::new())
        .unwrap();
    let html = read(c.raw(request).await).await;
    assert_eq!(
        (html.code, html.body["reason"].as_str()),
        (406, Some("NotAcceptable"))
    );
    let large = serde_json::json!({"metadata": {"name": "a"}, "data": {"x": "y".repeat(4 << 20)}});
    assert_eq!(c.post(MAPS, &large).await.code, 413);
    assert_eq!(
        c.post(MAPS, &json!({"kind": "Secret", "metadata": {"name": "a"}}))
            .await
            .code,
        400
    );
    assert_eq!(
        c.send("PUT", MAPS, "application/json", &config_map("a"))
            .await
            .code,
        405
    );
    assert_eq!(c.get("/api/v1/namespaces/default/nothings").await.code, 404);
}

#[tokio::test]
async fn secrets_are_sealed_in_the_store() {
    use store::Store;
    let c = cluster().await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "open sesame"}});
    c.create("/api/v1/namespaces/default/secrets", &secret)
        .await;
    let (kv, _) = c
        .store
        .get(b"/registry/secrets/default/s", None)
        .await
        .unwrap();
    assert!(kv.unwrap().value.starts_with(b"k8s:enc:aesgcm:v1:"));
    let got = c.get("/api/v1/namespaces/default/secrets/s").await;
    assert_eq!(got.body["data"]["password"], "b3BlbiBzZXNhbWU=");
    let list = c.get("/api/v1/namespaces/default/secrets").await;
    assert_eq!(
        list.body["items"][0]["data"]["password"],
        "b3BlbiBzZXNhbWU="
    );
}

#[tokio::test]
async fn what_nobody_wrote_is_defaulted_before_all_that_is_missing_is_told() {
    let c = cluster().await;
    let labels = "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`";
    let containers = "spec.template.spec.containers: Required value";
    let apps = "/apis/apps/v1/namespaces/default";
    for (path, kind, called, version, wanted) in [
        (
            format!("{apps}/deployments"),
            "Deployment",
            "Deployment.apps",
            "apps/v1",
            format!("[spec.selector: Required value, {labels}, {containers}]"),
        ),
        (
            format!("{apps}/daemonsets"),
            "DaemonSet",
            "DaemonSet.apps",
            "apps/v1",
            format!("[{labels}, {containers}]"),
        ),
        (
            "/api/v1/namespaces/default/replicationcontrollers".to_owned(),
            "ReplicationController",
            "ReplicationController",
            "v1",
            "[spec.selector: Required value, spec.template: Required value]".to_owned(),
        ),
        (
            "/api/v1/namespaces/default/services".to_owned(),
            "Service",
            "Service",
            "v1",
            "spec.ports: Required value".to_owned(),
        ),
    ] {
        let bare = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        let refused = c.post(&path, &bare).await;
        assert_eq!(
            (refused.code, refused.body["message"].as_str()),
            (
                422,
                Some(format!("{called} \"x\" is invalid: {wanted}").as_str())
            )
        );
    }
}
