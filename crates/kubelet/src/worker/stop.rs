//! Stopping a container: preStop hook, stop signal, and SIGKILL when the grace period is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::EventType;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::hooks;
use crate::agent::Agent;
use crate::labels;
use crate::plan::StopReason;
use crate::pod::{self, ContainerView};

/// Least time between the stop signal and SIGKILL, in seconds, when the hook used up the grace.
const MIN_GRACE: i64 = 2;

/// One container to stop.
pub struct Stop {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container.
    pub view: ContainerView,
    /// Address of the pod.
    pub ip: String,
    /// Seconds it gets.
    pub grace: i64,
    /// Why.
    pub reason: StopReason,
    /// A stop with a longer grace is under way: do not run the hook again.
    pub hurried: bool,
}

/// The text of the `Killing` event.
fn message(stop: &Stop) -> String {
    let name = &stop.view.name;
    match stop.reason {
        StopReason::PodEnds | StopReason::SandboxGone => format!("Stopping container {name}"),
        StopReason::SpecChanged => {
            format!("Container {name} definition changed, will be restarted")
        }
        StopReason::Liveness => {
            format!("Container {name} failed liveness probe, will be restarted")
        }
        StopReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
    }
}

/// Stops a container and waits until it has ended.
///
/// # Errors
/// The runtime's.
pub async fn stop(agent: &Agent, stop: Stop) -> Result<(), String> {
    let name = stop.view.name.clone();
    if !stop.hurried {
        agent.container_event(
            &stop.pod,
            &name,
            EventType::Normal,
            "Killing",
            message(&stop),
        );
    }
    let begun = Instant::now();
    if !stop.hurried
        && let Some((container, hook)) = pre_stop(&stop)
    {
        let run = hooks::run(
            &agent.cri,
            &stop.pod,
            &container,
            &stop.view.id,
            &stop.ip,
            &hook,
        );
        let limit = Duration::from_secs(u64::try_from(stop.grace).unwrap_or(0));
        let failed = match tokio::time::timeout(limit, run).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("hook did not end within {} seconds", stop.grace)),
        };
        if let Some(error) = failed {
            let text = format!("PreStopHook failed: {error}");
            agent.container_event(
                &stop.pod,
                &name,
                EventType::Warning,
                "FailedPreStopHook",
                text,
            );
        }
    }
    let used = i64::try_from(begun.elapsed().as_secs()).unwrap_or(i64::MAX);
    let left = (stop.grace - used).max(MIN_GRACE.min(stop.grace));
    agent
        .cri
        .stop_container(&stop.view.id, left)
        .await
        .map_err(|e| e.to_string())
}

/// The preStop hook: of the spec, or as the container remembers it.
fn pre_stop(stop: &Stop) -> Option<(Container, LifecycleHandler)> {
    if let Some((_, container)) = pod::container(&stop.pod, &stop.view.name) {
        let hook = container.lifecycle.as_ref()?.pre_stop.clone()?;
        return Some((container.into_owned(), hook));
    }
    let remembered = stop.view.annotations.get(labels::PRE_STOP)?;
    let hook = serde_json::from_str(remembered).ok()?;
    Some((
        Container {
            name: stop.view.name.clone(),
            ..Container::default()
        },
        hook,
    ))
}
