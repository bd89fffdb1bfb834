//! The status of a pod: a pure function of the pod, the runtime's view, probe verdicts and the
//! status published before.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::admission::Refusal;
use crate::plan::{Cause, Progress, Step, Termination, Verdict, started};
use crate::pod::{self, ContainerState, ContainerView, Observed, RestartPolicy, Role};
use crate::resources;

/// Reason of a container whose end nobody saw.
const UNKNOWN: &str = "ContainerStatusUnknown";
/// Exit code shown for it.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// All that a status is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The pod as wanted.
    pub pod: &'a Pod,
    /// What the runtime shows.
    pub observed: &'a Observed,
    /// What is under way.
    pub progress: &'a Progress,
    /// Whether the pod ends.
    pub termination: Option<&'a Termination>,
    /// The status known before.
    pub previous: &'a PodStatus,
    /// Addresses of the node, the main one first.
    pub host_ips: &'a [String],
    /// Name of the runtime, the scheme of container ids.
    pub runtime_name: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// A time as the API stores it: without fractions of a second.
fn seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// The status to publish.
pub fn status(facts: &Facts<'_>) -> PodStatus {
    let previous = facts.previous;
    let mut out = previous.clone();
    if let Some(refusal) = &facts.progress.refusal {
        set_refused(facts, refusal, &mut out);
        return out;
    }
    let init: Vec<_> = pod::init_containers(facts.pod)
        .map(|(role, c)| {
            container_status(facts, role, c, previous.init_container_statuses.as_deref())
        })
        .collect();
    let main: Vec<_> = pod::spec(facts.pod)
        .containers
        .iter()
        .map(|c| container_status(facts, Role::Main, c, previous.container_statuses.as_deref()))
        .collect();
    let debug: Vec<_> = pod::ephemeral_containers(facts.pod)
        .iter()
        .map(|c| {
            let known = previous.ephemeral_container_statuses.as_deref();
            container_status(facts, Role::Ephemeral, c, known)
        })
        .collect();
    set_phase(facts, &init, &main, &mut out);
    out.observed_generation = facts.pod.metadata.generation;
    out.conditions = Some(conditions(facts, &out, &init, &main));
    out.init_container_statuses = (!init.is_empty()).then_some(init);
    out.container_statuses = Some(main);
    out.ephemeral_container_statuses = (!debug.is_empty()).then_some(debug);
    set_addresses(facts, &mut out);
    out.qos_class
        .get_or_insert_with(|| resources::qos(facts.pod).name().to_owned());
    out.start_time.get_or_insert(seconds(facts.now));
    out
}

/// Nothing of the pod was ever made, so there is nothing else to tell.
fn set_refused(facts: &Facts<'_>, refusal: &Refusal, out: &mut PodStatus) {
    out.phase = Some("Failed".to_owned());
    out.reason = Some(refusal.reason.clone());
    out.message = Some(format!("Pod was rejected: {}", refusal.message));
    out.observed_generation = facts.pod.metadata.generation;
    out.qos_class
        .get_or_insert_with(|| resources::qos(facts.pod).name().to_owned());
    out.start_time.get_or_insert(seconds(facts.now));
}

fn set_addresses(facts: &Facts<'_>, out: &mut PodStatus) {
    let host = facts.host_ips;
    out.host_ip = host.first().cloned();
    out.host_ips =
        (!host.is_empty()).then(|| host.iter().map(|ip| HostIP { ip: ip.clone() }).collect());
    let ips = if pod::host_network(facts.pod) {
        facts
            .observed
            .sandbox()
            .map(|_| host.to_vec())
            .unwrap_or_default()
    } else {
        facts
            .observed
            .sandbox()
            .filter(|s| s.ready)
            .map(|s| s.ips.clone())
            .unwrap_or_default()
    };
    // A stopped sandbox has no address any more, but the pod keeps showing the one it had.
    if let Some(first) = ips.first() {
        out.pod_ip = Some(first.clone());
        out.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
    }
}

