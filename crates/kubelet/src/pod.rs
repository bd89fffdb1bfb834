//! What the agent asks of a Pod object: names, container lists, policies, and what the runtime
//! shows of it ([`Observed`]). Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, PodStatus};

/// Annotation that tells where a pod came from: `file` for static pods, `api` otherwise.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation of a mirror pod: the hash of the static pod that it mirrors.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation of a static pod: the hash of its manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Grace given when a pod names none, in seconds.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;

/// A pod by identity; cheap enough to put on every log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Unique id of the pod.
    pub uid: String,
}

impl PodRef {
    /// The identity of `pod`; missing parts become empty.
    pub fn of(pod: &Pod) -> PodRef {
        PodRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// `name_namespace(uid)`, upstream's way to name a pod in messages.
    pub fn full(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }
}

impl std::fmt::Display for PodRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The role of a container within its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: stays beside the main ones.
    Sidecar,
    /// A regular container.
    Main,
    /// Added to a running pod to look at it; runs once.
    Ephemeral,
}

/// When a container that ended is run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Always.
    Always,
    /// When it failed.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> RestartPolicy {
        match text {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether a container that ended with `exit_code` is to run again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// The spec of `pod`, or an empty one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// The status of `pod` as the API server knows it, or an empty one.
pub fn status(pod: &Pod) -> &PodStatus {
    static EMPTY: std::sync::OnceLock<PodStatus> = std::sync::OnceLock::new();
    pod.status
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodStatus::default))
}

/// The restart policy of the pod.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    RestartPolicy::parse(spec(pod).restart_policy.as_deref())
}

/// Init containers and sidecars in order, with their roles.
pub fn init_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = (Role, &Container)> {
    let list = spec(pod).init_containers.as_deref().unwrap_or_default();
    list.iter().map(|c| {
        if c.restart_policy.as_deref() == Some("Always") {
            (Role::Sidecar, c)
        } else {
            (Role::Init, c)
        }
    })
}

/// Containers added to the running pod, as ordinary ones.
pub fn ephemeral_containers(pod: &Pod) -> Vec<Container> {
    let list = spec(pod)
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default();
    list.iter().cloned().map(ordinary).collect()
}

fn ordinary(container: EphemeralContainer) -> Container {
    Container {
        args: container.args,
        command: container.command,
        env: container.env,
        env_from: container.env_from,
        image: container.image,
        image_pull_policy: container.image_pull_policy,
        name: container.name,
        security_context: container.security_context,
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path,
        termination_message_policy: container.termination_message_policy,
        tty: container.tty,
        volume_devices: container.volume_devices,
        volume_mounts: container.volume_mounts,
        working_dir: container.working_dir,
        // Validation leaves it no probes, ports, resources or hooks.
        ..Container::default()
    }
}

/// The container whose processes the ephemeral container `name` is to see.
pub fn debug_target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let list = spec(pod)
        .ephemeral_containers
        .as_deref()
        .unwrap_or_default();
    let container = list.iter().find(|c| c.name == name)?;
    container
        .target_container_name
        .as_deref()
        .filter(|t| !t.is_empty())
}

/// All containers but ephemeral ones, in the order in which they start.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Role, &Container)> {
    init_containers(pod).chain(spec(pod).containers.iter().map(|c| (Role::Main, c)))
}

/// The container called `name`.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Role, Cow<'a, Container>)> {
    let found = containers(pod).find(|(_, c)| c.name == name);
    found.map(|(role, c)| (role, Cow::Borrowed(c))).or_else(|| {
        let mut debug = ephemeral_containers(pod).into_iter();
        debug
            .find(|c| c.name == name)
            .map(|c| (Role::Ephemeral, Cow::Owned(c)))
    })
}

/// Whether a container of this role and spec runs again after `exit_code`.
pub fn restarts(pod: &Pod, role: Role, spec: &Container, exit_code: i32) -> bool {
    match role {
        Role::Sidecar => return true,
        Role::Ephemeral => return false,
        Role::Init | Role::Main => {}
    }
    if let Some(decided) = restart_rule(spec, exit_code) {
        return decided;
    }
    let policy = match (&spec.restart_policy, role) {
        (Some(own), Role::Main | Role::Init) => RestartPolicy::parse(Some(own)),
        _ => restart_policy(pod),
    };
    match (role, policy) {
        // An init container that succeeded never runs again in the same sandbox.
        (Role::Init, _) if exit_code == 0 => false,
        (_, policy) => policy.restarts(exit_code),
    }
}

