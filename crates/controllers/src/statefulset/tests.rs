//! The planner against a simulated world, step by step.

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetStatus},
        core::v1::{Pod, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use super::{
    identity::{ordinal, revision},
    plan::{self, Action, Snapshot, plan},
};
use crate::pods;

struct World {
    set: StatefulSet,
    old: PodTemplateSpec,
    update: String,
    pods: Vec<Pod>,
    now: i64,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut set = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "s", "generation": 1},
            "spec": {"replicas": 3, "serviceName": "svc", "selector": {"matchLabels": {"a": "b"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "podManagementPolicy": "OrderedReady",
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}},
        });
        for (key, value) in spec.as_object().unwrap() {
            set["spec"][key] = value.clone();
        }
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        let mut world = Self {
            old: set.spec.template.clone(),
            set,
            update: "one".into(),
            pods: Vec::new(),
            now: 1000,
        };
        world.set.status = Some(StatefulSetStatus {
            current_revision: Some("one".into()),
            ..StatefulSetStatus::default()
        });
        world
    }

    fn with<T>(&self, f: impl FnOnce(&Snapshot) -> T) -> T {
        let status = self.set.status.clone().unwrap_or_default();
        let current = status.current_revision.unwrap_or_default();
        f(&Snapshot {
            set: &self.set,
            current: (&current, &self.old),
            update: &self.update,
            pods: &self.pods,
            now: Timestamp::from_second(self.now).unwrap(),
        })
    }

    /// One pass; answers what it did, such as `+web-0` and `-web-2`.
    fn step(&mut self) -> Vec<String> {
        self.now += 1;
        let actions = self.with(plan);
        let mut told = Vec::new();
        for action in actions {
            match action {
                Action::Create(_, pod) => {
                    told.push(format!("+{}", pod.metadata.name.clone().unwrap()));
                    let mut pod = *pod;
                    pod.status.get_or_insert_default().phase = Some("Pending".into());
                    self.pods.push(pod);
                }
                Action::Delete(i) => {
                    let meta = &mut self.pods[i].metadata;
                    told.push(format!("-{}", meta.name.clone().unwrap()));
                    let now = Timestamp::from_second(self.now).unwrap();
                    meta.deletion_timestamp = Some(Time(now));
                }
                Action::Label(ordinal, _) => told.push(format!("!{ordinal}")),
                Action::Store(ordinal, _) => told.push(format!("#{ordinal}")),
                Action::Provide(ordinal, _) => told.push(format!("?{ordinal}")),
            }
        }
        self.set.status = Some(self.with(|s| plan::status(s, None)).0);
        told
    }

    fn kubelets(&mut self) {
        self.pods
            .retain(|p| p.metadata.deletion_timestamp.is_none());
        let now = Timestamp::from_second(self.now).unwrap().to_string();
        for pod in &mut self.pods {
            if pods::phase(pod) == "Pending" {
                pod.status = serde_json::from_value(json!({"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": now}]}))
                .unwrap();
            }
        }
        self.set.status = Some(self.with(|s| plan::status(s, None)).0);
    }

    fn settle(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..50 {
            let told = self.step();
            self.kubelets();
            if told.is_empty() {
                return all;
            }
            all.extend(told);
        }
        panic!("did not settle: {all:?}");
    }

    fn revisions(&self) -> Vec<(u32, &str)> {
        let mut all: Vec<_> = self
            .pods
            .iter()
            .map(|p| (ordinal(&self.set, p).unwrap(), revision(p)))
            .collect();
        all.sort_unstable();
        all
    }

    fn fail(&mut self, name: &str) {
        let found = |p: &&mut Pod| p.metadata.name.as_deref() == Some(name);
        let pod = self.pods.iter_mut().find(found).unwrap();
        pod.status.get_or_insert_default().phase = Some("Failed".into());
    }

    fn break_pod(&mut self, name: &str) {
        let found = |p: &&mut Pod| p.metadata.name.as_deref() == Some(name);
        let pod = self.pods.iter_mut().find(found).unwrap();
        pod.status.get_or_insert_default().conditions = None;
    }
}

#[test]
fn pods_that_wait_get_their_claims_again() {
    let mut world = World::new(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}}]}));
    assert_eq!(world.step(), ["+web-0"]);
    assert_eq!(world.step(), ["?0"]);
    world.kubelets();
    assert_eq!(world.step(), ["+web-1"], "who runs has its claims");
}

#[test]
fn adopted_pods_get_their_name_and_claims_once_they_run() {
    for (policy, waiting) in [("OrderedReady", vec!["?0"]), ("Parallel", vec!["?0", "#0"])] {
        let mut world = World::new(json!({"replicas": 1, "podManagementPolicy": policy,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}));
        world.step();
        let pod = &mut world.pods[0];
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.retain(|key, _| key == super::identity::REVISION_LABEL);
        pod.spec.get_or_insert_default().volumes = None;
        assert_eq!(world.step(), waiting, "{policy}");
        world.kubelets();
        assert!(world.step().contains(&"#0".to_owned()), "{policy}");
        let conformed = super::identity::conformed(&world.set, &world.pods[0], 0);
        world.pods[0].spec = conformed.spec;
        assert!(world.step().contains(&"!0".to_owned()), "{policy}");
        world.pods[0].metadata = conformed.metadata;
        let told = world.step();
        assert!(!told.iter().any(|t| t == "#0" || t == "!0"), "{told:?}");
    }
}

