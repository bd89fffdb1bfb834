//! Changing the size of a Deployment without rolling it out: during a roll-out or a pause, each
//! ReplicaSet gets its share. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;

use super::{
    model::{self, Snapshot},
    plan::Action,
};

/// The annotations that remember for which size a ReplicaSet was scaled.
pub fn annotations(d: &Deployment) -> BTreeMap<String, String> {
    let wanted = model::desired(d);
    BTreeMap::from([
        (model::DESIRED.to_owned(), wanted.to_string()),
        (
            model::MAX.to_owned(),
            wanted.saturating_add(model::max_surge(d)).to_string(),
        ),
    ])
}

/// Whether the Deployment's size has changed since its ReplicaSets were scaled.
pub fn is_due(s: &Snapshot) -> bool {
    let wanted = i64::from(model::desired(&s.deployment));
    s.sets
        .iter()
        .filter(|set| model::replicas(set) > 0)
        .any(|set| model::number(&set.metadata, model::DESIRED).is_some_and(|d| d != wanted))
}

/// What to do so that the sizes add up to what the Deployment wants now.
pub fn proportionally(s: &Snapshot) -> Vec<Action> {
    let wanted = model::desired(&s.deployment);
    let active: Vec<usize> = s
        .all()
        .into_iter()
        .filter(|&i| model::replicas(&s.sets[i]) > 0)
        .collect();
    let latest = s.current().or_else(|| s.old().last().copied());
    let single = match active.as_slice() {
        [] => latest,
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = single {
        let from = model::replicas(&s.sets[set]);
        return if from == wanted {
            Vec::new()
        } else {
            vec![Action::Scale {
                set,
                from,
                to: wanted,
            }]
        };
    }
    if active.is_empty() {
        return Vec::new();
    }
    if is_saturated(s) {
        let current = s.current();
        let old = active.into_iter().filter(|i| Some(*i) != current);
        return old
            .map(|set| Action::Scale {
                set,
                from: model::replicas(&s.sets[set]),
                to: 0,
            })
            .collect();
    }
    if !model::is_rolling(&s.deployment) {
        return Vec::new();
    }
    shares(s, active)
}

/// Whether the present ReplicaSet has all pods that are wanted, available.
fn is_saturated(s: &Snapshot) -> bool {
    let wanted = model::desired(&s.deployment);
    s.current().is_some_and(|i| {
        let set = &s.sets[i];
        model::number(&set.metadata, model::DESIRED) == Some(i64::from(wanted))
            && model::replicas(set) == wanted
            && model::available(set) == wanted
    })
}

/// Each active ReplicaSet in proportion to its size; the largest takes what rounding leaves.
fn shares(s: &Snapshot, mut active: Vec<usize>) -> Vec<Action> {
    let d = &s.deployment;
    let wanted = model::desired(d);
    let total = s.wanted(&active);
    let allowed = if wanted > 0 {
        wanted.saturating_add(model::max_surge(d))
    } else {
        0
    };
    let to_add = allowed - total;
    let size = |i: usize| model::replicas(&s.sets[i]);
    // Equal sizes: the newer one first when growing, the older one first when shrinking.
    active.sort_by(|&a, &b| {
        let by_age = if to_add > 0 { b.cmp(&a) } else { a.cmp(&b) };
        size(b).cmp(&size(a)).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<(usize, i32)> = Vec::new();
    for &i in &active {
        let share = proportion(s, i, to_add, added);
        added += share;
        sizes.push((i, size(i) + share));
    }
    if let Some((_, largest)) = sizes.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    sizes
        .into_iter()
        .map(|(set, to)| Action::Scale {
            set,
            from: size(set),
            to,
        })
        .collect()
}

fn proportion(s: &Snapshot, i: usize, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(s, i);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

/// By how much a ReplicaSet would change if all changed alike.
fn fraction(s: &Snapshot, i: usize) -> i32 {
    let (d, set) = (&s.deployment, &s.sets[i]);
    let size = model::replicas(set);
    let wanted = model::desired(d);
    if wanted == 0 {
        return -size;
    }
    let before = model::number(&set.metadata, model::MAX)
        .filter(|max| *max > 0)
        .or_else(|| d.status.as_ref().and_then(|s| s.replicas).map(i64::from))
        .filter(|max| *max > 0);
    let Some(before) = before else { return 0 };
    let after = f64::from(wanted.saturating_add(model::max_surge(d)));
    (f64::from(size) * after / before as f64).round() as i32 - size
}
