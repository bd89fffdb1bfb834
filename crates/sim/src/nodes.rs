//! The Node objects of the simulation: made as the profile says, kept Ready, removed when they
//! are too many.

use std::{collections::BTreeMap, sync::Arc};

use client::{Cache, Client, Clock, Entry, Error, Key, Reconcile, Requeue, write};
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::{Settings, addresses::Addresses, profile::Profile};

/// Every simulated node has this label, with the value `true`.
pub const LABEL: &str = "styr.dev/simulated";
/// Says of which profile a node was made.
const PROFILE: &str = "styr.dev/simulation-profile";
const LIFECYCLE_TAINTS: &str = "node.kubernetes.io/";

/// Whether a node only pretends.
pub fn is_simulated(node: &Entry) -> bool {
    node.label(LABEL) == Some("true")
}

/// All simulated nodes, by number.
pub struct Fleet {
    /// How many there are to be.
    pub count: u32,
    /// What they are like.
    pub profile: Profile,
    /// Changes with the nodes' part of the profile.
    fingerprint: String,
    version: String,
}

impl Fleet {
    /// The nodes of these settings; `version` is what their kubelets claim to be.
    pub fn new(settings: &Settings, version: &str) -> Self {
        let text = serde_json::to_string(&settings.profile.nodes).unwrap_or_default();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            count: settings.nodes,
            profile: settings.profile.clone(),
            fingerprint: format!("{hash:016x}"),
            version: version.to_owned(),
        }
    }

    /// The name of a node.
    pub fn name(&self, index: u32) -> String {
        format!("{}{index}", self.profile.nodes.name_prefix)
    }

    /// The number of the node of this name, if it is one of these.
    pub fn index_of(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(self.profile.nodes.name_prefix.as_str())?;
        let canonical = digits == "0" || !digits.starts_with(['0', '+']);
        let index = digits.parse().ok().filter(|_| canonical)?;
        (index < self.count).then_some(index)
    }

    fn labels(&self, index: u32) -> BTreeMap<String, String> {
        let profile = &self.profile.nodes;
        let mut labels = BTreeMap::new();
        let mut set = |key: &str, value: &str| labels.insert(key.to_owned(), value.to_owned());
        for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
            set(&format!("{prefix}/arch"), "amd64");
            set(&format!("{prefix}/os"), "linux");
        }
        set("node.kubernetes.io/instance-type", "simulated");
        set(LABEL, "true");
        if let Some(region) = &profile.region {
            set("topology.kubernetes.io/region", region);
        }
        if !profile.zones.is_empty() {
            let zone = &profile.zones[index as usize % profile.zones.len()];
            set("topology.kubernetes.io/zone", zone);
        }
        labels.extend(profile.labels.clone());
        labels.insert("kubernetes.io/hostname".into(), self.name(index));
        labels
    }

    fn object(&self, index: u32, addresses: &Addresses, now: &str) -> Value {
        let part = addresses.part(index);
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name(index),
                "labels": self.labels(index),
                "annotations": {PROFILE: self.fingerprint},
            },
            "spec": {
                "podCIDR": part, "podCIDRs": [part],
                "providerID": format!("simulated://{}", self.name(index)),
                "taints": self.profile.nodes.taints,
            },
            "status": self.status(index, addresses, now),
        })
    }

    fn status(&self, index: u32, addresses: &Addresses, now: &str) -> Value {
        let address = addresses.of_node(index).to_string();
        let mut capacity = self.profile.nodes.capacity.clone();
        let pods = || self.profile.nodes.pods().to_string();
        capacity.entry("pods".into()).or_insert_with(pods);
        json!({
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": conditions(now),
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "Hostname", "address": self.name(index)},
            ],
            "nodeInfo": {
                "architecture": "amd64", "operatingSystem": "linux", "osImage": "simulated",
                "kernelVersion": "simulated", "containerRuntimeVersion": "simulated://0",
                "kubeletVersion": self.version, "kubeProxyVersion": "",
                "machineID": "", "systemUUID": "", "bootID": "",
            },
        })
    }

    /// What has to change in a node made of another profile; taints that the cluster sets stay.
    fn spec_patch(&self, index: u32, taints: &[Taint]) -> Value {
        let ours = &self.profile.nodes.taints;
        let kept = taints
            .iter()
            .filter(|t| t.key.starts_with(LIFECYCLE_TAINTS));
        let taints: Vec<&Taint> = kept.chain(ours).collect();
        let taints = (!taints.is_empty()).then_some(taints);
        json!({
            "metadata": {"labels": self.labels(index), "annotations": {PROFILE: self.fingerprint}},
            "spec": {"taints": taints},
        })
    }
}