#[test]
fn pods_come_in_order_and_go_in_reverse() {
    let mut world = World::new(json!({}));
    assert_eq!(world.step(), ["+web-0"]);
    assert_eq!(world.step(), [""; 0], "waits until it is ready");
    world.kubelets();
    assert_eq!(world.settle(), ["+web-1", "+web-2"]);
    let status = world.set.status.clone().unwrap();
    assert_eq!(
        (
            status.replicas,
            status.ready_replicas,
            status.updated_replicas,
            status.current_replicas
        ),
        (3, Some(3), Some(3), Some(3))
    );
    world.fail("web-1");
    assert_eq!(world.settle(), ["-web-1", "+web-1"]);
    world.set.spec.replicas = Some(0);
    assert_eq!(world.step(), ["-web-2"]);
    assert_eq!(world.step(), [""; 0], "waits until it is gone");
    world.kubelets();
    assert_eq!(world.settle(), ["-web-1", "-web-0"]);
}

#[test]
fn an_unhealthy_pod_stops_shrinking_unless_it_is_the_lowest() {
    let mut world = World::new(json!({}));
    world.settle();
    world.set.spec.replicas = Some(1);
    world.break_pod("web-1");
    assert_eq!(world.step(), ["-web-2"]);
    world.kubelets();
    // The broken one is the first unhealthy itself.
    assert_eq!(world.step(), ["-web-1"]);
    let mut world = World::new(json!({}));
    world.settle();
    world.set.spec.replicas = Some(1);
    world.break_pod("web-0");
    assert_eq!(world.step(), [""; 0]);
}

#[test]
fn without_order_all_at_once() {
    let mut world =
        World::new(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 2}}));
    assert_eq!(world.step(), ["+web-2", "+web-3", "+web-4"]);
    world.set.spec.replicas = Some(1);
    assert_eq!(world.step(), ["-web-4", "-web-3"]);
}

#[test]
fn updates_roll_downwards_to_the_partition() {
    for (spec, steps, revisions) in [
        (
            json!({}),
            vec!["-web-2", "+web-2", "-web-1", "+web-1", "-web-0", "+web-0"],
            ["two", "two", "two"],
        ),
        (
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
            vec!["-web-2", "+web-2"],
            ["one", "one", "two"],
        ),
        (
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}}),
            vec!["-web-2", "-web-1", "+web-1", "+web-2", "-web-0", "+web-0"],
            ["two", "two", "two"],
        ),
        (
            json!({"updateStrategy": {"type": "OnDelete"}}),
            vec![],
            ["one", "one", "one"],
        ),
    ] {
        let mut world = World::new(spec.clone());
        world.settle();
        world.update = "two".into();
        assert_eq!(world.settle(), steps, "{spec}");
        let found: Vec<_> = world.revisions().into_iter().map(|(_, r)| r).collect();
        assert_eq!(found, revisions, "{spec}");
        let status = world.set.status.clone().unwrap();
        let done = revisions == ["two"; 3];
        assert_eq!(
            status.current_revision.as_deref() == Some("two"),
            done,
            "{spec}"
        );
    }
}

#[test]
fn below_the_partition_pods_come_back_as_they_were() {
    let spec =
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    let mut world = World::new(spec);
    world.settle();
    world.update = "two".into();
    world.settle();
    world.fail("web-0");
    world.settle();
    assert_eq!(world.revisions(), [(0, "one"), (1, "one"), (2, "two")]);
}

#[test]
fn a_broken_update_stops_and_availability_is_waited_for() {
    let mut world = World::new(json!({"minReadySeconds": 10}));
    assert_eq!(world.step(), ["+web-0"]);
    world.kubelets();
    assert_eq!(world.step(), [""; 0]);
    let soon = world.with(|s| plan::status(s, None)).1.unwrap();
    assert_eq!(soon.as_secs(), 9);
    world.now += 10;
    assert_eq!(world.step(), ["+web-1"]);

    let mut world = World::new(json!({"podManagementPolicy": "Parallel"}));
    world.settle();
    world.update = "two".into();
    assert_eq!(world.step(), ["-web-2"]);
    world.kubelets();
    assert_eq!(world.step(), ["+web-2"]);
    assert_eq!(world.step(), [""; 0], "the new one is not available yet");
}

#[test]
fn without_order_broken_outdated_pods_go_whatever_the_limit() {
    for (limit, broken, expected) in [
        (1, vec!["web-1"], vec!["-web-1"]),
        (1, vec!["web-0", "web-1"], vec!["-web-1", "-web-0"]),
        (2, vec!["web-1"], vec!["-web-2", "-web-1"]),
        (
            3,
            vec!["web-0", "web-1"],
            vec!["-web-2", "-web-1", "-web-0"],
        ),
    ] {
        let mut world = World::new(json!({"podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": limit}}}));
        world.settle();
        broken.iter().for_each(|name| world.break_pod(name));
        world.update = "two".into();
        assert_eq!(world.step(), expected, "{limit} {broken:?}");
    }
}
