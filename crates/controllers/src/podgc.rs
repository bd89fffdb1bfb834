//! Removes pods that nobody else will: those whose node is gone, those that were deleted before
//! they had a node, those stuck on a node declared out of service, and the oldest of too many
//! ended ones.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use client::{Cache, Change, Error, Key, Queue, Reconcile, Requeue, Scope, Word, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use serde_json::json;

use crate::{Context, Controller, pod_control, pods};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "pod-garbage-collector",
    run,
};

/// Ended pods that are kept.
const ENDED_MAX: usize = 12_500;
/// A node may vanish and come back within this time.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// How pods that have ended look in their bytes.
static PHASES: [Word; 2] = [
    Word::new("\"phase\":\"Succeeded\""),
    Word::new("\"phase\":\"Failed\""),
];
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// How the node of a pod fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    /// It is there.
    There,
    /// It is there, not ready, and declared out of service.
    OutOfService,
    /// It is gone since then.
    GoneSince(Timestamp),
}

/// What is to be done about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Nothing,
    Wait(SignedDuration),
    /// Delete it at once; a condition with this message tells why where that is no wish of anybody.
    Delete(Option<&'static str>),
}

fn plan(pod: &Pod, node: NodeState, now: Timestamp) -> Act {
    let deleting = pod.metadata.deletion_timestamp.is_some();
    if pods::node(pod).is_empty() {
        return if deleting {
            Act::Delete(None)
        } else {
            Act::Nothing
        };
    }
    match node {
        NodeState::OutOfService if deleting => Act::Delete(None),
        NodeState::There | NodeState::OutOfService => Act::Nothing,
        NodeState::GoneSince(since) => {
            let left = QUARANTINE - now.duration_since(since);
            if left.is_positive() {
                Act::Wait(left)
            } else {
                Act::Delete(Some("PodGC: node no longer exists"))
            }
        }
    }
}

struct PodGc {
    context: Context,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    /// Missing nodes that pods refer to, and since when they are missed. Forgotten when the node is
    /// back or its last pod is gone.
    missing: Arc<Missing>,
    ended: Arc<Ended>,
}

type Missing = Mutex<HashMap<String, Timestamp>>;

/// The pods that have ended and are not being deleted.
type Ended = Mutex<BTreeSet<Key>>;

/// Whether a change of a pod may be of interest here. Most are not: the pod is well, and its node
/// is there. Decoding each would cost more than looking for a few words.
fn noticed(change: &Change, has_node: impl Fn(&str) -> bool, ended: &Ended) -> bool {
    let over = change
        .new
        .as_ref()
        .is_some_and(|e| !e.deleting && PHASES.iter().any(|phase| e.has(phase)));
    let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
    if over {
        ended.insert(change.key.clone());
    } else {
        ended.remove(&change.key);
    }
    let Some(pod) = &change.new else {
        return false;
    };
    let node = pod.node.as_deref().filter(|n| !n.is_empty());
    let lost = node.is_some_and(|name| !has_node(name));
    pod.deleting || lost || over && ended.len() > ENDED_MAX
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let nodes = context.caches.get::<Node>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        nodes.synced().await;
        pods.synced().await;
        let queue = Queue::default();
        let ended = Arc::new(Mutex::default());
        let (to, of, seen) = (queue.clone(), nodes.clone(), Arc::clone(&ended));
        let missing = Arc::new(Missing::default());
        let (left, on) = (Arc::clone(&missing), pods.clone());
        pods.on_change(move |change| {
            let has_node = |name: &str| of.contains(&Key::cluster(name));
            if noticed(change, has_node, &seen) {
                to.add(change.key.clone());
            }
            let gone = change.old.as_ref().filter(|_| change.new.is_none());
            if let Some(node) = gone.and_then(|e| e.node.as_deref()) {
                let mut missing = left.lock().unwrap_or_else(PoisonError::into_inner);
                if missing.contains_key(node) && on.entries_on(node).is_empty() {
                    missing.remove(node);
                }
            }
        });
        let (to, on, back) = (queue.clone(), pods.clone(), Arc::clone(&missing));
        nodes.on_change(move |change| {
            if change.new.is_some() {
                let mut missing = back.lock().unwrap_or_else(PoisonError::into_inner);
                missing.remove(&*change.key.name);
            }
            on.entries_on(&change.key.name)
                .iter()
                .for_each(|e| to.add(e.key.clone()));
        });
        context
            .work(
                PodGc {
                    context: context.clone(),
                    pods,
                    nodes,
                    missing,
                    ended,
                },
                queue,
            )
            .await;
    })
}

/// Whether its node has thrown it out.
fn is_evicted(pod: &Pod) -> bool {
    let reason = pod.status.as_ref().and_then(|s| s.reason.as_deref());
    pods::phase(pod) == "Failed" && reason == Some("Evicted")
}

impl Reconcile for PodGc {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let Some(pod) = self.pods.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if pods::is_terminal(&pod) {
            self.limit_ended().await?;
        }
        let now = self.context.now();
        match plan(&pod, self.node_state(pods::node(&pod), now)?, now) {
            Act::Nothing => Ok(Requeue::OnChange),
            Act::Wait(left) => Ok(left.try_into().map_or(Requeue::OnChange, Requeue::After)),
            // The cache may lag behind; the node's change brings its pods here again.
            Act::Delete(Some(_)) if self.is_there(pods::node(&pod)).await? => Ok(Requeue::OnChange),
            Act::Delete(why) => {
                self.delete(&pod, why).await?;
                Ok(Requeue::OnChange)
            }
        }
    }
}