fn conditions(now: &str) -> Value {
    let of = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!([
        of(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        of(
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure"
        ),
        of(
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available"
        ),
        of("Ready", "True", "KubeletReady", "simulated node is ready"),
    ])
}

/// Makes and keeps the nodes.
pub struct Nodes {
    pub client: Client,
    pub clock: Clock,
    pub nodes: Cache<Node>,
    pub fleet: Arc<Fleet>,
    pub addresses: Arc<std::sync::Mutex<Addresses>>,
}

impl Reconcile for Nodes {
    type Key = Key;

    fn name(&self) -> &'static str {
        "simulated nodes"
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let index = self.fleet.index_of(&key.name);
        let revision = match (self.nodes.entry(key), index) {
            (None, Some(index)) => self.create(index).await?,
            (Some(entry), None) if is_simulated(&entry) => {
                let api = write::cluster::<Node>(&self.client);
                write::delete(&api, &key.name, Some(&entry.uid)).await?;
                0
            }
            (Some(entry), Some(index)) if is_simulated(&entry) => {
                let node: Node = entry.decode()?;
                self.keep(key, index, &node).await?
            }
            (Some(_), Some(_)) => {
                tracing::warn!(node = %key, "a node of this name exists and is not simulated");
                0
            }
            _ => 0,
        };
        self.nodes.caught_up(revision).await?;
        Ok(Requeue::OnChange)
    }
}

impl Nodes {
    async fn create(&self, index: u32) -> Result<u64, Error> {
        let now = api::time::format(self.clock.now());
        let object = self.with(|addresses| self.fleet.object(index, addresses, &now));
        let node: Node = serde_json::from_value(object).map_err(|e| Error::Other(e.to_string()))?;
        let api = write::cluster::<Node>(&self.client);
        let made = api.create(&PostParams::default(), &node).await;
        Ok(write::tolerate_existing(made)?
            .as_ref()
            .map_or(0, write::revision_of))
    }

    async fn keep(&self, key: &Key, index: u32, node: &Node) -> Result<u64, Error> {
        let mut revision = 0;
        let api = write::cluster::<Node>(&self.client);
        let made_of = node
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(PROFILE));
        let outdated = made_of != Some(&self.fleet.fingerprint);
        if outdated {
            let taints = node.spec.as_ref().and_then(|s| s.taints.clone());
            let patch = self.fleet.spec_patch(index, &taints.unwrap_or_default());
            let written = write::patch(&api, &key.name, &patch).await?;
            revision = written.as_ref().map_or(0, write::revision_of);
        }
        if outdated || !is_ready(node) {
            let now = api::time::format(self.clock.now());
            let status = self.with(|addresses| self.fleet.status(index, addresses, &now));
            let patch = Patch::Strategic(json!({"status": status}));
            let written = api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await;
            revision = write::tolerate_missing(written)?
                .as_ref()
                .map_or(revision, write::revision_of);
        }
        Ok(revision)
    }

    fn with<T>(&self, look: impl FnOnce(&Addresses) -> T) -> T {
        let addresses = self.addresses.lock();
        look(&addresses.unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_names_labels_zones_and_addresses_of_their_own() {
        let yaml =
            "nodes: {zones: [a, b], labels: {disk: ssd}, taints: [{key: k, effect: NoSchedule}]}";
        let settings = Settings::new(12, yaml).unwrap();
        let fleet = Fleet::new(&settings, "v1.37.0");
        let addresses = Addresses::new(12, 110);
        let node = fleet.object(11, &addresses, "2026-01-01T00:00:00Z");
        assert_eq!(
            node["metadata"]["labels"]["topology.kubernetes.io/zone"],
            "b"
        );
        assert_eq!(node["metadata"]["labels"]["disk"], "ssd");
        assert_eq!(
            node["metadata"]["labels"]["kubernetes.io/hostname"],
            "sim-11"
        );
        assert_eq!(node["spec"]["podCIDR"], "100.64.5.128/25");
        serde_json::from_value::<Node>(node).unwrap();
        for (name, index) in [
            ("sim-0", Some(0)),
            ("sim-11", Some(11)),
            ("sim-12", None),
            ("sim-01", None),
            ("sim-", None),
            ("real", None),
        ] {
            assert_eq!(fleet.index_of(name), index, "{name}");
        }
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let patch = fleet.spec_patch(0, &[taint("node.kubernetes.io/not-ready"), taint("old")]);
        assert_eq!(patch["spec"]["taints"].as_array().unwrap().len(), 2);
    }
}
