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

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::{Backoff, go_duration};
use crate::pod::{self, ContainerState, ContainerView, Observed, PodRef, Role, SandboxView};

/// Dead containers kept for each name besides a running one, for `logs --previous`.
pub const KEPT_DEAD_CONTAINERS: usize = 1;

/// Why a pod ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It was deleted (deletionTimestamp set) or is gone from the API.
    Deleted,
    /// activeDeadlineSeconds passed.
    DeadlineExceeded,
    /// All its containers are done for good, or the API says that it is.
    Completed,
}

/// A pod that ends: why, and how many seconds its containers get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// Why.
    pub cause: Cause,
    /// Grace in seconds, at least 1.
    pub grace: i64,
}

/// Progress of something that is done once for the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Not begun.
    #[default]
    Idle,
    /// Under way.
    Busy,
    /// Done.
    Done,
    /// Failed; try again then.
    Failed(Timestamp),
}

impl Step {
    fn due(self, now: Timestamp) -> Due {
        match self {
            Step::Idle => Due::Now,
            Step::Failed(at) if at <= now => Due::Now,
            Step::Failed(at) => Due::At(at),
            Step::Busy | Step::Done => Due::Never,
        }
    }
}

enum Due {
    Now,
    At(Timestamp),
    Never,
}

/// Why a container waits, as shown in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase reason (`ImagePullBackOff`, …).
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// What the worker knows about one container beyond the runtime.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerProgress {
    /// A task is starting it (image, create, start, postStart).
    pub busy: bool,
    /// Not to be tried before.
    pub retry_at: Option<Timestamp>,
    /// Why the last try failed or is put off.
    pub waiting: Option<Waiting>,
    /// Delay between restarts.
    pub backoff: Option<Backoff>,
    /// The dead container for which the back-off was announced.
    pub announced: Option<String>,
}

/// Verdict of a probe on one running container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// No result yet.
    #[default]
    Unknown,
    /// Success threshold reached.
    Success,
    /// Failure threshold reached.
    Failure,
}

/// Verdicts of the three probes of one running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Startup probe.
    pub startup: Verdict,
    /// Liveness probe.
    pub liveness: Verdict,
    /// Readiness probe.
    pub readiness: Verdict,
    /// Last output of a failing startup or liveness probe decides the grace period.
    pub grace: Option<i64>,
}

/// Everything the worker has under way or remembers about a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Volumes.
    pub volumes: Step,
    /// Creation of a sandbox.
    pub sandbox: Step,
    /// By container name.
    pub containers: BTreeMap<String, ContainerProgress>,
    /// Container id to the grace in force of the stop under way.
    pub stops: BTreeMap<String, i64>,
    /// Sandboxes being stopped or removed, containers being removed.
    pub removals: BTreeSet<String>,
    /// By container id.
    pub verdicts: BTreeMap<String, Verdicts>,
    /// The last steps of an ending pod (volumes torn down).
    pub finish: Step,
    /// Removal of what remains of a deleted pod.
    pub purge: Step,
}

impl Progress {
    fn starting(&self) -> bool {
        self.sandbox == Step::Busy
            || self.volumes == Step::Busy
            || self.containers.values().any(|c| c.busy)
    }
}

/// Why a running container is stopped; its text goes into the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod ends.
    PodEnds,
    /// The container's name or image changed.
    SpecChanged,
    /// Liveness probe failed.
    Liveness,
    /// Startup probe failed.
    Startup,
    /// The sandbox it lived in is gone.
    SandboxGone,
}

/// One thing for the worker to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Prepare all volumes.
    SetUpVolumes,
    /// Make a sandbox.
    CreateSandbox {
        /// How many the pod had before.
        attempt: u32,
    },
    /// Start a container.
    StartContainer {
        /// Name in the spec.
        name: String,
        /// Restarts before this one.
        attempt: u32,
        /// Sandbox to start it in.
        sandbox: String,
    },
    /// Say that a container waits for its back-off.
    AwaitRestart {
        /// Name in the spec.
        name: String,
        /// The dead container.
        id: String,
        /// What its status shows.
        waiting: Waiting,
    },
    /// Stop a running container.
    StopContainer {
        /// Runtime id.
        id: String,
        /// Name in the spec.
        name: String,
        /// Grace in seconds.
        grace: i64,
        /// Why.
        reason: StopReason,
    },
    /// Remove a dead container and its log.
    RemoveContainer {
        /// Runtime id.
        id: String,
    },
    /// Stop a sandbox.
    StopSandbox {
        /// Runtime id.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// Runtime id.
        id: String,
    },
    /// Everything has stopped: tear volumes down.
    Finish,
    /// The pod was deleted: remove containers, sandboxes and folders.
    Purge,
}

/// What to do, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// When to plan again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }
}

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
    let phase = pod::status(pod).phase.as_deref();
    if matches!(phase, Some("Succeeded" | "Failed")) && !pod::is_static(pod) {
        return Some(Termination {
            cause: Cause::Completed,
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

fn plan_end(view: &View<'_>, termination: &Termination) -> Plan {
    let mut plan = Plan::default();
    let progress = view.progress;
    let alive: Vec<_> = view
        .observed
        .containers
        .iter()
        .filter(|c| c.alive())
        .collect();
    for (id, name) in next_to_stop(view.pod, &alive) {
        stop(
            &mut plan,
            progress,
            id,
            name,
            termination.grace,
            StopReason::PodEnds,
        );
    }
    if !alive.is_empty() || progress.starting() || !progress.stops.is_empty() {
        return plan;
    }
    let ready: Vec<_> = view.observed.sandboxes.iter().filter(|s| s.ready).collect();
    for sandbox in &ready {
        if !progress.removals.contains(&sandbox.id) {
            plan.push(Action::StopSandbox {
                id: sandbox.id.clone(),
            });
        }
    }
    if !ready.is_empty() {
        return plan;
    }
    match progress.finish.due(view.now) {
        Due::Now => plan.push(Action::Finish),
        Due::At(at) => plan.wake(at),
        Due::Never => {}
    }
    if termination.cause == Cause::Deleted && progress.finish == Step::Done {
        match progress.purge.due(view.now) {
            Due::Now => plan.push(Action::Purge),
            Due::At(at) => plan.wake(at),
            Due::Never => {}
        }
    }
    plan
}

/// Main and init containers all at once; sidecars only after, one by one, the last one first.
fn next_to_stop<'a>(pod: &Pod, alive: &[&'a ContainerView]) -> Vec<(&'a str, &'a str)> {
    let is_sidecar = |name: &str| {
        pod::init_containers(pod).any(|(role, c)| role == Role::Sidecar && c.name == name)
    };
    let others: Vec<_> = alive
        .iter()
        .filter(|c| !is_sidecar(&c.name))
        .map(|c| (c.id.as_str(), c.name.as_str()))
        .collect();
    if !others.is_empty() {
        return others;
    }
    let last = pod::init_containers(pod)
        .rev()
        .find_map(|(_, spec)| alive.iter().find(|c| c.name == spec.name));
    last.map(|c| (c.id.as_str(), c.name.as_str()))
        .into_iter()
        .collect()
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
            (Role::Main, _) => true,
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
        reason: "CrashLoopBackOff".into(),
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

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
