//! Keeps as many pods of a template alive as a ReplicationController says: a ReplicaSet in
//! everything but its name.

use std::borrow::Cow;

use futures::future::BoxFuture;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetSpec, ReplicaSetStatus},
        core::v1::{ReplicationController, ReplicationControllerStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Context, Controller,
    replicaset::{self, Replicated},
};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "replication-controller",
    run,
};

fn run(context: Context) -> BoxFuture<'static, ()> {
    replicaset::run_for::<ReplicationController>(context, CONTROLLER.name)
}

impl Replicated for ReplicationController {
    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: LabelSelector {
                    match_labels: spec.selector,
                    match_expressions: None,
                },
                template: spec.template,
            },
            status: self.status.as_ref().and_then(convert),
        })
    }

    fn status_of(status: ReplicaSetStatus) -> Option<ReplicationControllerStatus> {
        convert(&status)
    }
}

/// Both kinds of status are written alike.
fn convert<A: Serialize, B: DeserializeOwned>(status: &A) -> Option<B> {
    serde_json::from_value(serde_json::to_value(status).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_a_replica_set_by_another_name() {
        let owner: ReplicationController = serde_json::from_value(json!({
            "metadata": {"name": "r", "uid": "u"},
            "spec": {"replicas": 4, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}},
            "status": {"replicas": 2, "readyReplicas": 1, "conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}]},
        }))
        .unwrap();
        let set = owner.as_set().into_owned();
        assert_eq!(set.spec.replicas, Some(4));
        let status = set.status.unwrap();
        assert_eq!((status.replicas, status.ready_replicas), (2, Some(1)));
        let back: ReplicationControllerStatus = convert(&status).unwrap();
        assert_eq!(Some(back), owner.status);
    }
}
