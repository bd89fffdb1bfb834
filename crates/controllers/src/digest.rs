//! What controllers of many pods look at again and again: read from each pod once, so that a pass over
//! the thousands of pods of one owner decodes none of them.

use std::sync::Arc;

use client::{Entry, Error, cache::Digest};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// The phase of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not all its containers have started.
    #[default]
    Pending,
    /// They have.
    Running,
    /// They have ended for good, well or not.
    Over,
    /// Nobody knows.
    Unknown,
}

/// The parts of a pod that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodDigest {
    /// Its phase.
    pub phase: Phase,
    /// Since when it is ready; `None`: it is not.
    pub ready_since: Option<Timestamp>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The most that any of its containers was started again.
    pub restarts: i32,
    /// The most that any container was that runs beside these from before their start.
    pub sidecar_restarts: i32,
    /// What its deletion is said to cost.
    pub deletion_cost: i32,
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    #[serde(borrow, default)]
    spec: Option<Spec<'a>>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, default)]
    init_containers: Option<Vec<InitContainer<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InitContainer<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    restart_policy: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(default)]
    creation_timestamp: Option<Timestamp>,
    #[serde(borrow, default)]
    annotations: Option<Annotations<'a>>,
}

#[derive(Deserialize)]
struct Annotations<'a> {
    #[serde(borrow, default, rename = "controller.kubernetes.io/pod-deletion-cost")]
    deletion_cost: Option<std::borrow::Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    #[serde(borrow, default)]
    phase: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    conditions: Option<Vec<Condition<'a>>>,
    #[serde(default)]
    container_statuses: Option<Vec<Container>>,
    #[serde(borrow, default)]
    init_container_statuses: Option<Vec<InitContainerStatus<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InitContainerStatus<'a> {
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    #[serde(default)]
    restart_count: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition<'a> {
    #[serde(borrow, rename = "type")]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    status: std::borrow::Cow<'a, str>,
    #[serde(default)]
    last_transition_time: Option<Timestamp>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(default)]
    restart_count: i32,
}

impl Digest for PodDigest {
    fn of(entry: &Entry) -> Result<Self, Error> {
        let pod: View<'_> = entry.view()?;
        let cost = pod.metadata.annotations.and_then(|a| a.deletion_cost);
        let mut digest = Self {
            created: pod.metadata.creation_timestamp,
            deletion_cost: cost.and_then(|c| c.parse().ok()).unwrap_or(0),
            ..Self::default()
        };
        let Some(status) = pod.status else {
            return Ok(digest);
        };
        digest.phase = match status.phase.as_deref() {
            None | Some("Pending" | "") => Phase::Pending,
            Some("Running") => Phase::Running,
            Some("Succeeded" | "Failed") => Phase::Over,
            Some(_) => Phase::Unknown,
        };
        let mut conditions = status.conditions.into_iter().flatten();
        digest.ready_since = conditions
            .find(|c| c.kind == "Ready")
            .filter(|c| c.status == "True")
            .map(|c| c.last_transition_time.unwrap_or(Timestamp::UNIX_EPOCH));
        let containers = status.container_statuses.into_iter().flatten();
        digest.restarts = containers.map(|c| c.restart_count).max().unwrap_or(0);
        let init = pod.spec.and_then(|s| s.init_containers).unwrap_or_default();
        let stays = |name: &str| {
            let of_name = init.iter().find(|c| c.name == name);
            of_name.is_some_and(|c| c.restart_policy.as_deref() == Some("Always"))
        };
        let before = status.init_container_statuses.into_iter().flatten();
        let beside = before.filter(|c| stays(&c.name));
        digest.sidecar_restarts = beside.map(|c| c.restart_count).max().unwrap_or(0);
        Ok(digest)
    }
}

/// Whether all containers of a pod have ended for good; one that cannot be read is none of these.
pub fn is_over(pod: &Entry) -> bool {
    pod.digest::<PodDigest>()
        .is_ok_and(|digest| digest.phase == Phase::Over)
}

/// A pod as its owner sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The pod as cached.
    pub entry: Arc<Entry>,
    digest: Arc<PodDigest>,
}

impl std::ops::Deref for Member {
    type Target = PodDigest;

    fn deref(&self) -> &PodDigest {
        &self.digest
    }
}