fn set_phase(
    facts: &Facts<'_>,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    out: &mut PodStatus,
) {
    if pod::is_last(facts.previous.phase.as_deref()) {
        return;
    }
    let phase = phase(facts, init, main);
    let alive = facts.observed.containers.iter().any(ContainerView::alive);
    out.reason = None;
    out.message = None;
    let cause = facts.termination.map(|t| &t.cause);
    let ended = facts.progress.finish == Step::Done;
    let phase = match phase {
        // Nobody may take the pod for done while it still runs.
        phase
            if alive && (pod::is_last(Some(phase)) || cause == Some(&Cause::DeadlineExceeded)) =>
        {
            facts.previous.phase.as_deref().unwrap_or("Running")
        }
        _ if cause == Some(&Cause::DeadlineExceeded) => {
            out.reason = Some("DeadlineExceeded".into());
            out.message =
                Some("Pod was active on the node longer than the specified deadline".into());
            "Failed"
        }
        phase if ended && !pod::is_last(Some(phase)) => "Failed",
        phase => phase,
    };
    out.phase = Some(phase.to_owned());
}

/// Counts of containers by state, from which the phase follows.
#[derive(Default)]
struct Tally {
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
}

fn phase(facts: &Facts<'_>, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
    let policy = pod::restart_policy(facts.pod);
    let roles: Vec<_> = pod::init_containers(facts.pod)
        .map(|(role, _)| role)
        .collect();
    let mut pending = 0;
    let mut failed = 0;
    let any_main = main
        .iter()
        .any(|s| exit_of(s).is_some() || is_running(s) || last_exit(s).is_some());
    for (status, role) in init.iter().zip(&roles) {
        match role {
            Role::Sidecar => pending += usize::from(status.started != Some(true) && !any_main),
            _ => match exit_of(status).or(last_exit(status).filter(|_| !is_running(status))) {
                Some(0) => {}
                Some(_) => failed += 1,
                None => pending += 1,
            },
        }
    }
    if failed > 0 && policy == RestartPolicy::Never {
        return "Failed";
    }
    if (pending > 0 || failed > 0) && !any_main {
        return "Pending";
    }
    let mut tally = Tally::default();
    for status in main {
        if is_running(status) {
            tally.running += 1;
        } else if let Some(code) = exit_of(status).or(last_exit(status)) {
            tally.stopped += 1;
            tally.succeeded += usize::from(code == 0);
        } else {
            tally.waiting += 1;
        }
    }
    phase_of(&tally, policy, facts.termination.is_some())
}