fn restart_rule(spec: &Container, exit_code: i32) -> Option<bool> {
    let rules = spec.restart_policy_rules.as_deref()?;
    let hit = rules.iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes
                .values
                .as_deref()
                .unwrap_or_default()
                .contains(&exit_code);
            listed == (codes.operator == "In")
        })
    })?;
    Some(hit.action == "Restart")
}

/// Whether the pod shares the host's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The pod's grace period in seconds, as its spec says.
pub fn grace_seconds(pod: &Pod) -> i64 {
    spec(pod)
        .termination_grace_period_seconds
        .unwrap_or(DEFAULT_GRACE_SECONDS)
        .max(0)
}

/// One annotation of the pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// Whether the pod comes from a manifest on this node.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// Whether the API shows that the pod has ended for good.
pub fn has_ended(pod: &Pod) -> bool {
    is_last(status(pod).phase.as_deref())
}

/// Whether a pod never leaves the phase.
pub fn is_last(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the object merely mirrors a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// The host name of the pod within its own UTS namespace, at most 63 characters.
pub fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|n| !n.is_empty()) {
        return name.to_owned();
    }
    let name = spec
        .hostname
        .as_deref()
        .filter(|n| !n.is_empty())
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's domain (`subdomain.namespace.svc.cluster.local`), if it names a subdomain.
pub fn subdomain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = spec(pod).subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{subdomain}.{namespace}.svc.{cluster_domain}"))
}

/// Identifies what makes a container need replacement when its spec changes: name and image.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let image = container.image.as_deref().unwrap_or_default();
    for byte in container
        .name
        .bytes()
        .chain(std::iter::once(0))
        .chain(image.bytes())
    {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// What the runtime shows of one pod, newest first in both lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Sandboxes, the newest first.
    pub sandboxes: Vec<SandboxView>,
    /// Containers, the newest first.
    pub containers: Vec<ContainerView>,
}

/// One sandbox of the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxView {
    /// Runtime id.
    pub id: String,
    /// Whether it runs.
    pub ready: bool,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Addresses, the main one first; empty with host network.
    pub ips: Vec<String>,
}

/// State of a container in the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited,
    /// The runtime cannot tell.
    #[default]
    Unknown,
}

/// One container of the pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    /// Runtime id.
    pub id: String,
    /// Name in the pod's spec.
    pub name: String,
    /// The sandbox it belongs to.
    pub sandbox_id: String,
    /// Restarts before this one.
    pub attempt: u32,
    /// [`container_hash`] at creation.
    pub hash: String,
    /// State in the runtime.
    pub state: ContainerState,
    /// Creation time.
    pub created_at: Option<Timestamp>,
    /// Start time.
    pub started_at: Option<Timestamp>,
    /// End time.
    pub finished_at: Option<Timestamp>,
    /// Exit code, when it ended.
    pub exit_code: i32,
    /// Why it ended (`Completed`, `Error`, `OOMKilled`, …).
    pub reason: String,
    /// Termination message, or the runtime's own.
    pub message: String,
    /// Image as the spec had it.
    pub image: String,
    /// Image as the runtime resolved it.
    pub image_id: String,
    /// Absolute path of the log file.
    pub log_path: String,
    /// Labels that the agent gave it.
    pub labels: BTreeMap<String, String>,
    /// Annotations that the agent gave it.
    pub annotations: BTreeMap<String, String>,
}

impl ContainerView {
    /// Whether processes of it may exist.
    pub fn alive(&self) -> bool {
        matches!(
            self.state,
            ContainerState::Running | ContainerState::Unknown
        )
    }
}

impl Observed {
    /// The newest container called `name`, in any sandbox.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest container called `name` in one sandbox.
    pub fn latest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerView> {
        self.containers
            .iter()
            .find(|c| c.name == name && c.sandbox_id == sandbox)
    }

    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes.first()
    }

    /// The container with this id.
    pub fn by_id(&self, id: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.id == id)
    }
}

/// The pod as the node API shows it.
pub fn clone_without_managed_fields(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.managed_fields = None;
    pod
}
