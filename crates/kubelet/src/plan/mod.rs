//! What to do next for one pod: a pure function of the pod, what the runtime shows, what the worker
//! has under way, and the time.
//!
//! ```text
//!            volumes ready       sandbox ready      init done
//! (pod) ───────────────► sandbox ─────────► init ─────────► main containers ⟲ (restart, back-off)
//!    │ deleted, deadline passed, or every main container done for good
//!    ▼
//! stop main ► stop sidecars, last first ► stop sandbox ► Finish ► (deleted: remove everything)
//! ```
//!
//! Invariants: a running container is stopped only when the pod ends, its spec changed, a probe
//! failed or its sandbox is gone; nothing is started while the worker still starts it; every reason
//! to wait yields a time in [`Plan::wake_at`] or an event that kicks the worker.

mod end;
mod types;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::go_duration;
use crate::pod::{self, ContainerState, ContainerView, Observed, PodRef, Role, SandboxView};

/// Dead containers kept for each name besides a running one, for `logs --previous`.
pub const KEPT_DEAD_CONTAINERS: usize = 1;

use end::plan_end;
use types::Due;
pub use types::{
    Action, CRASH_LOOP, Cause, ContainerProgress, Plan, Progress, Step, StopReason, Termination,
    Verdict, Verdicts, Waiting,
};

/// All that planning looks at.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The pod as wanted.
    pub pod: &'a Pod,
    /// The object is gone from the API (or was replaced by another of that name).
    pub removed: bool,
    /// What the runtime shows.
    pub observed: &'a Observed,
    /// What is under way.
    pub progress: &'a Progress,
    /// The time.
    pub now: Timestamp,
}

/// Whether, and why, the pod is to end.
pub fn termination(view: &View<'_>) -> Option<Termination> {
    let pod = view.pod;
    let meta = &pod.metadata;
    if view.removed || meta.deletion_timestamp.is_some() {
        let grace = meta
            .deletion_grace_period_seconds
            .unwrap_or_else(|| pod::grace_seconds(pod));
        return Some(Termination {
            cause: Cause::Deleted,
            grace: grace.max(1),
        });
    }
    let grace = pod::grace_seconds(pod).max(1);
    if pod::has_ended(pod) && !pod::is_static(pod) {
        return Some(Termination {
            cause: Cause::Completed,
            grace,
        });
    }
    if view.progress.refusal.is_some() {
        return Some(Termination {
            cause: Cause::Refused,
            grace,
        });
    }
    if deadline(pod).is_some_and(|at| at <= view.now) {
        return Some(Termination {
            cause: Cause::DeadlineExceeded,
            grace,
        });
    }
    completed(pod, view.observed).then_some(Termination {
        cause: Cause::Completed,
        grace,
    })
}

/// When activeDeadlineSeconds passes.
pub fn deadline(pod: &Pod) -> Option<Timestamp> {
    let seconds = pod::spec(pod).active_deadline_seconds?;
    let start = pod::status(pod).start_time.as_ref()?.0;
    start.checked_add(SignedDuration::from_secs(seconds)).ok()
}

/// Whether every main container has ended for good, or an init container has failed for good.
pub fn completed(pod: &Pod, observed: &Observed) -> bool {
    let done_for_good = |role: Role, c: &Container| {
        observed.latest(&c.name).is_some_and(|v| {
            v.state == ContainerState::Exited && !pod::restarts(pod, role, c, v.exit_code)
        })
    };
    let init_failed = pod::init_containers(pod).any(|(role, c)| {
        role == Role::Init
            && done_for_good(role, c)
            && observed.latest(&c.name).is_some_and(|v| v.exit_code != 0)
    });
    let mains = &pod::spec(pod).containers;
    init_failed || (!mains.is_empty() && mains.iter().all(|c| done_for_good(Role::Main, c)))
}

/// What to do next.
pub fn plan(view: &View<'_>) -> Plan {
    match termination(view) {
        Some(termination) => plan_end(view, &termination),
        None => plan_sync(view),
    }
}

fn plan_sync(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(at) = deadline(view.pod) {
        plan.wake(at);
    }
    match view.progress.volumes.due(view.now) {
        Due::Now => plan.push(Action::SetUpVolumes),
        Due::At(at) => plan.wake(at),
        Due::Never => {}
    }
    match usable_sandbox(view) {
        Some(sandbox) => sync_containers(view, sandbox, &mut plan),
        None => replace_sandbox(view, &mut plan),
    }
    prune(view, &mut plan);
    plan
}

fn usable_sandbox<'a>(view: &View<'a>) -> Option<&'a SandboxView> {
    let sandbox = view.observed.sandbox()?;
    let reachable = pod::host_network(view.pod) || !sandbox.ips.is_empty();
    (sandbox.ready && reachable && !view.progress.removals.contains(&sandbox.id)).then_some(sandbox)
}