fn phase_of(tally: &Tally, policy: RestartPolicy, terminal: bool) -> &'static str {
    if tally.waiting > 0 {
        return "Pending";
    }
    if tally.running > 0 {
        return "Running";
    }
    if tally.stopped == 0 {
        return "Pending";
    }
    let all_succeeded = tally.stopped == tally.succeeded;
    match policy {
        _ if terminal => {
            if all_succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        RestartPolicy::Always => "Running",
        _ if all_succeeded => "Succeeded",
        RestartPolicy::Never => "Failed",
        RestartPolicy::OnFailure => "Running",
    }
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

fn exit_of(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn last_exit(status: &ContainerStatus) -> Option<i32> {
    Some(status.last_state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn container_status(
    facts: &Facts<'_>,
    role: Role,
    spec: &Container,
    previous: Option<&[ContainerStatus]>,
) -> ContainerStatus {
    let old = previous
        .unwrap_or_default()
        .iter()
        .find(|s| s.name == spec.name);
    let views: Vec<_> = facts
        .observed
        .containers
        .iter()
        .filter(|c| c.name == spec.name)
        .collect();
    let latest = views.first().copied();
    let mut out = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        last_state: old
            .and_then(|o| o.last_state.clone())
            .or(Some(ApiState::default())),
        restart_count: old.map_or(0, |o| o.restart_count),
        resources: spec.resources.clone(),
        ..ContainerStatus::default()
    };
    match latest {
        Some(view) => {
            out.container_id = Some(format!("{}://{}", facts.runtime_name, view.id));
            // A runtime that only remembers the id cannot tell the name.
            if !view.image.is_empty() && !view.image.starts_with("sha256:") {
                out.image.clone_from(&view.image);
            }
            out.image_id.clone_from(&view.image_id);
            out.restart_count = i32::try_from(view.attempt).unwrap_or(i32::MAX);
            out.state = Some(view_state(facts, view));
            if let Some(before) = views
                .iter()
                .skip(1)
                .find(|v| v.state == ContainerState::Exited)
            {
                out.last_state = Some(view_state(facts, before));
            }
        }
        None => lost(facts, old, &mut out),
    }
    show_waiting(facts, role, spec, latest, &mut out);
    let (up, ready) = readiness(facts, role, spec, latest);
    out.started = Some(up);
    out.ready = ready;
    out
}

/// The runtime has no such container: it was never made, or it was lost.
fn lost(facts: &Facts<'_>, old: Option<&ContainerStatus>, out: &mut ContainerStatus) {
    let old_state = old.and_then(|o| o.state.as_ref());
    let gone = ContainerStateTerminated {
        exit_code: UNKNOWN_EXIT_CODE,
        reason: Some(UNKNOWN.into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    };
    let ended = facts.progress.finish == Step::Done;
    if let (Some(old), Some(state)) = (old, old_state)
        && state.terminated.is_some()
    {
        out.container_id.clone_from(&old.container_id);
        out.image_id.clone_from(&old.image_id);
        out.state = Some(state.clone());
        return;
    }
    if ended {
        out.state = Some(ApiState {
            terminated: Some(gone),
            ..ApiState::default()
        });
        return;
    }
    if old_state.is_some_and(|s| s.running.is_some()) {
        out.last_state = Some(ApiState {
            terminated: Some(gone),
            ..ApiState::default()
        });
    }
    out.state = Some(default_waiting(facts.pod));
}

fn default_waiting(pod: &Pod) -> ApiState {
    let has_init = pod::init_containers(pod).next().is_some();
    let reason = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    waiting(reason, "")
}

fn waiting(reason: &str, message: &str) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ApiState::default()
    }
}

fn view_state(facts: &Facts<'_>, view: &ContainerView) -> ApiState {
    match view.state {
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning {
                started_at: view.started_at.map(seconds),
            }),
            ..ApiState::default()
        },
        ContainerState::Exited => ApiState {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(format!("{}://{}", facts.runtime_name, view.id)),
                exit_code: view.exit_code,
                finished_at: view.finished_at.map(seconds),
                message: (!view.message.is_empty()).then(|| view.message.clone()),
                reason: Some(end_reason(view)),
                signal: None,
                started_at: view.started_at.map(seconds),
            }),
            ..ApiState::default()
        },
        ContainerState::Created => default_waiting(facts.pod),
        ContainerState::Unknown => waiting(UNKNOWN, ""),
    }
}

fn end_reason(view: &ContainerView) -> String {
    match (view.reason.as_str(), view.exit_code) {
        ("", 0) => "Completed".into(),
        ("", _) => "Error".into(),
        (reason, _) => reason.to_owned(),
    }
}

/// Puts the reason for not running in place of the end of the container before.
fn show_waiting(
    facts: &Facts<'_>,
    role: Role,
    spec: &Container,
    latest: Option<&ContainerView>,
    out: &mut ContainerStatus,
) {
    if facts.termination.is_some() || latest.is_some_and(ContainerView::alive) {
        return;
    }
    let again = latest.is_none_or(|v| {
        v.state != ContainerState::Exited || pod::restarts(facts.pod, role, spec, v.exit_code)
    });
    let reason = facts
        .progress
        .containers
        .get(&spec.name)
        .and_then(|p| p.waiting.as_ref());
    let (true, Some(reason)) = (again, reason) else {
        return;
    };
    if out.state.as_ref().is_some_and(|s| s.terminated.is_some()) {
        out.last_state = out.state.take();
    }
    out.state = Some(waiting(&reason.reason, &reason.message));
}

/// Whether the container counts as started and as ready.
fn readiness(
    facts: &Facts<'_>,
    role: Role,
    spec: &Container,
    latest: Option<&ContainerView>,
) -> (bool, bool) {
    let Some(view) = latest else {
        return (false, false);
    };
    if view.state != ContainerState::Running {
        return (
            false,
            role == Role::Init && view.state == ContainerState::Exited && view.exit_code == 0,
        );
    }
    // Nobody sends requests to a debugger.
    if role == Role::Ephemeral {
        return (false, false);
    }
    let up = started(facts.progress, spec, view);
    let answering = spec.readiness_probe.is_none()
        || facts
            .progress
            .verdicts
            .get(&view.id)
            .is_some_and(|v| v.readiness == Verdict::Success);
    (up, up && answering && role != Role::Init)
}

