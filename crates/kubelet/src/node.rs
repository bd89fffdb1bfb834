//! The Node object of this machine: registered once, its status kept true, and a lease renewed so
//! that the control plane knows that somebody is there.

use std::collections::BTreeMap;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo, ObjectReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use oci::cri::v1::{ListImagesRequest, VersionRequest};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, SharedAgent};
use crate::config::DEFAULT_PORT;
use crate::machine;

/// Time between two renewals of the lease.
const RENEW: Duration = Duration::from_secs(10);
/// Seconds that a lease holds.
const LEASE_SECONDS: i32 = 40;
/// Namespace of the leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The status is reported so often even if nothing changed.
const REPORT: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);
/// Most images listed in the status.
const MAX_IMAGES: usize = 50;
/// Most names listed for an image.
const MAX_IMAGE_NAMES: usize = 5;
/// Free memory below which the node is under pressure, in bytes.
const LOW_MEMORY: u64 = 100 * 1024 * 1024;
/// First delay after the API server could not be reached; doubles up to [`RENEW`].
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// Registers the node and keeps its status and lease until `shutdown`.
pub async fn run(agent: SharedAgent, shutdown: CancellationToken) {
    let mut changes = agent.changes.subscribe();
    let Some(uid) = shutdown.run_until_cancelled(register(&agent)).await else {
        return;
    };
    let mut reported: Option<(NodeStatus, Timestamp)> = None;
    let mut images = images(&agent).await;
    let mut ticks = tokio::time::interval(RENEW);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.cancelled() => return,
        }
        // Images come and go with containers; without any change the list is not asked for.
        if drain(&mut changes) {
            images = self::images(&agent).await;
        }
        report(&agent, &images, &mut reported).await;
        if let Err(error) = renew(&agent, &uid).await {
            tracing::debug!(%error, "renewing the node's lease failed");
            ticks.reset_after(FIRST_RETRY * 5);
        }
    }
}

fn drain(changes: &mut tokio::sync::broadcast::Receiver<crate::agent::RuntimeChange>) -> bool {
    use tokio::sync::broadcast::error::TryRecvError;
    let mut any = false;
    loop {
        match changes.try_recv() {
            Ok(_) | Err(TryRecvError::Lagged(_)) => any = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return any,
        }
    }
}

/// Creates the Node, or brings the labels of the one there is up to date. Gives its uid.
async fn register(agent: &Agent) -> String {
    let api = Api::<Node>::all(agent.client.clone());
    let mut delay = FIRST_RETRY;
    loop {
        let node = object(agent);
        let done = match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({ "metadata": { "labels": node.metadata.labels } });
                api.patch(
                    &agent.config.node_name,
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
            }
            other => other,
        };
        match done {
            Ok(node) => return node.metadata.uid.unwrap_or_default(),
            Err(error) => tracing::debug!(%error, "registering the node failed, trying again"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RENEW);
    }
}

fn object(agent: &Agent) -> Node {
    let config = &agent.config;
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(agent)),
            annotations: Some(
                [(
                    "volumes.kubernetes.io/controller-managed-attach-detach".into(),
                    "true".into(),
                )]
                .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: config.pod_cidr.clone(),
            pod_cidrs: config.pod_cidr.clone().map(|c| vec![c]),
            ..NodeSpec::default()
        }),
        status: Some(status(agent, true, &[], None, crate::clock::now())),
    }
}

/// The labels that the agent gives its node.
pub fn labels(agent: &Agent) -> BTreeMap<String, String> {
    let config = &agent.config;
    let mut out = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/arch", agent.machine.architecture),
        ("kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", agent.machine.architecture),
        ("beta.kubernetes.io/os", "linux"),
    ] {
        out.insert(key.to_owned(), value.to_owned());
    }
    if config.control_plane {
        out.insert(
            "node-role.kubernetes.io/control-plane".to_owned(),
            String::new(),
        );
    }
    out
}

async fn images(agent: &Agent) -> Vec<ContainerImage> {
    let Ok(listed) = agent.cri.list_images(ListImagesRequest::default()).await else {
        return Vec::new();
    };
    let mut images = listed.images;
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    images.truncate(MAX_IMAGES);
    images
        .into_iter()
        .map(|image| {
            let mut names = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(MAX_IMAGE_NAMES);
            ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(image.size).ok(),
            }
        })
        .collect()
}

