//! Aggregation: group-versions that another server behind a service serves.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, Response};
use hyper::body::Bytes;
use serde_json::{Value, json};
use tower::Service;

use crate::backend::Backend;
use crate::custom::{define, definition, version};
use crate::harness::*;

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

fn listed() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "other.example/v1", "resources": [
        {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get", "list"]}]})
}

fn answer(request: &Request<Bytes>) -> Value {
    if request.uri().path() == "/apis/other.example/v1" {
        return listed();
    }
    let headers: &HeaderMap = request.headers();
    let all = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|v| v.to_str().unwrap().to_owned())
            .collect()
    };
    json!({"kind": "Echo", "uri": request.uri().to_string(), "user": all("x-remote-user"), "groups": all("x-remote-group"),
        "authorization": all("authorization")})
}

/// A server behind `other.default.svc` that trusts the front proxy alone and answers with what it was asked.
async fn other(c: &Cluster) -> Backend {
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = c.get(map).await.body["data"].clone();
    assert_eq!(
        data["requestheader-allowed-names"],
        "[\"front-proxy-client\"]"
    );
    let trusted = data["requestheader-client-ca-file"].as_str();
    Backend::start(&["other.default.svc"], trusted, |request| answer(&request)).await
}

fn api_service(backend: &Backend) -> Value {
    json!({"metadata": {"name": "v1.other.example"}, "spec": {
        "group": "other.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
        "caBundle": STANDARD.encode(&backend.authority),
        "service": {"namespace": "default", "name": "other", "port": backend.port}}})
}

