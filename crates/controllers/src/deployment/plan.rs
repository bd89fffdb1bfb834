//! The next step of a Deployment. Pure.
//!
//! One plan is one step: the shell carries it out, and the change it causes brings the next one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    hash,
    model::{self, Snapshot},
    rolling, scale, status,
};
use crate::{
    claim,
    conditions::{self, Verdict},
};

/// Most characters of the earlier numbers of a template.
const HISTORY_MAX: usize = 2000;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the ReplicaSet of the present template.
    Create(Box<ReplicaSet>),
    /// Set replicas (where it differs) and annotations of a ReplicaSet.
    Scale {
        /// Its place in the snapshot.
        set: usize,
        /// From this many.
        from: i32,
        /// To this many.
        to: i32,
    },
    /// Set annotations and `minReadySeconds` of a ReplicaSet.
    Describe {
        /// Its place in the snapshot.
        set: usize,
        /// All its annotations from now on.
        annotations: BTreeMap<String, String>,
    },
    /// Set the revision annotation of the Deployment.
    SetRevision(String),
    /// Delete a ReplicaSet of the history.
    Delete(usize),
}

/// What to do and what to report.
#[derive(Debug, PartialEq)]
pub struct Plan {
    /// In this order; an error ends the plan.
    pub actions: Vec<Action>,
    /// The status to report after.
    pub status: DeploymentStatus,
}

/// Decides the next step.
pub fn plan(snapshot: &Snapshot, now: Timestamp) -> Plan {
    let mut step = Step {
        snapshot,
        now,
        conditions: snapshot
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default(),
        actions: Vec::new(),
    };
    let rollout = step.decide();
    let Step {
        conditions,
        actions,
        ..
    } = step;
    let status = status::of(snapshot, conditions, rollout, now);
    Plan { actions, status }
}

struct Step<'a> {
    snapshot: &'a Snapshot,
    now: Timestamp,
    conditions: Vec<DeploymentCondition>,
    actions: Vec<Action>,
}

