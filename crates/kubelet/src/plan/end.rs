//! The end of a pod: containers, sandbox, volumes, and what remains.

use k8s_openapi::api::core::v1::Pod;

use super::types::Due;
use super::{Action, Cause, Plan, Step, StopReason, Termination, View, stop};
use crate::pod::{self, ContainerView, Role};

/// What to do next with a pod that ends.
pub(super) fn plan_end(view: &View<'_>, termination: &Termination) -> Plan {
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
