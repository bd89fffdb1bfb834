//! Starting things: the pod's sandbox, and a container with all it needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use oci::cri::v1::{
    ContainerConfig, CreateContainerRequest, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, PodSandboxConfig, RunPodSandboxRequest,
};
use tokio_util::sync::CancellationToken;

use super::hooks;
use crate::agent::Agent;
use crate::backoff;
use crate::container_config::{self, Input};
use crate::plan::Waiting;
use crate::pod::{self, PodRef};
use crate::refs::Ref;
use crate::volumes::{PodVolumes, sub_path};
use crate::{dns, downward::Place, env, hosts, images, sandbox, security};

/// Pods whose configuration is faulty are tried again after so long, or when what they name changes.
const CONFIG_RETRY: jiff::SignedDuration = backoff::INITIAL;

/// A start that failed: what the status shows, and when to try again.
#[derive(Clone, Debug)]
pub struct NotStarted {
    /// For the status.
    pub waiting: Waiting,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// One container to start.
pub struct Start {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Name of the container.
    pub name: String,
    /// Restarts before this one.
    pub attempt: u32,
    /// Sandbox.
    pub sandbox: String,
    /// Which sandbox of the pod it is.
    pub sandbox_attempt: u32,
    /// Addresses of the pod.
    pub ips: Vec<String>,
    /// Volumes of the pod.
    pub volumes: Arc<PodVolumes>,
    /// Names and ids of the containers that run beside it.
    pub running: Vec<(String, String)>,
}

/// Objects that a pod's containers refer to, held so that changes are seen.
#[derive(Default)]
pub struct Held {
    config_maps: BTreeMap<String, Ref<ConfigMap>>,
    secrets: BTreeMap<String, Ref<Secret>>,
}

impl Held {
    /// Waits until an object named by a failed start changes.
    pub async fn changed(&self) {
        let maps = self
            .config_maps
            .values()
            .map(|r| futures::future::FutureExt::boxed(r.changed()));
        let secrets = self
            .secrets
            .values()
            .map(|r| futures::future::FutureExt::boxed(r.changed()));
        let all: Vec<_> = maps.chain(secrets).collect();
        if all.is_empty() {
            std::future::pending::<()>().await;
        }
        futures::future::select_all(all).await;
    }
}

/// The sandbox configuration of `pod`.
pub fn sandbox_config(agent: &Agent, pod: &Pod, attempt: u32) -> PodSandboxConfig {
    let config = &agent.config;
    let resolver = dns::resolver(
        pod,
        &config.cluster_dns,
        &config.cluster_domain,
        &agent.resolver,
    );
    sandbox::config(
        pod,
        attempt,
        &agent.log_dir(pod),
        resolver,
        &config.cgroup_root,
    )
}

/// Makes a sandbox.
///
/// # Errors
/// Text for the event.
pub async fn create_sandbox(agent: &Agent, pod: &Pod, attempt: u32) -> Result<(), String> {
    std::fs::create_dir_all(agent.log_dir(pod)).map_err(|e| {
        format!(
            "create log directory for pod \"{}\" failed: {e}",
            PodRef::of(pod).full()
        )
    })?;
    let request = RunPodSandboxRequest {
        config: Some(sandbox_config(agent, pod, attempt)),
        runtime_handler: pod::spec(pod)
            .runtime_class_name
            .clone()
            .unwrap_or_default(),
    };
    agent
        .cri
        .run_pod_sandbox(request)
        .await
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// Starts a container: image, configuration, create, start, postStart. `held` gets the objects that
/// it refers to. Once `cancel` is cancelled nothing is created any more.
///
/// # Errors
/// [`NotStarted`] with upstream's reasons; `None` if cancelled.
pub async fn start_container(
    agent: &Agent,
    start: &Start,
    held: &mut Held,
    cancel: &CancellationToken,
) -> Result<(), Option<NotStarted>> {
    let Some((_, container)) = pod::container(&start.pod, &start.name) else {
        return Ok(());
    };
    let prepared = cancel
        .run_until_cancelled(prepare(agent, start, &container, held))
        .await;
    let config = prepared.ok_or(None)?.map_err(Some)?;
    launch(agent, start, &container, config).await.map_err(Some)
}

async fn prepare(
    agent: &Agent,
    start: &Start,
    container: &Container,
    held: &mut Held,
) -> Result<ContainerConfig, NotStarted> {
    let secrets = pull_secrets(agent, &start.pod, held).await;
    let image = images::ensure(agent, &start.pod, container, &secrets, crate::clock::now())
        .await
        .map_err(|m| NotStarted {
            waiting: m.waiting,
            retry_at: m.retry_at,
        })?;
    configure(agent, start, container, &image, held)
        .await
        .map_err(|e| failed(agent, start, "CreateContainerConfigError", e))
}

async fn launch(
    agent: &Agent,
    start: &Start,
    container: &Container,
    config: ContainerConfig,
) -> Result<(), NotStarted> {
    let pod = &start.pod;
    let request = CreateContainerRequest {
        pod_sandbox_id: start.sandbox.clone(),
        config: Some(config),
        sandbox_config: Some(sandbox_config(agent, pod, start.sandbox_attempt)),
    };
    let created = agent.cri.create_container(request).await;
    let id = created
        .map_err(|e| failed(agent, start, "CreateContainerError", e.to_string()))?
        .container_id;
    let normal = |reason: &str, text: String| {
        agent.container_event(pod, &start.name, EventType::Normal, reason, text);
    };
    normal("Created", format!("Created container: {}", start.name));
    if let Err(error) = agent.cri.start_container(&id).await {
        return Err(failed(agent, start, "RunContainerError", error.to_string()));
    }
    normal("Started", format!("Started container {}", start.name));
    post_start(agent, start, container, &id).await
}

fn failed(agent: &Agent, start: &Start, reason: &str, error: String) -> NotStarted {
    agent.container_event(
        &start.pod,
        &start.name,
        EventType::Warning,
        "Failed",
        format!("Error: {error}"),
    );
    NotStarted {
        waiting: Waiting {
            reason: reason.to_owned(),
            message: error,
        },
        retry_at: crate::clock::now() + CONFIG_RETRY,
    }
}

async fn post_start(
    agent: &Agent,
    start: &Start,
    container: &Container,
    id: &str,
) -> Result<(), NotStarted> {
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.post_start.as_ref());
    let Some(hook) = hook else { return Ok(()) };
    let ip = start.ips.first().map_or("", String::as_str);
    let Err(error) = hooks::run(&agent.cri, &start.pod, container, id, ip, hook).await else {
        return Ok(());
    };
    let text = format!("PostStartHook failed: {error}");
    agent.container_event(
        &start.pod,
        &start.name,
        EventType::Warning,
        "FailedPostStartHook",
        text.clone(),
    );
    let grace = pod::grace_seconds(&start.pod).max(1);
    if let Err(error) = agent.cri.stop_container(id, grace).await {
        tracing::warn!(pod = %PodRef::of(&start.pod), %error, "stopping a container after its postStart hook failed");
    }
    Err(NotStarted {
        waiting: Waiting {
            reason: "PostStartHookError".into(),
            message: text,
        },
        retry_at: crate::clock::now(),
    })
}

/// The secrets are held on, so that a restart needs no API server.
async fn pull_secrets(agent: &Agent, pod: &Pod, held: &mut Held) -> Vec<Arc<Secret>> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut found = Vec::new();
    for reference in pod::spec(pod).image_pull_secrets.iter().flatten() {
        let mut secret = agent.host.secrets.hold(namespace, &reference.name);
        match secret.get().await {
            Some(secret) => found.push(secret),
            None => {
                let text = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    reference.name
                );
                let reason = "FailedToRetrieveImagePullSecret";
                agent.event(pod, EventType::Warning, reason, text);
            }
        }
        held.secrets.insert(reference.name.clone(), secret);
    }
    found
}

