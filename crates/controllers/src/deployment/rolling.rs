//! How far each ReplicaSet goes in one step of a rolling update. Pure.

use super::model::{self, Snapshot};

/// Replicas of a ReplicaSet that is made now.
pub fn first_size(s: &Snapshot) -> i32 {
    room(s, 0)
}

/// The size the present ReplicaSet grows or shrinks to; `None`: it stays.
pub fn current_size(s: &Snapshot, current: usize) -> Option<i32> {
    let has = model::replicas(&s.sets[current]);
    let wanted = model::desired(&s.deployment);
    let to = if has > wanted { wanted } else { room(s, has) };
    (to != has).then_some(to)
}

/// What a present ReplicaSet of size `has` may have, so that no more than the surge is added.
fn room(s: &Snapshot, has: i32) -> i32 {
    let d = &s.deployment;
    let wanted = model::desired(d);
    if !model::is_rolling(d) {
        return wanted;
    }
    let total = s.wanted(&s.all());
    let most = wanted.saturating_add(model::max_surge(d));
    if total >= most {
        return has;
    }
    has + (most - total).min(wanted - has)
}

/// The sizes old ReplicaSets shrink to: first what is not available anyway, then as much as may
/// be unavailable.
pub fn old_sizes(s: &Snapshot, current: usize) -> Vec<(usize, i32)> {
    let d = &s.deployment;
    let old = s.old();
    if s.wanted(&old) == 0 {
        return Vec::new();
    }
    let least = model::desired(d) - model::max_unavailable(d);
    let starting = model::replicas(&s.sets[current]) - model::available(&s.sets[current]);
    let spare = s.wanted(&s.all()) - least - starting;
    if spare <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<(usize, i32)> = old
        .iter()
        .map(|&i| (i, model::replicas(&s.sets[i])))
        .collect();
    let mut left = spare;
    for (i, size) in &mut sizes {
        let broken = (*size - model::available(&s.sets[*i])).clamp(0, left.max(0));
        *size -= broken;
        left -= broken;
    }
    let mut left = s.available(&s.all()) - least;
    for (_, size) in &mut sizes {
        let down = (*size).min(left.max(0));
        *size -= down;
        left -= down;
    }
    sizes.retain(|(i, size)| model::replicas(&s.sets[*i]) != *size);
    sizes
}
