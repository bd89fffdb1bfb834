//! Which pod of a StatefulSet comes, goes or has to wait, one step at a time. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};

use super::identity::{self, ordinal, revision};
use crate::{amount::scaled, pods};

/// Pods made or deleted in one pass.
const BURST: usize = 500;

/// What is seen.
pub struct Snapshot<'a> {
    /// The StatefulSet.
    pub set: &'a StatefulSet,
    /// The name and template of the revision that is being left.
    pub current: (&'a str, &'a PodTemplateSpec),
    /// The name of the revision of the present template.
    pub update: &'a str,
    /// Its pods.
    pub pods: &'a [Pod],
    /// The present moment.
    pub now: Timestamp,
}

/// One thing to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the pod of an ordinal and its claims.
    Create(u32, Box<Pod>),
    /// Delete a pod, by place.
    Delete(usize),
    /// Say who the pod of an ordinal is, by place.
    Label(u32, usize),
    /// Give the pod of an ordinal, by place, the claims it should have.
    Store(u32, usize),
    /// Make the claims that the pod of an ordinal, by place, waits for and that are gone.
    Provide(u32, usize),
}

/// Whether pods come and go one after another.
pub fn is_ordered(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() != Some("Parallel")
}

/// Decides.
pub fn plan(s: &Snapshot) -> Vec<Action> {
    let mut actions = Vec::new();
    if s.set.metadata.deletion_timestamp.is_some() {
        return actions;
    }
    let view = View::new(s);
    if view.keep(&mut actions) && view.shrink(&mut actions) {
        view.roll(&mut actions);
    }
    actions.truncate(BURST);
    actions
}

/// Pods by place in the set.
struct View<'a> {
    s: &'a Snapshot<'a>,
    ordered: bool,
    /// What is there of each wanted ordinal.
    slots: Vec<(u32, Option<usize>)>,
    /// Those of other ordinals, the highest first.
    condemned: Vec<usize>,
}

