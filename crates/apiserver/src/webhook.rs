//! Calling webhooks: a `clientConfig` (address or service, authorities) and a JSON document, answered by another one.

use std::time::Duration;

use api::meta;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request, Uri, header};
use serde_json::Value;

use crate::http::body;
use crate::proxy::tls::{self, Trust};
use crate::proxy::{Target, service_host};
use crate::registry::Registry;

/// Longest text of a refusal that is passed on, in bytes.
const REFUSAL_MAX: usize = 1024;

/// Where a webhook is: its target, the path there, and the whole address for messages.
struct Place {
    target: Target,
    path: String,
    url: String,
}

async fn place(registry: &Registry, config: &Value) -> Result<Place, String> {
    let bundle = STANDARD
        .decode(meta::str_at(config, &["caBundle"]))
        .map_err(|e| e.to_string())?;
    let tls = tls::client(Trust::Roots(bundle.trim_ascii()), None).map_err(|e| e.to_string())?;
    if let Some(service) = config.get("service").filter(|s| s.is_object()) {
        let (name, namespace) = (
            meta::str_at(service, &["name"]),
            meta::str_at(service, &["namespace"]),
        );
        let port = meta::int_at(service, &["port"]).and_then(|p| u16::try_from(p).ok());
        let port = port.unwrap_or(443);
        let path = format!(
            "/{}",
            meta::str_at(service, &["path"]).trim_start_matches('/')
        );
        let server_name = format!("{name}.{namespace}.svc");
        let url = format!("https://{server_name}:{port}{path}");
        let (host, port) = service_host(registry, namespace, name, port)
            .await
            .map_err(|s| format!("Post {url:?}: {}", s.message))?;
        let target = Target {
            host,
            port,
            tls: Some(tls),
            server_name: Some(server_name),
        };
        return Ok(Place { target, path, url });
    }
    let url = meta::str_at(config, &["url"]).to_owned();
    let uri: Uri = url.parse().map_err(|e| format!("parse {url:?}: {e}"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let target = Target {
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(443),
        tls: Some(tls),
        server_name: None,
    };
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    Ok(Place { target, path, url })
}

/// Sends a document to a webhook and reads its answer.
///
/// # Errors
/// What went wrong, in the words of upstream's client.
pub(crate) async fn post(
    registry: &Registry,
    config: &Value,
    document: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let place = place(registry, config).await?;
    let failed = |why: &dyn std::fmt::Display| format!("Post {:?}: {why}", place.url);
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .body(body::full(document.to_string()))
        .map_err(|e| failed(&e))?;
    let exchange = async {
        let answer = place
            .target
            .send(request)
            .await
            .map_err(|s| failed(&s.message))?;
        let code = answer.status();
        let bytes = body::read(answer.into_body())
            .await
            .map_err(|e| failed(&e))?;
        if !code.is_success() {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(REFUSAL_MAX)]);
            return Err(format!(
                "an error on the server ({:?}) has prevented the request from succeeding",
                text.trim()
            ));
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(failed(&"context deadline exceeded")),
    }
}
