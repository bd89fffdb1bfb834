//! The planner against a simulated world: ReplicaSets that become ready at once or not at all.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::json;

use super::{
    model::{self, Snapshot},
    plan::{Action, plan},
    scale,
};

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Whether pods of images that start with "bad" never become available.
    now: i64,
}

impl World {
    fn new(replicas: i32, surge: i32, down: i32) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1,
                         "annotations": {"kubernetes.io/change-cause": "why"}},
            "spec": {"replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 1,
                "selector": {"matchLabels": {"a": "b"}},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": surge, "maxUnavailable": down}},
                "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        }))
        .unwrap();
        Self {
            deployment,
            sets: Vec::new(),
            now: 1000,
        }
    }

    fn image(&mut self, image: &str) {
        self.deployment
            .spec
            .template
            .spec
            .as_mut()
            .unwrap()
            .containers[0]
            .image = Some(image.into());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn resize(&mut self, replicas: i32) {
        self.deployment.spec.replicas = Some(replicas);
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    /// One plan carried out; answers its actions.
    fn step(&mut self) -> Vec<Action> {
        self.now += 1;
        let running = BTreeMap::new();
        let snapshot = Snapshot::new(self.deployment.clone(), self.sets.clone(), running);
        let plan = plan(&snapshot, Timestamp::from_second(self.now).unwrap());
        self.sets = snapshot.sets;
        let mut gone = Vec::new();
        for action in &plan.actions {
            match action {
                Action::Create(set) => {
                    let mut set = (**set).clone();
                    set.metadata.uid = set.metadata.name.clone();
                    set.metadata.creation_timestamp =
                        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                            Timestamp::from_second(self.now).unwrap(),
                        ));
                    self.sets.push(set);
                }
                Action::Scale { set, to, .. } => {
                    let annotations = scale::annotations(&self.deployment);
                    let set = &mut self.sets[*set];
                    set.spec.replicas = Some(*to);
                    set.metadata
                        .annotations
                        .get_or_insert_default()
                        .extend(annotations);
                }
                Action::Describe { set, annotations } => {
                    self.sets[*set].metadata.annotations = Some(annotations.clone());
                }
                Action::SetRevision(number) => {
                    let all = self.deployment.metadata.annotations.get_or_insert_default();
                    all.insert(model::REVISION.into(), number.clone());
                }
                Action::Delete(set) => gone.push(*set),
            }
        }
        for i in gone.into_iter().rev() {
            self.sets.remove(i);
        }
        self.deployment.status = Some(plan.status);
        plan.actions
    }

    /// Pods follow what the ReplicaSets ask for; bad ones never become available.
    fn pods_follow(&mut self) {
        for set in &mut self.sets {
            let image = image_of(set);
            let n = model::replicas(set);
            let up = if image.starts_with("bad") { 0 } else { n };
            set.status = Some(
                serde_json::from_value(
                    json!({"replicas": n, "readyReplicas": up, "availableReplicas": up}),
                )
                .unwrap(),
            );
        }
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        self.sets
            .iter()
            .map(|s| (image_of(s), model::replicas(s)))
            .collect()
    }

    fn settle(&mut self, mut invariant: impl FnMut(&World)) {
        for _ in 0..200 {
            let actions = self.step();
            invariant(self);
            let before = self.sizes();
            self.pods_follow();
            if actions.is_empty() && before == self.sizes() {
                self.step();
                return;
            }
        }
        panic!("never settles: {:?}", self.sizes());
    }

    fn reason(&self, kind: &str) -> String {
        let all = self
            .deployment
            .status
            .as_ref()
            .unwrap()
            .conditions
            .as_ref()
            .unwrap();
        all.iter()
            .find(|c| c.type_.as_deref() == Some(kind))
            .and_then(|c| c.reason.clone())
            .unwrap_or_default()
    }
}

fn image_of(set: &ReplicaSet) -> String {
    let template = set.spec.template.as_ref().unwrap();
    template.spec.as_ref().unwrap().containers[0]
        .image
        .clone()
        .unwrap()
}

#[test]
fn a_first_rollout_makes_one_set_of_full_size() {
    let mut w = World::new(3, 1, 0);
    let actions = w.step();
    let Action::Create(set) = &actions[0] else {
        panic!("{actions:?}")
    };
    assert_eq!(model::replicas(set), 3);
    let annotations = set.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations[model::REVISION], "1");
    assert_eq!(annotations["kubernetes.io/change-cause"], "why");
    assert_eq!(
        (&*annotations[model::DESIRED], &*annotations[model::MAX]),
        ("3", "4")
    );
    let hash = &set.metadata.labels.as_ref().unwrap()[model::HASH_LABEL];
    assert_eq!(set.metadata.name.as_deref(), Some(&*format!("d-{hash}")));
    w.settle(|_| {});
    assert_eq!(w.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(w.reason("Available"), "MinimumReplicasAvailable");
    assert!(w.step().is_empty());
}

