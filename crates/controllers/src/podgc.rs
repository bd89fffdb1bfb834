//! Removes pods that nobody else will: those whose node is gone, those that were deleted before
//! they had a node, those stuck on a node declared out of service, and the oldest of too many
//! ended ones.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use crate::{Context, Controller, pods};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "pod-garbage-collector",
    run,
};

/// Ended pods that are kept.
const ENDED_MAX: usize = 12_500;
/// A node may vanish and come back within this time.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
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
    /// Delete it at once; a condition with this message tells why.
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
        NodeState::OutOfService if deleting => Act::Delete(Some("PodGC: node is out of service")),
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
    /// Missing nodes that pods refer to, and since when they are missed.
    missing: Mutex<HashMap<String, Timestamp>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let nodes = context.caches.get::<Node>(Scope::all());
        let pods = context.caches.get::<Pod>(Scope::all());
        nodes.synced().await;
        pods.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        pods.on_change(move |change| to.add(change.key.clone()));
        let (to, on) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            on.entries_on(&change.key.name)
                .iter()
                .for_each(|e| to.add(e.key.clone()));
        });
        let missing = Mutex::default();
        context
            .work(
                PodGc {
                    context: context.clone(),
                    pods,
                    nodes,
                    missing,
                },
                queue,
            )
            .await;
    })
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

    async fn limit_ended(&self) -> Result<(), Error> {
        // Ended pods are few among all: decoding is worth it only when there may be too many.
        if self.pods.len() <= ENDED_MAX {
            return Ok(());
        }
        let mut ended: Vec<Pod> = self.pods.list();
        ended.retain(|p| pods::is_terminal(p) && p.metadata.deletion_timestamp.is_none());
        ended.sort_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let excess = ended.len().saturating_sub(ENDED_MAX);
        for pod in ended.iter().take(excess) {
            self.delete(pod, None).await?;
        }
        Ok(())
    }

    async fn delete(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        let key = Key::of(pod);
        let api: Api<Pod> = write::namespaced(&self.context.client, &key.namespace);
        if let Some(message) = why {
            let phase = if pods::is_terminal(pod) {
                pods::phase(pod)
            } else {
                "Failed"
            };
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": message,
                "lastTransitionTime": api::time::format(self.context.now()),
            });
            let patch =
                Patch::Strategic(json!({"status": {"phase": phase, "conditions": [condition]}}));
            let marked = api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await;
            if write::tolerate_missing(marked)?.is_none() {
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
        match api.delete(&key.name, &now).await {
            Err(e) if client::is_not_found(&e) || client::is_conflict(&e) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (
                pod("n", true),
                NodeState::OutOfService,
                Act::Delete(Some("PodGC: node is out of service")),
            ),
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