async fn configure(
    agent: &Agent,
    start: &Start,
    container: &Container,
    image: &images::Present,
    held: &mut Held,
) -> Result<ContainerConfig, String> {
    let pod = &start.pod;
    let place = agent.place(&start.ips);
    let environment = environment(agent, pod, container, &place, held).await?;
    if !environment.invalid.is_empty() {
        let names: Vec<_> = environment
            .invalid
            .iter()
            .map(|(source, key)| format!("{key} from {source}"))
            .collect();
        let text = format!(
            "Keys [{}] were skipped since they are considered invalid environment variable names.",
            names.join(", ")
        );
        agent.event(
            pod,
            EventType::Warning,
            "InvalidEnvironmentVariableNames",
            text,
        );
    }
    let env = environment.variables.into_entries();
    let mut security = security::container(pod, container, &image.user)?;
    share_processes(start, container, &mut security)?;
    let mounts = mounts(agent, start, container, &env)?;
    Ok(container_config::config(Input {
        pod,
        container,
        attempt: start.attempt,
        image,
        env: &env,
        mounts,
        security,
        memory: i64::try_from(agent.machine.memory).unwrap_or(i64::MAX),
    }))
}

/// An ephemeral container may see the processes of another container.
fn share_processes(
    start: &Start,
    container: &Container,
    security: &mut LinuxContainerSecurityContext,
) -> Result<(), String> {
    let Some(target) = pod::debug_target(&start.pod, &container.name) else {
        return Ok(());
    };
    let running = start.running.iter().find(|(name, _)| name == target);
    let (_, id) = running.ok_or_else(|| format!("unable to find target container {target}"))?;
    let namespaces = security.namespace_options.get_or_insert_default();
    namespaces.pid = NamespaceMode::Target.into();
    namespaces.target_id.clone_from(id);
    Ok(())
}

