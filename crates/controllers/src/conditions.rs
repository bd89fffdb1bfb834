//! Conditions of statuses, whatever their type. Pure.

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{DeploymentCondition, ReplicaSetCondition},
    apimachinery::pkg::apis::meta::v1::{Condition as Plain, Time},
};

/// What is said of one aspect of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The condition's type.
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word in CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A condition type of the API.
pub trait Condition: Sized {
    /// Its type.
    fn kind(&self) -> &str;
    /// Its status.
    fn status(&self) -> &str;
    /// Its reason.
    fn reason(&self) -> &str;
    /// When its status changed last.
    fn since(&self) -> Option<Time>;
    /// A condition that says `verdict`, its status unchanged `since`, updated `now`.
    fn new(verdict: Verdict, since: Time, now: Time) -> Self;
}

macro_rules! accessors {
    () => {
        fn kind(&self) -> &str {
            self.type_.as_deref().unwrap_or_default()
        }
        fn status(&self) -> &str {
            self.status.as_deref().unwrap_or_default()
        }
        fn reason(&self) -> &str {
            self.reason.as_deref().unwrap_or_default()
        }
        fn since(&self) -> Option<Time> {
            self.last_transition_time.clone()
        }
    };
}

impl Condition for DeploymentCondition {
    accessors!();
    fn new(verdict: Verdict, since: Time, now: Time) -> Self {
        Self {
            type_: Some(verdict.kind.into()),
            status: Some(verdict.status.into()),
            reason: Some(verdict.reason.into()),
            message: Some(verdict.message),
            last_transition_time: Some(since),
            last_update_time: Some(now),
        }
    }
}

impl Condition for ReplicaSetCondition {
    accessors!();
    fn new(verdict: Verdict, since: Time, _: Time) -> Self {
        Self {
            type_: Some(verdict.kind.into()),
            status: Some(verdict.status.into()),
            reason: Some(verdict.reason.into()),
            message: Some(verdict.message),
            last_transition_time: Some(since),
        }
    }
}

impl Condition for Plain {
    fn kind(&self) -> &str {
        &self.type_
    }
    fn status(&self) -> &str {
        &self.status
    }
    fn reason(&self) -> &str {
        &self.reason
    }
    fn since(&self) -> Option<Time> {
        Some(self.last_transition_time.clone())
    }
    fn new(verdict: Verdict, since: Time, _: Time) -> Self {
        Self {
            type_: verdict.kind.into(),
            status: verdict.status.into(),
            reason: verdict.reason.into(),
            message: verdict.message,
            last_transition_time: since,
            observed_generation: None,
        }
    }
}

/// The condition of this type.
pub fn find<'a, C: Condition>(conditions: &'a [C], kind: &str) -> Option<&'a C> {
    conditions.iter().find(|c| c.kind() == kind)
}

/// Sets a condition at the end of the list, unless it says the same already.
pub fn set<C: Condition>(conditions: &mut Vec<C>, verdict: Verdict, now: Timestamp) {
    let current = find(conditions, verdict.kind);
    if current.is_some_and(|c| c.status() == verdict.status && c.reason() == verdict.reason) {
        return;
    }
    replace(conditions, verdict, now);
}

/// Sets a condition at the end of the list even if only its message or update time changes.
pub fn replace<C: Condition>(conditions: &mut Vec<C>, verdict: Verdict, now: Timestamp) {
    let since = find(conditions, verdict.kind)
        .filter(|c| c.status() == verdict.status)
        .and_then(Condition::since)
        .unwrap_or(Time(now));
    remove(conditions, verdict.kind);
    conditions.push(C::new(verdict, since, Time(now)));
}

/// Removes the condition of this type.
pub fn remove<C: Condition>(conditions: &mut Vec<C>, kind: &str) {
    conditions.retain(|c| c.kind() != kind);
}
