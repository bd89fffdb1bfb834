//! Whether the node takes in a pod that was given to it. Usually it does, as the scheduler has looked
//! already; but whoever names a node in a pod's spec goes past the scheduler, and two schedulers know
//! nothing of each other.
//!
//! Invariant: what pods that were taken in request never exceeds what the node offers, and no two of
//! them hold one port. A pod holds what it was given until it is gone or has ended.
//!
//! A pod that the agent has shown in the API before, and a static one, are not judged again: they run.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use placement::host_ports::{self, HostPort};
use placement::node_selector;
use placement::resources::{Resources, requested};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::pod;
use crate::quantity::Amounts;

/// Why a pod is not taken in, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

impl Refusal {
    fn short(resource: &str, wanted: i64, used: i64, capacity: i64) -> Self {
        Self {
            reason: format!("OutOf{resource}"),
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, \
                 capacity: {capacity}"
            ),
        }
    }

    fn rule(name: &str, why: &str) -> Self {
        Self {
            reason: name.to_owned(),
            message: format!("Predicate {name} failed: {why}"),
        }
    }
}

/// What a pod holds of its node.
#[derive(Debug)]
struct Claim {
    requested: Resources,
    ports: Vec<HostPort>,
}

impl Claim {
    fn of(pod: &Pod) -> Self {
        let spec = pod::spec(pod);
        Self {
            requested: requested(spec),
            ports: host_ports::of(spec),
        }
    }
}

/// What the node offers, and which pod holds what of it.
#[derive(Debug)]
pub struct Admission {
    offered: Resources,
    held: Mutex<HashMap<String, Claim>>,
    /// Whether everything that held something before the agent began is known.
    known: watch::Sender<bool>,
}

impl Admission {
    /// A node that offers so much and holds no pods.
    pub fn new(allocatable: &Amounts) -> Self {
        Self {
            offered: Resources::of(Some(allocatable)),
            held: Mutex::default(),
            known: watch::Sender::new(false),
        }
    }

    /// Notes that all pods that were taken in earlier hold what they hold: from now on new ones are judged.
    pub fn open(&self) {
        self.known.send_replace(true);
    }

    /// Notes what a pod holds that is not judged, or no longer.
    pub fn hold(&self, pod: &Pod) {
        self.lock().insert(uid(pod), Claim::of(pod));
    }

    /// What a pod that was taken in wants has changed.
    pub fn update(&self, pod: &Pod) {
        if let Some(claim) = self.lock().get_mut(&uid(pod)) {
            *claim = Claim::of(pod);
        }
    }

