//! What is to become of an object whose owners go. Pure.

use client::{Entry, Owner};

/// On an owner that waits for its dependents to go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// On an owner whose dependents are to stay.
pub const ORPHAN: &str = "orphan";

/// How an owner fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is there.
    Solid,
    /// It is there, but waits for its dependents to go.
    Waiting,
    /// It is gone.
    Absent,
}

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Delete it, with this policy.
    Delete(Policy),
    /// Take these owners (by uid) off it: it has others.
    Disown(Vec<String>),
    /// Delete the dependents that keep it from going.
    DeleteBlocking,
    /// Take this finalizer off it: what it stood for is done.
    Finish(&'static str),
    /// Take it off its dependents.
    OrphanDependents,
}

/// What is to become of the dependents of what is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

fn has(entry: &Entry, finalizer: &str) -> bool {
    entry.finalizers.iter().any(|f| &**f == finalizer)
}

/// Whether it waits for its dependents to go.
pub fn waits(entry: &Entry) -> bool {
    entry.deleting && has(entry, FOREGROUND)
}

/// Whether a change of an object left alone all that is looked at here.
pub fn is_same(old: &Entry, new: &Entry) -> bool {
    old.owners == new.owners && old.finalizers == new.finalizers && old.deleting == new.deleting
}

/// Decides. `fates` are those of its owners, in their order; `blocked`: a dependent that blocks
/// its deletion is left; `has_dependents`: any is.
pub fn plan(entry: &Entry, fates: &[Fate], blocked: bool, has_dependents: bool) -> Act {
    if entry.deleting {
        return match (has(entry, ORPHAN), has(entry, FOREGROUND)) {
            (true, _) if has_dependents => Act::OrphanDependents,
            (true, _) => Act::Finish(ORPHAN),
            (false, true) if blocked => Act::DeleteBlocking,
            (false, true) => Act::Finish(FOREGROUND),
            (false, false) => Act::Nothing,
        };
    }
    let uids = |wanted: &[Fate]| -> Vec<String> {
        let pairs = entry.owners.iter().zip(fates);
        pairs
            .filter(|(_, f)| wanted.contains(f))
            .map(|(o, _): (&Owner, _)| o.uid.clone())
            .collect()
    };
    if entry.owners.is_empty() || fates.iter().all(|f| *f == Fate::Solid) {
        return Act::Nothing;
    }
    if fates.contains(&Fate::Solid) {
        return Act::Disown(uids(&[Fate::Absent, Fate::Waiting]));
    }
    if fates.contains(&Fate::Waiting) && has_dependents {
        return Act::Delete(Policy::Foreground);
    }
    Act::Delete(match (has(entry, ORPHAN), has(entry, FOREGROUND)) {
        (true, _) => Policy::Orphan,
        (false, true) => Policy::Foreground,
        (false, false) => Policy::Background,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::cache::parse_entry;
    use serde_json::json;

    fn entry(owners: &[&str], finalizers: &[&str], deleting: bool) -> Entry {
        let owners: Vec<_> = owners.iter().map(|uid| json!({"uid": uid})).collect();
        let deleted = deleting.then_some("2026-01-01T00:00:00Z");
        let object = json!({"metadata": {"name": "a", "ownerReferences": owners,
            "finalizers": finalizers, "deletionTimestamp": deleted}});
        parse_entry(object.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn objects_go_with_their_last_owner() {
        use Fate::{Absent, Solid, Waiting};
        let two = entry(&["x", "y"], &[], false);
        for (fates, expected) in [
            ([Solid, Solid], Act::Nothing),
            ([Solid, Absent], Act::Disown(vec!["y".into()])),
            ([Waiting, Solid], Act::Disown(vec!["x".into()])),
            ([Absent, Absent], Act::Delete(Policy::Background)),
            ([Absent, Waiting], Act::Delete(Policy::Background)),
        ] {
            assert_eq!(plan(&two, &fates, false, false), expected, "{fates:?}");
        }
        assert_eq!(
            plan(&two, &[Absent, Waiting], false, true),
            Act::Delete(Policy::Foreground)
        );
        let free = entry(&[], &[], false);
        assert_eq!(plan(&free, &[], false, true), Act::Nothing);
        let keeps = entry(&["x"], &[ORPHAN], false);
        assert_eq!(
            plan(&keeps, &[Absent], false, false),
            Act::Delete(Policy::Orphan)
        );
    }

    #[test]
    fn objects_being_deleted_wait_or_let_go() {
        let plain = entry(&["x"], &[], true);
        assert_eq!(plan(&plain, &[Fate::Absent], true, true), Act::Nothing);
        let foreground = entry(&[], &[FOREGROUND], true);
        assert_eq!(plan(&foreground, &[], true, true), Act::DeleteBlocking);
        assert_eq!(plan(&foreground, &[], false, true), Act::Finish(FOREGROUND));
        let orphan = entry(&[], &[ORPHAN], true);
        assert_eq!(plan(&orphan, &[], false, true), Act::OrphanDependents);
        assert_eq!(plan(&orphan, &[], false, false), Act::Finish(ORPHAN));
    }
}
