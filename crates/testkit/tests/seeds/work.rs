//! The objects that the user makes.

use std::fmt;

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use crate::world::text;

/// Most replicas of one object: all together fit on the fewest nodes.
pub const MOST_REPLICAS: u32 = 5;
/// The kinds of work.
pub const WORKLOADS: [&str; 5] = ["Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"];
/// Names of each kind of work: few, so that they are deleted and made again.
const NAMES: u32 = 2;
/// A namespace with a quota.
pub const TEAM: &str = "team";
/// The namespace that comes and goes.
const PASSING: &str = "passing";
/// The quota of [`TEAM`].
const QUOTA: &str = "quota";
/// Pods that the quota allows at first, enough for what there is to be in the end.
const QUOTA_PODS: u32 = 6;
/// Least and most that it allows meanwhile.
pub const QUOTA_RANGE: std::ops::RangeInclusive<u32> = 1..=8;
/// What it allows in the end: a StatefulSet makes the pods that it lacks before it deletes those it has too many of, so
/// there must be room for both.
pub const QUOTA_IN_THE_END: u32 = QUOTA_PODS + *QUOTA_RANGE.end();
/// What pods with volumes ask for: as they cannot go elsewhere, all of them fit on one node.
const PINNED_CPU: &str = "100m";

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for the cluster's own.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl Place {
    /// The place of an object.
    pub fn of(object: &Value) -> Self {
        let of = |pointer| text(object, pointer).to_owned();
        Self {
            kind: of("/kind"),
            namespace: of("/metadata/namespace"),
            name: of("/metadata/name"),
        }
    }

    /// Where objects of its kind are made.
    pub fn collection(&self) -> String {
        let (group, plural) = match self.kind.as_str() {
            "Deployment" => ("apis/apps/v1", "deployments"),
            "ReplicaSet" => ("apis/apps/v1", "replicasets"),
            "StatefulSet" => ("apis/apps/v1", "statefulsets"),
            "DaemonSet" => ("apis/apps/v1", "daemonsets"),
            "Job" => ("apis/batch/v1", "jobs"),
            "CronJob" => ("apis/batch/v1", "cronjobs"),
            "PodDisruptionBudget" => ("apis/policy/v1", "poddisruptionbudgets"),
            "PriorityClass" => ("apis/scheduling.k8s.io/v1", "priorityclasses"),
            "Service" => ("api/v1", "services"),
            "PersistentVolumeClaim" => ("api/v1", "persistentvolumeclaims"),
            "ResourceQuota" => ("api/v1", "resourcequotas"),
            "Namespace" => ("api/v1", "namespaces"),
            "Node" => ("api/v1", "nodes"),
            _ => ("api/v1", "pods"),
        };
        match self.namespace.as_str() {
            "" => format!("/{group}/{plural}"),
            namespace => format!("/{group}/namespaces/{namespace}/{plural}"),
        }
    }

    /// Where it is.
    pub fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

/// Whether an object is the user's to change: not one that every cluster has.
pub fn is_ours(object: &Value) -> bool {
    let namespace = text(object, "/metadata/namespace");
    namespace.is_empty() || ["default", TEAM, PASSING].contains(&namespace)
}

/// What everything else needs.
pub fn foundations() -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}),
        json!({"apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": QUOTA, "namespace": TEAM},
            "spec": {"hard": {"pods": QUOTA_PODS.to_string()}}}),
        priority_class("urgent", 1000),
        // Who can run on one node only must not wait for those who could run elsewhere.
        priority_class("pinned", 2000),
        priority_class("agents", 3000),
        passing_namespace(),
    ]
}

/// Where the quota is.
pub fn quota() -> Place {
    Place {
        kind: "ResourceQuota".into(),
        namespace: TEAM.into(),
        name: QUOTA.into(),
    }
}

fn priority_class(name: &str, value: i32) -> Value {
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": name}, "value": value})
}

/// The namespace that comes and goes.
pub fn passing_namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PASSING}})
}

/// Some work, with what belongs to it.
pub fn workload(chance: &mut StdRng) -> Vec<Value> {
    let namespace = *["default", "default", TEAM, PASSING]
        .choose(chance)
        .unwrap_or(&"default");
    let number = chance.random_range(0..NAMES);
    match chance.random_range(0..10) {
        0..4 => deployment(chance, namespace, &format!("web-{number}")),
        4..6 => stateful_set(chance, namespace, &format!("db-{number}")),
        6 => vec![daemon_set(chance, "default", &format!("agent-{number}"))],
        7..9 => vec![job(chance, namespace, &format!("task-{number}"))],
        _ => vec![cron_job(chance, namespace, &format!("tick-{number}"))],
    }
}

/// Holds an object's work up, or lets it go on.
pub fn hold(object: &mut Value, on: bool) {
    match text(object, "/kind") {
        "Deployment" => object["spec"]["paused"] = on.into(),
        "StatefulSet" => {
            let partition = if on { 2 } else { 0 };
            object["spec"]["updateStrategy"] =
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": partition}});
        }
        _ => object["spec"]["suspend"] = on.into(),
    }
}

/// Puts a node into one of four states, the first of which is none.
pub fn trouble(node: &mut Value, which: usize) {
    node["spec"]["unschedulable"] = (which == 1).into();
    let mut taints: Vec<Value> = crate::world::list(node, "/spec/taints").to_vec();
    taints.retain(|t| t["key"] != "trouble" && t["key"] != "node.kubernetes.io/unschedulable");
    match which {
        2 => taints.push(json!({"key": "trouble", "effect": "NoSchedule"})),
        3 => taints.push(json!({"key": "trouble", "effect": "NoExecute"})),
        _ => {}
    }
    node["spec"]["taints"] = taints.into();
}