    /// The pod no longer holds anything.
    pub fn release(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Takes the pod in, if it fits beside those that are here.
    fn take(&self, pod: &Pod) -> Result<(), Refusal> {
        let claim = Claim::of(pod);
        let mut held = self.lock();
        fits(&claim, &self.offered, held.values())?;
        held.insert(uid(pod), claim);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Claim>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// Whether the pod was here before: the agent stamps each pod that it takes in.
pub fn is_known(pod: &Pod) -> bool {
    pod::is_static(pod) || pod::status(pod).start_time.is_some()
}

/// Takes in a new pod, or says why not.
///
/// # Errors
/// The refusal.
pub async fn admit(agent: &Agent, pod: &Pod) -> Result<(), Refusal> {
    // It cannot fail: the sender is the agent's own.
    let _ = agent
        .admission
        .known
        .subscribe()
        .wait_for(|known| *known)
        .await;
    if let Some(os) = &pod::spec(pod).os
        && os.name != "linux"
    {
        return Err(Refusal {
            reason: "PodOSNotSupported".to_owned(),
            message: "Failed to admit pod as the OS field doesn't match node OS".to_owned(),
        });
    }
    let attracted = is_attracted(agent, pod).await;
    agent.admission.take(pod)?;
    if attracted {
        return Ok(());
    }
    agent.admission.release(&uid(pod));
    let why = "node(s) didn't match Pod's node affinity/selector";
    Err(Refusal::rule("NodeAffinity", why))
}

/// Labels that others gave the node are asked for only where those that the agent gave it do not
/// do: the scheduler may have seen one that was added a moment ago. Without an answer the scheduler's
/// word stands.
async fn is_attracted(agent: &Agent, pod: &Pod) -> bool {
    let name = &agent.config.node_name;
    let suits =
        |labels: &BTreeMap<String, String>| node_selector::suits(pod::spec(pod), name, labels);
    if suits(&crate::node::labels(agent)) {
        return true;
    }
    match Api::<Node>::all(agent.client.clone())
        .get_metadata(name)
        .await
    {
        Ok(node) => suits(&node.metadata.labels.unwrap_or_default()),
        Err(error) => {
            tracing::warn!(%error, "the node's labels are not known, its scheduler is believed");
            true
        }
    }
}

/// Judges in upstream's order; the first lack is told.
fn fits<'a>(
    claim: &Claim,
    offered: &Resources,
    held: impl Iterator<Item = &'a Claim>,
) -> Result<(), Refusal> {
    let mut used = Resources::default();
    let mut taken = Vec::new();
    for other in held {
        used.add(&other.requested);
        used.pods += 1;
        taken.extend_from_slice(&other.ports);
    }
    let own = &claim.requested;
    let amounts = [
        ("pods", 1, used.pods, offered.pods),
        ("cpu", own.milli_cpu, used.milli_cpu, offered.milli_cpu),
        ("memory", own.memory, used.memory, offered.memory),
        (
            "ephemeral-storage",
            own.ephemeral_storage,
            used.ephemeral_storage,
            offered.ephemeral_storage,
        ),
    ];
    // What a node does not know of may be offered by the cluster as a whole.
    let others = own.scalar.iter().filter_map(|(name, amount)| {
        let used = used.scalar.get(name).copied().unwrap_or_default();
        Some((name.as_str(), *amount, used, *offered.scalar.get(name)?))
    });
    for (name, wanted, used, offered) in amounts.into_iter().chain(others) {
        if wanted > 0 && wanted > offered - used {
            return Err(Refusal::short(name, wanted, used, offered));
        }
    }
    if host_ports::conflict(&claim.ports, &taken) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Err(Refusal::rule("NodePorts", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(uid: &str, requests: Value, port: Option<i32>) -> Pod {
        let ports = port.map(|p| json!([{"containerPort": p, "hostPort": p}]));
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": requests}, "ports": ports}]}}))
        .unwrap()
    }

    fn node() -> Admission {
        let offered = json!({"cpu": "2", "memory": "1Gi", "ephemeral-storage": "10Gi", "pods": "3",
            "hugepages-2Mi": "4Mi"});
        Admission::new(&serde_json::from_value(offered).unwrap())
    }

    #[test]
    fn what_does_not_fit_is_refused_in_upstreams_words() {
        let node = node();
        node.take(&pod(
            "a",
            json!({"cpu": "1500m", "memory": "1000Mi"}),
            Some(80),
        ))
        .unwrap();
        for (requests, port, reason, message) in [
            (
                json!({"cpu": "501m"}),
                None,
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000",
            ),
            (
                json!({"memory": "25Mi"}),
                None,
                "OutOfmemory",
                "Node didn't have enough resource: memory, requested: 26214400, used: 1048576000, \
                 capacity: 1073741824",
            ),
            (
                json!({"hugepages-2Mi": "6Mi"}),
                None,
                "OutOfhugepages-2Mi",
                "Node didn't have enough resource: hugepages-2Mi, requested: 6291456, used: 0, \
                 capacity: 4194304",
            ),
            (
                json!({}),
                Some(80),
                "NodePorts",
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
            ),
        ] {
            let refusal = node.take(&pod("b", requests, port)).unwrap_err();
            assert_eq!(
                (refusal.reason.as_str(), refusal.message.as_str()),
                (reason, message)
            );
        }
        let fits = json!({"cpu": "500m", "example.com/of-the-cluster": "1"});
        node.take(&pod("b", fits, Some(81))).unwrap();
    }

    #[test]
    fn a_pod_holds_what_it_has_until_it_is_released() {
        let node = node();
        for uid in ["a", "b", "c"] {
            node.take(&pod(uid, json!({}), None)).unwrap();
        }
        let full = node.take(&pod("d", json!({}), None)).unwrap_err();
        assert_eq!(full.reason, "OutOfpods");
        node.release("b");
        node.take(&pod("d", json!({"cpu": "1"}), None)).unwrap();
        node.update(&pod("d", json!({"cpu": "2"}), None));
        node.update(&pod("stranger", json!({"cpu": "2"}), None));
        node.release("a");
        let short = node
            .take(&pod("e", json!({"cpu": "1m"}), None))
            .unwrap_err();
        assert_eq!(short.reason, "OutOfcpu");
        // A pod that runs already is not asked whether it fits.
        node.hold(&pod("f", json!({"cpu": "64"}), None));
    }
}
