//! The few fields of a pod that decide what becomes of it.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

/// A pod as the simulation sees it.
#[derive(Debug, Default, Deserialize)]
pub struct PodView<'a> {
    #[serde(borrow)]
    pub metadata: Meta<'a>,
    #[serde(borrow, default)]
    pub spec: Spec<'a>,
    #[serde(borrow, default)]
    pub status: Status<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta<'a> {
    #[serde(borrow, default)]
    pub uid: Cow<'a, str>,
    #[serde(borrow, default)]
    pub namespace: Cow<'a, str>,
    #[serde(default)]
    pub creation_timestamp: Option<Timestamp>,
    #[serde(default)]
    pub deletion_timestamp: Option<Timestamp>,
    #[serde(default)]
    pub deletion_grace_period_seconds: Option<i64>,
    #[serde(default)]
    pub generation: Option<i64>,
    #[serde(borrow, default)]
    pub finalizers: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow, default)]
    pub owner_references: Vec<OwnerView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
pub struct OwnerView<'a> {
    #[serde(borrow, default)]
    pub kind: Cow<'a, str>,
    #[serde(default)]
    pub controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec<'a> {
    #[serde(borrow, default)]
    pub restart_policy: Cow<'a, str>,
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub active_deadline_seconds: Option<i64>,
    #[serde(borrow, default)]
    pub init_containers: Vec<ContainerView<'a>>,
    #[serde(borrow, default)]
    pub containers: Vec<ContainerView<'a>>,
    #[serde(borrow, default)]
    pub readiness_gates: Vec<GateView<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerView<'a> {
    #[serde(borrow, default)]
    pub name: Cow<'a, str>,
    #[serde(borrow, default)]
    pub image: Cow<'a, str>,
    #[serde(borrow, default)]
    pub restart_policy: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateView<'a> {
    #[serde(borrow, default)]
    pub condition_type: Cow<'a, str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status<'a> {
    #[serde(borrow, default)]
    pub phase: Cow<'a, str>,
    #[serde(default)]
    pub start_time: Option<Timestamp>,
    #[serde(borrow, default, rename = "podIP")]
    pub pod_ip: Cow<'a, str>,
    #[serde(borrow, default)]
    pub conditions: Vec<ConditionView<'a>>,
    #[serde(default)]
    pub container_statuses: Vec<ContainerStatusView>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView<'a> {
    #[serde(borrow, default, rename = "type")]
    pub kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub status: Cow<'a, str>,
    #[serde(default)]
    pub last_transition_time: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatusView {
    #[serde(default)]
    pub restart_count: i32,
    #[serde(default)]
    pub state: StateView,
}

#[derive(Debug, Default, Deserialize)]
pub struct StateView {
    #[serde(default)]
    pub running: Option<RunningView>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningView {
    #[serde(default)]
    pub started_at: Option<Timestamp>,
}

impl PodView<'_> {
    /// Whether it has ended for good.
    pub fn is_over(&self) -> bool {
        matches!(&*self.status.phase, "Succeeded" | "Failed")
    }

    /// Whether the condition holds.
    pub fn has(&self, condition: &str) -> bool {
        let mut all = self.status.conditions.iter();
        all.any(|c| c.kind == condition && c.status == "True")
    }

    /// A readiness gate that does not hold keeps the pod unready whatever its containers are.
    pub fn gates_hold(&self) -> bool {
        let mut gates = self.spec.readiness_gates.iter();
        gates.all(|gate| self.has(&gate.condition_type))
    }

    /// When it was bound to its node, as far as one can tell.
    pub fn bound_at(&self) -> Option<Timestamp> {
        let scheduled = self
            .status
            .conditions
            .iter()
            .find(|c| c.kind == "PodScheduled");
        scheduled
            .and_then(|c| c.last_transition_time)
            .or(self.metadata.creation_timestamp)
    }

    /// When its containers started last.
    pub fn running_since(&self) -> Option<Timestamp> {
        let running = |s: &ContainerStatusView| s.state.running.as_ref()?.started_at;
        self.status.container_statuses.iter().find_map(running)
    }

    /// How often its containers were started again.
    pub fn restarts(&self) -> i32 {
        let counts = self
            .status
            .container_statuses
            .iter()
            .map(|s| s.restart_count);
        counts.max().unwrap_or(0)
    }

    /// When its deletion was asked for.
    pub fn deleted_at(&self) -> Option<Timestamp> {
        self.metadata
            .deletion_timestamp?
            .checked_sub(self.grace())
            .ok()
    }

    /// How long it may take to end.
    pub fn grace(&self) -> SignedDuration {
        let seconds = self.metadata.deletion_grace_period_seconds.unwrap_or(0);
        SignedDuration::from_secs(seconds.max(0))
    }

    /// The kind of its controller.
    pub fn owner_kind(&self) -> Option<&str> {
        let mut owners = self.metadata.owner_references.iter();
        owners.find(|o| o.controller).map(|o| &*o.kind)
    }
}