/// Sends the status if it changed or was not sent for long.
async fn report(
    agent: &Agent,
    images: &[ContainerImage],
    reported: &mut Option<(NodeStatus, Timestamp)>,
) {
    let now = crate::clock::now();
    let runtime_up = agent.cri.version(VersionRequest::default()).await.is_ok();
    let last = reported.as_ref().map(|(s, _)| s);
    let status = status(agent, runtime_up, images, last, now);
    if let Some((last, at)) = reported.as_ref()
        && same(last, &status)
        && now.duration_since(*at) < REPORT
    {
        return;
    }
    let api = Api::<Node>::all(agent.client.clone());
    let patch = json!({ "status": status });
    match api
        .patch_status(
            &agent.config.node_name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await
    {
        Ok(_) => {
            announce(agent, last, &status);
            *reported = Some((status, now));
        }
        // Somebody deleted the Node: it is made anew.
        Err(kube::Error::Api(error)) if error.code == 404 => {
            register(agent).await;
        }
        Err(error) => tracing::debug!(%error, "reporting the node's status failed"),
    }
}

/// Events for conditions that changed.
fn announce(agent: &Agent, last: Option<&NodeStatus>, status: &NodeStatus) {
    let name = &agent.config.node_name;
    let about = ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.clone()),
        uid: Some(name.clone()),
        ..ObjectReference::default()
    };
    let event = |reason: &str, text: String| {
        agent
            .recorder
            .event(&about, EventType::Normal, reason, text);
    };
    if last.is_none() {
        event("Starting", "Starting kubelet.".to_owned());
    }
    let before = last
        .and_then(|l| l.conditions.as_deref())
        .unwrap_or_default();
    for condition in status.conditions.iter().flatten() {
        if before
            .iter()
            .any(|c| c.type_ == condition.type_ && c.status == condition.status)
        {
            continue;
        }
        let reason = match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready", "True") => "NodeReady".to_owned(),
            ("Ready", _) => "NodeNotReady".to_owned(),
            _ => format!(
                "Node{}",
                condition
                    .reason
                    .as_deref()
                    .unwrap_or_default()
                    .trim_start_matches("Kubelet")
            ),
        };
        event(&reason, format!("Node {name} status is now: {reason}"));
    }
}

/// Whether two statuses tell the same but for the time.
fn same(one: &NodeStatus, other: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(one) == timeless(other)
}

fn status(
    agent: &Agent,
    runtime_up: bool,
    images: &[ContainerImage],
    last: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let config = &agent.config;
    let address = |kind: &str, address: String| NodeAddress {
        address,
        type_: kind.to_owned(),
    };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        capacity: Some(agent.machine.capacity(config.max_pods)),
        allocatable: Some(agent.machine.allocatable(config.max_pods)),
        conditions: Some(conditions(agent, runtime_up, last, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.listen.map_or(DEFAULT_PORT, |l| l.port())),
            }),
        }),
        images: Some(images.to_vec()),
        node_info: Some(info(agent)),
        ..NodeStatus::default()
    }
}

fn info(agent: &Agent) -> NodeSystemInfo {
    let machine = &agent.machine;
    NodeSystemInfo {
        architecture: machine.architecture.to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: format!("{}://{}", agent.runtime_name, agent.runtime_version),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: agent.config.version.clone(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

fn conditions(
    agent: &Agent,
    runtime_up: bool,
    last: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let low_memory =
        machine::meminfo(&memory, "MemAvailable").is_some_and(|free| free < LOW_MEMORY);
    let low_disk = machine::disk_pressure(&agent.config.root);
    let pick = |holds: bool, yes, no| if holds { yes } else { no };
    let (memory_reason, memory_text) = pick(
        low_memory,
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
    );
    let (disk_reason, disk_text) = pick(
        low_disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    );
    let (ready_reason, ready_text) = pick(
        runtime_up,
        ("KubeletReady", "kubelet is posting ready status"),
        ("KubeletNotReady", "[container runtime is down]"),
    );
    let pid_text = "kubelet has sufficient PID available";
    [
        ("MemoryPressure", low_memory, memory_reason, memory_text),
        ("DiskPressure", low_disk, disk_reason, disk_text),
        ("PIDPressure", false, "KubeletHasSufficientPID", pid_text),
        ("Ready", runtime_up, ready_reason, ready_text),
    ]
    .into_iter()
    .map(|(kind, holds, reason, message)| {
        let status = if holds { "True" } else { "False" };
        let before = last
            .and_then(|l| l.conditions.as_deref())
            .unwrap_or_default();
        let since = before
            .iter()
            .find(|c| c.type_ == kind && c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        NodeCondition {
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            message: Some(message.to_owned()),
            reason: Some(reason.to_owned()),
            status: status.to_owned(),
            type_: kind.to_owned(),
        }
    })
    .collect()
}

/// Renews the lease, or makes it.
async fn renew(agent: &Agent, node_uid: &str) -> kube::Result<()> {
    let name = &agent.config.node_name;
    let api = Api::<Lease>::namespaced(agent.client.clone(), LEASE_NAMESPACE);
    let spec = LeaseSpec {
        holder_identity: Some(name.clone()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(crate::clock::now())),
        ..LeaseSpec::default()
    };
    let patch = json!({ "spec": spec });
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        other => return other.map(|_| ()),
    }
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.clone(),
        uid: node_uid.to_owned(),
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.into()),
            owner_references: (!node_uid.is_empty()).then(|| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| ())
}
