//! Requests that are passed on to a node agent, a pod or a service: logs, exec, attach, port-forward, proxy.
//!
//! The server authorizes, finds the other end and tunnels bytes; the protocols inside are not its business.

mod connect;
mod target;
pub(crate) mod tls;

use std::sync::Arc;

use api::{Status, meta};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::ApiServer;
use crate::dispatch::not_allowed;
use crate::http::body::{self, Request, Response};
use crate::http::handler::{Call, attributes};
use crate::http::request_info::Query;
use crate::http::respond;
use crate::registry::Fail;
pub(crate) use connect::{Target, encode};
pub(crate) use target::service_host;
use target::{container_of, kubelet_of, pod_target, service_target};

/// Longest error text read from a node agent in bytes.
const ERROR_TEXT_MAX: usize = 50_000;

/// Parameters of a log request that the node agent understands.
const LOG_PARAMETERS: [&str; 9] = [
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "tailLines",
    "timestamps",
    "pretty",
];

impl ApiServer {
    /// Serves a streaming subresource.
    pub(crate) async fn serve_stream(
        self: &Arc<Self>,
        request: Request,
        call: &Call,
    ) -> Result<Response, Fail> {
        let _guard = self.metrics.stream(&call.info);
        match (call.info.resource.as_str(), call.info.subresource.as_str()) {
            ("pods", "log") => self.serve_log(call).await,
            ("pods", "exec" | "attach" | "portforward") => self.serve_session(request, call).await,
            ("pods", "proxy") => {
                let (name, scheme, port) = split_name(&call.info.name);
                let pod = self.object("pods", &call.info.namespace, name).await?;
                self.forward(request, call, pod_target(&pod, scheme, port)?)
                    .await
            }
            ("services", "proxy") => {
                let (name, scheme, port) = split_name(&call.info.name);
                let target =
                    service_target(&self.registry, &call.info.namespace, name, scheme, port)
                        .await?;
                self.forward(request, call, target).await
            }
            ("nodes", "proxy") => {
                let (name, _, port) = split_name(&call.info.name);
                let node = self.object("nodes", "", name).await?;
                let mut target = self.kubelet(&node)?;
                if let Ok(port) = port.parse() {
                    target.port = port;
                }
                self.forward(request, call, target).await
            }
            _ => Err(not_allowed()),
        }
    }

    async fn object(&self, resource: &str, namespace: &str, name: &str) -> Result<Value, Fail> {
        let found = self
            .registry
            .read(("", "v1", resource), namespace, name)
            .await?;
        found.ok_or_else(|| Box::new(Status::not_found("", resource, name)))
    }

    fn kubelet(&self, node: &Value) -> Result<Target, Fail> {
        let tls = self.registry.config().kubelet_tls.clone();
        let tls = tls.ok_or_else(|| {
            Box::new(Status::service_unavailable(
                "no client certificate for node agents is configured",
            ))
        })?;
        kubelet_of(node, tls)
    }

    async fn kubelet_of_pod(&self, pod: &Value) -> Result<Target, Fail> {
        let node = meta::str_at(pod, &["spec", "nodeName"]);
        if node.is_empty() {
            let why = format!("pod {} does not have a host assigned", meta::name(pod));
            return Err(Box::new(Status::bad_request(why)));
        }
        self.kubelet(&self.object("nodes", "", node).await?)
    }

    async fn serve_log(&self, call: &Call) -> Result<Response, Fail> {
        let info = &call.info;
        let pod = self.object("pods", &info.namespace, &info.name).await?;
        let container = container_of(&pod, call.query.get("container").unwrap_or_default())?;
        if meta::str_at(&pod, &["spec", "nodeName"]).is_empty() {
            return Ok(respond::raw(StatusCode::OK, "text/plain", ""));
        }
        let target = self.kubelet_of_pod(&pod).await?;
        let path = format!(
            "/containerLogs/{}/{}/{}",
            encode(&info.namespace),
            encode(&info.name),
            encode(&container)
        );
        let asked = call
            .query
            .iter()
            .filter(|(name, _)| LOG_PARAMETERS.contains(name));
        let request = http::Request::builder()
            .method(Method::GET)
            .uri(with_query(&path, asked))
            .body(body::empty())
            .map_err(|e| Box::new(Status::bad_request(e.to_string())))?;
        let mut response = checked(target.send(request).await?).await?;
        let text = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(header::CONTENT_TYPE, text);
        Ok(response)
    }

    /// exec, attach, port-forward: an upgraded connection through to the node agent.
    async fn serve_session(&self, mut request: Request, call: &Call) -> Result<Response, Fail> {
        let info = &call.info;
        let mut asked = attributes(info, &call.user);
        // Upgrades by WebSocket are GETs; opening a session is a create all the same.
        asked.verb = "create".to_owned();
        self.authorize(&asked).await?;
        let pod = self.object("pods", &info.namespace, &info.name).await?;
        let (ns, name) = (encode(&info.namespace), encode(&info.name));
        let uri = if info.subresource == "portforward" {
            let ports = forwarded_ports(&call.query);
            let named = ports.iter().map(|ports| ("port", ports.as_str()));
            with_query(&format!("/portForward/{ns}/{name}"), named)
        } else {
            let container = container_of(&pod, call.query.get("container").unwrap_or_default())?;
            let path = format!("/{}/{ns}/{name}/{}", info.subresource, encode(&container));
            with_query(
                &path,
                session_parameters(&call.query)
                    .iter()
                    .map(|(k, v)| (k.as_str(), v.as_str())),
            )
        };
        let target = self.kubelet_of_pod(&pod).await?;
        if !streams::upgrade::is_upgrade(&request) {
            return Err(Box::new(Status::bad_request("Upgrade request required")));
        }
        *request.uri_mut() = uri
            .parse()
            .map_err(|_| Box::new(Status::bad_request("invalid query")))?;
        strip_credentials(&mut request);
        if let Ok(host) = HeaderValue::from_str(&target.authority()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let io = target.connect().await?;
        let response = streams::upgrade::proxy(request, io)
            .await
            .map_err(|e| unreachable(&target, &e))?;
        let response = response.map(body::boxed);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            Ok(response)
        } else {
            checked(response).await
        }
    }

