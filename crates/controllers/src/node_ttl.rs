//! Tells kubelets how long they may keep Secrets and ConfigMaps without asking: the longer, the
//! more nodes there are.

use std::sync::atomic::{AtomicUsize, Ordering};

use client::{Cache, Error, Key, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "ttl-controller",
    run,
};

const TTL: &str = "node.alpha.kubernetes.io/ttl";
/// Seconds in a cluster of at least so many and at most so many nodes. The ranges overlap, so
/// that a cluster at a boundary does not change its mind with every node.
const BOUNDARIES: [(usize, usize, u32); 5] = [
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, usize::MAX, 300),
];

/// The boundary for this many nodes, coming from another.
fn step(mut at: usize, nodes: usize) -> usize {
    while nodes > BOUNDARIES[at].1 && at + 1 < BOUNDARIES.len() {
        at += 1;
    }
    while nodes < BOUNDARIES[at].0 && at > 0 {
        at -= 1;
    }
    at
}

struct Ttl {
    context: Context,
    nodes: Cache<Node>,
    boundary: AtomicUsize,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let nodes = context.caches.get::<Node>(Scope::all());
        nodes.synced().await;
        let queue = Queue::default();
        let (to, all) = (queue.clone(), nodes.clone());
        nodes.on_change(move |change| {
            to.add(change.key.clone());
            // One node more or less may change the number for all.
            if change.old.is_none() != change.new.is_none() {
                let near = |n: usize| {
                    BOUNDARIES.iter().any(|(a, b, _)| {
                        n == *a || n == *b || n == a.saturating_sub(1) || n == b.saturating_add(1)
                    })
                };
                if near(all.len()) {
                    all.entries().iter().for_each(|e| to.add(e.key.clone()));
                }
            }
        });
        let reconciler = Ttl {
            context: context.clone(),
            nodes,
            boundary: AtomicUsize::new(0),
        };
        context.work(reconciler, queue).await;
    })
}

impl Reconcile for Ttl {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let at = step(self.boundary.load(Ordering::Relaxed), self.nodes.len());
        self.boundary.store(at, Ordering::Relaxed);
        let wanted = BOUNDARIES[at].2.to_string();
        let Some(node) = self.nodes.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        let annotations = node.metadata.annotations.unwrap_or_default();
        if annotations.get(TTL) == Some(&wanted) {
            return Ok(Requeue::OnChange);
        }
        let patch = json!({"metadata": {"uid": node.metadata.uid, "annotations": {TTL: wanted}}});
        let api = write::cluster::<Node>(&self.context.client);
        if let Some(written) = write::patch(&api, &key.name, &patch).await? {
            self.nodes.caught_up(write::revision_of(&written)).await?;
        }
        Ok(Requeue::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_overlap() {
        for (at, nodes, expected) in [
            (0, 1, 0),
            (0, 100, 0),
            (0, 101, 1),
            (1, 95, 1),
            (1, 89, 0),
            (0, 5000, 4),
            (4, 1800, 4),
            (4, 1799, 3),
            (4, 10, 0),
        ] {
            assert_eq!(step(at, nodes), expected, "{at} {nodes}");
        }
    }
}
