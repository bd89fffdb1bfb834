//! What all parts of the agent share.

use std::path::PathBuf;
use std::sync::Arc;

use client::{EventType, Recorder};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::broadcast;

use crate::admission::Admission;
use crate::config::Config;
use crate::cri::Cri;
use crate::dns::Resolver;
use crate::downward::Place;
use crate::fsnotify::FsNotify;
use crate::images::Images;
use crate::machine::Machine;
use crate::pod::{self, Role};
use crate::services::Services;
use crate::volumes::Host;

/// Something happened to a container or sandbox; look for yourself what.
#[derive(Clone, Debug, Default)]
pub struct RuntimeChange {
    /// The pod, empty if unknown: then it concerns all.
    pub pod_uid: String,
    /// The container or sandbox.
    pub id: String,
}

/// Shared means of the agent.
pub struct Agent {
    /// Configuration.
    pub config: Config,
    /// Access to the API.
    pub client: kube::Client,
    /// The runtime.
    pub cri: Cri,
    /// Name of the runtime, the scheme of container ids.
    pub runtime_name: String,
    /// Version of the runtime.
    pub runtime_version: String,
    /// Which pod holds what of the node.
    pub admission: Admission,
    /// Images.
    pub images: Images,
    /// Means of volumes.
    pub host: Host,
    /// Services for environment variables.
    pub services: Services,
    /// Events.
    pub recorder: Recorder,
    /// File changes.
    pub notify: FsNotify,
    /// Runtime changes, for whoever waits for a container to end.
    pub changes: broadcast::Sender<RuntimeChange>,
    /// The machine.
    pub machine: Machine,
    /// The node's own resolv.conf.
    pub resolver: Resolver,
}

impl Agent {
    /// Addresses of the node.
    pub fn host_ips(&self) -> Vec<String> {
        vec![self.config.node_ip.to_string()]
    }

    /// What containers of a pod with these addresses may be told.
    pub fn place(&self, pod_ips: &[String]) -> Place {
        Place {
            node_name: self.config.node_name.clone(),
            host_ips: self.host_ips(),
            pod_ips: pod_ips.to_vec(),
            allocatable: self.machine.allocatable(self.config.max_pods),
        }
    }

    /// Folder of a pod's logs.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        let r = pod::PodRef::of(pod);
        self.config
            .log_root
            .join(format!("{}_{}_{}", r.namespace, r.name, r.uid))
    }

    /// Records an event about the pod.
    pub fn event(&self, pod: &Pod, kind: EventType, reason: &str, message: impl Into<String>) {
        self.recorder
            .event(&reference(pod, None), kind, reason, message);
    }

    /// Records an event about one container of the pod.
    pub fn container_event(
        &self,
        pod: &Pod,
        name: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder
            .event(&reference(pod, Some(name)), kind, reason, message);
    }
}

fn reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let field_path = container.map(|name| match pod::container(pod, name) {
        Some((Role::Ephemeral, _)) => format!("spec.ephemeralContainers{{{name}}}"),
        Some((Role::Init | Role::Sidecar, _)) => format!("spec.initContainers{{{name}}}"),
        _ => format!("spec.containers{{{name}}}"),
    });
    ObjectReference {
        field_path,
        ..client::events::reference(pod)
    }
}

/// The agent, shared.
pub type SharedAgent = Arc<Agent>;