    /// proxy: any request, upgraded or not.
    async fn forward(
        &self,
        mut request: Request,
        call: &Call,
        target: Target,
    ) -> Result<Response, Fail> {
        let mut path = format!(
            "/{}",
            call.info
                .rest
                .iter()
                .map(|s| encode(s))
                .collect::<Vec<_>>()
                .join("/")
        );
        if call.info.path.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        }
        let uri = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        *request.uri_mut() = uri
            .parse()
            .map_err(|_| Box::new(Status::bad_request("invalid path")))?;
        self.pass_on(request, target).await
    }

    /// Sends a request whose path is the other server's own, upgraded or not.
    pub(crate) async fn pass_on(
        &self,
        mut request: Request,
        target: Target,
    ) -> Result<Response, Fail> {
        strip_credentials(&mut request);
        if let Ok(host) = HeaderValue::from_str(&target.authority()) {
            request.headers_mut().insert(header::HOST, host);
        }
        if streams::upgrade::is_upgrade(&request) {
            let io = target.connect().await?;
            let response = streams::upgrade::proxy(request, io)
                .await
                .map_err(|e| unreachable(&target, &e))?;
            return Ok(response.map(body::boxed));
        }
        for name in [
            header::CONNECTION,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
        ] {
            request.headers_mut().remove(name);
        }
        *request.version_mut() = http::Version::HTTP_11;
        target.send(request).await
    }
}

fn unreachable(target: &Target, error: &dyn std::fmt::Display) -> Fail {
    let why = format!(
        "error trying to reach service: {}: {error}",
        target.authority()
    );
    Box::new(Status::service_unavailable(why))
}

/// The other server must not see who asked here, nor act as them.
fn strip_credentials(request: &mut Request) {
    let headers = request.headers_mut();
    headers.remove(header::AUTHORIZATION);
    let acting: Vec<_> = headers
        .keys()
        .filter(|n| n.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in acting {
        headers.remove(name);
    }
}

/// A failure of the node agent becomes a Status with its words.
async fn checked(response: Response) -> Result<Response, Fail> {
    let code = response.status();
    if code.is_success() {
        return Ok(response);
    }
    let mut text = Vec::new();
    let mut body = response.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data[..data.len().min(ERROR_TEXT_MAX - text.len())]);
        }
        if text.len() >= ERROR_TEXT_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(Box::new(match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        StatusCode::NOT_FOUND => Status::failure(
            404,
            "NotFound",
            format!("the server could not find the requested resource ({text})"),
        ),
        _ => Status::failure(code.as_u16(), "", text),
    }))
}

/// `scheme:name:port`, `name:port` or `name`.
fn split_name(name: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] => (name, "", ""),
        [name, port] => (name, "", port),
        [scheme, name, port] => (name, scheme, port),
        _ => (name, "", ""),
    }
}

fn with_query<'a>(path: &str, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let query: Vec<String> = pairs
        .map(|(k, v)| format!("{}={}", encode(k), encode(v)))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

/// Parameters of exec and attach under the names that node agents know, old and new.
fn session_parameters(query: &Query) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = query
        .all("command")
        .map(|c| ("command".to_owned(), c.to_owned()))
        .collect();
    let present = |name: &str| query.flag(name);
    let streams = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ];
    for (name, old) in streams {
        if !present(name) {
            continue;
        }
        out.push((old.to_owned(), "1".to_owned()));
        if name != old {
            out.push((name.to_owned(), "1".to_owned()));
        }
    }
    out
}

/// The ports that clients on plain WebSocket channels name, as node agents know them.
fn forwarded_ports(query: &Query) -> Option<String> {
    let ports: Vec<&str> = query.all("ports").collect();
    (!ports.is_empty()).then(|| ports.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        assert_eq!(split_name("web"), ("web", "", ""));
        assert_eq!(split_name("web:80"), ("web", "", "80"));
        assert_eq!(split_name("https:web:443"), ("web", "https", "443"));
    }

    #[test]
    fn forwarded_ports_are_one_parameter() {
        let asked = Query::parse("ports=80&ports=443");
        assert_eq!(forwarded_ports(&asked).as_deref(), Some("80,443"));
        assert_eq!(forwarded_ports(&Query::parse("")), None);
    }

    #[test]
    fn session_parameters_are_translated() {
        let q = Query::parse("container=c&command=sh&command=-c+x&stdin=true&stdout=1&tty=false");
        let text = with_query(
            "/exec/a/b/c",
            session_parameters(&q)
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str())),
        );
        assert_eq!(
            text,
            "/exec/a/b/c?command=sh&command=-c%20x&input=1&stdin=1&output=1&stdout=1"
        );
    }
}
