//! Which of the migrations of one resource runs, by what their statuses say. Pure.

use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;

use crate::conditions;

/// Condition of a migration that writes objects anew.
pub const RUNNING: &str = "Running";
/// Condition of one that has written all.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition of one that could not.
pub const FAILED: &str = "Failed";

/// What is to be done next.
#[derive(Debug, PartialEq)]
pub enum Act<'a> {
    /// It has ended: the definition is told, and it runs no longer.
    Finish(&'a StorageVersionMigration),
    /// It is its turn.
    Start(&'a StorageVersionMigration),
    /// It writes the objects anew.
    Migrate(&'a StorageVersionMigration),
}

fn is(migration: &StorageVersionMigration, condition: &str) -> bool {
    let status = migration.status.as_ref();
    let all = status.and_then(|s| s.conditions.as_deref());
    conditions::find(all.unwrap_or_default(), condition).is_some_and(|c| c.status == "True")
}

/// Whether it has ended well.
pub fn has_succeeded(migration: &StorageVersionMigration) -> bool {
    is(migration, SUCCEEDED)
}

fn has_ended(migration: &StorageVersionMigration) -> bool {
    has_succeeded(migration) || is(migration, FAILED)
}

/// Decides about all migrations of one resource: one runs at a time, the oldest first.
pub fn plan(migrations: &[StorageVersionMigration]) -> Option<Act<'_>> {
    let running = || migrations.iter().filter(|m| is(m, RUNNING));
    if let Some(ended) = running().find(|m| has_ended(m)) {
        return Some(Act::Finish(ended));
    }
    if let Some(active) = running().next() {
        return Some(Act::Migrate(active));
    }
    let waiting = migrations.iter().filter(|m| !has_ended(m));
    waiting
        .min_by_key(|m| {
            let created = m.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (created, m.metadata.name.clone())
        })
        .map(Act::Start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn migration(name: &str, created: &str, is: &[&str]) -> StorageVersionMigration {
        let conditions: Vec<_> = is
            .iter()
            .map(|kind| {
                json!({"type": kind, "status": "True", "reason": "r", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{created}Z")},
            "spec": {"resource": {"group": "g", "resource": "r"}},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn one_runs_at_a_time_and_the_oldest_is_next() {
        let name = |m: &StorageVersionMigration| m.metadata.name.clone().unwrap_or_default();
        let told = |all: &[StorageVersionMigration]| match plan(all) {
            Some(Act::Finish(m)) => format!("finish {}", name(m)),
            Some(Act::Start(m)) => format!("start {}", name(m)),
            Some(Act::Migrate(m)) => format!("migrate {}", name(m)),
            None => "nothing".to_owned(),
        };
        for (all, expected) in [
            (vec![], "nothing"),
            (
                vec![migration("b", "01", &[]), migration("a", "02", &[])],
                "start b",
            ),
            (
                vec![migration("b", "01", &[]), migration("a", "01", &[])],
                "start a",
            ),
            (
                vec![migration("b", "01", &[]), migration("a", "02", &[RUNNING])],
                "migrate a",
            ),
            (
                vec![
                    migration("b", "01", &[]),
                    migration("a", "02", &[RUNNING, SUCCEEDED]),
                ],
                "finish a",
            ),
            (
                vec![
                    migration("b", "01", &[FAILED]),
                    migration("a", "02", &[SUCCEEDED]),
                ],
                "nothing",
            ),
        ] {
            assert_eq!(told(&all), expected);
        }
    }
}
