//! The node authorizer: an agent `system:node:NAME` in `system:nodes` reads and writes its own
//! Node, Lease, CSINode and pods, and only those ConfigMaps, Secrets, claims, volumes and service
//! accounts that its own pods refer to.
//!
//! The references are an index over the pods in the store, keyed by node.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use serde_json::Value;
use store::{Event, EventKind, KeyValue, ReadError, Store};

use super::bootstrap::node_rules;
use super::follow::{self, Followed};
use super::rules::Rule;
use super::{Attributes, Decision};
use crate::registry::sparse::{self, Path};

const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
/// Resources a node may read only through a pod of its own.
const REFERENCED: [&str; 5] = [
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "persistentvolumes",
    "serviceaccounts",
];

/// Decides the requests of node identities.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<Rule>,
}

/// Where a pod's node is.
const NODE: Path<'_> = &["spec", "nodeName"];
/// Where a pod refers to other objects.
const REFERRING: &[Path<'_>] = &[
    &["metadata", "namespace"],
    &["spec", "serviceAccountName"],
    &["spec", "imagePullSecrets"],
    &["spec", "containers"],
    &["spec", "initContainers"],
    &["spec", "ephemeralContainers"],
    &["spec", "volumes"],
];

type Reference = (&'static str, String, String);

#[derive(Default)]
struct Graph {
    /// What each pod (by key) contributed: its node and its references.
    pods: HashMap<Vec<u8>, (String, Vec<Reference>)>,
    /// How many pods of a node refer to a thing.
    counts: HashMap<String, HashMap<Reference, usize>>,
}

impl Graph {
    fn set(&mut self, key: &[u8], pod: Option<&[u8]>) {
        let contributed = pod.and_then(contribution);
        // Statuses change more often than what a pod refers to, which never does.
        if contributed.as_ref() == self.pods.get(key) {
            return;
        }
        if let Some((node, references)) = self.pods.remove(key)
            && let Some(counts) = self.counts.get_mut(&node)
        {
            for reference in references {
                if let Some(count) = counts.get_mut(&reference) {
                    *count -= 1;
                    if *count == 0 {
                        counts.remove(&reference);
                    }
                }
            }
        }
        let Some((node, references)) = contributed else {
            return;
        };
        let counts = self.counts.entry(node.clone()).or_default();
        for reference in &references {
            *counts.entry(reference.clone()).or_default() += 1;
        }
        self.pods.insert(key.to_vec(), (node, references));
    }

    fn refers(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.counts.get(node).is_some_and(|counts| {
            counts
                .keys()
                .any(|(r, ns, n)| *r == resource && ns == namespace && n == name)
        })
    }

    fn owns_pod(&self, node: &str, namespace: &str, name: &str) -> bool {
        let key = format!("{}{namespace}/{name}", NodeAuthorizer::PODS);
        self.pods
            .get(key.as_bytes())
            .is_some_and(|(owner, _)| owner == node)
    }
}

/// The node of a stored pod and what it refers to; `None` without a node.
fn contribution(pod: &[u8]) -> Option<(String, Vec<Reference>)> {
    let assigned = sparse::read(pod, &[NODE]).ok()?;
    let node = api::meta::str_at(&assigned, NODE);
    if node.is_empty() {
        return None;
    }
    let pod = sparse::read(pod, REFERRING).ok()?;
    Some((node.to_owned(), references(&pod)))
}

/// Everything a pod's spec names that its node must be able to read.
fn references(pod: &Value) -> Vec<Reference> {
    let namespace = text(pod, "/metadata/namespace");
    let mut found: Vec<Reference> = Vec::new();
    let mut add = |resource: &'static str, name: Option<&str>| {
        if let Some(name) = name.filter(|n| !n.is_empty()) {
            let reference = (resource, namespace.clone(), name.to_owned());
            if !found.contains(&reference) {
                found.push(reference);
            }
        }
    };
    let spec = &pod["spec"];
    add("serviceaccounts", spec["serviceAccountName"].as_str());
    for secret in items(&spec["imagePullSecrets"]) {
        add("secrets", secret["name"].as_str());
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            for env in items(&container["env"]) {
                let from = &env["valueFrom"];
                add("configmaps", from["configMapKeyRef"]["name"].as_str());
                add("secrets", from["secretKeyRef"]["name"].as_str());
            }
            for from in items(&container["envFrom"]) {
                add("configmaps", from["configMapRef"]["name"].as_str());
                add("secrets", from["secretRef"]["name"].as_str());
            }
        }
    }
    for volume in items(&spec["volumes"]) {
        add("configmaps", volume["configMap"]["name"].as_str());
        add("secrets", volume["secret"]["secretName"].as_str());
        add(
            "persistentvolumeclaims",
            volume["persistentVolumeClaim"]["claimName"].as_str(),
        );
        for source in items(&volume["projected"]["sources"]) {
            add("configmaps", source["configMap"]["name"].as_str());
            add("secrets", source["secret"]["name"].as_str());
        }
    }
    found
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value, pointer: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