fn replace_sandbox(view: &View<'_>, plan: &mut Plan) {
    let progress = view.progress;
    let mut leftovers = false;
    for container in view.observed.containers.iter().filter(|c| c.alive()) {
        leftovers = true;
        let grace = pod::grace_seconds(view.pod).max(1);
        stop(
            plan,
            progress,
            &container.id,
            &container.name,
            grace,
            StopReason::SandboxGone,
        );
    }
    if leftovers || progress.containers.values().any(|c| c.busy) {
        return;
    }
    for sandbox in view.observed.sandboxes.iter().filter(|s| s.ready) {
        leftovers = true;
        if !progress.removals.contains(&sandbox.id) {
            plan.push(Action::StopSandbox {
                id: sandbox.id.clone(),
            });
        }
    }
    if leftovers || progress.volumes != Step::Done {
        return;
    }
    let attempt = view.observed.sandbox().map_or(0, |s| s.attempt + 1);
    match progress.sandbox.due(view.now) {
        Due::Now => plan.push(Action::CreateSandbox { attempt }),
        Due::At(at) => plan.wake(at),
        // A sandbox that was made and is gone: make another.
        Due::Never if progress.sandbox == Step::Done => {
            plan.push(Action::CreateSandbox { attempt })
        }
        Due::Never => {}
    }
}

fn sync_containers(view: &View<'_>, sandbox: &SandboxView, plan: &mut Plan) {
    start_debugging(view, sandbox, plan);
    let initialized = initialized(view.pod, view.observed, sandbox);
    for (role, spec) in pod::init_containers(view.pod) {
        let latest = view.observed.latest_in(&sandbox.id, &spec.name);
        let passed = match (role, latest) {
            (Role::Init, _) if initialized => true,
            (Role::Init, Some(c)) => c.state == ContainerState::Exited && c.exit_code == 0,
            (Role::Sidecar, Some(c)) => {
                initialized
                    || (c.state == ContainerState::Running && started(view.progress, spec, c))
            }
            (_, None) => initialized,
            (Role::Main | Role::Ephemeral, _) => true,
        };
        if !(role == Role::Init && passed) {
            sync_container(view, sandbox, role, spec, plan);
        }
        if !passed {
            return;
        }
    }
    for spec in &pod::spec(view.pod).containers {
        sync_container(view, sandbox, Role::Main, spec, plan);
    }
}

/// Ephemeral containers start as soon as they are asked for, and once.
fn start_debugging(view: &View<'_>, sandbox: &SandboxView, plan: &mut Plan) {
    for spec in pod::ephemeral_containers(view.pod) {
        if view.observed.latest(&spec.name).is_none() {
            sync_container(view, sandbox, Role::Ephemeral, &spec, plan);
        }
    }
}

/// Whether init containers have done their work in this sandbox.
pub fn initialized(pod: &Pod, observed: &Observed, sandbox: &SandboxView) -> bool {
    let any_main = pod::spec(pod)
        .containers
        .iter()
        .any(|c| observed.latest_in(&sandbox.id, &c.name).is_some());
    if any_main {
        return true;
    }
    // Sidecars may come after the last plain one, so those are judged one by one.
    let has_sidecar = pod::init_containers(pod).any(|(role, _)| role == Role::Sidecar);
    let last = pod::init_containers(pod).next_back();
    !has_sidecar
        && last.is_none_or(|(_, c)| {
            observed
                .latest_in(&sandbox.id, &c.name)
                .is_some_and(|v| v.state == ContainerState::Exited && v.exit_code == 0)
        })
}

/// Whether a running container counts as started: its startup probe, if any, has succeeded and its
/// postStart hook is done.
pub fn started(progress: &Progress, spec: &Container, container: &ContainerView) -> bool {
    let hooked = !progress.containers.get(&spec.name).is_some_and(|p| p.busy);
    let probed = spec.startup_probe.is_none()
        || progress
            .verdicts
            .get(&container.id)
            .is_some_and(|v| v.startup == Verdict::Success);
    hooked && probed
}

fn sync_container(
    view: &View<'_>,
    sandbox: &SandboxView,
    role: Role,
    spec: &Container,
    plan: &mut Plan,
) {
    let progress = view.progress.containers.get(&spec.name);
    if progress.is_some_and(|p| p.busy) {
        return;
    }
    let latest = view.observed.latest_in(&sandbox.id, &spec.name);
    match latest {
        None => start(view, sandbox, spec, None, plan),
        Some(c) if c.alive() => check_running(view, spec, c, plan),
        // Made but never started: the agent died in between.
        Some(c) if c.state == ContainerState::Created => remove(view, &c.id, plan),
        Some(c) if pod::restarts(view.pod, role, spec, c.exit_code) => {
            start(view, sandbox, spec, Some(c), plan);
        }
        Some(_) => {}
    }
}