fn template(chance: &mut StdRng, name: &str) -> Value {
    let image = format!("i:{}", chance.random_range(0..4));
    let cpu = ["100m", "250m", "500m"].choose(chance).copied();
    let mut spec = json!({
        "terminationGracePeriodSeconds": chance.random_range(1..30),
        "containers": [{"name": "c", "image": image,
            "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}}}],
    });
    if chance.random_bool(0.2) {
        spec["priorityClassName"] = "urgent".into();
    }
    if chance.random_bool(0.3) {
        // Pods leave a node that is lost soon, not after five minutes.
        let soon = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        spec["tolerations"] = json!([
            soon("node.kubernetes.io/not-ready"),
            soon("node.kubernetes.io/unreachable")
        ]);
    }
    if chance.random_bool(0.2) {
        spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
            "topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": name}}}]);
    }
    json!({"metadata": {"labels": {"app": name}}, "spec": spec})
}

fn service(namespace: &str, name: &str, headless: bool) -> Value {
    let mut spec = json!({"selector": {"app": name}, "ports": [{"port": 80}]});
    if headless {
        spec["clusterIP"] = "None".into();
    }
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn budget(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": name}}}})
}

fn deployment(chance: &mut StdRng, namespace: &str, name: &str) -> Vec<Value> {
    let (surge, unavailable) = *[("1", "0"), ("25%", "25%"), ("0", "1"), ("100%", "50%")]
        .choose(chance)
        .unwrap_or(&("1", "0"));
    let amount = |text: &str| text.parse::<u32>().map_or(json!(text), |n| json!(n));
    let mut spec = json!({
        "replicas": chance.random_range(1..=MOST_REPLICAS),
        "revisionHistoryLimit": chance.random_range(0..4),
        "selector": {"matchLabels": {"app": name}},
        "template": template(chance, name),
        "strategy": {"type": "RollingUpdate", "rollingUpdate":
            {"maxSurge": amount(surge), "maxUnavailable": amount(unavailable)}},
    });
    if chance.random_bool(0.2) {
        spec["strategy"] = json!({"type": "Recreate"});
    }
    if chance.random_bool(0.2) {
        spec["minReadySeconds"] = 5.into();
    }
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec});
    let mut all = vec![object, service(namespace, name, false)];
    if chance.random_bool(0.5) {
        all.push(budget(namespace, name));
    }
    all
}

fn stateful_set(chance: &mut StdRng, namespace: &str, name: &str) -> Vec<Value> {
    let policy = ["OrderedReady", "Parallel"].choose(chance).copied();
    let mut object = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
    "metadata": {"name": name, "namespace": namespace},
    "spec": {
        "replicas": chance.random_range(1..=MOST_REPLICAS),
        "serviceName": name,
        "podManagementPolicy": policy,
        "selector": {"matchLabels": {"app": name}},
        "template": template(chance, name),
    }});
    if chance.random_bool(0.5) {
        give_volumes(chance, &mut object);
    }
    let mut all = vec![service(namespace, name, true), object];
    if chance.random_bool(0.3) {
        all.push(budget(namespace, name));
    }
    all
}

/// Each pod gets a volume, made on the node that the pod is given.
fn give_volumes(chance: &mut StdRng, set: &mut Value) {
    let mut policy = || ["Retain", "Delete"].choose(chance).copied();
    let spec = &mut set["spec"];
    spec["persistentVolumeClaimRetentionPolicy"] =
        json!({"whenDeleted": policy(), "whenScaled": policy()});
    spec["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]);
    let pod = &mut spec["template"]["spec"];
    pod["priorityClassName"] = "pinned".into();
    pod["containers"][0]["resources"]["requests"]["cpu"] = PINNED_CPU.into();
    pod["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
}

fn daemon_set(chance: &mut StdRng, namespace: &str, name: &str) -> Value {
    let rolling = if chance.random_bool(0.5) {
        json!({"maxUnavailable": 1})
    } else {
        json!({"maxUnavailable": 0, "maxSurge": 1})
    };
    let mut template = template(chance, name);
    template["spec"]["priorityClassName"] = "agents".into();
    json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
    "metadata": {"name": name, "namespace": namespace},
    "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": template,
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
    }})
}

fn job_spec(chance: &mut StdRng, name: &str) -> Value {
    let mut template = template(chance, name);
    template["spec"]["restartPolicy"] = "Never".into();
    template["metadata"]["labels"]["fate"] =
        (*["good", "mixed"].choose(chance).unwrap_or(&"good")).into();
    let mode = ["NonIndexed", "Indexed"].choose(chance).copied();
    json!({
        "completions": chance.random_range(1..=6),
        "parallelism": chance.random_range(1..=3),
        "completionMode": mode,
        // Failures shall not end it.
        "backoffLimit": 100,
        "template": template,
    })
}

fn job(chance: &mut StdRng, namespace: &str, name: &str) -> Value {
    let mut spec = job_spec(chance, name);
    if chance.random_bool(0.2) {
        spec["ttlSecondsAfterFinished"] = chance.random_range(0..30).into();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

fn cron_job(chance: &mut StdRng, namespace: &str, name: &str) -> Value {
    let policy = ["Allow", "Forbid", "Replace"].choose(chance).copied();
    json!({"apiVersion": "batch/v1", "kind": "CronJob",
    "metadata": {"name": name, "namespace": namespace},
    "spec": {
        "schedule": "* * * * *",
        "concurrencyPolicy": policy,
        "successfulJobsHistoryLimit": chance.random_range(0..3),
        "jobTemplate": {"spec": job_spec(chance, name)},
    }})
}
