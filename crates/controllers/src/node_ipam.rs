//! Gives each node its part of the cluster's pod addresses.

use std::collections::HashSet;

use client::{Cache, Error, Key, Queue, Reconcile, Recorder, Requeue, Scope, write};
use futures::future::BoxFuture;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tokio::sync::Mutex;

use crate::{Context, Controller};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "node-ipam-controller",
    run,
};

/// Tries to write a node's part before it is said that it has none.
const TRIES: u32 = 3;

/// The next part of `cluster` of this prefix length after the `last` one that is not taken; then those before it:
/// what a node has just given back may still be known to others as that node's.
fn allocate(
    cluster: IpNet,
    prefix: u8,
    taken: &HashSet<IpNet>,
    last: Option<IpNet>,
) -> Option<IpNet> {
    let free = || Some(cluster.subnets(prefix).ok()?.filter(|p| !taken.contains(p)));
    let after = free()?.find(|part| last.is_none_or(|last| *part > last));
    after.or_else(|| free()?.next())
}

struct Ipam {
    context: Context,
    recorder: Recorder,
    nodes: Cache<Node>,
    /// What was given last. One allocation at a time.
    last: Mutex<Option<IpNet>>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if context.config.cluster_cidr.is_none() {
            return;
        }
        let nodes = context.caches.get::<Node>(Scope::all());
        nodes.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        nodes.on_change(move |change| {
            if change.old.is_none() {
                to.add(change.key.clone());
            }
        });
        let recorder = context.recorder();
        let last = Mutex::default();
        context
            .work(
                Ipam {
                    context: context.clone(),
                    recorder,
                    nodes,
                    last,
                },
                queue,
            )
            .await;
    })
}

impl Reconcile for Ipam {
    type Key = Key;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, key: &Key) -> Result<Requeue, Error> {
        let mut last = self.last.lock().await;
        let Some(cluster) = self.context.config.cluster_cidr else {
            return Ok(Requeue::OnChange);
        };
        let Some(node) = self.nodes.get(key)? else {
            return Ok(Requeue::OnChange);
        };
        if of(&node).is_some() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Requeue::OnChange);
        }
        let taken = self.nodes.list().iter().filter_map(of).collect();
        let prefix = self.context.config.node_cidr_prefix;
        let Some(part) = allocate(cluster, prefix, &taken, *last) else {
            self.tell(&node, "CIDRNotAvailable");
            return Err(Error::Other("no addresses are left for the node".into()));
        };
        let patch = json!({"spec": {"podCIDR": part.to_string(), "podCIDRs": [part.to_string()]}});
        let api = write::cluster::<Node>(&self.context.client);
        let mut written = write::patch(&api, &key.name, &patch).await;
        for _ in 1..TRIES {
            if written.is_err() {
                written = write::patch(&api, &key.name, &patch).await;
            }
        }
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                self.tell(&node, "CIDRAssignmentFailed");
                return Err(error.into());
            }
        };
        *last = Some(part);
        self.nodes
            .caught_up(written.as_ref().map_or(0, write::revision_of))
            .await?;
        Ok(Requeue::OnChange)
    }
}

impl Ipam {
    fn tell(&self, node: &Node, what: &str) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Node {name} status is now: {what}");
        self.recorder.normal(node, what, message);
    }
}

fn of(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_free_part_is_given() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (mut taken, mut last) = (HashSet::new(), None);
        let mut next = |given_back: Option<&str>| {
            given_back.map(|part| taken.remove(&net(part)));
            let part = allocate(net("10.42.0.0/22"), 24, &taken, last);
            taken.extend(part);
            last = part.or(last);
            part.map(|p| p.to_string())
        };
        assert_eq!(next(None).as_deref(), Some("10.42.0.0/24"));
        assert_eq!(next(None).as_deref(), Some("10.42.1.0/24"));
        let given_back = Some("10.42.0.0/24");
        assert_eq!(next(given_back).as_deref(), Some("10.42.2.0/24"));
        assert_eq!(next(None).as_deref(), Some("10.42.3.0/24"));
        assert_eq!(next(None).as_deref(), given_back, "when no other is left");
        assert_eq!(next(None), None);
    }
}