fn check_running(view: &View<'_>, spec: &Container, container: &ContainerView, plan: &mut Plan) {
    let verdicts = view.progress.verdicts.get(&container.id);
    let changed = !container.hash.is_empty() && container.hash != pod::container_hash(spec);
    let reason = if changed {
        StopReason::SpecChanged
    } else if verdicts.is_some_and(|v| v.liveness == Verdict::Failure) {
        StopReason::Liveness
    } else if verdicts.is_some_and(|v| v.startup == Verdict::Failure) {
        StopReason::Startup
    } else {
        return;
    };
    let probe_grace = match reason {
        StopReason::Liveness => spec.liveness_probe.as_ref(),
        StopReason::Startup => spec.startup_probe.as_ref(),
        _ => None,
    }
    .and_then(|probe| probe.termination_grace_period_seconds);
    let grace = probe_grace
        .unwrap_or_else(|| pod::grace_seconds(view.pod))
        .max(1);
    stop(
        plan,
        view.progress,
        &container.id,
        &container.name,
        grace,
        reason,
    );
}

fn start(
    view: &View<'_>,
    sandbox: &SandboxView,
    spec: &Container,
    dead: Option<&ContainerView>,
    plan: &mut Plan,
) {
    if view.progress.volumes != Step::Done {
        return;
    }
    let progress = view.progress.containers.get(&spec.name);
    if let Some(at) = progress
        .and_then(|p| p.retry_at)
        .filter(|at| *at > view.now)
    {
        return plan.wake(at);
    }
    if let Some(dead) = dead
        && let Some(backoff) = progress.and_then(|p| p.backoff)
    {
        let ended = dead.finished_at.unwrap_or(view.now);
        if let Some(until) = backoff.wait_until(ended, view.now) {
            plan.push(Action::AwaitRestart {
                name: spec.name.clone(),
                id: dead.id.clone(),
                waiting: crash_loop(view.pod, spec, backoff.delay),
            });
            return plan.wake(until);
        }
    }
    plan.push(Action::StartContainer {
        name: spec.name.clone(),
        attempt: next_attempt(view.pod, view.observed, &spec.name),
        sandbox: sandbox.id.clone(),
    });
}

fn crash_loop(pod: &Pod, spec: &Container, delay: SignedDuration) -> Waiting {
    Waiting {
        reason: CRASH_LOOP.into(),
        message: format!(
            "back-off {} restarting failed container={} pod={}",
            go_duration(delay),
            spec.name,
            PodRef::of(pod).full()
        ),
    }
}

/// One more than the newest that ran; a pod whose containers the runtime lost goes on counting
/// from its status.
fn next_attempt(pod: &Pod, observed: &Observed, name: &str) -> u32 {
    if let Some(last) = observed.latest(name) {
        return last.attempt + 1;
    }
    let status = pod::status(pod);
    let known = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten()
        .find(|s| s.name == name && s.container_id.is_some());
    known.map_or(0, |s| u32::try_from(s.restart_count).unwrap_or(0) + 1)
}

fn remove(view: &View<'_>, id: &str, plan: &mut Plan) {
    if !view.progress.removals.contains(id) {
        plan.push(Action::RemoveContainer { id: id.to_owned() });
    }
}

/// Removes dead containers beyond the ones kept, and old sandboxes without containers.
fn prune(view: &View<'_>, plan: &mut Plan) {
    let mut dead: BTreeMap<&str, usize> = BTreeMap::new();
    for container in &view.observed.containers {
        if container.state != ContainerState::Exited {
            continue;
        }
        let seen = dead.entry(&container.name).or_default();
        *seen += 1;
        if *seen > KEPT_DEAD_CONTAINERS {
            remove(view, &container.id, plan);
        }
    }
    for sandbox in view.observed.sandboxes.iter().skip(1) {
        let used = view
            .observed
            .containers
            .iter()
            .any(|c| c.sandbox_id == sandbox.id);
        if !sandbox.ready && !used && !view.progress.removals.contains(&sandbox.id) {
            plan.push(Action::RemoveSandbox {
                id: sandbox.id.clone(),
            });
        }
    }
}

fn stop(
    plan: &mut Plan,
    progress: &Progress,
    id: &str,
    name: &str,
    grace: i64,
    reason: StopReason,
) {
    if progress
        .stops
        .get(id)
        .is_some_and(|in_force| *in_force <= grace)
    {
        return;
    }
    plan.push(Action::StopContainer {
        id: id.to_owned(),
        name: name.to_owned(),
        grace,
        reason,
    });
}

#[cfg(test)]
mod tests;