impl NodeAuthorizer {
    const PODS: &'static str = "/registry/pods/";

    /// Indexes the pods in `store` and follows their changes.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(store: Arc<dyn Store>) -> Result<(Arc<Self>, Followed), ReadError> {
        let this = Arc::new(Self {
            graph: RwLock::default(),
            rules: node_rules(),
        });
        let followed = follow::start(this.clone(), store).await?;
        Ok((this, followed))
    }

    /// Decides `request`; no opinion on users that are no nodes.
    pub fn authorize(&self, request: &Attributes) -> Decision {
        let Some(node) = node_name(request) else {
            return Decision::NoOpinion(String::new());
        };
        match self.refusal(node, request) {
            None => Decision::Allow(String::new()),
            Some(reason) => Decision::NoOpinion(reason),
        }
    }

    fn refusal(&self, node: &str, request: &Attributes) -> Option<String> {
        let reading = matches!(request.verb.as_str(), "get" | "list" | "watch");
        let core = request.group.is_empty();
        if core && reading && REFERENCED.contains(&request.resource.as_str()) {
            return self.unreferenced(node, request);
        }
        if core && request.resource == "serviceaccounts" && request.subresource == "token" {
            return self.unreferenced(node, request);
        }
        if core && request.resource == "pods" && !reading && request.verb != "create" {
            let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
            if !graph.owns_pod(node, &request.namespace, &request.name) {
                return Some(format!(
                    "no relationship found between node {node:?} and this object"
                ));
            }
        }
        let own_object = (core && request.resource == "nodes")
            || (request.group == "coordination.k8s.io" && request.resource == "leases")
            || (request.group == "storage.k8s.io" && request.resource == "csinodes");
        if own_object && !reading && request.verb != "create" && request.name != node {
            return Some(format!(
                "node {node:?} may only change its own {}",
                request.resource
            ));
        }
        if self.rules.iter().any(|rule| rule.grants(request)) {
            None
        } else {
            Some(String::new())
        }
    }

    /// Why a read of a thing that needs a pod's reference is refused, if it is.
    fn unreferenced(&self, node: &str, request: &Attributes) -> Option<String> {
        if request.name.is_empty() {
            return Some("can only read namespaced object of this type".to_owned());
        }
        // Bound volumes are found through their claim, which the pod names; the claim's volume is
        // not in the pod, so volumes are readable by any node, as they hold no secret.
        if request.resource == "persistentvolumes" {
            return None;
        }
        let graph = self.graph.read().unwrap_or_else(|e| e.into_inner());
        if graph.refers(node, &request.resource, &request.namespace, &request.name) {
            None
        } else {
            Some(format!(
                "no relationship found between node {node:?} and this object"
            ))
        }
    }
}

fn node_name(request: &Attributes) -> Option<&str> {
    if !request.user.in_group(NODES_GROUP) {
        return None;
    }
    request.user.name.strip_prefix(NODE_PREFIX)
}

