//! The planner against a simulated world of nodes.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, DaemonSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use super::{
    daemon,
    nodes::NodeFacts,
    plan::{self, Plan, Snapshot, Tries, plan},
};
use crate::pods;

struct World {
    set: DaemonSet,
    hash: String,
    nodes: Vec<Arc<NodeFacts>>,
    pods: Vec<Pod>,
    tries: Tries,
    now: i64,
    made: usize,
}

impl World {
    fn new(nodes: usize, rolling: Value) -> Self {
        let set = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1},
            "spec": {"selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}},
                "updateStrategy": rolling},
        });
        let facts = |i: usize| {
            let node = json!({"metadata": {"name": format!("n{i:02}")}});
            Arc::new(NodeFacts::of(serde_json::from_value(node).unwrap()))
        };
        Self {
            set: serde_json::from_value(set).unwrap(),
            hash: "one".into(),
            nodes: (0..nodes).map(facts).collect(),
            pods: Vec::new(),
            tries: Tries::default(),
            now: 1000,
            made: 0,
        }
    }

    fn with<T>(&self, f: impl FnOnce(&Snapshot) -> T) -> T {
        f(&Snapshot {
            set: &self.set,
            hash: &self.hash,
            nodes: &self.nodes,
            pods: &self.pods,
            tries: &self.tries,
            now: Timestamp::from_second(self.now).unwrap(),
        })
    }

    fn status(&self) -> DaemonSetStatus {
        self.with(plan::status).0
    }

    fn step(&mut self) -> Plan {
        self.now += 1;
        let plan = self.with(plan);
        let now = Timestamp::from_second(self.now).unwrap();
        for i in &plan.delete {
            self.pods[*i].metadata.deletion_timestamp = Some(Time(now));
        }
        for node in &plan.create {
            let mut pod = daemon(&self.set, &self.hash, node);
            pod.metadata.name = Some(format!("p{}", self.made));
            pod.metadata.creation_timestamp = Some(Time(now));
            self.made += 1;
            self.pods.push(pod);
        }
        for node in &plan.failed {
            self.tries.note(node, now);
        }
        plan
    }

    /// Pods that are leaving go, others run and are ready.
    fn kubelets(&mut self) {
        self.pods
            .retain(|p| p.metadata.deletion_timestamp.is_none());
        let now = Timestamp::from_second(self.now).unwrap().to_string();
        for pod in &mut self.pods {
            if pods::phase(pod).is_empty() {
                pod.status = serde_json::from_value(json!({"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": now}]}))
                .unwrap();
            }
        }
    }

    fn ready_nodes(&self) -> usize {
        let ready = self
            .pods
            .iter()
            .filter(|p| pods::is_active(p) && pods::is_ready(p));
        let nodes: BTreeSet<_> = ready
            .filter_map(|p| p.spec.as_ref().and_then(super::nodes::target))
            .collect();
        nodes.len()
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let plan = self.step();
            self.kubelets();
            if plan.create.is_empty() && plan.delete.is_empty() {
                return;
            }
        }
        panic!("did not settle");
    }
}

