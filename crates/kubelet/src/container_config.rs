//! The runtime's configuration of a container. Pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use oci::cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, Mount, Signal,
};

use crate::images::Present;
use crate::pod::{self, PodRef};
use crate::{env, labels, resources, sandbox};

/// All that goes into a container.
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's spec.
    pub container: &'a Container,
    /// Restarts before this one.
    pub attempt: u32,
    /// Its image.
    pub image: &'a Present,
    /// Its environment.
    pub env: &'a [(String, String)],
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Its security context.
    pub security: LinuxContainerSecurityContext,
    /// Memory of the machine, in bytes.
    pub memory: i64,
}

/// The configuration.
pub fn config(input: Input<'_>) -> ContainerConfig {
    let Input {
        pod,
        container,
        attempt,
        image,
        env: variables,
        mounts,
        security,
        memory,
    } = input;
    let lookup = |name: &str| {
        variables
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    };
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| env::expand(text, lookup))
            .collect()
    };
    let envs = variables
        .iter()
        .map(|(key, value)| KeyValue {
            key: key.clone(),
            value: value.clone().into_bytes(),
        })
        .collect();
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt,
        }),
        image: Some(ImageSpec {
            image: image.reference.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs,
        mounts,
        labels: container_labels(pod, container),
        annotations: annotations(pod, container, attempt),
        log_path: log_path(&container.name, attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container(pod, container, memory)),
            security_context: Some(security),
        }),
        stop_signal: stop_signal(container),
        ..ContainerConfig::default()
    }
}

/// Path of a container's log within the pod's log folder.
pub fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

fn stop_signal(container: &Container) -> i32 {
    let name = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.stop_signal.as_deref())
        .unwrap_or_default();
    Signal::from_str_name(&format!("SIGNAL_{name}"))
        .or(Signal::from_str_name(name))
        .unwrap_or_default()
        .into()
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let mut out = HashMap::from(sandbox::identity_labels(&PodRef::of(pod)));
    out.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    out
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let mut out = HashMap::from([
        (labels::HASH.to_owned(), pod::container_hash(container)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (
            labels::MESSAGE_PATH.to_owned(),
            container
                .termination_message_path
                .clone()
                .unwrap_or_default(),
        ),
        (
            labels::MESSAGE_POLICY.to_owned(),
            container
                .termination_message_policy
                .clone()
                .unwrap_or_default(),
        ),
        (
            labels::GRACE.to_owned(),
            pod::grace_seconds(pod).to_string(),
        ),
    ]);
    if let Some(ports) = container
        .ports
        .as_ref()
        .and_then(|p| serde_json::to_string(p).ok())
    {
        out.insert(labels::PORTS.to_owned(), ports);
    }
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.pre_stop.as_ref());
    if let Some(hook) = hook.and_then(|h| serde_json::to_string(h).ok()) {
        out.insert(labels::PRE_STOP.to_owned(), hook);
    }
    out
}
