//! The status patches of simulated pods, as a kubelet would write them. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::view::{ContainerView, PodView};
use crate::Outcome;

/// Where a pod runs.
pub struct Place<'a> {
    /// The node's address.
    pub host: &'a str,
    /// The pod's own.
    pub pod: &'a str,
}

fn condition(kind: &str, holds: bool, reason: Option<&str>, now: &str) -> Value {
    let mut out = json!({
        "type": kind,
        "status": if holds { "True" } else { "False" },
        "lastTransitionTime": now,
    });
    // A patch leaves what it does not name, such as the reason of before.
    out["reason"] = reason.into();
    out
}

fn container(spec: &ContainerView<'_>, pod: &PodView<'_>, state: Value, ready: bool) -> Value {
    let started = state.get("running").is_some();
    json!({
        "name": spec.name,
        "image": spec.image,
        "imageID": format!("simulated://{}", spec.image),
        "containerID": format!("simulated://{}/{}", pod.metadata.uid, spec.name),
        "restartCount": pod.restarts(),
        "started": started,
        "ready": ready,
        "state": state,
    })
}

fn terminated(outcome: Outcome, from: Option<Timestamp>, now: &str) -> Value {
    let reason = match outcome {
        Outcome::Success => "Completed",
        Outcome::Failure(_) => "Error",
    };
    let from = from.map_or_else(|| now.to_owned(), api::time::format);
    json!({"terminated": {
        "exitCode": outcome.exit_code(), "reason": reason, "startedAt": from, "finishedAt": now,
    }})
}

fn is_sidecar(container: &ContainerView<'_>) -> bool {
    container.restart_policy == "Always"
}

/// Its containers have started.
pub fn started(pod: &PodView<'_>, place: &Place<'_>, ready: bool, now: Timestamp) -> Value {
    let now = &*api::time::format(now);
    let running = || json!({"running": {"startedAt": now}});
    let init = pod.spec.init_containers.iter().map(|c| {
        if is_sidecar(c) {
            container(c, pod, running(), ready)
        } else {
            container(c, pod, terminated(Outcome::Success, None, now), true)
        }
    });
    let mut status = json!({
        "phase": "Running",
        "hostIP": place.host,
        "hostIPs": [{"ip": place.host}],
        "podIP": place.pod,
        "podIPs": [{"ip": place.pod}],
        "startTime": now,
        "conditions": [
            condition("PodReadyToStartContainers", true, None, now),
            condition("Initialized", true, None, now),
            readiness("ContainersReady", ready, now),
            readiness("Ready", ready && pod.gates_hold(), now),
        ],
        "containerStatuses": containers(pod, ready, running),
    });
    if !pod.spec.init_containers.is_empty() {
        status["initContainerStatuses"] = init.collect();
    }
    status
}

fn readiness(kind: &str, holds: bool, now: &str) -> Value {
    condition(kind, holds, (!holds).then_some("ContainersNotReady"), now)
}

/// Its containers have become ready.
pub fn ready(pod: &PodView<'_>, now: Timestamp) -> Value {
    let since = api::time::format(pod.running_since().unwrap_or(now));
    let now = &*api::time::format(now);
    let state = || json!({"running": {"startedAt": since}});
    json!({
        "conditions": [
            readiness("ContainersReady", true, now),
            readiness("Ready", pod.gates_hold(), now),
        ],
        "containerStatuses": containers(pod, true, state),
    })
}

/// Its containers have ended and were started again.
pub fn restarted(pod: &PodView<'_>, outcome: Outcome, now: Timestamp) -> Value {
    let since = pod.running_since();
    let text = &*api::time::format(now);
    let mut all = containers(
        pod,
        pod.has("ContainersReady"),
        || json!({"running": {"startedAt": text}}),
    );
    for container in &mut all {
        container["restartCount"] = (pod.restarts() + 1).into();
        container["lastState"] = terminated(outcome, since, text);
    }
    json!({"containerStatuses": all})
}

/// Its containers have ended for good.
pub fn ended(pod: &PodView<'_>, outcome: Outcome, now: Timestamp) -> Value {
    let since = pod.running_since();
    let text = &*api::time::format(now);
    let (phase, reason) = match outcome {
        Outcome::Success => ("Succeeded", "PodCompleted"),
        Outcome::Failure(_) => ("Failed", "PodFailed"),
    };
    let containers = containers(pod, false, || terminated(outcome, since, text));
    json!({
        "phase": phase,
        "conditions": [
            condition("PodReadyToStartContainers", false, None, text),
            condition("ContainersReady", false, Some(reason), text),
            condition("Ready", false, Some(reason), text),
        ],
        "containerStatuses": containers,
    })
}

/// It ran longer than it may.
pub fn expired(pod: &PodView<'_>, now: Timestamp) -> Value {
    let mut status = ended(pod, Outcome::Failure(137), now);
    status["reason"] = "DeadlineExceeded".into();
    status["message"] = "Pod was active on the node longer than the specified deadline".into();
    status
}

/// All containers in one state; a patch replaces the list as a whole.
fn containers(pod: &PodView<'_>, ready: bool, state: impl Fn() -> Value) -> Vec<Value> {
    let all = pod.spec.containers.iter();
    all.map(|c| container(c, pod, state(), ready)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_started_pod_has_addresses_conditions_and_its_containers() {
        let text = r#"{"metadata": {"uid": "u"}, "spec": {
            "containers": [{"name": "a", "image": "x"}],
            "initContainers": [{"name": "i", "image": "y"}, {"name": "s", "image": "z", "restartPolicy": "Always"}],
            "readinessGates": [{"conditionType": "example.com/up"}]}}"#;
        let pod: PodView<'_> = serde_json::from_str(text).unwrap();
        let place = Place {
            host: "100.64.0.1",
            pod: "100.64.0.2",
        };
        let status = started(&pod, &place, true, Timestamp::UNIX_EPOCH);
        assert_eq!(status["podIPs"][0]["ip"], "100.64.0.2");
        assert_eq!(status["containerStatuses"][0]["ready"], true);
        assert_eq!(
            status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
            0
        );
        assert!(status["initContainerStatuses"][1]["state"]["running"].is_object());
        let restarts = restarted(&pod, Outcome::Success, Timestamp::UNIX_EPOCH);
        for patch in [
            &status,
            &super::ready(&pod, Timestamp::UNIX_EPOCH),
            &restarts,
        ] {
            let first = &patch["containerStatuses"][0];
            let running = first["state"]["running"].is_object();
            assert!(
                running && first["image"] == "x",
                "the list is replaced as a whole: {first}"
            );
        }
        let ready = |status: &Value| {
            let all = status["conditions"].as_array().unwrap();
            all.iter().find(|c| c["type"] == "Ready").unwrap()["status"].clone()
        };
        assert_eq!(ready(&status), "False", "its gate does not hold");
        assert_eq!(expired(&pod, Timestamp::UNIX_EPOCH)["phase"], "Failed");
    }
}
