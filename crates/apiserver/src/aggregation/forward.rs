//! Passing requests on to another API server, in the name of whoever asks.
//!
//! The other server trusts the front-proxy certificate and takes the user from headers; those that the client sent itself
//! are removed first.

use api::Status;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::Remote;
use crate::ApiServer;
use crate::auth::{MASTERS, UserInfo};
use crate::http::body::{Request, Response};
use crate::http::handler::Call;
use crate::http::respond;
use crate::proxy::{Target, encode, service_host};
use crate::registry::{Fail, Registry};

/// Start of the headers that tell who asks.
const REMOTE: &str = "x-remote-";

/// In whose name a request is passed on.
pub(super) enum Asker<'a> {
    /// A client.
    User(&'a UserInfo),
    /// This server, which asks whether the other one answers.
    Myself,
    /// This server, which asks what the other one says about itself.
    Documents,
}

/// Writes who asks, and nothing that the client claimed itself.
pub(super) fn identify(headers: &mut HeaderMap, asker: &Asker<'_>) {
    let claimed: Vec<HeaderName> = headers
        .keys()
        .filter(|n| n.as_str().starts_with(REMOTE))
        .cloned()
        .collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    let user = match asker {
        Asker::User(user) => user,
        Asker::Myself => {
            add("x-remote-user", "system:kube-aggregator");
            add("x-remote-group", MASTERS);
            return;
        }
        Asker::Documents => {
            add("x-remote-user", "system:aggregator");
            return;
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        // Names of headers have fewer characters than keys: the rest is percent-encoded.
        let name = format!("x-remote-extra-{}", encode(&key.to_ascii_lowercase()));
        for value in values {
            add(&name, value);
        }
    }
}

/// Where the server is now: a ready endpoint of its service.
///
/// # Errors
/// 503 when there is none, 500 when no TLS can be spoken with it.
pub(super) async fn address_of(registry: &Registry, remote: &Remote) -> Result<Target, Fail> {
    let (host, port) =
        service_host(registry, &remote.namespace, &remote.service, remote.port).await?;
    let tls = remote
        .tls
        .clone()
        .map_err(|e| Box::new(Status::internal(e)))?;
    Ok(Target {
        host,
        port,
        tls: Some(tls),
        server_name: Some(remote.host()),
    })
}

/// Upstream's answer while the other server cannot be reached: plain text.
fn unavailable() -> Response {
    let text = "service unavailable\n";
    respond::raw(
        StatusCode::SERVICE_UNAVAILABLE,
        "text/plain; charset=utf-8",
        text,
    )
}

impl ApiServer {
    /// Passes a request on to another server.
    ///
    /// # Errors
    /// 503 when it cannot be reached.
    pub(crate) async fn serve_remote(
        &self,
        mut request: Request,
        call: &Call,
        remote: &Remote,
    ) -> Result<Response, Fail> {
        if !remote.available {
            return Ok(unavailable());
        }
        let Ok(target) = address_of(&self.registry, remote).await else {
            return Ok(unavailable());
        };
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path
            .parse()
            .map_err(|_| Box::new(Status::bad_request("invalid path")))?;
        identify(request.headers_mut(), &Asker::User(&call.user));
        self.pass_on(request, target)
            .await
            .map_err(|s| Box::new(Status::service_unavailable(s.message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_told_by_this_server_alone() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("forged"));
        headers.insert("x-remote-extra-a", HeaderValue::from_static("forged"));
        let mut user = UserInfo::new("ann", &["dev"]);
        user.uid = "7".into();
        user.extra
            .insert("Example.org/Scopes".into(), vec!["x".into(), "y".into()]);
        identify(&mut headers, &Asker::User(&user));
        let all = |name: &str| -> Vec<&str> {
            headers
                .get_all(name)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .collect()
        };
        assert_eq!(all("x-remote-user"), ["ann"]);
        assert_eq!(all("x-remote-uid"), ["7"]);
        assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.org%2Fscopes").len(), 2);
        assert!(all("x-remote-extra-a").is_empty());
    }
}
