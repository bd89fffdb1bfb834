//! Finding the other end: a pod's node agent, a pod's port, a service's endpoint.

use std::sync::Arc;

use api::{Status, meta};
use rand::Rng;
use serde_json::Value;

use super::connect::Target;
use super::tls::{self, Trust};
use crate::registry::{Fail, Registry};

/// Port of a node agent that does not publish one.
const KUBELET_PORT: u16 = 10250;

fn bad(why: String) -> Fail {
    Box::new(Status::bad_request(why))
}

/// The node agent of a node.
pub fn kubelet_of(node: &Value, tls: Arc<rustls::ClientConfig>) -> Result<Target, Fail> {
    let addresses = meta::list_at(node, &["status", "addresses"]);
    let of_type = |kind: &str| {
        addresses
            .iter()
            .find(|a| meta::str_at(a, &["type"]) == kind)
    };
    let found = ["InternalIP", "ExternalIP", "Hostname"]
        .iter()
        .find_map(|kind| of_type(kind));
    let Some(address) = found else {
        let why = format!("no preferred addresses found; known addresses: {addresses:?}");
        return Err(Box::new(Status::internal(why)));
    };
    let port = meta::int_at(
        node,
        &["status", "daemonEndpoints", "kubeletEndpoint", "Port"],
    );
    let port = port
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
        .unwrap_or(KUBELET_PORT);
    Ok(Target {
        host: meta::str_at(address, &["address"]).to_owned(),
        port,
        tls: Some(tls),
        server_name: None,
    })
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    meta::list_at(pod, &["spec", list])
        .iter()
        .map(|c| meta::str_at(c, &["name"]).to_owned())
        .collect()
}

/// The container asked for, or the only one.
///
/// # Errors
/// 400 when it does not exist, or none is named and there are several.
pub fn container_of(pod: &Value, asked: &str) -> Result<String, Fail> {
    let containers = names(pod, "containers");
    let others = [
        names(pod, "initContainers"),
        names(pod, "ephemeralContainers"),
    ];
    let name = meta::name(pod);
    if !asked.is_empty() {
        let known = containers
            .iter()
            .chain(others.iter().flatten())
            .any(|c| c == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(bad(format!(
                "container {asked} is not valid for pod {name}"
            )))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(bad(format!(
            "a container name must be specified for pod {name}"
        ))),
        several => {
            let mut why = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                several.join(" ")
            );
            for (list, what) in others.iter().zip(["init", "ephemeral"]) {
                if !list.is_empty() {
                    why.push_str(&format!(
                        " or one of the {what} containers: [{}]",
                        list.join(" ")
                    ));
                }
            }
            Err(bad(why))
        }
    }
}

/// A port of a pod; `port` may be empty for the first one.
pub fn pod_target(pod: &Value, scheme: &str, port: &str) -> Result<Target, Fail> {
    let host = meta::str_at(pod, &["status", "podIP"]);
    if host.is_empty() {
        return Err(bad("address not allowed".to_owned()));
    }
    let declared = || {
        let containers = meta::list_at(pod, &["spec", "containers"]);
        let mut ports = containers.iter().flat_map(|c| meta::list_at(c, &["ports"]));
        ports
            .find_map(|p| meta::int_at(p, &["containerPort"]))
            .and_then(|p| u16::try_from(p).ok())
    };
    let port = if port.is_empty() {
        declared().unwrap_or(80)
    } else {
        port.parse()
            .map_err(|_| bad(format!("invalid port {port:?}")))?
    };
    plain(host, port, scheme)
}

fn plain(host: &str, port: u16, scheme: &str) -> Result<Target, Fail> {
    let tls = match scheme {
        // Backends have certificates of their own making: upstream does not check them either.
        "https" => {
            Some(tls::client(Trust::Anyone, None).map_err(|e| Box::new(Status::internal(e)))?)
        }
        _ => None,
    };
    Ok(Target {
        host: host.to_owned(),
        port,
        tls,
        server_name: None,
    })
}

/// A ready endpoint of a service.
pub async fn service_target(
    registry: &Registry,
    namespace: &str,
    name: &str,
    scheme: &str,
    port: &str,
) -> Result<Target, Fail> {
    let (host, port) = service_address(registry, namespace, name, port).await?;
    plain(&host, port, scheme)
}

/// Where a service is: the name it stands for, or a ready endpoint.
///
/// # Errors
/// 404 or 503 when there is none.
pub async fn service_host(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<(String, u16), Fail> {
    let service = registry
        .read(("", "v1", "services"), namespace, name)
        .await?;
    let external = service
        .filter(|s| meta::str_at(s, &["spec", "type"]) == "ExternalName")
        .map(|s| meta::str_at(&s, &["spec", "externalName"]).to_owned());
    match external {
        Some(host) => Ok((host, port)),
        None => service_address(registry, namespace, name, &port.to_string()).await,
    }
}

/// Address and port of a ready endpoint of a service.
pub async fn service_address(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<(String, u16), Fail> {
    let service = registry
        .read(("", "v1", "services"), namespace, name)
        .await?;
    let service = service.ok_or_else(|| Box::new(Status::not_found("", "services", name)))?;
    let ports = meta::list_at(&service, &["spec", "ports"]);
    let number = port.parse::<i64>().ok();
    let chosen = match port {
        "" if ports.len() == 1 => ports.first(),
        "" => None,
        _ => ports.iter().find(|p| {
            meta::str_at(p, &["name"]) == port
                || (number.is_some() && meta::int_at(p, &["port"]) == number)
        }),
    };
    let Some(chosen) = chosen else {
        return Err(Box::new(Status::service_unavailable(format!(
            "no service port {port:?} found for service {name:?}"
        ))));
    };
    let port_name = meta::str_at(chosen, &["name"]);
    let slices = registry
        .read_all(("discovery.k8s.io", "v1", "endpointslices"), namespace)
        .await?;
    let mut ready: Vec<(String, u16)> = Vec::new();
    for slice in slices
        .iter()
        .filter(|s| meta::label(s, "kubernetes.io/service-name") == Some(name))
    {
        let port = meta::list_at(slice, &["ports"])
            .iter()
            .find(|p| meta::str_at(p, &["name"]) == port_name);
        let Some(port) = port
            .and_then(|p| meta::int_at(p, &["port"]))
            .and_then(|p| u16::try_from(p).ok())
        else {
            continue;
        };
        for endpoint in meta::list_at(slice, &["endpoints"]) {
            let is_ready = meta::get(endpoint, &["conditions", "ready"])
                .and_then(Value::as_bool)
                .unwrap_or(true);
            if let Some(address) = meta::list_at(endpoint, &["addresses"])
                .first()
                .and_then(Value::as_str)
                .filter(|_| is_ready)
            {
                ready.push((address.to_owned(), port));
            }
        }
    }
    if ready.is_empty() {
        return Err(Box::new(Status::service_unavailable(format!(
            "no endpoints available for service {name:?}"
        ))));
    }
    Ok(ready.swap_remove(rand::rng().random_range(0..ready.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_only_container_is_the_default() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container_of(&one, "").unwrap(), "a");
        assert_eq!(container_of(&one, "i").unwrap(), "i");
        assert_eq!(
            container_of(&one, "x").unwrap_err().message,
            "container x is not valid for pod p"
        );
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container_of(&two, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }
}