#[test]
fn rolling_updates_stay_within_surge_and_availability() {
    for (replicas, surge, down) in [
        (1, 1, 0),
        (3, 1, 0),
        (5, 0, 1),
        (10, 3, 2),
        (4, 4, 4),
        (7, 0, 0),
    ] {
        let mut w = World::new(replicas, surge, down);
        w.settle(|_| {});
        w.image("v2");
        w.settle(|w| {
            let total: i32 = w.sets.iter().map(model::replicas).sum();
            assert!(
                total <= replicas + surge,
                "{total} pods of {replicas}+{surge}"
            );
            let up: i32 = w
                .sets
                .iter()
                .map(|s| model::available(s).min(model::replicas(s)))
                .sum();
            assert!(up >= replicas - down.max(i32::from(surge == 0)), "{up} up");
        });
        assert_eq!(w.sizes(), [("v1".into(), 0), ("v2".into(), replicas)]);
        assert_eq!(w.reason("Progressing"), "NewReplicaSetAvailable");
    }
}

#[test]
fn a_bad_template_stops_halfway_times_out_and_can_be_undone() {
    let mut w = World::new(4, 1, 1);
    w.settle(|_| {});
    w.image("bad");
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 3), ("bad".into(), 2)]);
    w.now += 601;
    w.step();
    assert_eq!(w.reason("Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(w.reason("Available"), "MinimumReplicasAvailable");
    w.image("v1");
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 4), ("bad".into(), 0)]);
    let meta = &w.sets[0].metadata;
    assert_eq!(model::annotation(meta, model::REVISION), Some("3"));
    assert_eq!(model::annotation(meta, model::REVISION_HISTORY), Some("1"));
    assert_eq!(
        model::annotation(&w.deployment.metadata, model::REVISION),
        Some("3")
    );
}

#[test]
fn history_beyond_the_limit_goes_oldest_first() {
    let mut w = World::new(2, 1, 0);
    w.settle(|_| {});
    for image in ["v2", "v3", "v4"] {
        w.image(image);
        w.settle(|_| {});
    }
    assert_eq!(w.sizes(), [("v3".into(), 0), ("v4".into(), 2)]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    let mut w = World::new(10, 3, 2);
    w.settle(|_| {});
    w.image("bad");
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 8), ("bad".into(), 5)]);
    w.resize(15);
    w.step();
    // 19 pods allowed (25% of nothing here: surge is a number): 15 + 3 = 18, five more.
    let sizes = w.sizes();
    assert_eq!(sizes, [("v1".into(), 11), ("bad".into(), 7)]);
}

#[test]
fn plain_scaling_changes_the_one_set_and_paused_ones_do_not_roll() {
    let mut w = World::new(2, 1, 0);
    w.settle(|_| {});
    w.resize(5);
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 5)]);
    w.deployment.spec.paused = Some(true);
    w.image("v2");
    w.resize(3);
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 3)]);
    assert_eq!(w.reason("Progressing"), "DeploymentPaused");
    w.deployment.spec.paused = None;
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 0), ("v2".into(), 3)]);
    w.resize(0);
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 0), ("v2".into(), 0)]);
}

/// Upstream's controller waits for ever there.
#[test]
fn sets_that_remember_another_size_do_not_stop_a_rollout() {
    for (old, replicas) in [(&["v1"][..], 1), (&["v1", "v2"][..], 2)] {
        for strategy in ["RollingUpdate", "Recreate"] {
            let mut w = World::new(5, 1, 0);
            for image in old {
                w.image(image);
                w.deployment.status = None;
                w.step();
            }
            for set in &mut w.sets {
                set.spec.replicas = Some(1);
            }
            w.pods_follow();
            w.image("v3");
            w.resize(replicas);
            let rollout = w.deployment.spec.strategy.as_mut().unwrap();
            rollout.type_ = Some(strategy.into());
            w.settle(|_| {});
            let sizes = w.sizes().into_iter().filter(|(_, size)| *size > 0);
            let expected = [("v3".to_owned(), replicas)];
            assert_eq!(sizes.collect::<Vec<_>>(), expected, "{strategy}");
        }
    }
}

#[test]
fn recreate_stops_the_old_before_it_starts_the_new() {
    let mut w = World::new(3, 1, 0);
    let strategy = w.deployment.spec.strategy.as_mut().unwrap();
    strategy.type_ = Some("Recreate".into());
    strategy.rolling_update = None;
    w.settle(|_| {});
    w.image("v2");
    assert_eq!(
        w.step()
            .iter()
            .filter(|a| matches!(a, Action::Scale { to: 0, .. }))
            .count(),
        1
    );
    assert!(
        w.step().iter().all(|a| !matches!(a, Action::Create(_))),
        "old pods still run"
    );
    w.pods_follow();
    assert!(
        w.step()
            .iter()
            .any(|a| matches!(a, Action::Create(s) if model::replicas(s) == 3))
    );
    w.settle(|_| {});
    assert_eq!(w.sizes(), [("v1".into(), 0), ("v2".into(), 3)]);
}
