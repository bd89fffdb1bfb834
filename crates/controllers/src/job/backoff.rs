//! How long a Job waits before it replaces pods that fail again and again. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods;

/// Wait after the first failure; it doubles with each further one.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
/// Longest wait.
const LONGEST: SignedDuration = SignedDuration::from_secs(600);

/// The failures of a Job since its last success. Kept in memory only: after a restart the Job
/// tries at once, and waits again if that fails too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    last: Option<Timestamp>,
}

impl Backoff {
    /// With pods that have ended since.
    pub fn after(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let Some(last_success) = succeeded.iter().map(|p| finished_at(p)).max() else {
            return self.and(failed.iter().map(|p| finished_at(p)));
        };
        let later = failed.iter().map(|p| finished_at(p));
        Self::default().and(later.filter(|t| *t > last_success))
    }

    fn and(mut self, failures: impl Iterator<Item = Timestamp>) -> Self {
        let mut last = None;
        for at in failures {
            self.failures += 1;
            last = last.max(Some(at));
        }
        self.last = last.or(self.last);
        self
    }

    /// How long it still has to wait; zero: not at all.
    pub fn remaining(&self, now: Timestamp) -> SignedDuration {
        match self.last {
            Some(last) => remaining(self.failures, last, now),
            None => SignedDuration::ZERO,
        }
    }
}

/// How long to wait after so many failures in a row, the last one at `last`.
pub fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> SignedDuration {
    let Some(doublings) = failures.checked_sub(1) else {
        return SignedDuration::ZERO;
    };
    let wait = FIRST
        .checked_mul(1_i32.checked_shl(doublings.min(16)).unwrap_or(i32::MAX))
        .unwrap_or(LONGEST)
        .min(LONGEST);
    (wait - now.duration_since(last)).max(SignedDuration::ZERO)
}

/// When a pod ended, as well as can be told.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let not_ready = || {
        pods::condition(pod, "Ready")
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0)
    };
    let deleted = || {
        let at = pod.metadata.deletion_timestamp.as_ref()?.0;
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        at.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    containers_ended(pod)
        .or_else(not_ready)
        .or_else(deleted)
        .or_else(created)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When the last container ended; `None`: one has not. Init containers that stay count too.
fn containers_ended(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let spec = pod.spec.as_ref();
    let stays = |name: &str| {
        let init = spec.and_then(|s| s.init_containers.as_deref());
        init.unwrap_or_default()
            .iter()
            .any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
    };
    let ended = |c: &ContainerStatus| {
        let end = c.state.as_ref()?.terminated.as_ref()?;
        end.finished_at.as_ref().map(|t| t.0)
    };
    let main = status.container_statuses.iter().flatten();
    let sidecars = status.init_container_statuses.iter().flatten();
    let mut latest = None;
    for container in main.chain(sidecars.filter(|c| stays(&c.name))) {
        latest = latest.max(Some(ended(container)?));
    }
    latest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ended(second: i64) -> Pod {
        serde_json::from_value(json!({"metadata": {}, "status": {"containerStatuses": [
            {"name": "c", "state": {"terminated": {"exitCode": 1, "finishedAt": at(second).to_string()}}}]}}))
        .unwrap()
    }

    #[test]
    fn waits_double_and_end() {
        for (failures, now, expected) in [
            (0, 100, 0),
            (1, 100, 10),
            (1, 104, 6),
            (1, 500, 0),
            (2, 100, 20),
            (3, 100, 40),
            (7, 100, 600),
            (u32::MAX, 100, 600),
        ] {
            assert_eq!(
                remaining(failures, at(100), at(now)).as_secs(),
                expected,
                "{failures}"
            );
        }
    }

    #[test]
    fn a_success_forgives_what_failed_before() {
        let (early, late) = (ended(10), ended(30));
        let both = Backoff::default().after(&[], &[&late, &early]);
        assert_eq!((both.failures, both.last), (2, Some(at(30))));
        let kept = both.after(&[], &[]);
        assert_eq!(kept, both);
        let one = both.after(&[&ended(20)], &[&early, &late]);
        assert_eq!((one.failures, one.last), (1, Some(at(30))));
        assert_eq!(both.after(&[&ended(50)], &[]), Backoff::default());
    }

    #[test]
    fn the_end_of_a_pod() {
        for (pod, expected) in [
            (
                json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:05Z"}}),
                5,
            ),
            (
                json!({"metadata": {"deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30}}),
                30,
            ),
            (
                json!({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": "False",
                    "lastTransitionTime": "1970-01-01T00:00:07Z"}],
                    "containerStatuses": [{"name": "c", "state": {"running": {}}}]}}),
                7,
            ),
        ] {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(finished_at(&pod), at(expected));
        }
        assert_eq!(finished_at(&ended(9)), at(9));
    }
}