#[test]
fn every_node_gets_one_and_ended_ones_are_replaced() {
    let mut world = World::new(3, json!({"type": "RollingUpdate"}));
    assert_eq!(world.step().create, ["n00", "n01", "n02"]);
    world.kubelets();
    world.settle();
    let status = world.status();
    assert_eq!(
        (
            status.desired_number_scheduled,
            status.number_ready,
            status.number_available,
            status.updated_number_scheduled,
            status.number_unavailable
        ),
        (3, 3, Some(3), Some(3), None)
    );
    // One fails, again and again: the first goes at once, the next have to wait.
    let fail = |world: &mut World| {
        let first = world
            .pods
            .iter_mut()
            .find(|p| p.spec.as_ref().and_then(super::nodes::target) == Some("n00"));
        first.unwrap().status.get_or_insert_default().phase = Some("Failed".into());
    };
    fail(&mut world);
    let plan = world.step();
    assert_eq!(
        (plan.delete.len(), plan.events[0].1),
        (1, "FailedDaemonPod")
    );
    world.kubelets();
    world.settle();
    fail(&mut world);
    world
        .tries
        .note("n00", Timestamp::from_second(world.now + 1).unwrap());
    let plan = world.step();
    assert!(plan.delete.is_empty() && plan.wait.is_some());
    world.now += 10;
    assert_eq!(world.step().delete.len(), 1);
    world.kubelets();
    world.settle();
    // A node that goes takes its unassigned pod along; a doubled pod goes.
    world.nodes.pop();
    let doubled = daemon(&world.set, "one", "n00");
    world.pods.push(doubled);
    let plan = world.step();
    assert_eq!(plan.delete.len(), 2);
    assert_eq!(world.status().desired_number_scheduled, 2);
}

#[test]
fn updates_keep_within_their_fence() {
    for (rolling, least_ready, most_pods) in [
        (json!({"type": "RollingUpdate"}), 9, 10),
        (
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 3, "maxSurge": 0}}),
            7,
            10,
        ),
        (
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "15%"}}),
            8,
            10,
        ),
        (
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}}),
            10,
            12,
        ),
    ] {
        let mut world = World::new(10, rolling.clone());
        world.settle();
        world.hash = "two".into();
        for _ in 0..100 {
            world.step();
            let (ready, all) = (world.ready_nodes(), world.pods.len());
            assert!(ready >= least_ready, "{rolling}: {ready}");
            assert!(all <= most_pods, "{rolling}: {all}");
            world.kubelets();
        }
        let status = world.status();
        assert_eq!(status.updated_number_scheduled, Some(10), "{rolling}");
        assert_eq!(world.pods.len(), 10, "{rolling}");
    }
}

#[test]
fn on_delete_waits_for_the_user() {
    let mut world = World::new(2, json!({"type": "OnDelete"}));
    world.settle();
    world.hash = "two".into();
    assert_eq!(world.step(), Plan::default());
    world.pods.pop();
    world.settle();
    assert_eq!(world.status().updated_number_scheduled, Some(1));
}

#[test]
fn with_surge_a_new_pod_comes_while_the_last_one_goes() {
    for (rolling, expected) in [
        (json!({"type": "RollingUpdate"}), vec![]),
        (
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}),
            vec!["n00"],
        ),
        (
            json!({"type": "OnDelete", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}),
            vec![],
        ),
    ] {
        let mut world = World::new(1, rolling.clone());
        world.settle();
        let now = Timestamp::from_second(world.now).unwrap();
        world.pods[0].metadata.deletion_timestamp = Some(Time(now));
        assert_eq!(world.step().create, expected, "{rolling}");
    }
}

#[test]
fn with_surge_outdated_pods_leave_nodes_that_suit_no_more_when_there_are_others() {
    let surge =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    let mut world = World::new(2, surge);
    world.settle();
    let tainted = json!({"metadata": {"name": "n00"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    world.nodes[0] = Arc::new(NodeFacts::of(serde_json::from_value(tainted).unwrap()));
    world.hash = "two".into();
    let plan = world.step();
    assert_eq!(
        (plan.create, plan.delete),
        (vec!["n01".to_owned()], vec![0])
    );
}

/// A node that refuses every pod must not get one after the other.
#[test]
fn with_surge_pods_that_fail_are_waited_for_all_the_same() {
    let surge =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    let mut world = World::new(1, surge);
    let mut made = 0;
    for _ in 0..60 {
        made += world.step().create.len();
        world
            .pods
            .retain(|p| p.metadata.deletion_timestamp.is_none());
        for pod in &mut world.pods {
            pod.status.get_or_insert_default().phase = Some("Failed".into());
        }
    }
    assert!((4..10).contains(&made), "{made} within a minute");
}