/// The pods; those that cannot be read are left out with a warning.
pub fn members(entries: Vec<Arc<Entry>>) -> Vec<Member> {
    let read = |entry: Arc<Entry>| match entry.digest::<PodDigest>() {
        Ok(digest) => Some(Member { entry, digest }),
        Err(error) => {
            tracing::warn!(%error, "skipped");
            None
        }
    };
    entries.into_iter().filter_map(read).collect()
}

impl Member {
    /// Whether all its containers have ended for good.
    pub fn is_terminal(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether it counts: neither ended nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !self.entry.deleting
    }

    /// The node it runs on; empty where it has none yet.
    pub fn node(&self) -> &str {
        self.entry.node.as_deref().unwrap_or_default()
    }

    /// How long until it is available (ready for `min_ready_seconds`); zero: it is; `None`: not
    /// before something changes.
    pub fn available_in(&self, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
        crate::pods::available_after(self.ready_since?, min_ready_seconds, now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;
    use crate::pods;

    const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

    #[test]
    fn a_digest_says_what_the_pod_does() {
        let ready = |status: &str| {
            json!([{"type": "ContainersReady", "status": "True"},
            {"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:07Z"}])
        };
        let cases: Vec<Value> = vec![
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {(DELETION_COST): "-7", "other": "\n"}},
                "spec": {"containers": [], "nodeName": "n"},
                "status": {"phase": "Running", "conditions": ready("True"),
                    "containerStatuses": [{"restartCount": 2}, {"restartCount": 1}]}}),
            json!({"metadata": {"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {(DELETION_COST): "dear"}}, "status": {"phase": "Failed", "conditions": ready("False")}}),
            json!({"metadata": {"name": "a", "annotations": null}, "status": {"phase": "Unknown", "conditions": null}}),
        ];
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        for case in cases {
            let bytes = case.to_string();
            let entry = Arc::new(client::cache::parse_entry(bytes.as_bytes()).unwrap());
            let member = members(vec![entry]).remove(0);
            let mut whole = case.clone();
            // The typed pod has to have names that the digest does not ask for.
            for status in whole["status"]["containerStatuses"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                let count = status["restartCount"].clone();
                *status = json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": count});
            }
            let pod: Pod = serde_json::from_value(whole).unwrap();
            assert_eq!(member.is_terminal(), pods::is_terminal(&pod), "{case}");
            assert_eq!(member.is_active(), pods::is_active(&pod), "{case}");
            assert_eq!(member.ready_since, pods::ready_since(&pod), "{case}");
            assert_eq!(
                member.available_in(5, now),
                pods::available_in(&pod, 5, now),
                "{case}"
            );
            assert_eq!(member.node(), pods::node(&pod), "{case}");
            let created = pod.metadata.creation_timestamp.map(|t| t.0);
            assert_eq!(member.created, created, "{case}");
        }
    }

    #[test]
    fn pods_that_have_ended_are_known() {
        for (phase, expected) in [("Pending", false), ("Succeeded", true), ("Failed", true)] {
            let pod = json!({"metadata": {"name": "a"}, "status": {"phase": phase}});
            let entry = client::cache::parse_entry(pod.to_string().as_bytes()).unwrap();
            assert_eq!(is_over(&entry), expected, "{phase}");
        }
    }

    #[test]
    fn costs_and_restarts_are_read() {
        let status = |name: &str, restarts: i32| json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": restarts});
        let pod = json!({"metadata": {"name": "a", "annotations": {(DELETION_COST): "-7"}},
            "spec": {"containers": [], "initContainers": [{"name": "first"},
                {"name": "beside", "restartPolicy": "Always"}, {"name": "mesh", "restartPolicy": "Always"}]},
            "status": {"containerStatuses": [status("a", 2), status("b", 3)],
                "initContainerStatuses": [status("first", 9), status("beside", 4), status("mesh", 1)]}});
        let entry = client::cache::parse_entry(pod.to_string().as_bytes()).unwrap();
        let digest = entry.digest::<PodDigest>().unwrap();
        assert_eq!(digest.deletion_cost, -7);
        assert_eq!((digest.restarts, digest.sidecar_restarts), (3, 4));
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(pods::restarts(&pod), (3, 4));
    }
}