impl<'a> View<'a> {
    fn new(s: &'a Snapshot<'a>) -> Self {
        let wanted = identity::ordinals(s.set);
        let mut slots: Vec<(u32, Option<usize>)> = wanted.clone().map(|o| (o, None)).collect();
        let mut condemned = Vec::new();
        for (i, pod) in s.pods.iter().enumerate() {
            match ordinal(s.set, pod) {
                Some(o) if wanted.contains(&o) => slots[(o - wanted.start) as usize].1 = Some(i),
                Some(o) => condemned.push((o, i)),
                None => {}
            }
        }
        condemned.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            s,
            ordered: is_ordered(s.set),
            slots,
            condemned: condemned.into_iter().map(|(_, i)| i).collect(),
        }
    }

    fn is_leaving(&self, i: usize) -> bool {
        self.s.pods[i].metadata.deletion_timestamp.is_some()
    }

    fn is_available(&self, i: usize) -> bool {
        is_available(self.s.set, &self.s.pods[i], self.s.now)
    }

    /// The pod with the lowest ordinal that is not available or does not stay.
    fn first_unhealthy(&self) -> Option<usize> {
        let wanted = self.slots.iter().filter_map(|(_, pod)| *pod);
        let others = self.condemned.iter().rev().copied();
        wanted
            .chain(others)
            .find(|&i| self.is_leaving(i) || !self.is_available(i))
    }

    /// Sees to the wanted ordinals. Answers whether to go on.
    fn keep(&self, actions: &mut Vec<Action>) -> bool {
        for &(ordinal, pod) in &self.slots {
            let on = match pod {
                None => {
                    actions.push(Action::Create(ordinal, Box::new(self.new_pod(ordinal))));
                    false
                }
                Some(i) => self.keep_one(ordinal, i, actions),
            };
            if !on && self.ordered {
                return false;
            }
        }
        // In a set without order, what is missing or has ended does not stop the rest.
        true
    }

    /// Answers whether the next ordinal may follow.
    fn keep_one(&self, ordinal: u32, i: usize, actions: &mut Vec<Action>) -> bool {
        let pod = &self.s.pods[i];
        if pods::is_terminal(pod) {
            if !self.is_leaving(i) {
                actions.push(Action::Delete(i));
            }
            return false;
        }
        let stays = !self.is_leaving(i);
        let claims = self.s.set.spec.volume_claim_templates.iter().flatten();
        if stays && pods::phase(pod) == "Pending" && claims.count() > 0 {
            actions.push(Action::Provide(ordinal, i));
        }
        let on = stays && self.is_available(i);
        if stays && (on || !self.ordered) {
            if !identity::has_claims(self.s.set, pod, ordinal) {
                actions.push(Action::Store(ordinal, i));
            } else if !identity::is_labelled(pod) {
                actions.push(Action::Label(ordinal, i));
            }
        }
        on
    }

    fn new_pod(&self, ordinal: u32) -> Pod {
        let s = self.s;
        let first = identity::first(s.set);
        let old = match partition(s.set) {
            None => false,
            Some(partition) => ordinal < first.saturating_add(partition),
        };
        let (name, template) = if old {
            s.current
        } else {
            (s.update, &s.set.spec.template)
        };
        identity::pod(s.set, template, name, ordinal)
    }

    /// Removes what is too much, from the top. Answers whether to go on.
    fn shrink(&self, actions: &mut Vec<Action>) -> bool {
        let unhealthy = self.first_unhealthy();
        for &i in &self.condemned {
            if self.is_leaving(i) {
                if self.ordered {
                    return false;
                }
                continue;
            }
            if self.ordered && !self.is_available(i) && unhealthy != Some(i) {
                return false;
            }
            actions.push(Action::Delete(i));
            if self.ordered {
                return false;
            }
        }
        true
    }

    /// Replaces outdated pods from the top, as many at once as may be unavailable. Without order,
    /// those that are of no use anyway go whatever the limit: they may never become available.
    fn roll(&self, actions: &mut Vec<Action>) {
        let Some(partition) = partition(self.s.set) else {
            return;
        };
        let unavailable = |i: usize| self.is_leaving(i) || !self.is_available(i);
        let outdated = |i: usize| revision(&self.s.pods[i]) != self.s.update && !self.is_leaving(i);
        let lacks = |pod: Option<usize>| pod.is_none_or(unavailable);
        let down = self.slots.iter().filter(|(_, pod)| lacks(*pod)).count();
        let mut budget = max_unavailable(self.s.set).saturating_sub(down);
        let above = self.slots.iter().skip(partition as usize).rev();
        for i in above.filter_map(|(_, pod)| *pod).filter(|i| outdated(*i)) {
            let free = !self.ordered && unavailable(i);
            if !free && budget == 0 {
                continue;
            }
            budget -= usize::from(!free);
            let delete = Action::Delete(i);
            if !actions.contains(&delete) {
                actions.push(delete);
            }
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

fn is_available(set: &StatefulSet, pod: &Pod, now: Timestamp) -> bool {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    is_ready(pod) && pods::available_in(pod, min_ready, now).is_some_and(|w| w.is_zero())
}

/// Below this many, pods keep the revision that is being left; `None`: nothing rolls.
fn partition(set: &StatefulSet) -> Option<u32> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let partition = rolling.and_then(|r| r.partition).unwrap_or(0);
    Some(u32::try_from(partition).unwrap_or(0))
}

fn max_unavailable(set: &StatefulSet) -> usize {
    let strategy = set.spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let total = set.spec.replicas.unwrap_or(1);
    let limit = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .map_or(1, |m| scaled(m, total, false));
    usize::try_from(limit).unwrap_or(1).max(1)
}

/// The status, and when the next ready pod becomes available.
pub fn status(
    s: &Snapshot,
    collisions: Option<i32>,
) -> (StatefulSetStatus, Option<SignedDuration>) {
    let mine: Vec<&Pod> = s
        .pods
        .iter()
        .filter(|p| ordinal(s.set, p).is_some())
        .collect();
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(mine.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let staying = |p: &Pod| p.metadata.deletion_timestamp.is_none();
    let of = |name: &str| count(&|p| staying(p) && revision(p) == name);
    let old = s.set.status.clone().unwrap_or_default();
    let mut status = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: positive(count(&is_ready)),
        available_replicas: Some(count(&|p| is_available(s.set, p, s.now))),
        current_replicas: positive(of(s.current.0)),
        updated_replicas: positive(of(s.update)),
        current_revision: Some(s.current.0.to_owned()),
        update_revision: Some(s.update.to_owned()),
        observed_generation: s.set.metadata.generation,
        collision_count: collisions,
        conditions: old.conditions,
    };
    let wanted = i32::try_from(identity::replicas(s.set)).unwrap_or(i32::MAX);
    let all = |n: Option<i32>| n.unwrap_or(0) == wanted;
    let rolled = partition(s.set).is_some()
        && all(status.updated_replicas)
        && all(status.ready_replicas)
        && all(Some(status.replicas));
    if rolled {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    let min_ready = s.set.spec.min_ready_seconds.unwrap_or(0);
    let soon = mine
        .iter()
        .filter_map(|p| pods::available_in(p, min_ready, s.now))
        .filter(|w| !w.is_zero())
        .min();
    (status, soon)
}

fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}
