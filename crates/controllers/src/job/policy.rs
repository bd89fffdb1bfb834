//! What a Job says about failed pods and about when it has succeeded. Pure.

use k8s_openapi::api::{
    batch::v1::{
        PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
        PodFailurePolicyOnPodConditionsPattern, SuccessPolicy,
    },
    core::v1::{ContainerStatus, Pod},
};

use super::indexes::Indexes;

/// What follows from a failed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It counts against the limits.
    Count,
    /// It does not count.
    Ignore,
    /// It counts, and its index has failed.
    FailIndex,
    /// It counts, and the Job has failed; why, for people.
    FailJob(String),
}

impl Ruling {
    /// Whether the failure counts against the limits.
    pub fn counts(&self) -> bool {
        *self != Self::Ignore
    }
}

/// The first rule that matches a failed pod decides; without any, it counts.
pub fn rule(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Ruling {
    let rules = policy.map(|p| p.rules.as_slice()).unwrap_or_default();
    for (place, rule) in rules.iter().enumerate() {
        let matched = if let Some(wanted) = &rule.on_exit_codes {
            container_with(pod, wanted).map(|(name, code)| {
                format!(
                    "Container {name} for pod {} failed with exit code {code}",
                    full_name(pod)
                )
            })
        } else {
            condition_of(pod, rule.on_pod_conditions.as_deref().unwrap_or_default())
                .map(|kind| format!("Pod {} has condition {kind}", full_name(pod)))
        };
        let Some(what) = matched else { continue };
        return match rule.action.as_str() {
            "Ignore" => Ruling::Ignore,
            "FailIndex" => Ruling::FailIndex,
            "FailJob" => Ruling::FailJob(format!("{what} matching FailJob rule at index {place}")),
            "Count" => Ruling::Count,
            _ => continue,
        };
    }
    Ruling::Count
}

fn full_name(pod: &Pod) -> String {
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    format!(
        "{}/{}",
        part(&pod.metadata.namespace),
        part(&pod.metadata.name)
    )
}

fn container_with<'a>(
    pod: &'a Pod,
    wanted: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let failed = |c: &'a ContainerStatus| {
        let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = wanted.container_name.as_ref().is_none_or(|n| *n == c.name);
        let listed = wanted.values.contains(&code);
        let matches = match wanted.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        (code != 0 && named && matches).then_some((c.name.as_str(), code))
    };
    lists.into_iter().flatten().flatten().find_map(failed)
}

fn condition_of<'a>(
    pod: &'a Pod,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Option<&'a str> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let like = |c: &&k8s_openapi::api::core::v1::PodCondition| {
        patterns
            .iter()
            .any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
    };
    conditions.iter().find(like).map(|c| c.type_.as_str())
}

/// Why the Job has succeeded with these indexes, though others may be missing.
pub fn succeeds(
    policy: Option<&SuccessPolicy>,
    completions: u32,
    done: &Indexes,
) -> Option<String> {
    let rules = &policy?.rules;
    if done.is_empty() {
        return None;
    }
    let met = rules.iter().position(|rule| {
        let enough = |n: usize| {
            rule.succeeded_count
                .is_some_and(|c| usize::try_from(c).is_ok_and(|c| n >= c))
        };
        let Some(text) = &rule.succeeded_indexes else {
            return enough(done.len());
        };
        let wanted = Indexes::parse(text, completions);
        let have = wanted.overlap(done);
        !wanted.is_empty() && (have == wanted.len() || enough(have))
    })?;
    Some(format!("Matched rules at index {met}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "status": status}),
        )
        .unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 42]}},
        ]}))
        .unwrap();
        let exit = |name: &str, code: i32| {
            pod(
                json!({"containerStatuses": [{"name": name, "state": {"terminated": {"exitCode": code}}}]}),
            )
        };
        let disrupted =
            pod(json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}));
        let message =
            "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        for (pod, expected) in [
            (disrupted, Ruling::Ignore),
            (exit("main", 42), Ruling::FailJob(message.into())),
            (exit("side", 42), Ruling::Count),
            (exit("main", 1), Ruling::Count),
            (exit("main", 0), Ruling::Count),
            (exit("main", 7), Ruling::FailIndex),
        ] {
            assert_eq!(rule(Some(&policy), &pod), expected);
        }
        assert_eq!(rule(None, &exit("main", 42)), Ruling::Count);
    }

    #[test]
    fn success_by_indexes_or_counts() {
        for (rule, done, expected) in [
            (json!({"succeededIndexes": "0,2"}), "0-1", false),
            (json!({"succeededIndexes": "0,2"}), "0-2", true),
            (
                json!({"succeededIndexes": "0-3", "succeededCount": 2}),
                "1,3",
                true,
            ),
            (
                json!({"succeededIndexes": "0-3", "succeededCount": 2}),
                "1,4",
                false,
            ),
            (json!({"succeededCount": 1}), "4", true),
            (json!({"succeededCount": 1}), "", false),
        ] {
            let policy = serde_json::from_value(json!({"rules": [rule]})).unwrap();
            let met = succeeds(Some(&policy), 5, &Indexes::parse(done, 5));
            assert_eq!(met.is_some(), expected, "{rule} {done}");
        }
    }
}