fn conditions(
    facts: &Facts<'_>,
    status: &PodStatus,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let sandboxed = facts
        .observed
        .sandbox()
        .is_some_and(|s| s.ready && (pod::host_network(facts.pod) || !s.ips.is_empty()));
    let containers_ready = containers_ready(facts, phase, init, main);
    let wanted = [
        Draft::plain("PodReadyToStartContainers", sandboxed),
        initialized(facts, phase, init, main),
        ready(facts, &containers_ready),
        containers_ready,
        Draft::plain("PodScheduled", true),
    ];
    let mut out: Vec<PodCondition> = facts.previous.conditions.clone().unwrap_or_default();
    for draft in wanted {
        let old = out.iter().position(|c| c.type_ == draft.kind);
        let unchanged = old.filter(|at| out[*at].status == draft.status());
        let since = unchanged
            .and_then(|at| out[at].last_transition_time.clone())
            .unwrap_or(seconds(facts.now));
        let condition = PodCondition {
            last_transition_time: Some(since),
            message: draft.message.clone(),
            observed_generation: facts.pod.metadata.generation,
            reason: draft.reason.clone(),
            status: draft.status().to_owned(),
            type_: draft.kind.to_owned(),
            ..PodCondition::default()
        };
        match old {
            Some(at) => out[at] = condition,
            None => out.push(condition),
        }
    }
    out
}

#[derive(Clone)]
struct Draft {
    kind: &'static str,
    holds: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Draft {
    fn plain(kind: &'static str, holds: bool) -> Draft {
        Draft {
            kind,
            holds,
            reason: None,
            message: None,
        }
    }

    fn because(kind: &'static str, holds: bool, reason: &str, message: Option<String>) -> Draft {
        Draft {
            kind,
            holds,
            reason: Some(reason.to_owned()),
            message,
        }
    }

    fn status(&self) -> &'static str {
        if self.holds { "True" } else { "False" }
    }
}

fn initialized(
    facts: &Facts<'_>,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Draft {
    const KIND: &str = "Initialized";
    if phase == "Succeeded" && !init.is_empty() {
        return Draft::because(KIND, true, "PodCompleted", None);
    }
    let any_main = main.iter().any(|s| s.container_id.is_some());
    let roles = pod::init_containers(facts.pod).map(|(role, _)| role);
    let open: Vec<_> = init
        .iter()
        .zip(roles)
        .filter(|(s, role)| match role {
            Role::Sidecar => s.started != Some(true),
            _ => exit_of(s).or(last_exit(s)) != Some(0),
        })
        .map(|(s, _)| s.name.as_str())
        .collect();
    if open.is_empty() || any_main {
        return Draft::plain(KIND, true);
    }
    let message = format!("containers with incomplete status: [{}]", open.join(" "));
    Draft::because(KIND, false, "ContainersNotInitialized", Some(message))
}

fn containers_ready(
    facts: &Facts<'_>,
    phase: &str,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Draft {
    const KIND: &str = "ContainersReady";
    match phase {
        "Succeeded" => return Draft::because(KIND, false, "PodCompleted", None),
        "Failed" => return Draft::because(KIND, false, "PodFailed", None),
        _ => {}
    }
    let roles = pod::init_containers(facts.pod).map(|(role, _)| role);
    let sidecars = init
        .iter()
        .zip(roles)
        .filter(|(_, role)| *role == Role::Sidecar)
        .map(|(s, _)| s);
    let open: Vec<_> = sidecars
        .chain(main)
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    if open.is_empty() {
        return Draft::plain(KIND, true);
    }
    let message = format!("containers with unready status: [{}]", open.join(" "));
    Draft::because(KIND, false, "ContainersNotReady", Some(message))
}

fn ready(facts: &Facts<'_>, containers: &Draft) -> Draft {
    const KIND: &str = "Ready";
    if !containers.holds {
        return Draft {
            kind: KIND,
            ..containers.clone()
        };
    }
    let known = facts.previous.conditions.as_deref().unwrap_or_default();
    let missing: Vec<_> = pod::spec(facts.pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let kind = &gate.condition_type;
            match known.iter().find(|c| c.type_ == *kind) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{kind}\" does not exist."
                )),
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if missing.is_empty() {
        return Draft::plain(KIND, true);
    }
    let message = match missing.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Draft::because(KIND, false, "ReadinessGatesNotReady", Some(message))
}

#[cfg(test)]
mod tests;
