//! How answers are written: methods, media types, compression, warnings.

use std::sync::Arc;

use apiserver::auth::{MASTERS, UserInfo};
use apiserver::http::body;
use apiserver::http::handler::Peer;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::custom::define;
use crate::harness::*;

async fn ask(c: &Cluster, method: &str, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    read(c.raw(request.body(Vec::new()).unwrap()).await).await
}

/// Methods that a path does not know are refused before anything else is looked at.
#[tokio::test]
async fn other_methods_are_refused_in_general_words() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let one = format!("{MAPS}/a");
    for (method, uri) in [
        ("HEAD", MAPS),
        ("HEAD", &one),
        ("OPTIONS", MAPS),
        ("OPTIONS", &one),
        ("PUT", MAPS),
        ("PATCH", MAPS),
        ("POST", &one),
        ("DELETE", "/api/v1/namespaces"),
        ("DELETE", "/api/v1/configmaps"),
        ("POST", "/api/v1/namespaces/default/componentstatuses/x"),
        ("GET", "/apis/authentication.k8s.io/v1/tokenreviews"),
        ("GET", "/api/v1/namespaces/default/pods/p/binding"),
        ("POST", "/version"),
        ("POST", "/api"),
    ] {
        let answer = ask(&c, method, uri, &[]).await;
        assert_eq!(answer.code, 405, "{method} {uri}: {}", answer.body);
        if method == "HEAD" {
            continue;
        }
        assert_eq!(
            answer.body,
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "the server does not allow this method on the requested resource",
                "reason": "MethodNotAllowed", "details": {}, "code": 405}),
            "{method} {uri}"
        );
    }
    assert_eq!(ask(&c, "HEAD", "/livez", &[]).await.code, 200);
}

#[tokio::test]
async fn whoever_accepts_nothing_that_is_offered_is_told_before_anything_is_done() {
    let c = cluster().await;
    c.create(MAPS, &config_map("a")).await;
    let one = format!("{MAPS}/a");
    let body = config_map("b").to_string();
    for (method, uri, media) in [
        ("GET", MAPS, ""),
        ("GET", one.as_str(), ""),
        ("POST", MAPS, "application/json"),
        ("PUT", &one, "application/json"),
        ("PATCH", &one, "application/merge-patch+json"),
        ("PATCH", &one, "application/apply-patch+yaml"),
        ("DELETE", &one, ""),
        ("DELETE", MAPS, ""),
    ] {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("accept", "text/plain")
            .header(
                "content-type",
                if media.is_empty() {
                    "application/json"
                } else {
                    media
                },
            )
            .body(if media.is_empty() {
                Vec::new()
            } else {
                body.clone().into_bytes()
            });
        let answer = read(c.raw(request.unwrap()).await).await;
        assert_eq!(
            (answer.code, answer.body["message"].as_str()),
            (
                406,
                Some(
                    "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
                )
            ),
            "{method} {uri}"
        );
    }
    let watch = ask(
        &c,
        "GET",
        &format!("{MAPS}?watch=1"),
        &[("accept", "application/yaml")],
    )
    .await;
    assert_eq!(
        (watch.code, watch.body["message"].as_str()),
        (
            406,
            Some(
                "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            )
        )
    );
    let all = c.get(MAPS).await.body;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(all["items"][0]["data"], json!({"a": "b"}));
}

/// Answers over a connection of an administrator.
async fn over_socket(c: &Cluster, uri: &str, encoding: &str) -> (HeaderMap, Vec<u8>) {
    let peer = Peer::Socket {
        user: Some(Arc::new(UserInfo::new("ann", &[MASTERS]))),
        address: ([127, 0, 0, 1], 1).into(),
    };
    let request = Request::get(uri)
        .header("accept-encoding", encoding)
        .body(body::empty());
    let response = c.server.handle(request.unwrap(), peer).await;
    assert_eq!(response.status(), 200);
    let (parts, body) = response.into_parts();
    (
        parts.headers,
        body.collect().await.unwrap().to_bytes().to_vec(),
    )
}

#[tokio::test]
async fn large_answers_are_packed_for_those_who_take_it() {
    let c = cluster().await;
    for n in 0..40 {
        let mut map = config_map(&format!("m{n}"));
        map["data"] = json!({"filler": "x".repeat(8000)});
        c.create(MAPS, &map).await;
    }
    let (headers, plain) = over_socket(&c, MAPS, "identity").await;
    assert!(!headers.contains_key("content-encoding"));
    let list: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(40));
    let (headers, packed) = over_socket(&c, MAPS, "deflate, gzip").await;
    assert_eq!(headers["content-encoding"], "gzip");
    assert_eq!(headers["vary"], "Accept-Encoding");
    assert_eq!(packed[..2], [0x1f, 0x8b]);
    assert!(packed.len() < plain.len() / 10);
    let (headers, small) = over_socket(&c, &format!("{MAPS}/m1"), "gzip").await;
    assert!(!headers.contains_key("content-encoding"), "{}", small.len());
    let (headers, none) = over_socket(&c, MAPS, "gzip;q=0").await;
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(none, plain);
}

#[tokio::test]
async fn what_is_deprecated_is_said_so_on_every_verb() {
    let c = cluster().await;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let core =
        "299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\"";
    assert_eq!(c.get(endpoints).await.headers["warning"], core);
    let made = c.post(endpoints, &json!({"metadata": {"name": "e"}})).await;
    assert_eq!(
        (made.code, &made.headers["warning"]),
        (201, &core.parse().unwrap())
    );
    let gone = c.delete(&format!("{endpoints}/e")).await;
    assert_eq!(gone.headers["warning"], core);

    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = |name: &str, storage: bool, more: Value| {
        let mut version =
            json!({"name": name, "served": true, "storage": storage, "schema": schema});
        version
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        version
    };
    let definition = json!({"metadata": {"name": "xs.old.example.com"}, "spec": {"group": "old.example.com", "scope": "Namespaced",
        "names": {"plural": "xs", "kind": "X"}, "versions": [
            version("v1", true, json!({})),
            version("v1beta1", false, json!({"deprecated": true})),
            version("v1alpha1", false, json!({"deprecated": true, "deprecationWarning": "leave \"v1alpha1\" behind"}))]}});
    define(&c, &definition).await;
    let warning = async |version: &str| {
        let uri = format!("/apis/old.example.com/{version}/namespaces/default/xs");
        let answer = c.get(&uri).await;
        answer
            .headers
            .get("warning")
            .map(|w| w.to_str().unwrap().to_owned())
    };
    assert_eq!(warning("v1").await, None);
    assert_eq!(
        warning("v1beta1").await.as_deref(),
        Some("299 - \"old.example.com/v1beta1 X is deprecated; use old.example.com/v1 X\"")
    );
    assert_eq!(
        warning("v1alpha1").await.as_deref(),
        Some("299 - \"leave \\\"v1alpha1\\\" behind\"")
    );
}
