//! Whole requests of an administrator: method, path, query, headers, body.
#![no_main]

use arbitrary::Arbitrary;
use base64::Engine;
use fuzz::server::{admin, server};
use libfuzzer_sys::fuzz_target;

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
const PATHS: [&str; 12] = [
    "/api/v1/namespaces/default/configmaps",
    "/api/v1/namespaces/default/configmaps/a",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/pods/a",
    "/api/v1/namespaces/default/pods/a/status",
    "/apis/apps/v1/namespaces/default/deployments/a",
    "/apis/apps/v1/namespaces/default/deployments/a/scale",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/a",
    "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    "/api/v1/nodes",
    "/apis",
];
const TYPES: [&str; 8] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/json-patch+json",
    "application/apply-patch+yaml",
    "text/plain",
];

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    method: u8,
    path: u8,
    own_path: &'a str,
    query: &'a str,
    token: Option<&'a [u8]>,
    content_type: u8,
    accept: &'a str,
    body: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let known = PATHS.get(usize::from(input.path)).copied();
    let mut uri = known.unwrap_or(input.own_path).to_owned();
    uri.push('?');
    uri.push_str(input.query);
    if let Some(token) = input.token {
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
        uri.push_str("&limit=1&continue=");
        uri.push_str(&token);
    }
    let request = http::Request::builder()
        .method(METHODS[usize::from(input.method) % METHODS.len()])
        .uri(uri)
        .header(
            "content-type",
            TYPES[usize::from(input.content_type) % TYPES.len()],
        )
        .header("accept", input.accept)
        .body(input.body.to_vec());
    if let Ok(request) = request {
        server().send(request, admin());
    }
});
