//! Paths that are no resources: discovery, OpenAPI, health, version, metrics, keys of the token issuer.

use std::sync::Arc;

use api::Status;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::ApiServer;
use crate::aggregation::discovery;
use crate::http::body::Response;
use crate::http::handler::{Call, reads};
use crate::http::negotiate::{self, Encoding};
use crate::http::respond;
use crate::openapi::About;
use crate::registry::Fail;

/// Version this server reports: the API it speaks, and that it is Styr.
pub const GIT_VERSION: &str = concat!("v1.37.0+styr", env!("CARGO_PKG_VERSION"));
const MAJOR: &str = "1";
const MINOR: &str = "37";

/// Paths listed at the root.
const ROOT_PATHS: [&str; 14] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/apis/",
    "/healthz",
    "/healthz/ping",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

fn no_such_path() -> Fail {
    Box::new(Status::no_resource())
}

impl ApiServer {
    /// Serves a path that is no resource.
    pub(crate) async fn serve_path(
        self: &Arc<Self>,
        method: &Method,
        headers: &HeaderMap,
        call: &Call,
    ) -> Result<Response, Fail> {
        let segments: Vec<&str> = call
            .info
            .path
            .split('/')
            .filter(|s| !s.is_empty())
            .collect();
        let documents = ["api", "apis", "version", ".well-known", "openid"];
        let first = segments.first().copied().unwrap_or_default();
        if !reads(method) || (documents.contains(&first) && *method != Method::GET) {
            return Err(Box::new(Status::method_not_allowed()));
        }
        match segments.as_slice() {
            [] => Ok(self.document(call, &json!({"paths": self.root_paths()}))),
            ["api"] | ["apis"] => Ok(self.groups(headers, call, segments[0] == "api")),
            ["api", version] => self.resources_of(call, "", version),
            ["apis", group] => {
                let resources = self.registry.resources();
                let own = api::discovery::group(resources.kinds(), group);
                let found = discovery::merge_group(own, group, &self.aggregation.routes())
                    .ok_or_else(no_such_path)?;
                Ok(self.document(call, &found))
            }
            ["apis", group, version] => self.resources_of(call, group, version),
            ["version"] => Ok(self.document(call, &version_info())),
            ["livez" | "readyz" | "healthz", rest @ ..] => self.health(call, segments[0], rest),
            ["metrics"] => {
                let text = self.metrics.text(self.registry.store().revision());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                Ok(respond::raw(StatusCode::OK, kind, text))
            }
            ["openapi", rest @ ..] => self.openapi(headers, call, rest).await,
            [".well-known", "openid-configuration"] => {
                let tokens = &self.registry.config().tokens;
                let jwks = format!("{}/openid/v1/jwks", tokens.issuer().trim_end_matches('/'));
                Ok(self.document(call, &tokens.openid_configuration(&jwks)))
            }
            ["openid", "v1", "jwks"] => {
                let bytes = self.registry.config().tokens.jwks().to_string();
                Ok(respond::raw(
                    StatusCode::OK,
                    "application/jwk-set+json",
                    bytes,
                ))
            }
            _ => Err(no_such_path()),
        }
    }

    fn document(&self, call: &Call, value: &Value) -> Response {
        respond::json(StatusCode::OK, value, call.style)
    }

