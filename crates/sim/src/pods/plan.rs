//! What happens to a simulated pod next. Pure.
//!
//! ```text
//!  Pending ──start──> Running ──ready──> Ready ──run──┬─> Succeeded or Failed
//!     │                  ^                  │         └─> started again (policy)
//!     │                  └──────────────────┴──────────────────┘
//!     └───────────── deleted ──stop──> (ended, if somebody looks) ──> gone
//! ```
//!
//! Times are read from the pod, where they have whole seconds; a delay may be short by one.

use jiff::{SignedDuration, Timestamp};

use super::view::PodView;
use crate::{Outcome, PodMatch, PodRule};

/// How long pods run that are to end where the profile does not say.
const DEFAULT_RUN: SignedDuration = SignedDuration::from_secs(1);

/// The next step of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until it changes.
    Rest,
    /// Something at this time.
    Wait(Timestamp),
    /// Its containers start; `ready`: and are ready at once.
    Start { ready: bool },
    /// Its containers are ready.
    Ready,
    /// Its containers end and are started again.
    Restart(Outcome),
    /// Its containers end for good.
    End(Outcome),
    /// It ran longer than it may.
    Expire,
    /// It is gone from its node.
    Remove,
}

/// The rule for a pod: the first that matches.
pub fn rule<'r>(rules: &'r [PodRule], fallback: &'r PodRule, pod: &PodView<'_>) -> &'r PodRule {
    rules
        .iter()
        .find(|rule| matches(&rule.matches, pod))
        .unwrap_or(fallback)
}

fn matches(wanted: &PodMatch, pod: &PodView<'_>) -> bool {
    let meta = &pod.metadata;
    let namespace = wanted.namespace.as_deref();
    let owner = wanted.owner_kind.as_deref();
    namespace.is_none_or(|n| n == meta.namespace)
        && owner.is_none_or(|kind| pod.owner_kind() == Some(kind))
        && wanted
            .labels
            .iter()
            .all(|(k, v)| meta.labels.get(k.as_str()).is_some_and(|have| have == v))
}

/// What each draw of chance is for, so that draws do not depend on one another.
#[derive(Clone, Copy)]
enum Draw {
    Start,
    Ready,
    Run,
    Failure,
    Stop,
}