impl follow::Index for NodeAuthorizer {
    const PREFIX: &'static str = Self::PODS;

    fn reset(&self, all: &[KeyValue]) {
        let mut graph = Graph::default();
        for kv in all {
            graph.set(&kv.key, Some(&kv.value));
        }
        *self.graph.write().unwrap_or_else(|e| e.into_inner()) = graph;
    }

    fn apply(&self, events: &[Event]) {
        let mut graph = self.graph.write().unwrap_or_else(|e| e.into_inner());
        for event in events {
            let value = match event.kind {
                EventKind::Put => Some(&event.kv.value[..]),
                EventKind::Delete => None,
            };
            graph.set(&event.kv.key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::UserInfo;
    use super::*;
    use serde_json::json;

    fn authorizer(pods: &[Value]) -> NodeAuthorizer {
        let this = NodeAuthorizer {
            graph: RwLock::default(),
            rules: node_rules(),
        };
        for pod in pods {
            let key = format!(
                "/registry/pods/{}/{}",
                pod["metadata"]["namespace"].as_str().unwrap(),
                pod["metadata"]["name"].as_str().unwrap()
            );
            let bytes = serde_json::to_vec(pod).unwrap();
            this.graph
                .write()
                .unwrap()
                .set(key.as_bytes(), Some(&bytes));
        }
        this
    }

    fn pod(name: &str, node: &str, secret: &str) -> Value {
        json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {"nodeName": node, "containers": [
                {"env": [{"name": "P", "valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}}]}
            ]}
        })
    }

    fn ask(node: &str, verb: &str, resource: &str, name: &str) -> Attributes {
        Attributes {
            user: UserInfo::new(format!("system:node:{node}"), &[NODES_GROUP]).into(),
            verb: verb.into(),
            resource: resource.into(),
            namespace: "default".into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_node_reads_only_the_secrets_of_its_own_pods() {
        let nodes = authorizer(&[pod("a", "n1", "s1"), pod("b", "n2", "s2")]);
        assert!(
            nodes
                .authorize(&ask("n1", "get", "secrets", "s1"))
                .allowed()
        );
        assert!(
            !nodes
                .authorize(&ask("n1", "get", "secrets", "s2"))
                .allowed()
        );
        assert!(!nodes.authorize(&ask("n1", "list", "secrets", "")).allowed());
    }

    #[test]
    fn a_secret_is_out_of_reach_once_the_last_pod_naming_it_is_gone() {
        let nodes = authorizer(&[pod("a", "n1", "s1"), pod("b", "n1", "s1")]);
        let mut graph = nodes.graph.write().unwrap();
        graph.set(b"/registry/pods/default/a", None);
        assert!(graph.refers("n1", "secrets", "default", "s1"));
        graph.set(b"/registry/pods/default/b", None);
        assert!(!graph.refers("n1", "secrets", "default", "s1"));
    }

    #[test]
    fn a_node_changes_only_its_own_node_and_pods() {
        let nodes = authorizer(&[pod("a", "n1", "s1")]);
        let status = |node: &str, resource: &str, name: &str| Attributes {
            subresource: "status".into(),
            ..ask(node, "patch", resource, name)
        };
        assert!(nodes.authorize(&status("n1", "nodes", "n1")).allowed());
        assert!(!nodes.authorize(&status("n1", "nodes", "n2")).allowed());
        assert!(nodes.authorize(&status("n1", "pods", "a")).allowed());
        assert!(!nodes.authorize(&status("n2", "pods", "a")).allowed());
    }

    #[test]
    fn others_get_no_opinion() {
        let nodes = authorizer(&[]);
        let mut request = ask("n1", "get", "nodes", "n1");
        request.user = UserInfo::new("jane", &[]).into();
        assert_eq!(
            nodes.authorize(&request),
            Decision::NoOpinion(String::new())
        );
    }
}
