//! Whether another API server can be reached: what its service looks like, and whether it answers.

use std::time::Duration;

use api::meta;
use http::{Method, Request, header};
use serde_json::Value;

use super::Remote;
use super::forward::{Asker, address_of, identify};
use crate::http::body;
use crate::registry::Registry;

/// Longest time an answer may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The Available condition of another server.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Verdict {
    /// Whether requests are passed on.
    pub available: bool,
    /// Why, for machines.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

fn refused(reason: &'static str, message: String) -> Verdict {
    Verdict {
        available: false,
        reason,
        message,
    }
}

/// What is wrong with the service before anybody is asked.
pub(super) fn look(remote: &Remote, service: Option<&Value>, slices: &[Value]) -> Option<Verdict> {
    let (name, namespace, port) = (&remote.service, &remote.namespace, remote.port);
    let Some(service) = service else {
        let why = format!("service/{name} in {namespace:?} is not present");
        return Some(refused("ServiceNotFound", why));
    };
    if !matches!(meta::str_at(service, &["spec", "type"]), "" | "ClusterIP") {
        return None;
    }
    let ports = meta::list_at(service, &["spec", "ports"]);
    let listening = ports
        .iter()
        .find(|p| meta::int_at(p, &["port"]) == Some(port.into()));
    let Some(listening) = listening else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(refused("ServicePortError", why));
    };
    let port_name = meta::str_at(listening, &["name"]);
    let mut slices = slices
        .iter()
        .filter(|s| meta::label(s, "kubernetes.io/service-name") == Some(name))
        .peekable();
    if slices.peek().is_none() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(refused("EndpointsNotFound", why));
    }
    let ready = |e: &Value| {
        let ready = meta::get(e, &["conditions", "ready"]);
        ready.and_then(Value::as_bool).unwrap_or(true)
    };
    let usable = slices.any(|s| {
        meta::list_at(s, &["endpoints"]).iter().any(ready)
            && meta::list_at(s, &["ports"])
                .iter()
                .any(|p| meta::str_at(p, &["name"]) == port_name && p.get("port").is_some())
    });
    (!usable).then(|| {
        let why = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        refused("MissingEndpoints", why)
    })
}

/// Looks and asks: the verdict, and the resources that the server says it has.
pub(super) async fn check(registry: &Registry, remote: &Remote) -> (Verdict, Option<Value>) {
    let service = registry.read(("", "v1", "services"), &remote.namespace, &remote.service);
    let slices = registry.read_all(
        ("discovery.k8s.io", "v1", "endpointslices"),
        &remote.namespace,
    );
    let (service, slices) = match futures::try_join!(service, slices) {
        Ok(found) => found,
        Err(error) => {
            let why = format!(
                "service/{} in {:?} cannot be checked due to: {}",
                remote.service, remote.namespace, error.message
            );
            return (refused("ServiceAccessError", why), None);
        }
    };
    if let Some(verdict) = look(remote, service.as_ref(), &slices) {
        return (verdict, None);
    }
    match tokio::time::timeout(PROBE_TIMEOUT, ask(registry, remote)).await {
        Ok(Ok(resources)) => {
            let passed = Verdict {
                available: true,
                reason: "Passed",
                message: "all checks passed".to_owned(),
            };
            (passed, resources)
        }
        Ok(Err(why)) => (refused("FailedDiscoveryCheck", why), None),
        Err(_) => {
            let why = format!("timed out waiting for {}", url(remote, &remote.host()));
            (refused("FailedDiscoveryCheck", why), None)
        }
    }
}

fn url(remote: &Remote, authority: &str) -> String {
    format!("https://{authority}{}", remote.path())
}

/// Asks for the discovery document, which every API server has.
async fn ask(registry: &Registry, remote: &Remote) -> Result<Option<Value>, String> {
    let target = address_of(registry, remote).await.map_err(|s| s.message)?;
    let at = url(remote, &target.authority());
    let failed = |why: String| format!("failing or missing response from {at}: {why}");
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(remote.path())
        .header(header::ACCEPT, "application/json")
        .body(body::empty())
        .map_err(|e| failed(e.to_string()))?;
    identify(request.headers_mut(), &Asker::Myself);
    let answer = target
        .send(request)
        .await
        .map_err(|s| failed(format!("Get {at:?}: {}", s.message)))?;
    let code = answer.status();
    if !code.is_success() {
        return Err(failed(format!("bad status from {at}: {}", code.as_u16())));
    }
    let bytes = body::read(answer.into_body())
        .await
        .map_err(|e| failed(e.to_string()))?;
    Ok(serde_json::from_slice(&bytes).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_judged_in_upstreams_words() {
        let remote = Remote::of(
            &json!({"metadata": {"name": "v1.a.io"}, "spec": {"group": "a.io", "version": "v1",
            "service": {"namespace": "n", "name": "s", "port": 443}}}),
            None,
        )
        .unwrap();
        let reason = |service: Option<Value>, slices: &[Value]| {
            look(&remote, service.as_ref(), slices).map(|v| (v.reason, v.message))
        };
        let service =
            json!({"spec": {"type": "ClusterIP", "ports": [{"name": "https", "port": 443}]}});
        let slice = |ready: bool| {
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "s"}}, "ports": [{"name": "https", "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
        };
        assert_eq!(
            reason(None, &[]).unwrap(),
            (
                "ServiceNotFound",
                "service/s in \"n\" is not present".into()
            )
        );
        let elsewhere = json!({"spec": {"ports": [{"port": 80}]}});
        assert_eq!(
            reason(Some(elsewhere), &[]).unwrap(),
            (
                "ServicePortError",
                "service/s in \"n\" is not listening on port 443".into()
            )
        );
        assert_eq!(
            reason(Some(service.clone()), &[]).unwrap().0,
            "EndpointsNotFound"
        );
        assert_eq!(
            reason(Some(service.clone()), &[slice(false)]).unwrap().0,
            "MissingEndpoints"
        );
        assert_eq!(reason(Some(service), &[slice(true)]), None);
        let named = json!({"spec": {"type": "ExternalName"}});
        assert_eq!(reason(Some(named), &[]), None);
    }
}