    fn root_paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = ROOT_PATHS.iter().map(|p| (*p).to_owned()).collect();
        for kind in self
            .registry
            .resources()
            .kinds()
            .iter()
            .filter(|k| !k.group.is_empty())
        {
            paths.push(format!("/apis/{}", kind.group));
            paths.push(format!("/apis/{}/{}", kind.group, kind.version));
        }
        for remote in self.aggregation.routes().all() {
            paths.push(format!("/apis/{}", remote.group));
            paths.push(format!("/apis/{}/{}", remote.group, remote.version));
        }
        paths.sort();
        paths.dedup();
        paths
    }

    /// `/api` and `/apis`: the plain documents, or everything at once when the client knows how to read it.
    fn groups(&self, headers: &HeaderMap, call: &Call, core: bool) -> Response {
        let resources = self.registry.resources();
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let aggregated = negotiate::parse(accept).into_iter().find_map(|range| {
            let encoding = match range.kind.as_str() {
                "application/json" => Encoding::Json,
                negotiate::PROTOBUF => Encoding::Protobuf,
                _ => return None,
            };
            let asked = range.param("as") == Some("APIGroupDiscoveryList")
                && range.param("g").is_none_or(|g| g == "apidiscovery.k8s.io");
            match range.param("v").filter(|_| asked)? {
                "v2" => Some((
                    api::discovery::aggregated_v2(resources.kinds(), core),
                    encoding,
                    "v2",
                )),
                "v2beta1" if encoding == Encoding::Json => Some((
                    api::discovery::aggregated_v2beta1(resources.kinds(), core),
                    encoding,
                    "v2beta1",
                )),
                _ => None,
            }
        });
        let mut response = match aggregated {
            Some((mut document, encoding, version)) => {
                if !core {
                    discovery::merge_aggregated(&mut document, &self.aggregation.routes());
                }
                let style = respond::Style {
                    encoding,
                    ..call.style
                };
                let mut response = respond::json(StatusCode::OK, &document, style);
                let headers = response.headers_mut();
                let media = headers
                    .get(header::CONTENT_TYPE)
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default();
                let full =
                    format!("{media};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
                if let Ok(value) = HeaderValue::from_str(&full) {
                    headers.insert(header::CONTENT_TYPE, value);
                }
                response
            }
            None if core => {
                let config = self.registry.config();
                let server = format!("{}:{}", config.advertise_address, config.advertise_port);
                self.document(call, &api::discovery::api_versions(&server))
            }
            None => {
                let mut list = api::discovery::group_list(resources.kinds());
                discovery::merge_list(&mut list, &self.aggregation.routes());
                self.document(call, &list)
            }
        };
        response
            .headers_mut()
            .append(header::VARY, HeaderValue::from_static("Accept"));
        response
    }

    fn resources_of(&self, call: &Call, group: &str, version: &str) -> Result<Response, Fail> {
        let resources = self.registry.resources();
        let found = api::discovery::resource_list(resources.kinds(), group, version)
            .ok_or_else(no_such_path)?;
        Ok(self.document(call, &found))
    }

    /// Health checks, all of which hold as long as this process answers and its store is open.
    fn health(&self, call: &Call, endpoint: &str, rest: &[&str]) -> Result<Response, Fail> {
        let mut checks = vec![("ping", true), ("etcd", true)];
        if endpoint == "readyz" {
            checks.push(("shutdown", !self.registry.stop.is_cancelled()));
        }
        if let [name] = rest {
            let known = checks
                .iter()
                .find(|(n, _)| n == name)
                .ok_or_else(no_such_path)?;
            checks = vec![*known];
        } else if !rest.is_empty() {
            return Err(no_such_path());
        }
        let excluded: Vec<&str> = call.query.all("exclude").collect();
        checks.retain(|(n, _)| !excluded.contains(n));
        let healthy = checks.iter().all(|(_, ok)| *ok);
        let code = if healthy {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        let mut text = String::new();
        if call.query.flag("verbose") || !healthy {
            for (name, ok) in &checks {
                let line = if *ok {
                    format!("[+]{name} ok\n")
                } else {
                    format!("[-]{name} failed: reason withheld\n")
                };
                text.push_str(&line);
            }
            text.push_str(&format!(
                "{endpoint} check {}\n",
                if healthy { "passed" } else { "failed" }
            ));
        } else {
            text.push_str("ok");
        }
        Ok(respond::raw(code, "text/plain; charset=utf-8", text))
    }

    /// OpenAPI documents; the second version comes as protobuf to those who prefer it.
    async fn openapi(
        &self,
        headers: &HeaderMap,
        call: &Call,
        rest: &[&str],
    ) -> Result<Response, Fail> {
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let ranges = negotiate::parse(accept);
        let packed = ranges
            .first()
            .is_some_and(|r| r.kind.contains("proto-openapi.spec.v2"));
        let path = match rest {
            ["v2"] if packed => "v2/protobuf".to_owned(),
            rest => rest.join("/"),
        };
        let resources = self.registry.resources();
        let routes = self.aggregation.routes();
        if path == "v3" && routes.all().next().is_some() {
            let mut index = codec::openapi::v3_index(resources.kinds());
            discovery::merge_openapi(&mut index, &routes);
            return Ok(self.document(call, &index));
        }
        let about = About {
            resources,
            foreign: routes.said(),
        };
        let found = self.openapi.serve(about, &path, headers, call.style).await;
        found.ok_or_else(no_such_path)
    }
}

fn version_info() -> Value {
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "emulationMajor": MAJOR,
        "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR,
        "minCompatibilityMinor": MINOR,
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

/// The name Go programs have for this machine's architecture.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
