//! What simulated nodes look like and how their pods fare: the file a user writes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Taint;
use serde::{Deserialize, Serialize};

use crate::Delay;

/// Longest prefix of node names.
const PREFIX_MAX: usize = 50;
/// Least and most seconds between two heartbeats: a node is given up after forty seconds.
const HEARTBEAT_SECONDS: std::ops::RangeInclusive<u32> = 1..=30;
/// Most rules about pods.
const RULES_MAX: usize = 100;
/// Pods of a node where the profile names no number.
const DEFAULT_PODS: u32 = 110;
/// Most pods of a node.
const PODS_MAX: u32 = 1000;

/// A profile that cannot be used; the message names the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not YAML, or not of the profile's form.
    #[error("{path}: {message}")]
    Form {
        /// The field, such as `pods[0].start`.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

impl ProfileError {
    fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Form {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// A profile. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Profile {
    /// What the nodes look like.
    pub nodes: NodeProfile,
    /// How pods fare; the first rule that matches a pod counts, and the defaults where none does.
    pub pods: Vec<PodRule>,
}

/// What the nodes look like.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NodeProfile {
    /// Names are this and a number from 0.
    pub name_prefix: String,
    /// Resources of a node.
    pub capacity: BTreeMap<String, String>,
    /// Labels besides those every node has.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Zones, in turn.
    pub zones: Vec<String>,
    /// The region of all.
    pub region: Option<String>,
    /// Seconds between two renewals of a node's lease.
    pub heartbeat_seconds: u32,
}

impl Default for NodeProfile {
    /// 32 cores, 256 GiB, 110 pods; a heartbeat every ten seconds, as a kubelet's.
    fn default() -> Self {
        let capacity = [
            ("cpu", "32"),
            ("memory", "256Gi"),
            ("ephemeral-storage", "500Gi"),
            ("pods", "110"),
        ];
        let owned = |(name, amount): (&str, &str)| (name.to_owned(), amount.to_owned());
        Self {
            name_prefix: "sim-".into(),
            capacity: capacity.into_iter().map(owned).collect(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            zones: Vec::new(),
            region: None,
            heartbeat_seconds: 10,
        }
    }
}

impl NodeProfile {
    /// How many pods fit on a node.
    pub fn pods(&self) -> u32 {
        self.capacity
            .get("pods")
            .and_then(|n| n.parse().ok())
            .unwrap_or(DEFAULT_PODS)
    }
}

/// How pods of one sort fare.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodRule {
    /// Which pods.
    #[serde(rename = "match")]
    pub matches: PodMatch,
    /// Whether pods start at all; `false`: they stay Pending on their node.
    pub starts: bool,
    /// From being bound to Running.
    pub start: Delay,
    /// From Running to Ready.
    pub ready: Delay,
    /// From Running until the containers end. Without it, pods whose `restartPolicy` is `Always`
    /// run for ever and others for a second.
    pub run: Option<Delay>,
    /// The share of ends that are failures, from 0 to 1.
    pub failures: f64,
    /// What a failed container exits with.
    pub exit_code: i32,
    /// From deletion until the pod is gone, at most its grace period.
    pub stop: Delay,
}

impl Default for PodRule {
    fn default() -> Self {
        Self {
            matches: PodMatch::default(),
            starts: true,
            start: Delay::default(),
            ready: Delay::default(),
            run: None,
            failures: 0.0,
            exit_code: 1,
            stop: Delay::default(),
        }
    }
}

/// Which pods a rule is about: all of what is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodMatch {
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// Labels the pod has.
    pub labels: BTreeMap<String, String>,
    /// The kind of the pod's controller, such as `Job`.
    pub owner_kind: Option<String>,
}

/// How a container ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// With this exit code.
    Failure(i32),
}

impl Outcome {
    /// The exit code.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Failure(code) => code,
        }
    }
}

impl Profile {
    /// Reads a profile and checks it.
    ///
    /// # Errors
    /// The first field that is wrong, and why.
    pub fn parse(yaml: &str) -> Result<Self, ProfileError> {
        if yaml.trim().is_empty() {
            return Ok(Self::default());
        }
        let tree: serde_json::Value =
            serde_saphyr::from_str(yaml).map_err(|e| ProfileError::at("profile", e.to_string()))?;
        if tree.is_null() {
            return Ok(Self::default());
        }
        let profile: Self = serde_path_to_error::deserialize(tree)
            .map_err(|e| ProfileError::at(e.path().to_string(), e.inner().to_string()))?;
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), ProfileError> {
        self.nodes.check()?;
        if self.pods.len() > RULES_MAX {
            let message = format!("at most {RULES_MAX} rules, not {}", self.pods.len());
            return Err(ProfileError::at("pods", message));
        }
        for (i, rule) in self.pods.iter().enumerate() {
            if !(0.0..=1.0).contains(&rule.failures) {
                let message = format!("must be from 0 to 1, not {}", rule.failures);
                return Err(ProfileError::at(format!("pods[{i}].failures"), message));
            }
            if !(1..=255).contains(&rule.exit_code) {
                let message = format!("must be from 1 to 255, not {}", rule.exit_code);
                return Err(ProfileError::at(format!("pods[{i}].exitCode"), message));
            }
        }
        Ok(())
    }
}