/// A number in [0, 1) that is always the same for a pod, its restarts and a purpose.
fn chance(pod: &PodView<'_>, draw: Draw) -> f64 {
    let salt = [draw as u8].into_iter().chain(pod.restarts().to_le_bytes());
    // FNV-1a, then one round of mixing: uids differ in few bits.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in pod.metadata.uid.bytes().chain(salt) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

/// Decides about a pod that is bound to a simulated node.
pub fn plan(pod: &PodView<'_>, rule: &PodRule, now: Timestamp) -> Step {
    if let Some(deleted) = pod.deleted_at() {
        return ending(pod, rule, deleted, now);
    }
    if pod.is_over() || !rule.starts {
        return Step::Rest;
    }
    let Some(since) = pod
        .running_since()
        .filter(|_| pod.status.phase == "Running")
    else {
        let bound = pod.bound_at().unwrap_or(now);
        let start = Step::Start {
            ready: rule.ready.is_zero(),
        };
        return due(bound, rule.start.at(chance(pod, Draw::Start)), now, start);
    };
    let mut steps = vec![expiry(pod, now), end(pod, rule, since, now)];
    // Also where somebody else has said that it is not ready, because its node was not heard of.
    if !pod.has("ContainersReady") || pod.has("Ready") != pod.gates_hold() {
        let delay = rule.ready.at(chance(pod, Draw::Ready));
        steps.push(due(since, delay, now, Step::Ready));
    }
    first(steps)
}

fn ending(pod: &PodView<'_>, rule: &PodRule, deleted: Timestamp, now: Timestamp) -> Step {
    // Gone from its node already; finalizers hold the object.
    if pod.metadata.deletion_grace_period_seconds == Some(0) && pod.is_over() {
        return Step::Rest;
    }
    let delay = rule.stop.at(chance(pod, Draw::Stop)).min(pod.grace());
    // Whoever holds the object with a finalizer wants to see how it ended.
    let watched = !pod.metadata.finalizers.is_empty();
    let step = if watched && !pod.is_over() {
        // Ended by SIGTERM.
        Step::End(Outcome::Failure(143))
    } else {
        Step::Remove
    };
    due(deleted, delay, now, step)
}

fn expiry(pod: &PodView<'_>, now: Timestamp) -> Step {
    match (pod.spec.active_deadline_seconds, pod.status.start_time) {
        (Some(seconds), Some(start)) => {
            due(start, SignedDuration::from_secs(seconds), now, Step::Expire)
        }
        _ => Step::Rest,
    }
}

fn end(pod: &PodView<'_>, rule: &PodRule, since: Timestamp, now: Timestamp) -> Step {
    let policy = &*pod.spec.restart_policy;
    let always = !matches!(policy, "Never" | "OnFailure");
    let run = match rule.run {
        Some(run) => run.at(chance(pod, Draw::Run)),
        None if always => return Step::Rest,
        None => DEFAULT_RUN,
    };
    let failed = chance(pod, Draw::Failure) < rule.failures;
    let outcome = if failed {
        Outcome::Failure(rule.exit_code)
    } else {
        Outcome::Success
    };
    let step = match policy {
        "Never" => Step::End(outcome),
        "OnFailure" if !failed => Step::End(outcome),
        _ => Step::Restart(outcome),
    };
    due(since, run, now, step)
}

fn due(from: Timestamp, delay: SignedDuration, now: Timestamp, step: Step) -> Step {
    match from.checked_add(delay) {
        Ok(at) if at > now => Step::Wait(at),
        Ok(_) => step,
        Err(_) => Step::Rest,
    }
}

/// What is due now, in the given order; otherwise the earliest wait.
fn first(steps: Vec<Step>) -> Step {
    let mut wait: Option<Timestamp> = None;
    for step in steps {
        match step {
            Step::Rest => {}
            Step::Wait(at) => wait = Some(wait.map_or(at, |w| w.min(at))),
            now => return now,
        }
    }
    wait.map_or(Step::Rest, Step::Wait)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(change: impl FnOnce(&mut Value)) -> String {
        let mut pod = json!({
            "metadata": {"uid": "u", "namespace": "n", "labels": {"app": "a"}},
            "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(0).to_string()}]},
        });
        change(&mut pod);
        pod.to_string()
    }

    fn running(policy: &str, restarts: i32) -> impl FnOnce(&mut Value) {
        move |pod: &mut Value| {
            pod["spec"]["restartPolicy"] = policy.into();
            pod["status"]["phase"] = "Running".into();
            pod["status"]["startTime"] = at(0).to_string().into();
            pod["status"]["conditions"] = json!([
                {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "True"}]);
            pod["status"]["containerStatuses"] = json!([{"name": "c", "restartCount": restarts,
                "state": {"running": {"startedAt": at(0).to_string()}}}]);
        }
    }

    fn step(text: &str, rule: &PodRule, now: i64) -> Step {
        plan(&serde_json::from_str(text).unwrap(), rule, at(now))
    }

    fn rule(yaml: &str) -> PodRule {
        let all = crate::Profile::parse(&format!("pods: [{{{yaml}}}]")).unwrap();
        all.pods.into_iter().next().unwrap()
    }

    #[test]
    fn pods_start_and_become_ready_after_their_delays() {
        let fresh = pod(|_| {});
        assert_eq!(step(&fresh, &rule(""), 0), Step::Start { ready: true });
        let slow = rule("start: 3s, ready: 2s");
        assert_eq!(step(&fresh, &slow, 1), Step::Wait(at(3)));
        assert_eq!(step(&fresh, &slow, 3), Step::Start { ready: false });
        assert_eq!(step(&fresh, &rule("starts: false"), 9), Step::Rest);
        let unready = pod(|pod| {
            running("Always", 0)(pod);
            pod["status"]["conditions"] = json!([]);
        });
        assert_eq!(step(&unready, &slow, 1), Step::Wait(at(2)));
        assert_eq!(step(&unready, &slow, 2), Step::Ready);
    }

    #[test]
    fn readiness_follows_the_gates_and_comes_back_after_the_node_was_lost() {
        let with = |ready: &'static str, gate: &'static str| {
            pod(move |pod| {
                running("Always", 0)(pod);
                pod["spec"]["readinessGates"] = json!([{"conditionType": "up"}]);
                pod["status"]["conditions"][1]["status"] = ready.into();
                let up = json!({"type": "up", "status": gate});
                pod["status"]["conditions"].as_array_mut().unwrap().push(up);
            })
        };
        for (ready, gate, expected) in [
            ("True", "True", Step::Rest),
            ("False", "True", Step::Ready),
            ("True", "False", Step::Ready),
            ("False", "False", Step::Rest),
        ] {
            assert_eq!(step(&with(ready, gate), &rule(""), 1), expected);
        }
    }

    #[test]
    fn pods_end_as_their_restart_policy_says() {
        let failing = rule("run: 5s, failures: 1, exitCode: 3");
        let fine = rule("run: 5s");
        for (policy, rule, expected) in [
            ("Never", &fine, Step::End(Outcome::Success)),
            ("Never", &failing, Step::End(Outcome::Failure(3))),
            ("OnFailure", &fine, Step::End(Outcome::Success)),
            ("OnFailure", &failing, Step::Restart(Outcome::Failure(3))),
            ("Always", &fine, Step::Restart(Outcome::Success)),
        ] {
            let pod = pod(running(policy, 0));
            assert_eq!(step(&pod, rule, 4), Step::Wait(at(5)), "{policy}");
            assert_eq!(step(&pod, rule, 5), expected, "{policy}");
        }
        assert_eq!(step(&pod(running("Always", 0)), &rule(""), 99), Step::Rest);
        let job = pod(running("Never", 0));
        assert_eq!(step(&job, &rule(""), 1), Step::End(Outcome::Success));
        let over = pod(|pod| pod["status"]["phase"] = "Failed".into());
        assert_eq!(step(&over, &rule(""), 1), Step::Rest);
        let limited = pod(|pod| {
            running("Always", 0)(pod);
            pod["spec"]["activeDeadlineSeconds"] = 7.into();
        });
        assert_eq!(step(&limited, &rule(""), 1), Step::Wait(at(7)));
        assert_eq!(step(&limited, &rule(""), 7), Step::Expire);
    }

    #[test]
    fn deleted_pods_go_within_their_grace_period() {
        let deleted = |grace: i64, finalizer: bool, phase: &'static str| {
            pod(move |pod| {
                pod["metadata"]["deletionTimestamp"] = at(grace).to_string().into();
                pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
                pod["status"]["phase"] = phase.into();
                if finalizer {
                    pod["metadata"]["finalizers"] = json!(["batch.kubernetes.io/job-tracking"]);
                }
            })
        };
        let stop = rule("stop: 5s");
        assert_eq!(
            step(&deleted(30, false, "Running"), &stop, 1),
            Step::Wait(at(5))
        );
        assert_eq!(step(&deleted(30, false, "Running"), &stop, 5), Step::Remove);
        assert_eq!(step(&deleted(2, false, "Running"), &stop, 2), Step::Remove);
        let killed = Step::End(Outcome::Failure(143));
        assert_eq!(step(&deleted(30, true, "Running"), &stop, 5), killed);
        assert_eq!(step(&deleted(30, true, "Failed"), &stop, 5), Step::Remove);
        assert_eq!(step(&deleted(0, true, "Failed"), &stop, 5), Step::Rest);
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = crate::Profile::parse(
            "pods: [{match: {namespace: other}, exitCode: 2}, {match: {labels: {app: a}}, exitCode: 3}, {exitCode: 4}]",
        )
        .unwrap()
        .pods;
        let fallback = PodRule::default();
        let code = |text: &str| {
            let view = serde_json::from_str(text).unwrap();
            super::rule(&rules, &fallback, &view).exit_code
        };
        assert_eq!(code(&pod(|_| {})), 3);
        assert_eq!(code(&pod(|p| p["metadata"]["labels"] = json!({}))), 4);
    }

    proptest::proptest! {
        #[test]
        fn chance_is_a_share_and_the_same_again(uid in "[a-f0-9-]{1,36}") {
            let text = pod(|pod| pod["metadata"]["uid"] = uid.into());
            let view: PodView<'_> = serde_json::from_str(&text).unwrap();
            let drawn = chance(&view, Draw::Run);
            proptest::prop_assert!((0.0..1.0).contains(&drawn));
            proptest::prop_assert_eq!(drawn, chance(&view, Draw::Run));
        }
    }
}