async fn environment(
    agent: &Agent,
    pod: &Pod,
    container: &Container,
    place: &Place,
    held: &mut Held,
) -> Result<env::Environment, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (maps, secrets) = env::references(container);
    let mut sources = env::Sources::default();
    for name in maps {
        let mut reference = agent.host.config_maps.hold(namespace, &name);
        sources
            .config_maps
            .insert(name.clone(), reference.get().await);
        held.config_maps.insert(name, reference);
    }
    for name in secrets {
        let mut reference = agent.host.secrets.hold(namespace, &name);
        sources.secrets.insert(name.clone(), reference.get().await);
        held.secrets.insert(name, reference);
    }
    if !pod::is_static(pod) {
        agent.services.wait_synced().await;
    }
    let links = pod::spec(pod).enable_service_links.unwrap_or(true);
    let services = agent.services.visible(namespace, links);
    env::environment(pod, container, &services, &sources, place)
}

fn mounts(
    agent: &Agent,
    start: &Start,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let pod = &start.pod;
    let pod_dir = agent.host.pod_dir(&PodRef::of(pod).uid);
    let mut out = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = start.volumes.by_name.get(&mount.name).ok_or_else(|| {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            )
        })?;
        let sub = sub_path_of(mount, env)?;
        let host_path = match sub {
            Some(sub) => {
                let target = sub_path::target(&pod_dir, &mount.name, &container.name, index);
                sub_path::bind(&volume.path, &sub, &target).map_err(|e| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                        mount.name, container.name
                    )
                })?;
                target
            }
            None => volume.path.clone(),
        };
        out.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: mount.read_only == Some(true) || volume.read_only,
            recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
            propagation: propagation(mount.mount_propagation.as_deref()).into(),
            ..Mount::default()
        });
    }
    let taken = |path: &str| out.iter().any(|m: &Mount| m.container_path == path);
    let hosts_file = (!taken("/etc/hosts"))
        .then(|| hosts_file(agent, start, &pod_dir))
        .transpose()?;
    let message_file = message_file(container, &pod_dir)?;
    out.extend(hosts_file);
    out.extend(message_file);
    Ok(out)
}

fn sub_path_of(
    mount: &k8s_openapi::api::core::v1::VolumeMount,
    env: &[(String, String)],
) -> Result<Option<String>, String> {
    let text = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        Some(expr) => {
            let expanded = env::expand(expr, |name| {
                env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
            });
            if expanded.contains("$(") {
                return Err(format!("missing value for expression \"{expr}\""));
            }
            expanded
        }
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    Ok((!text.is_empty()).then_some(text))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

fn propagation(mode: Option<&str>) -> MountPropagation {
    match mode {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    }
}

fn hosts_file(agent: &Agent, start: &Start, pod_dir: &Path) -> Result<Mount, String> {
    let path = pod_dir.join("etc-hosts");
    let own = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let text = hosts::content(&start.pod, &start.ips, &agent.config.cluster_domain, &own);
    write_file(&path, text.as_bytes(), 0o644)
        .map_err(|e| format!("failed to write etc-hosts: {e}"))?;
    Ok(Mount {
        container_path: "/etc/hosts".into(),
        host_path: path.to_string_lossy().into_owned(),
        ..Mount::default()
    })
}

/// The file that the container may leave its last words in.
fn message_file(container: &Container, pod_dir: &Path) -> Result<Option<Mount>, String> {
    let Some(inside) = container
        .termination_message_path
        .clone()
        .filter(|p| !p.is_empty())
    else {
        return Ok(None);
    };
    let name = format!("{:08x}", rand::random::<u32>());
    let path = pod_dir.join("containers").join(&container.name).join(name);
    write_file(&path, b"", 0o666).map_err(|e| format!("failed to write termination log: {e}"))?;
    Ok(Some(Mount {
        container_path: inside,
        host_path: path.to_string_lossy().into_owned(),
        ..Mount::default()
    }))
}

fn write_file(path: &PathBuf, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