impl NodeProfile {
    fn check(&self) -> Result<(), ProfileError> {
        let field = |name: &str| format!("nodes.{name}");
        let prefix_ok = self.name_prefix.len() <= PREFIX_MAX
            && self
                .name_prefix
                .starts_with(|c: char| c.is_ascii_lowercase())
            && self
                .name_prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !prefix_ok {
            let message = format!(
                "{:?} is no start of a node's name: at most {PREFIX_MAX} lower-case letters, digits and '-', first a letter",
                self.name_prefix
            );
            return Err(ProfileError::at(field("namePrefix"), message));
        }
        for (name, amount) in &self.capacity {
            if let Err(error) = amount.parse::<api::Quantity>() {
                let path = format!("nodes.capacity.{name}");
                return Err(ProfileError::at(path, format!("{amount:?}: {error}")));
            }
        }
        let pods = self.capacity.get("pods").map(|n| n.parse::<u32>());
        if pods.is_some_and(|n| n.is_err() || n.is_ok_and(|n| n > PODS_MAX)) {
            let message = format!("must be a number up to {PODS_MAX}");
            return Err(ProfileError::at(field("capacity.pods"), message));
        }
        if !HEARTBEAT_SECONDS.contains(&self.heartbeat_seconds) {
            let (low, high) = HEARTBEAT_SECONDS.into_inner();
            let message = format!(
                "must be from {low} to {high}, not {}",
                self.heartbeat_seconds
            );
            return Err(ProfileError::at(field("heartbeatSeconds"), message));
        }
        for (i, taint) in self.taints.iter().enumerate() {
            const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            if !EFFECTS.contains(&taint.effect.as_str()) {
                let message = format!("{:?} is none of {}", taint.effect, EFFECTS.join(", "));
                return Err(ProfileError::at(
                    format!("nodes.taints[{i}].effect"),
                    message,
                ));
            }
            if taint.key.is_empty() {
                return Err(ProfileError::at(
                    format!("nodes.taints[{i}].key"),
                    "must not be empty",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_what_is_left_out_has_its_default() {
        let profile = Profile::parse(
            "nodes:\n  namePrefix: big-\n  capacity: {cpu: '64', pods: '250'}\n  zones: [a, b]\n  \
             taints: [{key: simulated, value: 'yes', effect: NoSchedule}]\n\
             pods:\n- match: {ownerKind: Job}\n  run: 1s..5s\n  failures: 0.25\n- ready: 500ms\n",
        )
        .unwrap();
        assert_eq!(profile.nodes.pods(), 250);
        assert_eq!(profile.nodes.heartbeat_seconds, 10);
        assert_eq!(profile.pods[0].run, Some("1s..5s".parse().unwrap()));
        assert_eq!(profile.pods[0].matches.owner_kind.as_deref(), Some("Job"));
        assert!(profile.pods[1].starts);
        assert_eq!(Profile::parse(""), Ok(Profile::default()));
        assert_eq!(Profile::parse("# nothing\n"), Ok(Profile::default()));
        let written = serde_json::to_string(&profile).unwrap();
        assert_eq!(Profile::parse(&written), Ok(profile));
    }

    #[test]
    fn errors_name_the_field() {
        for (yaml, expected) in [
            ("node: {}", "unknown field `node`"),
            ("nodes: {capacities: {}}", "nodes.capacities: unknown field"),
            (
                "nodes: {capacity: {cpu: lots}}",
                "nodes.capacity.cpu: \"lots\"",
            ),
            (
                "nodes: {capacity: {pods: '5000'}}",
                "nodes.capacity.pods: must be",
            ),
            ("nodes: {namePrefix: Big}", "nodes.namePrefix: \"Big\""),
            (
                "nodes: {heartbeatSeconds: 60}",
                "nodes.heartbeatSeconds: must be from 1 to 30",
            ),
            (
                "nodes: {taints: [{key: a, effect: Never}]}",
                "nodes.taints[0].effect: \"Never\"",
            ),
            (
                "pods: [{start: soon}]",
                "pods[0].start: \"soon\" is neither",
            ),
            (
                "pods: [{}, {failures: 2}]",
                "pods[1].failures: must be from 0 to 1",
            ),
            ("pods: [{exitCode: 0}]", "pods[0].exitCode: must be"),
            ("pods: {}", "pods: invalid type"),
            ("a: [", "profile: "),
        ] {
            let error = Profile::parse(yaml).unwrap_err().to_string();
            assert!(error.contains(expected), "{yaml}: {error}");
        }
    }
}
