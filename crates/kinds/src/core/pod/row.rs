//! The row of a pod: what `kubectl get pods` calls its status.

use api::meta;
use api::time::{self, Timestamp};
use serde_json::Value;

use crate::cells::{age, condition, condition_is_true, or, text};

/// Cells: name, ready, status, restarts, age, IP, node, nominated node, readiness gates.
pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match &summary.last_restart {
        Some(at) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, time::age(at, now))
        }
        _ => summary.restarts.to_string(),
    };
    vec![
        meta::name(pod).into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(pod, now).into(),
        or(
            meta::list_at(pod, &["status", "podIPs"])
                .first()
                .map(|ip| text(ip, &["ip"]))
                .unwrap_or_default(),
            "<none>",
        )
        .into(),
        or(text(pod, &["spec", "nodeName"]), "<none>").into(),
        or(text(pod, &["status", "nominatedNodeName"]), "<none>").into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = meta::list_at(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates
        .iter()
        .filter(|g| condition_is_true(pod, meta::str_at(g, &["conditionType"])))
        .count();
    format!("{open}/{}", gates.len())
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<String>,
}

/// Restarts counted over some containers, and when the last of them ended.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += meta::int_at(status, &["restartCount"]).unwrap_or(0);
        let ended = meta::str_at(status, &["lastState", "terminated", "finishedAt"]);
        // Times of the API compare as text.
        if !ended.is_empty() && self.last.as_deref().is_none_or(|l| l < ended) {
            self.last = Some(ended.to_owned());
        }
    }
}

fn is_sidecar(pod: &Value, name: &str) -> bool {
    meta::list_at(pod, &["spec", "initContainers"])
        .iter()
        .any(|c| {
            meta::str_at(c, &["name"]) == name && meta::str_at(c, &["restartPolicy"]) == "Always"
        })
}

