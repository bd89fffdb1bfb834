//! Planner and counting against a simulated world: pods that end as chance has it, writes that
//! fail, and a controller that is killed between any two steps.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};

use super::{
    backoff::Backoff,
    plan::{Act, NewPod, Plan, plan},
    template,
    track::{Effect, tally},
    view::{self, FINALIZER, INDEX, View, true_condition},
};
use crate::pods;

fn job(spec: Value) -> Job {
    let mut job = json!({
        "metadata": {"name": "j", "namespace": "n", "uid": "job"},
        "spec": {"parallelism": 1, "backoffLimit": 6, "completions": 1,
            "podReplacementPolicy": "TerminatingOrFailed",
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    serde_json::from_value(job).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A pod of the job with this phase and, where one is given, index.
fn pod(job: &Job, name: &str, phase: &str, index: Option<u32>) -> Pod {
    let new = NewPod {
        index,
        failures: None,
    };
    let mut pod = template::pod(job, job.spec.as_ref().unwrap(), new);
    pod.metadata.uid = Some(name.into());
    pod.metadata.name = Some(name.into());
    pod.metadata.creation_timestamp = Some(Time(at(100)));
    set_phase(&mut pod, phase);
    pod
}

fn set_phase(pod: &mut Pod, phase: &str) {
    pod.status.get_or_insert_default().phase = Some(phase.into());
}

fn decide(job: &Job, pods: &[Pod], now: i64) -> Plan {
    let spec = job.spec.as_ref().unwrap();
    plan(&View::new(job, spec, pods, Backoff::default(), at(now)))
}

#[test]
fn how_many_pods_are_wanted() {
    let running = |job: &Job, n: usize| -> Vec<Pod> {
        (0..n)
            .map(|i| pod(job, &format!("p{i}"), "Running", None))
            .collect()
    };
    for (spec, active, done, expected) in [
        (json!({}), 0, 0, Ok(1)),
        (json!({"completions": 5, "parallelism": 3}), 0, 0, Ok(3)),
        (json!({"completions": 5, "parallelism": 3}), 2, 4, Err(1)),
        (json!({"completions": 5, "parallelism": 3}), 0, 4, Ok(1)),
        (json!({"completions": 5, "parallelism": 0}), 2, 0, Err(2)),
        (json!({"completions": null, "parallelism": 3}), 1, 0, Ok(2)),
        (json!({"completions": null, "parallelism": 3}), 1, 1, Ok(0)),
        (
            json!({"completions": 9, "parallelism": 4, "suspend": true}),
            3,
            0,
            Err(3),
        ),
        (
            json!({"completions": 2000, "parallelism": 2000}),
            0,
            0,
            Ok(500),
        ),
    ] {
        let job = job(spec.clone());
        let mut pods = running(&job, active);
        for i in 0..done {
            pods.push(pod(&job, &format!("done{i}"), "Succeeded", None));
        }
        let act = match decide(&job, &pods, 200).act {
            Act::Create(new) => Ok(new.len()),
            Act::Nothing => Ok(0),
            Act::Remove(which) => Err(which.len()),
            Act::Terminate(_) => panic!("{spec}"),
        };
        assert_eq!(act, expected, "{spec}");
    }
}

#[test]
fn failures_wait_and_end_the_job() {
    let mut one = job(json!({"backoffLimit": 1}));
    let failed = |name: &str| pod(&one, name, "Failed", None);
    let pods = [failed("a")];
    let first = decide(&one, &pods, 104);
    assert_eq!(
        (first.act, first.wait.unwrap().as_secs()),
        (Act::Nothing, 6)
    );
    assert_eq!(
        decide(&one, &pods, 110).act,
        Act::Create(vec![NewPod::default()])
    );
    let two = [failed("a"), failed("b"), pod(&one, "c", "Running", None)];
    let end = decide(&one, &two, 110);
    assert_eq!(end.verdict.unwrap().reason, "BackoffLimitExceeded");
    assert_eq!(end.act, Act::Terminate(vec![2]));

    one.spec.as_mut().unwrap().active_deadline_seconds = Some(30);
    one.status = Some(JobStatus {
        start_time: Some(Time(at(100))),
        ..JobStatus::default()
    });
    let running = [pod(&one, "r", "Running", None)];
    assert_eq!(decide(&one, &running, 110).wait.unwrap().as_secs(), 20);
    let late = decide(&one, &running, 130).verdict.unwrap();
    assert_eq!(late.reason, "DeadlineExceeded");
}

#[test]
fn indexes_are_filled_in_order_and_doubles_go() {
    let spec = json!({"completions": 5, "parallelism": 3, "completionMode": "Indexed"});
    let job = job(spec);
    let pods = [
        pod(&job, "a", "Succeeded", Some(0)),
        pod(&job, "b", "Running", Some(2)),
    ];
    let Act::Create(new) = decide(&job, &pods, 200).act else {
        panic!()
    };
    let indexes: Vec<_> = new.iter().filter_map(|n| n.index).collect();
    assert_eq!(indexes, [1, 3]);
    let made = template::pod(&job, job.spec.as_ref().unwrap(), new[0]);
    let meta = &made.metadata;
    assert_eq!(meta.labels.as_ref().unwrap()[INDEX], "1");
    assert_eq!(meta.generate_name.as_deref(), Some("j-1-"));
    assert_eq!(
        meta.finalizers.as_deref(),
        Some(&[FINALIZER.to_owned()][..])
    );
    let spec = made.spec.unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-1"));
    assert_eq!(
        spec.containers[0].env.as_ref().unwrap()[0].name,
        "JOB_COMPLETION_INDEX"
    );

    let doubled = [
        pod(&job, "x", "Pending", Some(2)),
        pod(&job, "y", "Running", Some(2)),
        pod(&job, "far", "Running", Some(9)),
    ];
    assert_eq!(decide(&job, &doubled, 200).act, Act::Remove(vec![0, 2]));
}

#[test]
fn an_index_that_fails_too_often_does_not_stop_the_others() {
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed",
        "backoffLimit": i32::MAX, "backoffLimitPerIndex": 1});
    let job = job(spec);
    let first = pod(&job, "a", "Failed", Some(0));
    let plan = decide(&job, std::slice::from_ref(&first), 200);
    let again = NewPod {
        index: Some(0),
        failures: Some((1, 0)),
    };
    let fresh = NewPod {
        index: Some(1),
        failures: Some((0, 0)),
    };
    assert_eq!(plan.act, Act::Create(vec![again, fresh]));
    // It keeps its finalizer until its successor is there.
    let pods = [first.clone()];
    let v = View::new(
        &job,
        job.spec.as_ref().unwrap(),
        &pods,
        Backoff::default(),
        at(200),
    );
    assert!(tally(&v, &plan, &Effect::default()).release.is_empty());

    let mut second = template::pod(&job, job.spec.as_ref().unwrap(), again);
    second.metadata.uid = Some("b".into());
    set_phase(&mut second, "Failed");
    let done = pod(&job, "c", "Succeeded", Some(1));
    let end = decide(&job, &[second, done], 300).verdict.unwrap();
    assert_eq!((end.success, end.reason.as_str()), (false, "FailedIndexes"));
}

/// A world in which everything that can happen does, driven by a seed.
struct World {
    job: Job,
    pods: Vec<Pod>,
    backoff: Backoff,
    now: i64,
    seed: u64,
    made: usize,
    succeeded: BTreeSet<String>,
    failed: BTreeSet<String>,
    /// Uids removed without counting.
    removed: BTreeSet<String>,
}

impl World {
    fn new(spec: Value, seed: u64) -> Self {
        Self {
            job: job(spec),
            pods: Vec::new(),
            backoff: Backoff::default(),
            now: 1000,
            seed: seed.wrapping_mul(2).wrapping_add(1),
            made: 0,
            succeeded: BTreeSet::new(),
            failed: BTreeSet::new(),
            removed: BTreeSet::new(),
        }
    }

    fn chance(&mut self, of_hundred: u64) -> bool {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % 100 < of_hundred
    }

    fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    /// One look of the controller, which may die after each write.
    fn reconcile(&mut self) {
        let (job, pods) = (self.job.clone(), self.pods.clone());
        let spec = job.spec.as_ref().unwrap();
        let v = View::new(&job, spec, &pods, self.backoff, at(self.now));
        let plan = plan(&v);
        let effect = self.act(&v, &plan.act);
        if self.chance(10) {
            return;
        }
        let tally = tally(&v, &plan, &effect);
        self.job.status = Some(tally.status.clone());
        self.backoff = v.backoff;
        if self.chance(10) {
            self.backoff = Backoff::default();
            return;
        }
        let mut released = Vec::new();
        for &i in &tally.release {
            if !self.chance(10) {
                let uid = view::uid(&pods[i]).to_owned();
                self.release(&uid);
                released.push(uid);
            }
        }
        if self.chance(10) {
            return;
        }
        let released: Vec<&str> = released.iter().map(String::as_str).collect();
        self.job.status = Some(tally.after(&released, at(self.now)).0);
    }

    fn act(&mut self, v: &View, act: &Act) -> Effect {
        let mut effect = Effect::default();
        match act {
            Act::Nothing => {}
            Act::Create(new) => {
                for n in new {
                    if self.chance(10) {
                        break;
                    }
                    let mut pod = template::pod(v.job, v.spec, *n);
                    let name = format!("p{}", self.made);
                    pod.metadata.uid = Some(name.clone());
                    pod.metadata.name = Some(name);
                    pod.metadata.creation_timestamp = Some(Time(at(self.now)));
                    set_phase(&mut pod, "Pending");
                    self.made += 1;
                    effect.created += 1;
                    self.pods.push(pod);
                }
            }
            Act::Remove(which) | Act::Terminate(which) => {
                for &i in which {
                    if self.chance(10) {
                        continue;
                    }
                    let uid = view::uid(&v.pods[i]).to_owned();
                    if matches!(act, Act::Remove(_)) {
                        self.removed.insert(uid.clone());
                        self.release(&uid);
                    }
                    self.delete(&uid);
                    effect.deleted.push(i);
                }
            }
        }
        effect
    }

    fn delete(&mut self, uid: &str) {
        let now = Time(at(self.now));
        for pod in self.pods.iter_mut().filter(|p| view::uid(p) == uid) {
            pod.metadata.deletion_timestamp.get_or_insert(now.clone());
        }
    }

    fn release(&mut self, uid: &str) {
        for pod in self.pods.iter_mut().filter(|p| view::uid(p) == uid) {
            pod.metadata.finalizers = None;
        }
    }

    /// Pods start, end and leave.
    fn nodes(&mut self) {
        self.now += 7;
        for i in 0..self.pods.len() {
            let phase = pods::phase(&self.pods[i]).to_owned();
            let leaving = self.pods[i].metadata.deletion_timestamp.is_some();
            let new = match phase.as_str() {
                "Pending" | "Running" if leaving && self.chance(50) => "Failed",
                "Pending" if self.chance(60) => "Running",
                "Running" if self.chance(40) => {
                    if self.chance(70) {
                        "Succeeded"
                    } else {
                        "Failed"
                    }
                }
                _ => continue,
            };
            set_phase(&mut self.pods[i], new);
            let uid = view::uid(&self.pods[i]).to_owned();
            if self.removed.contains(&uid) {
                continue;
            }
            match new {
                "Succeeded" => self.succeeded.insert(uid),
                "Failed" => self.failed.insert(uid),
                _ => continue,
            };
        }
        self.pods.retain(|p| {
            p.metadata.deletion_timestamp.is_none() || view::is_tracked(p) || !pods::is_terminal(p)
        });
    }

    fn run(&mut self) {
        for _ in 0..3000 {
            self.reconcile();
            let status = self.status();
            if view::is_finished(&status) {
                return;
            }
            self.nodes();
        }
        panic!("did not end: {:?} {:?}", self.status(), self.pods);
    }
}

#[test]
fn every_pod_is_counted_exactly_once_whatever_happens() {
    let specs = [
        json!({"completions": 7, "parallelism": 3, "backoffLimit": 100}),
        json!({"completions": 7, "parallelism": 3, "backoffLimit": 2}),
        json!({"completions": null, "parallelism": 3, "backoffLimit": 100}),
        json!({"completions": 7, "parallelism": 3, "backoffLimit": 100, "podReplacementPolicy": "Failed"}),
        json!({"completions": 7, "parallelism": 9, "backoffLimit": 100, "completionMode": "Indexed"}),
        json!({"completions": 5, "parallelism": 5, "backoffLimit": 1000, "backoffLimitPerIndex": 1,
            "completionMode": "Indexed"}),
        json!({"completions": 9, "parallelism": 9, "backoffLimit": 100, "completionMode": "Indexed",
            "successPolicy": {"rules": [{"succeededIndexes": "0-5", "succeededCount": 3}]}}),
    ];
    for (which, spec) in specs.iter().enumerate() {
        for seed in 0..60 {
            let mut world = World::new(spec.clone(), seed * 101 + which as u64);
            world.run();
            let status = world.status();
            let case = format!("spec {which}, seed {seed}: {status:?}");
            let uncounted = status.uncounted_terminated_pods.clone().unwrap();
            assert!(
                uncounted.failed.is_none() && uncounted.succeeded.is_none(),
                "{case}"
            );
            assert!(world.pods.iter().all(|p| !pods::is_active(p)), "{case}");
            assert!(world.pods.iter().all(|p| !view::is_tracked(p)), "{case}");
            let complete = true_condition(&status, "Complete").is_some();
            if spec["completionMode"] == "Indexed" {
                let done = status.completed_indexes.clone().unwrap_or_default();
                let count = super::indexes::Indexes::parse(&done, 100).len();
                assert_eq!(status.succeeded.unwrap_or(0) as usize, count, "{case}");
                if complete && spec["successPolicy"].is_null() {
                    assert_eq!(
                        count,
                        spec["completions"].as_u64().unwrap() as usize,
                        "{case}"
                    );
                }
            } else {
                let succeeded = status.succeeded.unwrap_or(0) as usize;
                let failed = status.failed.unwrap_or(0) as usize;
                assert_eq!(
                    succeeded + failed + world.removed.len(),
                    world.made,
                    "{case}"
                );
                if complete {
                    assert_eq!(succeeded, world.succeeded.len(), "{case}");
                }
            }
            // A pod that was being deleted may end either way after it was counted as failed.
            if complete && spec["successPolicy"].is_null() {
                let failed = status.failed.unwrap_or(0) as usize;
                assert_eq!(failed, world.failed.len(), "{case}");
            }
            let interim = if complete {
                "SuccessCriteriaMet"
            } else {
                "FailureTarget"
            };
            assert!(true_condition(&status, interim).is_some(), "{case}");
            assert_eq!(status.completion_time.is_some(), complete, "{case}");
        }
    }
}

#[test]
fn a_suspended_job_lets_its_pods_go_and_comes_back() {
    let mut world = World::new(json!({"completions": 4, "parallelism": 2}), 5);
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    for _ in 0..5 {
        world.reconcile();
    }
    assert!(world.pods.is_empty() && world.status().start_time.is_none());
    assert!(true_condition(&world.status(), "Suspended").is_some());
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.run();
    let suspended = world.status().conditions.unwrap();
    let suspended = suspended.iter().find(|c| c.type_ == "Suspended").unwrap();
    assert_eq!(
        (suspended.status.as_str(), suspended.reason.as_deref()),
        ("False", Some("JobResumed"))
    );
}
