//! From a Service and its pods to addresses and ports. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::pods;

/// A port that a backend serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The name of the service's port.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where the pod listens.
    pub port: i32,
    /// What is spoken there.
    pub app_protocol: Option<String>,
}

/// A pod behind a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Its address in the family that was asked for.
    pub address: String,
    /// Whether it is ready.
    pub serving: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Its node.
    pub node: Option<String>,
    /// The zone of its node.
    pub zone: Option<String>,
    /// Its name below the service's, if it asked for one.
    pub hostname: Option<String>,
    /// The pod.
    pub target: ObjectReference,
}

/// Backends by the ports they serve.
pub type Groups = BTreeMap<Vec<Port>, Vec<Backend>>;

/// Whether an address is of this family, `IPv4` or `IPv6`.
pub fn is_of_family(address: &str, family: &str) -> bool {
    address.contains(':') == (family == "IPv6")
}

/// The families of a service.
pub fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|s| s.ip_families.clone()).unwrap_or_default();
    if named.is_empty() {
        vec!["IPv4".into()]
    } else {
        named
    }
}

/// The pods of a service that have an address of the family and have not ended, by port. `zone_of`
/// tells the zone of a node, if it has one; the pods of a node it does not know are left out.
pub fn group(
    service: &Service,
    pods: &[Pod],
    family: &str,
    zone_of: impl Fn(&str) -> Option<Option<String>>,
) -> Groups {
    let mut groups = Groups::new();
    for pod in pods.iter().filter(|p| !pods::is_terminal(p)) {
        let Some(address) = address(pod, family) else {
            continue;
        };
        let node = Some(pods::node(pod))
            .filter(|n| !n.is_empty())
            .map(str::to_owned);
        let zone = match node.as_deref().map(&zone_of) {
            Some(None) => continue,
            Some(Some(zone)) => zone,
            None => None,
        };
        let backend = Backend {
            address,
            serving: pods::is_ready(pod),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            zone,
            node,
            hostname: hostname(service, pod),
            target: ObjectReference {
                kind: Some("Pod".into()),
                namespace: pod.metadata.namespace.clone(),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            },
        };
        groups.entry(ports(service, pod)).or_default().push(backend);
    }
    for backends in groups.values_mut() {
        backends.sort_by(|a, b| a.address.cmp(&b.address));
    }
    groups
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    all.chain(status.pod_ip.as_deref())
        .find(|ip| !ip.is_empty() && is_of_family(ip, family))
        .map(str::to_owned)
}

fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let below = spec.subdomain == service.metadata.name
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname.clone().filter(|h| below && !h.is_empty())
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let mut all: Vec<Port> = service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_ref()).to_owned(),
                port: target(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    all.sort();
    all
}

fn protocol(protocol: Option<&String>) -> &str {
    protocol.map_or("TCP", String::as_str)
}

/// Where the pod listens for a port of the service; `None`: it has no port of that name.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .find(|p| {
            p.name.as_ref() == Some(name)
                && protocol(p.protocol.as_ref()) == protocol(port.protocol.as_ref())
        })
        .map(|p| p.container_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(ports: serde_json::Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "n"},
            "spec": {"selector": {"a": "b"}, "ports": ports},
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, port: i32, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"nodeName": "m", "hostname": name, "subdomain": "s",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    #[test]
    fn named_ports_are_resolved_pod_by_pod() {
        let service = service(json!([{"name": "web", "port": 80, "targetPort": "http"},
                                     {"name": "raw", "port": 81}]));
        let mut ended = pod("z", "10.0.0.9", 8080, "True");
        ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let pods = [
            pod("a", "10.0.0.2", 8080, "True"),
            pod("b", "10.0.0.1", 8080, "False"),
            pod("c", "10.0.0.3", 9090, "True"),
            pod("d", "", 9090, "True"),
            pod("e", "fd00::1", 9090, "True"),
            ended,
        ];
        let groups = group(&service, &pods, "IPv4", |_| Some(Some("z1".into())));
        let shape: Vec<_> = groups
            .iter()
            .map(|(ports, all)| {
                let ports: Vec<_> = ports.iter().map(|p| (p.name.as_str(), p.port)).collect();
                let all: Vec<_> = all
                    .iter()
                    .map(|b| (b.address.as_str(), b.serving))
                    .collect();
                (ports, all)
            })
            .collect();
        assert_eq!(
            shape,
            [
                (
                    vec![("raw", 81), ("web", 8080)],
                    vec![("10.0.0.1", false), ("10.0.0.2", true)]
                ),
                (vec![("raw", 81), ("web", 9090)], vec![("10.0.0.3", true)]),
            ]
        );
        let first = &groups.values().next().unwrap()[0];
        assert_eq!(
            (first.hostname.as_deref(), first.zone.as_deref()),
            (Some("b"), Some("z1"))
        );
        assert_eq!(group(&service, &pods, "IPv6", |_| Some(None)).len(), 1);
        let nowhere = group(&service, &pods, "IPv4", |_| None);
        assert!(nowhere.is_empty(), "their node is gone: {nowhere:?}");
    }

    #[test]
    fn pods_of_two_families_answer_in_each() {
        let mut service = service(json!([{"port": 80}]));
        assert_eq!(families(&service), ["IPv4"]);
        let both = vec!["IPv6".to_owned(), "IPv4".to_owned()];
        service.spec.as_mut().unwrap().ip_families = Some(both);
        let mut dual = pod("a", "10.0.0.2", 80, "True");
        let ips = json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]);
        dual.status.as_mut().unwrap().pod_ips = serde_json::from_value(ips).unwrap();
        let pods = [
            dual,
            pod("b", "fd00::3", 80, "True"),
            pod("c", "10.0.0.4", 80, "True"),
        ];
        let found = families(&service).into_iter().map(|family| {
            let groups = group(&service, &pods, &family, |_| Some(None));
            let all = groups.into_values().flatten();
            (family, all.map(|b| b.address).collect::<Vec<_>>())
        });
        let expected = [
            (
                "IPv6".to_owned(),
                vec!["fd00::2".to_owned(), "fd00::3".to_owned()],
            ),
            (
                "IPv4".to_owned(),
                vec!["10.0.0.2".to_owned(), "10.0.0.4".to_owned()],
            ),
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_port_that_a_pod_does_not_have_is_left_out() {
        let service = service(json!([{"port": 80, "targetPort": "nope"}]));
        let pods = [pod("a", "10.0.0.2", 1, "True")];
        let groups = group(&service, &pods, "IPv4", |_| Some(None));
        assert_eq!(groups.keys().next(), Some(&vec![]));
    }
}
