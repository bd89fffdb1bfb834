//! Sandboxes and containers as CRI shows them, and the filters over them.

use std::collections::HashMap;
use std::sync::Arc;

use super::container::Container;
use super::sandbox::{Sandbox, namespace_modes};
use super::{Runtime, addresses_text, lock};
use crate::cri::v1;
use crate::plan::Started;

impl Runtime {
    /// The status of a sandbox.
    pub fn sandbox_status(&self, sandbox: &Sandbox) -> v1::PodSandboxStatus {
        let record = sandbox.record();
        let mut addresses = addresses_text(&record.addresses);
        v1::PodSandboxStatus {
            id: record.id.clone(),
            metadata: sandbox.config.metadata.clone(),
            state: sandbox.state() as i32,
            created_at: record.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: addresses.next().unwrap_or_default(),
                additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace {
                    options: Some(namespace_modes(&sandbox.config)),
                }),
            }),
            labels: sandbox.config.labels.clone(),
            annotations: sandbox.config.annotations.clone(),
            runtime_handler: record.runtime_handler.clone(),
        }
    }

    /// The status of a container.
    pub fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let (record, config) = (&container.record, &container.config);
        let progress = container.progress();
        let exit = progress.exit.as_ref();
        let reason = match exit {
            None => "",
            Some(exit) if exit.start_error.is_some() => "StartError",
            Some(exit) if exit.oom_killed => "OOMKilled",
            Some(exit) if exit.code == super::stop::UNKNOWN_EXIT => "Unknown",
            Some(exit) if exit.code == 0 => "Completed",
            Some(_) => "Error",
        };
        v1::ContainerStatus {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            state: container.state() as i32,
            created_at: record.created_at,
            started_at: progress
                .started
                .as_ref()
                .map_or(0, |started| started.started_at),
            finished_at: exit.map_or(0, |exit| exit.finished_at),
            exit_code: exit.map_or(0, |exit| exit.code),
            image: named_image(container),
            image_ref: record.image_ref.clone(),
            image_id: record.image_id.clone(),
            reason: reason.to_owned(),
            message: exit
                .and_then(|exit| exit.start_error.clone())
                .unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: config.mounts.clone(),
            log_path: container.log_path.clone(),
            resources: Some(v1::ContainerResources {
                linux: lock(&container.resources).clone(),
                windows: None,
            }),
            user: progress.started.as_ref().and_then(user),
            stop_signal: config.stop_signal,
        }
    }

    /// Sandboxes that a filter lets through, oldest first.
    pub fn list_sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let filter = filter.unwrap_or_default();
        let mut sandboxes: Vec<v1::PodSandbox> = lock(&self.sandboxes)
            .values()
            .filter(|sandbox| visible(sandbox))
            .map(|sandbox| sandbox_item(sandbox))
            .filter(|item| filter.id.is_empty() || item.id.starts_with(&filter.id))
            .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
            .filter(|item| selected(&filter.label_selector, &item.labels))
            .collect();
        sandboxes.sort_by_key(|item| item.created_at);
        sandboxes
    }

    /// Containers that a filter lets through, oldest first.
    pub fn list_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let filter = filter.unwrap_or_default();
        let in_sandbox = |item: &v1::Container| {
            filter.pod_sandbox_id.is_empty()
                || item.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        };
        let mut containers: Vec<v1::Container> = lock(&self.containers)
            .values()
            .map(|container| container_item(container))
            .filter(|item| filter.id.is_empty() || item.id.starts_with(&filter.id))
            .filter(in_sandbox)
            .filter(|item| filter.state.is_none_or(|wanted| wanted.state == item.state))
            .filter(|item| selected(&filter.label_selector, &item.labels))
            .collect();
        containers.sort_by_key(|item| item.created_at);
        containers
    }
}

/// Whether a sandbox has been made: it was ready once, or has been stopped.
fn visible(sandbox: &Arc<Sandbox>) -> bool {
    sandbox.dir.join("record.json").exists()
}

fn sandbox_item(sandbox: &Sandbox) -> v1::PodSandbox {
    let record = sandbox.record();
    v1::PodSandbox {
        id: record.id,
        metadata: sandbox.config.metadata.clone(),
        state: sandbox.state() as i32,
        created_at: record.created_at,
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: record.runtime_handler,
    }
}

fn container_item(container: &Container) -> v1::Container {
    v1::Container {
        id: container.record.id.clone(),
        pod_sandbox_id: container.record.sandbox.clone(),
        metadata: container.config.metadata.clone(),
        image: container.config.image.clone(),
        image_ref: container.record.image_ref.clone(),
        image_id: container.record.image_id.clone(),
        state: container.state() as i32,
        created_at: container.record.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    }
}

/// What was asked for, with the image's name where there is one: callers often know its id only.
fn named_image(container: &Container) -> Option<v1::ImageSpec> {
    let mut spec = container.config.image.clone()?;
    if !container.record.image_name.is_empty() {
        spec.image.clone_from(&container.record.image_name);
    }
    Some(spec)
}

fn user(started: &Started) -> Option<v1::ContainerUser> {
    let user = started.user.as_ref()?;
    Some(v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().copied().map(i64::from).collect(),
        }),
    })
}

/// Whether labels have everything a selector asks for.
pub fn selected(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}