/// The Available condition once its reason is the one waited for.
async fn until(c: &Cluster, name: &str, reason: &str) -> Value {
    let uri = format!("{API_SERVICES}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut events = c.watch(&uri).await;
    let seen = async {
        loop {
            let object = events.next().await.expect("the watch ended")["object"].clone();
            let condition = object["status"]["conditions"][0].clone();
            if condition["reason"] == reason {
                return condition;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .expect("the condition never came")
}

#[tokio::test]
async fn requests_reach_the_other_server_in_the_users_name() {
    let c = cluster().await;
    let backend = other(&c).await;
    let service = json!({"metadata": {"name": "other"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    c.create("/api/v1/namespaces/default/services", &service)
        .await;
    c.create(API_SERVICES, &api_service(&backend)).await;
    let condition = until(&c, "v1.other.example", "Passed").await;
    assert_eq!(
        (&condition["status"], &condition["message"]),
        (&json!("True"), &json!("all checks passed"))
    );

    let things = "/apis/other.example/v1/namespaces/default/things?limit=5";
    let request = Request::builder()
        .uri(things)
        .header("x-remote-user", "forged")
        .header("authorization", "Bearer forged")
        .body(apiserver::http::body::full(Vec::new()))
        .unwrap();
    let mut ann = c.user("ann", &["system:masters"]);
    let echo = read(ann.call(request).await.unwrap()).await;
    assert_eq!(echo.code, 200, "{}", echo.body);
    assert_eq!(echo.body["uri"], things);
    assert_eq!(echo.body["user"], json!(["ann"]));
    assert_eq!(
        echo.body["groups"],
        json!(["system:masters", "system:authenticated"])
    );
    assert_eq!(echo.body["authorization"], json!([]));
    assert_eq!(c.get("/apis/other.example/v1").await.body, listed());

    let groups = c.get("/apis").await.body["groups"].clone();
    let names: Vec<&str> = groups
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|g| g["name"].as_str())
        .collect();
    assert!(names.contains(&"other.example") && names.contains(&"apps"));
    let group = c.get("/apis/other.example").await.body;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let request = Request::builder()
        .uri("/apis")
        .header(
            "accept",
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        )
        .body(Vec::new())
        .unwrap();
    let all = read(c.raw(request).await).await.body;
    let item = all["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(item["metadata"]["name"], "other.example");
    assert_eq!(
        item["versions"][0]["resources"][0]["responseKind"]["kind"],
        "Thing"
    );
}

#[tokio::test]
async fn who_cannot_be_reached_is_unavailable() {
    let c = cluster().await;
    let made = json!({"metadata": {"name": "v1.none.example"}, "spec": {
        "group": "none.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
        "insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "none"}}});
    let made = c.create(API_SERVICES, &made).await;
    assert_eq!(made["spec"]["service"]["port"], 443);
    let condition = until(&c, "v1.none.example", "ServiceNotFound").await;
    assert_eq!(condition["status"], "False");
    let answer = c.get("/apis/none.example/v1/things").await;
    assert_eq!(
        (answer.code, &answer.body),
        (503, &json!("service unavailable\n"))
    );
    let service = json!({"metadata": {"name": "none"}, "spec": {"ports": [{"port": 443}]}});
    c.create("/api/v1/namespaces/default/services", &service)
        .await;
    until(&c, "v1.none.example", "EndpointsNotFound").await;
    assert_eq!(
        c.delete(&format!("{API_SERVICES}/v1.none.example"))
            .await
            .code,
        200
    );
}

#[tokio::test]
async fn what_is_served_here_is_registered() {
    let c = cluster().await;
    let apps = c.get(&format!("{API_SERVICES}/v1.apps")).await.body;
    assert_eq!(
        apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"],
        "onstart"
    );
    assert_eq!(apps["spec"]["groupPriorityMinimum"], 17_800);
    assert_eq!(apps["status"]["conditions"][0]["reason"], "Local");
    let made = define(&c, &definition(&[version("v1", true)])).await;
    let condition = until(&c, "v1.stable.example.com", "Local").await;
    assert_eq!(
        condition["message"],
        "Local APIServices are always available"
    );
    let name = made["metadata"]["name"].as_str().unwrap();
    let mut events = c
        .watch(&format!(
            "{API_SERVICES}?watch=true&fieldSelector=metadata.name%3Dv1.stable.example.com"
        ))
        .await;
    assert_eq!(events.step().await.0, "ADDED");
    c.delete(&format!(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    ))
    .await;
    while events.step().await.0 != "DELETED" {}
}

/// Certificates of pods and services are not checked: they are of their own making.
#[tokio::test]
async fn pods_are_reached_over_tls_as_well() {
    let c = cluster().await;
    with_account(&c).await;
    let backend = Backend::start(&["nobody"], None, |request| answer(&request)).await;
    c.create(PODS, &pod("p")).await;
    let address = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    c.merge(&format!("{PODS}/p/status"), &address).await;
    let uri = format!("{PODS}/https:p:{}/proxy/deep/path?x=1", backend.port);
    let echo = c.get(&uri).await;
    assert_eq!(
        (echo.code, &echo.body["uri"]),
        (200, &json!("/deep/path?x=1")),
        "{}",
        echo.body
    );
    let plain = c.get(&format!("{PODS}/p:{}/proxy/", backend.port)).await;
    assert_ne!(plain.code, 200);
}

const WARDLE: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";

/// A server of one resource, as small as can be.
#[derive(Default)]
struct Wardle(Mutex<BTreeMap<String, Value>>);

impl Wardle {
    fn answer(&self, request: &Request<Bytes>) -> Response<Value> {
        let mut all = self.0.lock().unwrap();
        let said = |code: u16, value: Value| Response::builder().status(code).body(value).unwrap();
        let path = request.uri().path();
        let missing = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404});
        if path == WARDLE {
            return said(
                200,
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example.com/v1alpha1", "resources": [
                {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                    "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]}]}),
            );
        }
        let name = path
            .strip_prefix(FLUNDERS)
            .map(|n| n.trim_matches('/').to_owned());
        match (request.method(), name.as_deref()) {
            (&Method::GET, Some("")) => said(
                200,
                json!({"kind": "FlunderList", "apiVersion": "wardle.example.com/v1alpha1",
                "metadata": {"resourceVersion": "1"}, "items": all.values().collect::<Vec<_>>()}),
            ),
            (&Method::POST, Some("")) => {
                let mut made: Value = serde_json::from_slice(request.body()).unwrap();
                made["metadata"]["uid"] = "u".into();
                all.insert(
                    made["metadata"]["name"].as_str().unwrap().to_owned(),
                    made.clone(),
                );
                said(201, made)
            }
            (&Method::GET, Some(name)) => match all.get(name) {
                Some(found) => said(200, found.clone()),
                None => said(404, missing),
            },
            (&Method::DELETE, Some(name)) => match all.remove(name) {
                Some(_) => said(
                    200,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                ),
                None => said(404, missing),
            },
            _ => said(404, missing),
        }
    }
}

/// Conformance: aggregator-supports-the-sample-apiserver
#[tokio::test]
async fn a_server_of_another_group_is_part_of_the_api() {
    const NAME: &str = "v1alpha1.wardle.example.com";
    let c = cluster().await;
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = c.get(map).await.body["data"].clone();
    let trusted = data["requestheader-client-ca-file"].as_str();
    let wardle = Wardle::default();
    let names = ["sample-api.default.svc"];
    let backend = Backend::start_with(&names, trusted, move |r| wardle.answer(&r)).await;
    let service = json!({"metadata": {"name": "sample-api"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    c.create("/api/v1/namespaces/default/services", &service)
        .await;
    let made = json!({"metadata": {"name": NAME}, "spec": {
        "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "caBundle": STANDARD.encode(&backend.authority),
        "service": {"namespace": "default", "name": "sample-api", "port": backend.port}}});
    c.create(API_SERVICES, &made).await;
    until(&c, NAME, "Passed").await;

    let count = async || c.get(FLUNDERS).await.body["items"].as_array().map(Vec::len);
    for name in ["rest-flunder", "dynamic-flunder"] {
        let flunder = json!({"kind": "Flunder", "apiVersion": "wardle.example.com/v1alpha1",
            "metadata": {"name": name, "namespace": "default", "labels": {"sample-label": "true"}}, "spec": {}});
        let made = c.post(FLUNDERS, &flunder).await;
        assert_eq!(made.code, 201, "{}", made.body);
        assert_eq!(count().await, Some(1));
        let uri = format!("{FLUNDERS}/{name}");
        assert_eq!(c.get(&uri).await.body["metadata"]["name"], name);
        assert_eq!(c.delete(&uri).await.code, 200);
        assert_eq!(c.get(&uri).await.code, 404);
        assert_eq!(count().await, Some(0));
    }
    let listed = c.get(WARDLE).await.body;
    assert_eq!(listed["resources"][0]["name"], "flunders");
    let groups = c.get("/apis").await.body;
    let groups = groups["groups"].as_array().unwrap();
    assert!(groups.iter().any(|g| g["name"] == "wardle.example.com"));

    let uri = format!("{API_SERVICES}/{NAME}");
    let status = c.get(&format!("{uri}/status")).await;
    assert_eq!(status.code, 200);
    assert_eq!(status.body["status"]["conditions"][0]["type"], "Available");
    let patched = c
        .merge(&uri, &json!({"spec": {"versionPriority": 400}}))
        .await;
    assert_eq!(patched.body["spec"]["versionPriority"], 400);
    let all = c.get(API_SERVICES).await.body;
    let all = all["items"].as_array().unwrap();
    assert!(all.iter().any(|s| s["metadata"]["name"] == NAME));
    let condition = json!({"type": "StatusUpdated", "status": "True", "reason": "E2E", "message": "Set by a test"});
    let told = written_back(&c, &format!("{uri}/status"), |o| {
        let all = o["status"]["conditions"].as_array_mut().unwrap();
        all.push(condition.clone());
    })
    .await;
    let conditions = told["status"]["conditions"].as_array().unwrap();
    assert!(conditions.iter().any(|c| c["type"] == "StatusUpdated"));
    let labelled = written_back(&c, &uri, |o| {
        o["metadata"]["labels"] = json!({"apiservice": "patched"})
    })
    .await;
    assert_eq!(labelled["metadata"]["labels"]["apiservice"], "patched");
    let chosen = format!("{API_SERVICES}?labelSelector=apiservice%3Dpatched");
    assert_eq!(c.delete(&chosen).await.code, 200);
    assert_eq!(c.get(&uri).await.code, 404);
    assert_eq!(c.get(&chosen).await.body["items"], json!([]));
    let passed_on = async || while c.get(FLUNDERS).await.code == 200 {};
    tokio::time::timeout(Duration::from_secs(20), passed_on())
        .await
        .expect("requests are still passed on");
}

/// Reads, changes and writes back, again when another wrote between.
async fn written_back(c: &Cluster, uri: &str, change: impl Fn(&mut Value)) -> Value {
    loop {
        let mut object = c.get(uri).await.body;
        change(&mut object);
        let answer = c.put(uri, &object).await;
        if answer.code != 409 {
            assert_eq!(answer.code, 200, "{}", answer.body);
            return answer.body;
        }
    }
}

/// What another server says of its own group is part of the one document; what it says differently of shared names is
/// renamed, and what it says of others' groups is left out.
#[tokio::test]
async fn documents_of_other_servers_are_merged() {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let c = cluster().await;
    let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    let data = c.get(map).await.body["data"].clone();
    let trusted = data["requestheader-client-ca-file"].as_str();
    let document = |description: &str| {
        json!({"swagger": "2.0", "info": {"title": "other", "version": "1"}, "paths": {
            "/apis/other.example/v1/things": {"get": {"operationId": "listThings", "responses": {"200": {
                "description": "OK", "schema": {"$ref": "#/definitions/example.other.v1.Thing"}}}}},
            "/apis/apps/v1/deployments": {"get": {"operationId": "forged", "responses": {}}},
        }, "definitions": {
            "example.other.v1.Thing": {"type": "object", "description": description, "properties": {
                "metadata": {"$ref": format!("#/definitions/{META}")}}},
            META: {"type": "object", "description": "theirs"},
        }})
    };
    let first = document("A thing.");
    let second = document("A better thing.");
    let changed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = changed.clone();
    let answer = move |request: Request<Bytes>| {
        if request.uri().path() != "/openapi/v2" {
            return Response::new(listed());
        }
        assert_eq!(request.headers()["x-remote-user"], "system:aggregator");
        let (tag, body) = match flag.load(std::sync::atomic::Ordering::SeqCst) {
            false => ("\"1\"", &first),
            true => ("\"2\"", &second),
        };
        let known = request.headers().get("if-none-match");
        let same = known.is_some_and(|k| k == tag);
        let answer = Response::builder().header("etag", tag);
        match same {
            true => answer.status(304).body(Value::Null).unwrap(),
            false => answer.body(body.clone()).unwrap(),
        }
    };
    let backend = Backend::start_with(&["other.default.svc"], trusted, answer).await;
    let service = json!({"metadata": {"name": "other"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    c.create("/api/v1/namespaces/default/services", &service)
        .await;
    let before = c.get("/openapi/v2").await;
    c.create(API_SERVICES, &api_service(&backend)).await;
    until(&c, "v1.other.example", "Passed").await;

    let after = c.get("/openapi/v2").await;
    assert_ne!(after.headers["etag"], before.headers["etag"]);
    let thing = |body: &Value| body["definitions"]["example.other.v1.Thing"].clone();
    assert!(after.body["paths"]["/apis/other.example/v1/things"]["get"].is_object());
    assert_eq!(
        thing(&after.body)["properties"]["metadata"]["$ref"],
        format!("#/definitions/{META}_v2")
    );
    assert_eq!(
        after.body["definitions"][format!("{META}_v2")]["description"],
        "theirs"
    );
    assert_eq!(
        after.body["definitions"][META],
        before.body["definitions"][META]
    );
    assert_ne!(
        after.body["paths"]["/apis/apps/v1/deployments"]["get"]["operationId"],
        "forged"
    );
    let index = c.get("/openapi/v3").await.body;
    assert!(index["paths"]["apis/other.example/v1"].is_object());

    // A changed service makes this server ask again.
    changed.store(true, std::sync::atomic::Ordering::SeqCst);
    let uri = "/api/v1/namespaces/default/services/other";
    c.merge(uri, &json!({"metadata": {"labels": {"again": "1"}}}))
        .await;
    let described = async |wanted: Value| {
        let same = async {
            while thing(&c.get("/openapi/v2").await.body)["description"] != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), same)
            .await
            .expect("the document stays as it was");
    };
    described(json!("A better thing.")).await;
    c.delete(&format!("{API_SERVICES}/v1.other.example")).await;
    described(Value::Null).await;
}
