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
    if let Some(reason) = reason {
        out["reason"] = reason.into();
    }
    out
}

fn container(spec: &ContainerView<'_>, pod: &PodView<'_>, state: Value, ready: bool) -> Value {
    let started = state.get("running").is_some();
    json!({
        "name": spec.name,
        "image": spec.image,
        "imageID": format!("simulated://{}", spec.image),
        "containerID": format!("simulated://{}/{}", pod.metadata.uid, spec.name),
        "restartCount": 0,
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

/// A readiness gate that does not hold keeps the pod unready whatever its containers are.
fn gates_hold(pod: &PodView<'_>) -> bool {
    let mut gates = pod.spec.readiness_gates.iter();
    gates.all(|gate| pod.has(&gate.condition_type))
}

fn is_sidecar(container: &ContainerView<'_>) -> bool {
    container.restart_policy == "Always"
}

/// Its containers have started.
pub fn started(pod: &PodView<'_>, place: &Place<'_>, ready: bool, now: Timestamp) -> Value {
    let now = &*api::time::format(now);
    let running = || json!({"running": {"startedAt": now}});
    let containers = &pod.spec.containers;
    let main = containers
        .iter()
        .map(|c| container(c, pod, running(), ready));
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
            readiness("Ready", ready && gates_hold(pod), now),
        ],
        "containerStatuses": main.collect::<Vec<_>>(),
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
    let now = &*api::time::format(now);
    json!({
        "conditions": [
            readiness("ContainersReady", true, now),
            readiness("Ready", gates_hold(pod), now),
        ],
        "containerStatuses": patched(pod, |_| json!({"ready": true})),
    })
}

/// Its containers have ended and were started again.
pub fn restarted(pod: &PodView<'_>, outcome: Outcome, now: Timestamp) -> Value {
    let since = pod.running_since();
    let count = pod.restarts() + 1;
    let text = &*api::time::format(now);
    json!({
        "containerStatuses": patched(pod, |_| json!({
            "restartCount": count,
            "state": {"running": {"startedAt": text}},
            "lastState": terminated(outcome, since, text),
        })),
    })
}

/// Its containers have ended for good.
pub fn ended(pod: &PodView<'_>, outcome: Outcome, now: Timestamp) -> Value {
    let since = pod.running_since();
    let text = &*api::time::format(now);
    let (phase, reason) = match outcome {
        Outcome::Success => ("Succeeded", "PodCompleted"),
        Outcome::Failure(_) => ("Failed", "PodFailed"),
    };
    let containers: Vec<Value> = pod
        .spec
        .containers
        .iter()
        .map(|c| {
            let mut state = terminated(outcome, since, text);
            // A strategic merge would leave the other state in place.
            state["running"] = Value::Null;
            json!({"name": c.name, "image": c.image, "imageID": "", "restartCount": pod.restarts(),
                "ready": false, "started": false, "state": state})
        })
        .collect();
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

fn patched(pod: &PodView<'_>, change: impl Fn(&ContainerView<'_>) -> Value) -> Vec<Value> {
    pod.spec
        .containers
        .iter()
        .map(|c| {
            let mut out = change(c);
            out["name"] = (*c.name).into();
            out
        })
        .collect()
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
        let ready = |status: &Value| {
            let all = status["conditions"].as_array().unwrap();
            all.iter().find(|c| c["type"] == "Ready").unwrap()["status"].clone()
        };
        assert_eq!(ready(&status), "False", "its gate does not hold");
        assert_eq!(expired(&pod, Timestamp::UNIX_EPOCH)["phase"], "Failed");
    }
}