impl Step<'_> {
    /// Answers whether the status is that of a roll-out, whose progress is judged.
    fn decide(&mut self) -> bool {
        let s = self.snapshot;
        let d = &s.deployment;
        if d.metadata.deletion_timestamp.is_some() {
            return false;
        }
        self.note_pause();
        let sizes = match model::is_paused(d) || scale::is_due(s) {
            true => scale::proportionally(s),
            false => Vec::new(),
        };
        // Where no size has to change, the roll-out goes on: it must not wait for ReplicaSets that
        // remember another size of the Deployment, such as those adopted or of the strategy Recreate.
        if model::is_paused(d) || !sizes.is_empty() {
            self.sync_revision(false);
            self.actions.extend(sizes);
            if model::is_paused(d) && model::number(&d.metadata, model::ROLLBACK_TO).is_none() {
                self.clean_up();
            }
            return false;
        }
        if model::is_rolling(d) {
            self.roll()
        } else {
            self.recreate()
        }
        true
    }

    fn roll(&mut self) {
        let s = self.snapshot;
        self.sync_revision(true);
        let Some(current) = s.current() else { return };
        if let Some(to) = rolling::current_size(s, current) {
            return self.scale(current, to);
        }
        let downs = rolling::old_sizes(s, current);
        if !downs.is_empty() {
            return downs.into_iter().for_each(|(set, to)| self.scale(set, to));
        }
        if status::is_complete(s) {
            self.clean_up();
        }
    }

    fn recreate(&mut self) {
        let s = self.snapshot;
        self.sync_revision(false);
        let active: Vec<usize> = s
            .old()
            .into_iter()
            .filter(|&i| model::replicas(&s.sets[i]) > 0)
            .collect();
        if !active.is_empty() {
            return active.into_iter().for_each(|set| self.scale(set, 0));
        }
        if self.old_pods_run() {
            return;
        }
        let wanted = model::desired(&s.deployment);
        match s.current() {
            None => self.sync_revision(true),
            Some(i) if model::replicas(&s.sets[i]) != wanted => self.scale(i, wanted),
            Some(_) if status::is_complete(s) => self.clean_up(),
            Some(_) => {}
        }
    }

    fn old_pods_run(&self) -> bool {
        let s = self.snapshot;
        let old = s.old();
        let current = s.current().and_then(|i| s.sets[i].metadata.uid.clone());
        s.actual(&old) > 0
            || s.running
                .iter()
                .any(|(uid, runs)| *runs && Some(uid) != current.as_ref())
    }

    /// Numbers the present template, and makes its ReplicaSet if asked to.
    fn sync_revision(&mut self, create: bool) {
        let s = self.snapshot;
        let old = s.old();
        let highest = old
            .iter()
            .map(|&i| model::revision(&s.sets[i].metadata))
            .max()
            .unwrap_or(0);
        let number = (highest + 1).to_string();
        match s.current() {
            Some(i) => self.describe(i, &number),
            None if create => {
                let set = self.new_set(&number);
                let name = set.metadata.name.clone().unwrap_or_default();
                self.actions.push(Action::Create(Box::new(set)));
                self.set_revision(&number);
                if model::deadline(&s.deployment).is_some() {
                    self.progress(
                        "True",
                        "NewReplicaSetCreated",
                        format!("Created new replica set \"{name}\""),
                    );
                }
            }
            None => {}
        }
    }

    fn describe(&mut self, i: usize, number: &str) {
        let s = self.snapshot;
        let set = &s.sets[i];
        let annotations = inherit(&s.deployment.metadata, &set.metadata, number);
        let set_min = set.spec.min_ready_seconds.unwrap_or(0);
        let min = s.deployment.spec.min_ready_seconds.unwrap_or(0);
        let revision = annotations
            .get(model::REVISION)
            .cloned()
            .unwrap_or_default();
        if set.metadata.annotations.as_ref() != Some(&annotations) || set_min != min {
            self.actions.push(Action::Describe {
                set: i,
                annotations,
            });
        }
        self.set_revision(&revision);
        let progressing = conditions::find(&self.conditions, status::PROGRESSING).is_some();
        if model::deadline(&s.deployment).is_some() && !progressing {
            let name = set.metadata.name.clone().unwrap_or_default();
            self.progress(
                "True",
                "FoundNewReplicaSet",
                format!("Found new replica set \"{name}\""),
            );
        }
    }

    fn set_revision(&mut self, number: &str) {
        if model::annotation(&self.snapshot.deployment.metadata, model::REVISION) != Some(number) {
            self.actions.push(Action::SetRevision(number.to_owned()));
        }
    }

    fn new_set(&self, number: &str) -> ReplicaSet {
        let d = &self.snapshot.deployment;
        let name = d.metadata.name.as_deref().unwrap_or_default();
        let spec = &d.spec;
        let collisions = d
            .status
            .as_ref()
            .and_then(|s| s.collision_count)
            .unwrap_or(0);
        let hash = hash::of_template(&spec.template, collisions);
        let label = || (model::HASH_LABEL.to_owned(), hash.clone());
        let mut template = spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.extend([label()]);
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .extend([label()]);
        let mut annotations = inherit(&d.metadata, &ObjectMeta::default(), number);
        annotations.extend(scale::annotations(d));
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(hash::name(name, &hash)),
                namespace: d.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![claim::owner_reference(d)]),
                ..ObjectMeta::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(rolling::first_size(self.snapshot)),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        }
    }

    fn scale(&mut self, set: usize, to: i32) {
        let from = model::replicas(&self.snapshot.sets[set]);
        self.actions.push(Action::Scale { set, from, to });
    }

    fn progress(&mut self, status: &'static str, reason: &'static str, message: String) {
        let verdict = Verdict {
            kind: status::PROGRESSING,
            status,
            reason,
            message,
        };
        conditions::set(&mut self.conditions, verdict, self.now);
    }

    /// A pause stops the clock of the deadline.
    fn note_pause(&mut self) {
        let d = &self.snapshot.deployment;
        if model::deadline(d).is_none() {
            return;
        }
        let reason = conditions::find(&self.conditions, status::PROGRESSING)
            .map(|c| c.reason.clone().unwrap_or_default())
            .unwrap_or_default();
        if reason == "ProgressDeadlineExceeded" {
            return;
        }
        match (model::is_paused(d), reason == "DeploymentPaused") {
            (true, false) => {
                self.progress("Unknown", "DeploymentPaused", "Deployment is paused".into())
            }
            (false, true) => self.progress(
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed".into(),
            ),
            _ => {}
        }
    }

    /// Deletes the oldest unused ReplicaSets beyond the history that is to be kept.
    fn clean_up(&mut self) {
        let s = self.snapshot;
        let limit = s.deployment.spec.revision_history_limit;
        let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
            return;
        };
        let mut old: Vec<usize> = s
            .old()
            .into_iter()
            .filter(|&i| s.sets[i].metadata.deletion_timestamp.is_none())
            .collect();
        let Some(excess) = old.len().checked_sub(limit) else {
            return;
        };
        old.sort_by_key(|&i| model::revision(&s.sets[i].metadata));
        let unused = |set: &ReplicaSet| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == 0
                && model::replicas(set) == 0
                && set.metadata.generation <= status.observed_generation
        };
        let doomed = old.into_iter().take(excess).filter(|&i| unused(&s.sets[i]));
        self.actions.extend(doomed.map(Action::Delete));
    }
}

/// The annotations of a ReplicaSet: the Deployment's, its own numbers, and the revision.
fn inherit(deployment: &ObjectMeta, set: &ObjectMeta, number: &str) -> BTreeMap<String, String> {
    let mut all = set.annotations.clone().unwrap_or_default();
    let from = deployment.annotations.iter().flatten();
    all.extend(
        from.filter(|(k, _)| !model::NOT_INHERITED.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone())),
    );
    let before = model::annotation(set, model::REVISION)
        .unwrap_or_default()
        .to_owned();
    let newer = number.parse::<i64>().unwrap_or(0) > model::revision(set);
    if newer {
        all.insert(model::REVISION.into(), number.into());
        if !before.is_empty() {
            let history = all.entry(model::REVISION_HISTORY.into()).or_default();
            *history = remembered(history, &before);
        }
    }
    all
}

/// The earlier numbers with one more; the oldest are forgotten where there is no room.
fn remembered(history: &str, number: &str) -> String {
    let mut numbers: Vec<&str> = history.split(',').filter(|n| !n.is_empty()).collect();
    if !numbers.contains(&number) {
        numbers.push(number);
    }
    let mut length = numbers.iter().map(|n| n.len() + 1).sum::<usize>();
    let forgotten = numbers.iter().take_while(|n| {
        let full = length > HISTORY_MAX + 1;
        length -= n.len() + 1;
        full
    });
    let forgotten = forgotten.count();
    numbers[forgotten..].join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_numbers_are_forgotten() {
        assert_eq!(remembered("", "1"), "1");
        assert_eq!(remembered("1,3", "7"), "1,3,7");
        let mut history = String::new();
        for number in 1..2000 {
            history = remembered(&history, &number.to_string());
            assert!(history.len() <= HISTORY_MAX);
        }
        assert!(history.ends_with(",1998,1999") && history.len() > HISTORY_MAX - 5);
    }
}
