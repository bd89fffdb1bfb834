//! Reads from the runtime what it has of a pod, as plain data for planning.

use std::path::Path;

use jiff::Timestamp;
use oci::cri::v1::{
    self, ContainerFilter, ContainerState as CriState, ListContainersRequest,
    ListPodSandboxRequest, PodSandboxFilter, PodSandboxState,
};

use crate::cri::{self, Cri};
use crate::labels;
use crate::logs;
use crate::pod::{ContainerState, ContainerView, Observed, SandboxView};

/// Longest termination message taken from a file, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// Longest termination message taken from the log, in bytes.
const MAX_LOG_MESSAGE: u64 = 2048;
/// Most lines of the log taken as a termination message.
const MAX_LOG_LINES: usize = 80;

/// Everything the runtime has of the pod `uid`, the newest first.
///
/// # Errors
/// The runtime's.
pub async fn observe(cri: &Cri, uid: &str, before: &Observed) -> cri::Result<Observed> {
    let filter = PodSandboxFilter {
        label_selector: cri::selector(uid),
        ..PodSandboxFilter::default()
    };
    let mut listed = cri
        .list_pod_sandbox(ListPodSandboxRequest {
            filter: Some(filter),
        })
        .await?
        .items;
    listed.sort_by_key(|s| {
        std::cmp::Reverse((s.created_at, s.metadata.as_ref().map_or(0, |m| m.attempt)))
    });
    let mut out = Observed::default();
    for sandbox in listed {
        let ready = sandbox.state == i32::from(PodSandboxState::SandboxReady);
        let known = before
            .sandboxes
            .iter()
            .find(|s| s.id == sandbox.id && s.ready && ready);
        let ips = match known {
            Some(known) if !known.ips.is_empty() => known.ips.clone(),
            _ if ready => addresses(cri.pod_sandbox_status(&sandbox.id).await?),
            _ => Vec::new(),
        };
        out.sandboxes.push(SandboxView {
            id: sandbox.id,
            ready,
            attempt: sandbox.metadata.map_or(0, |m| m.attempt),
            ips,
        });
    }
    let filter = ContainerFilter {
        label_selector: cri::selector(uid),
        ..ContainerFilter::default()
    };
    let mut listed = cri
        .list_containers(ListContainersRequest {
            filter: Some(filter),
        })
        .await?
        .containers;
    listed.sort_by_key(|c| {
        std::cmp::Reverse((c.created_at, c.metadata.as_ref().map_or(0, |m| m.attempt)))
    });
    for container in listed {
        // What ended does not change any more.
        let ended = before.by_id(&container.id).filter(|known| {
            known.state == ContainerState::Exited && state(container.state) == known.state
        });
        if let Some(known) = ended {
            out.containers.push(known.clone());
        } else if let Some(status) = cri.container_status(&container.id).await? {
            out.containers.push(view(&container.pod_sandbox_id, status));
        }
    }
    Ok(out)
}

fn addresses(status: Option<v1::PodSandboxStatus>) -> Vec<String> {
    let Some(network) = status.and_then(|s| s.network) else {
        return Vec::new();
    };
    let more = network.additional_ips.into_iter().map(|ip| ip.ip);
    std::iter::once(network.ip)
        .chain(more)
        .filter(|ip| !ip.is_empty())
        .collect()
}

fn state(state: i32) -> ContainerState {
    match CriState::try_from(state) {
        Ok(CriState::ContainerCreated) => ContainerState::Created,
        Ok(CriState::ContainerRunning) => ContainerState::Running,
        Ok(CriState::ContainerExited) => ContainerState::Exited,
        _ => ContainerState::Unknown,
    }
}

fn time(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok())?
}

/// A container's status as plain data.
pub fn view(sandbox: &str, status: v1::ContainerStatus) -> ContainerView {
    let label = |key: &str| status.labels.get(key).cloned().unwrap_or_default();
    let note = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let state = state(status.state);
    let attempt = note(labels::RESTART_COUNT).parse().ok();
    let mut out = ContainerView {
        name: label(labels::CONTAINER_NAME),
        sandbox_id: sandbox.to_owned(),
        attempt: attempt
            .or(status.metadata.as_ref().map(|m| m.attempt))
            .unwrap_or(0),
        hash: note(labels::HASH),
        state,
        created_at: time(status.created_at),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status
            .image
            .as_ref()
            .map(|i| first_filled(&i.user_specified_image, &i.image))
            .unwrap_or_default(),
        image_id: first_filled(&status.image_ref, &status.image_id),
        log_path: status.log_path.clone(),
        labels: status.labels.clone().into_iter().collect(),
        annotations: status.annotations.clone().into_iter().collect(),
        id: status.id.clone(),
    };
    if state == ContainerState::Exited
        && let Some(message) = termination_message(
            &status,
            &note(labels::MESSAGE_PATH),
            &note(labels::MESSAGE_POLICY),
        )
    {
        out.message = message;
    }
    out
}

fn first_filled(one: &str, other: &str) -> String {
    if one.is_empty() { other } else { one }.to_owned()
}

/// What the container left in its message file, or else the end of its log if it may.
fn termination_message(status: &v1::ContainerStatus, path: &str, policy: &str) -> Option<String> {
    let mount = status
        .mounts
        .iter()
        .find(|m| !path.is_empty() && m.container_path == path);
    let written = mount.and_then(|m| read_head(Path::new(&m.host_path)));
    if written.is_some() {
        return written;
    }
    let failed = status.exit_code != 0;
    (failed && policy == "FallbackToLogsOnError")
        .then(|| logs::tail_text(Path::new(&status.log_path), MAX_LOG_LINES, MAX_LOG_MESSAGE))
        .flatten()
}

fn read_head(path: &Path) -> Option<String> {
    use std::io::Read;
    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}