impl PodGc {
    fn node_state(&self, name: &str, now: Timestamp) -> Result<NodeState, Error> {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = self.nodes.get(&Key::cluster(name))? else {
            return Ok(NodeState::GoneSince(
                *missing.entry(name.to_owned()).or_insert(now),
            ));
        };
        missing.remove(name);
        let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
        let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        let out = taints.iter().any(|t| t.key == OUT_OF_SERVICE);
        Ok(if out && !ready {
            NodeState::OutOfService
        } else {
            NodeState::There
        })
    }

    async fn is_there(&self, node: &str) -> Result<bool, Error> {
        let api: Api<Node> = write::cluster(&self.context.client);
        Ok(api.get_metadata_opt(node).await?.is_some())
    }

    async fn limit_ended(&self) -> Result<(), Error> {
        let keys: Vec<Key> = {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            if ended.len() <= ENDED_MAX {
                return Ok(());
            }
            ended.iter().cloned().collect()
        };
        let entries = keys.iter().filter_map(|key| self.pods.entry(key));
        let mut ended: Vec<Pod> = client::cache::decode_all(&entries.collect::<Vec<_>>());
        ended.retain(|p| pods::is_terminal(p) && p.metadata.deletion_timestamp.is_none());
        ended.sort_by_cached_key(|p| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (!is_evicted(p), created, p.metadata.name.clone())
        });
        let excess = ended.len().saturating_sub(ENDED_MAX);
        for pod in ended.iter().take(excess) {
            self.delete(pod, None).await?;
        }
        Ok(())
    }

    async fn delete(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        // Nobody else will say how it ended, which those who hold on to it want to know.
        if !pods::is_terminal(pod) {
            let generation = pod.metadata.generation;
            let mut status = json!({"phase": "Failed", "observedGeneration": generation});
            if let Some(message) = why {
                let why = ("DeletionByPodGC", message);
                let condition = pod_control::disruption(pod, why, self.context.now());
                status["conditions"] = json!([condition]);
            }
            if !pod_control::mark(&self.context, pod, &status).await? {
                return Ok(());
            }
        }
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let key = Key::of(pod);
        let api: Api<Pod> = write::namespaced(&self.context.client, &key.namespace);
        match api.delete(&key.name, &now).await {
            Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::{list, stand_in};

    #[test]
    fn only_pods_that_may_have_to_go_are_looked_at() {
        let ended = Ended::default();
        let look = |pod: serde_json::Value| {
            let text = pod.to_string();
            let entry = client::cache::parse_entry(text.as_bytes()).unwrap();
            let change = Change {
                key: entry.key.clone(),
                old: None,
                new: Some(Arc::new(entry)),
            };
            let noticed = noticed(&change, |name| name == "there", &ended);
            (noticed, ended.lock().unwrap().len())
        };
        let pod = |node: &str, phase: &str, deleting: bool| {
            let mut pod = json!({"metadata": {"name": "p", "namespace": "n"},
                "spec": {"nodeName": node}, "status": {"phase": phase}});
            if deleting {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            pod
        };
        assert_eq!(look(pod("there", "Running", false)), (false, 0));
        assert_eq!(look(pod("", "Pending", false)), (false, 0));
        assert_eq!(look(pod("gone", "Running", false)), (true, 0));
        assert_eq!(look(pod("", "Pending", true)), (true, 0));
        assert_eq!(look(pod("there", "Succeeded", false)), (false, 1));
        assert_eq!(look(pod("there", "Succeeded", true)), (true, 0));
    }

    /// A node that came back, of which no watch has told yet, keeps its pods.
    #[tokio::test]
    async fn pods_stay_with_a_node_that_only_the_cache_misses() {
        let (client, writes) = stand_in(|path, _| match path {
            "/api/v1/nodes/m" => Some(json!({"metadata": {"name": "m"}})),
            path if path.ends_with("/pods") => Some(list(json!([{
                "metadata": {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "5"},
                "spec": {"containers": [], "nodeName": "m"}}]))),
            _ => None,
        });
        let context = Context::new(client, Default::default(), Default::default());
        let (pods, nodes) = (
            context.caches.get::<Pod>(Scope::all()),
            context.caches.get::<Node>(Scope::all()),
        );
        pods.synced().await;
        nodes.synced().await;
        let since = HashMap::from([("m".to_owned(), Timestamp::UNIX_EPOCH)]);
        let collector = PodGc {
            context,
            pods,
            nodes,
            missing: Arc::new(Mutex::new(since)),
            ended: Arc::default(),
        };
        collector.reconcile(&Key::new("n", "p")).await.unwrap();
        assert_eq!(writes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn who_goes() {
        let pod = |node: &str, deleting: bool| -> Pod {
            let at = deleting.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"name": "p", "deletionTimestamp": at},
                "spec": {"containers": [], "nodeName": node},
            }))
            .unwrap()
        };
        let at = |s| Timestamp::from_second(s).unwrap();
        let gone = NodeState::GoneSince(at(100));
        for (pod, node, expected) in [
            (pod("", false), gone, Act::Nothing),
            (pod("", true), gone, Act::Delete(None)),
            (pod("n", true), NodeState::There, Act::Nothing),
            (pod("n", false), NodeState::OutOfService, Act::Nothing),
            (pod("n", true), NodeState::OutOfService, Act::Delete(None)),
        ] {
            assert_eq!(plan(&pod, node, at(110)), expected);
        }
        assert_eq!(
            plan(&pod("n", false), gone, at(110)),
            Act::Wait(SignedDuration::from_secs(30))
        );
        let expected = Act::Delete(Some("PodGC: node no longer exists"));
        assert_eq!(plan(&pod("n", false), gone, at(140)), expected);
    }
}
