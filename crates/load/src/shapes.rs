//! Pods and nodes of the same shapes as in upstream's scheduler benchmark. Upstream runs it without
//! ServiceAccount and Priority admission: here pods mount no token, and priorities have a class.

use serde_json::{Value, json};

/// The priority class of pods that may push others away.
pub const HIGH: &str = "bench-high";
/// The one node by name of two workloads.
pub const NAMED_NODE: &str = "scheduler-perf-node";

/// Simulated nodes as upstream's: pods stay as the scheduler leaves them.
pub fn profile(zones: &[&str]) -> String {
    json!({
        "nodes": {"namePrefix": "scheduler-perf-", "zones": zones,
            "capacity": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
        "pods": [{"starts": false}],
    })
    .to_string()
}

fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "pod-"},
        "spec": {"automountServiceAccountToken": false, "containers": [
            {"name": "pause", "image": "registry.k8s.io/pause:3.10", "ports": [{"containerPort": 80}]}]},
    });
    change(&mut pod);
    pod
}

fn requesting(cpu: &str, limits: bool) -> impl FnOnce(&mut Value) {
    move |pod: &mut Value| {
        let amounts = json!({"cpu": cpu, "memory": "500Mi"});
        pod["spec"]["containers"][0]["resources"]["requests"] = amounts.clone();
        if limits {
            pod["spec"]["containers"][0]["resources"]["limits"] = amounts;
        }
    }
}

/// 100m of CPU, 500Mi of memory.
pub fn default() -> Value {
    pod(requesting("100m", true))
}

/// Nothing requested.
fn bare() -> Value {
    pod(|pod| {
        let container = pod["spec"]["containers"][0].as_object_mut();
        container.map(|c| c.remove("ports"));
    })
}

/// Nothing requested, and gone at once when deleted.
pub fn light() -> Value {
    let mut pod = bare();
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

/// Waiting for a gate.
pub fn gated() -> Value {
    let mut pod = bare();
    pod["spec"]["schedulingGates"] = json!([{"name": "test.k8s.io/hold"}]);
    pod
}

/// With a finalizer.
pub fn finalized() -> Value {
    let mut pod = bare();
    pod["metadata"]["finalizers"] = json!(["test.k8s.io/finalizer"]);
    pod
}

/// For the one node of this name.
pub fn daemon() -> Value {
    let mut pod = bare();
    pod["spec"]["affinity"] = json!({"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [NAMED_NODE]}]}]}}});
    pod
}

/// 900m of CPU, gone at once when deleted.
pub fn low_priority() -> Value {
    let mut pod = pod(requesting("900m", true));
    pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
    pod
}

/// 3 CPUs of a node's 4, more important than others.
pub fn high_priority() -> Value {
    let mut pod = pod(requesting("3000m", true));
    pod["spec"]["priorityClassName"] = HIGH.into();
    pod
}

/// More CPUs than any node has, and important.
pub fn too_large() -> Value {
    let mut pod = pod(requesting("9", false));
    pod["spec"]["priorityClassName"] = HIGH.into();
    pod
}

fn colored(color: &str) -> Value {
    let mut pod = default();
    pod["metadata"]["labels"] = json!({"color": color});
    pod
}

fn term(color: &str, topology: &str) -> Value {
    json!({
        "labelSelector": {"matchLabels": {"color": color}},
        "topologyKey": topology,
        "namespaces": ["sched-1", "sched-0"],
    })
}

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

/// On no node of another.
pub fn anti_affinity() -> Value {
    let mut pod = colored("green");
    pod["spec"]["affinity"]["podAntiAffinity"][REQUIRED] = json!([term("green", HOST)]);
    pod
}

/// In the zone of another.
pub fn affinity() -> Value {
    let mut pod = colored("blue");
    pod["spec"]["affinity"]["podAffinity"][REQUIRED] = json!([term("blue", ZONE)]);
    pod
}

/// Rather on the node of another.
pub fn preferred_affinity() -> Value {
    let mut pod = colored("red");
    pod["spec"]["affinity"]["podAffinity"][PREFERRED] =
        json!([{"weight": 1, "podAffinityTerm": term("red", HOST)}]);
    pod
}

/// Rather not on the node of another.
pub fn preferred_anti_affinity() -> Value {
    let mut pod = colored("yellow");
    pod["spec"]["affinity"]["podAntiAffinity"][PREFERRED] =
        json!([{"weight": 1, "podAffinityTerm": term("yellow", HOST)}]);
    pod
}

/// Spread over zones.
pub fn spreading(hard: bool) -> Value {
    let mut pod = colored("blue");
    pod["spec"]["topologySpreadConstraints"] = json!([{
        "maxSkew": 5, "topologyKey": ZONE,
        "whenUnsatisfiable": if hard { "DoNotSchedule" } else { "ScheduleAnyway" },
        "labelSelector": {"matchLabels": {"color": "blue"}},
    }]);
    pod
}

/// A node of its own name with room for 90,000 pods.
pub fn named_node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NAMED_NODE, "labels": {HOST: NAMED_NODE}},
        "status": {
            "capacity": {"pods": "90000", "cpu": "4", "memory": "32Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A node that comes and goes.
pub fn churned_node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {HOST: name}},
        "status": {
            "capacity": {"pods": "110", "cpu": "4", "memory": "32Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A Service that comes and goes.
pub fn churned_service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "foo"},
            "ports": [{"protocol": "TCP", "port": 8080, "targetPort": 8080}]},
    })
}