fn exit_reason(prefix: &str, terminated: &Value) -> String {
    let reason = meta::str_at(terminated, &["reason"]);
    let number = |field| meta::int_at(terminated, &[field]).unwrap_or(0);
    if !reason.is_empty() {
        format!("{prefix}{reason}")
    } else if number("signal") != 0 {
        format!("{prefix}Signal:{}", number("signal"))
    } else {
        format!("{prefix}ExitCode:{}", number("exitCode"))
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = meta::str_at(pod, &["status", "phase"]);
        let mut reason = or(text(pod, &["status", "reason"]), phase);
        if condition(pod, "PodScheduled")
            .is_some_and(|c| meta::str_at(c, &["reason"]) == "SchedulingGated")
        {
            reason = "SchedulingGated".to_owned();
        }
        let sidecars = meta::list_at(pod, &["spec", "initContainers"])
            .iter()
            .filter(|c| meta::str_at(c, &["restartPolicy"]) == "Always")
            .count();
        let total = meta::list_at(pod, &["spec", "containers"]).len() + sidecars;
        let mut out = Self {
            reason,
            ready: 0,
            total,
            restarts: 0,
            last_restart: None,
        };
        out.containers(pod);
        if meta::get(pod, &["metadata", "deletionTimestamp"]).is_some() {
            if meta::str_at(pod, &["status", "reason"]) == "NodeLost" {
                out.reason = "Unknown".to_owned();
            } else if phase != "Succeeded" && phase != "Failed" {
                out.reason = "Terminating".to_owned();
            }
        }
        out
    }

    fn containers(&mut self, pod: &Value) {
        let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
        let initializing = self.init_containers(pod, &mut all, &mut sidecars);
        if !initializing || condition_is_true(pod, "Initialized") {
            all = sidecars;
            self.main_containers(pod, &mut all);
        }
        self.restarts = all.count;
        self.last_restart = all.last;
    }

    /// Whether the pod is still held up by its init containers.
    fn init_containers(
        &mut self,
        pod: &Value,
        all: &mut Restarts,
        sidecars: &mut Restarts,
    ) -> bool {
        let planned = meta::list_at(pod, &["spec", "initContainers"]).len();
        for (i, status) in meta::list_at(pod, &["status", "initContainerStatuses"])
            .iter()
            .enumerate()
        {
            let sidecar = is_sidecar(pod, meta::str_at(status, &["name"]));
            all.add(status);
            if sidecar {
                sidecars.add(status);
            }
            let terminated = meta::get(status, &["state", "terminated"]);
            let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
            if terminated.is_some_and(|t| meta::int_at(t, &["exitCode"]).unwrap_or(0) == 0) {
                continue;
            }
            if sidecar && meta::bool_at(status, &["started"]) {
                self.ready += usize::from(meta::bool_at(status, &["ready"]));
                continue;
            }
            self.reason = match terminated {
                Some(terminated) => exit_reason("Init:", terminated),
                None if !waiting.is_empty() && waiting != "PodInitializing" => {
                    format!("Init:{waiting}")
                }
                None => format!("Init:{i}/{planned}"),
            };
            return true;
        }
        false
    }

    fn main_containers(&mut self, pod: &Value, restarts: &mut Restarts) {
        let mut running = false;
        for status in meta::list_at(pod, &["status", "containerStatuses"])
            .iter()
            .rev()
        {
            restarts.add(status);
            let waiting = meta::str_at(status, &["state", "waiting", "reason"]);
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = meta::get(status, &["state", "terminated"]) {
                self.reason = exit_reason("", terminated);
            } else if meta::bool_at(status, &["ready"])
                && meta::get(status, &["state", "running"]).is_some()
            {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if condition_is_true(pod, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cells(status: Value) -> Vec<String> {
        let now = "2026-01-01T00:01:40Z".parse().unwrap();
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": status.get("deleted")},
            "spec": {"containers": [{}, {}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "nodeName": "n"}, "status": status});
        let mut pod = pod;
        if pod["metadata"]["deletionTimestamp"].is_null() {
            meta::remove(&mut pod, &["metadata", "deletionTimestamp"]);
        }
        row(&pod, now)
            .iter()
            .map(|v| v.as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn statuses() {
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
        let sidecar =
            json!({"name": "s", "started": true, "ready": true, "state": {"running": {}}});
        let running = json!({"ready": true, "state": {"running": {}}});
        for (status, ready, reason, restarts) in [
            (json!({"phase": "Pending"}), "0/3", "Pending", "0"),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "0/3",
                "Init:0/2",
                "0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "0/3",
                "Init:CrashLoopBackOff",
                "2",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 3}}}]}),
                "0/3",
                "Init:ExitCode:3",
                "0",
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": [done, sidecar], "containerStatuses": [running, running]}),
                "3/3",
                "Running",
                "0",
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": [done, sidecar], "containerStatuses": [running, {"restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:01:35Z"}}}]}),
                "2/3",
                "CrashLoopBackOff",
                "2 (5s ago)",
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                "0/3",
                "Completed",
                "0",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}, running], "conditions": [{"type": "Ready", "status": "True"}]}),
                "1/3",
                "Running",
                "0",
            ),
            (
                json!({"phase": "Failed", "reason": "Evicted"}),
                "0/3",
                "Evicted",
                "0",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
                "0/3",
                "Signal:9",
                "0",
            ),
            (
                json!({"phase": "Running", "deleted": "2026-01-01T00:00:00Z"}),
                "0/3",
                "Terminating",
                "0",
            ),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                "0/3",
                "SchedulingGated",
                "0",
            ),
        ] {
            let got = cells(status.clone());
            assert_eq!(
                (got[1].as_str(), got[2].as_str(), got[3].as_str()),
                (ready, reason, restarts),
                "{status}"
            );
            assert_eq!(got[4..], ["100s", "<none>", "n", "<none>", "<none>"]);
        }
    }
}
