//! The runtime's configuration of a pod's sandbox. Pure.

use std::collections::HashMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use oci::cri::v1::{
    DnsConfig, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use crate::dns::Resolver;
use crate::pod::{self, PodRef};
use crate::{labels, resources, security};

/// The configuration of the `attempt`th sandbox of `pod`.
pub fn config(
    pod: &Pod,
    attempt: u32,
    log_dir: &Path,
    resolver: Resolver,
    cgroup_root: &str,
) -> PodSandboxConfig {
    let identity = PodRef::of(pod);
    let mut marks: HashMap<String, String> = pod
        .metadata
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    marks.extend(identity_labels(&identity));
    let hostname = if pod::host_network(pod) {
        String::new()
    } else {
        pod::hostname(pod)
    };
    let sysctls = pod::spec(pod)
        .security_context
        .iter()
        .flat_map(|c| c.sysctls.iter().flatten())
        .map(|s| (s.name.clone(), s.value.clone()));
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: identity.name.clone(),
            uid: identity.uid.clone(),
            namespace: identity.namespace.clone(),
            attempt,
        }),
        hostname,
        log_directory: log_dir.to_string_lossy().into_owned(),
        dns_config: Some(DnsConfig {
            servers: resolver.servers,
            searches: resolver.searches,
            options: resolver.options,
        }),
        port_mappings: port_mappings(pod),
        labels: marks,
        annotations: pod
            .metadata
            .annotations
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(cgroup_root, pod),
            security_context: Some(security::sandbox(pod)),
            sysctls: sysctls.collect(),
            resources: Some(resources::whole(pod)),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// Labels by which a pod's sandboxes and containers are found again.
pub fn identity_labels(identity: &PodRef) -> [(String, String); 3] {
    [
        (labels::POD_NAME.to_owned(), identity.name.clone()),
        (labels::POD_NAMESPACE.to_owned(), identity.namespace.clone()),
        (labels::POD_UID.to_owned(), identity.uid.clone()),
    ]
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if pod::host_network(pod) {
        return Vec::new();
    }
    let ports = pod::containers(pod).flat_map(|(_, c)| c.ports.iter().flatten());
    ports
        .filter(|p| p.host_port.unwrap_or(0) > 0)
        .map(|p| PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            }
            .into(),
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}
