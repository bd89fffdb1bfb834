//! What is left in a namespace that is being deleted, and the conditions that say so. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::NamespaceCondition, apimachinery::pkg::apis::meta::v1::Time};

use crate::catalogue::Served;

/// What is left in a namespace.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Left {
    /// Objects by resource, as `pods.` or `deployments.apps`.
    pub(super) objects: BTreeMap<String, usize>,
    /// Objects by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
}

impl Left {
    /// Adds objects of a resource, each by its finalizers.
    pub(super) fn add<'a, F: AsRef<str> + 'a>(
        &mut self,
        served: &Served,
        objects: impl ExactSizeIterator<Item = &'a [F]>,
    ) {
        if objects.len() == 0 {
            return;
        }
        let name = format!("{}.{}", served.resource.plural, served.resource.group);
        *self.objects.entry(name).or_default() += objects.len();
        for finalizer in objects.flatten() {
            let count = self.finalizers.entry(finalizer.as_ref().to_owned());
            *count.or_default() += 1;
        }
    }

    /// What is to be said; `silent` are versions of groups that nobody tells about.
    pub(super) fn conditions(
        &self,
        silent: &BTreeMap<String, String>,
        mut failures: Vec<String>,
    ) -> Vec<(&'static str, bool, &'static str, String)> {
        let objects: Vec<String> = self
            .objects
            .iter()
            .map(|(k, n)| format!("{k} has {n} resource instances"))
            .collect();
        let finalizers: Vec<String> = self
            .finalizers
            .iter()
            .map(|(k, n)| format!("{k} in {n} resource instances"))
            .collect();
        failures.sort_unstable();
        vec![
            if silent.is_empty() {
                (
                    "NamespaceDeletionDiscoveryFailure",
                    false,
                    "ResourcesDiscovered",
                    "All resources successfully discovered".into(),
                )
            } else {
                let why: Vec<String> = silent
                    .iter()
                    .map(|(v, why)| format!("{v}: {why}"))
                    .collect();
                (
                    "NamespaceDeletionDiscoveryFailure",
                    true,
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                        silent.len(),
                        why.join(", ")
                    ),
                )
            },
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                false,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".into(),
            ),
            if failures.is_empty() {
                (
                    "NamespaceDeletionContentFailure",
                    false,
                    "ContentDeleted",
                    "All content successfully deleted, may be waiting on finalization".into(),
                )
            } else {
                (
                    "NamespaceDeletionContentFailure",
                    true,
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        failures.len(),
                        failures.join(", ")
                    ),
                )
            },
            if objects.is_empty() {
                (
                    "NamespaceContentRemaining",
                    false,
                    "ContentRemoved",
                    "All content successfully removed".into(),
                )
            } else {
                (
                    "NamespaceContentRemaining",
                    true,
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", objects.join(", ")),
                )
            },
            if finalizers.is_empty() {
                (
                    "NamespaceFinalizersRemaining",
                    false,
                    "ContentHasNoFinalizers",
                    "All content-preserving finalizers finished".into(),
                )
            } else {
                (
                    "NamespaceFinalizersRemaining",
                    true,
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        finalizers.join(", ")
                    ),
                )
            },
        ]
    }
}

/// The conditions with these among them; those of others stay as they are.
pub(super) fn said(
    old: &[NamespaceCondition],
    wanted: Vec<(&'static str, bool, &'static str, String)>,
    now: Time,
) -> Vec<NamespaceCondition> {
    let mut all = old.to_vec();
    for (kind, holds, reason, message) in wanted {
        let status = if holds { "True" } else { "False" };
        let at = all.iter().position(|c| c.type_ == kind);
        let before = at.map(|i| &all[i]).filter(|c| c.status == status);
        let since = before.and_then(|c| c.last_transition_time.clone());
        let new = NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: since.or_else(|| Some(now.clone())),
        };
        match at {
            Some(i) => all[i] = new,
            None => all.push(new),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_said_in_upstreams_words() {
        let none = Left::default().conditions(&BTreeMap::new(), Vec::new());
        assert!(none.iter().all(|(_, holds, ..)| !holds));
        let left = Left {
            objects: BTreeMap::from([("pods.".into(), 2)]),
            finalizers: BTreeMap::from([("x.io/y".into(), 1)]),
        };
        let said: Vec<_> = left
            .conditions(
                &BTreeMap::from([(
                    "m/v1".into(),
                    "the server is currently unable to handle the request".into(),
                )]),
                vec!["no".into()],
            )
            .into_iter()
            .filter(|c| c.1)
            .map(|c| c.3)
            .collect();
        assert_eq!(
            said,
            [
                "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: m/v1: the server is currently unable to handle the request",
                "Failed to delete all resource types, 1 remaining: no",
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: x.io/y in 1 resource instances",
            ]
        );
    }

    #[test]
    fn conditions_of_others_stay() {
        let at = |second| Time(jiff::Timestamp::from_second(second).unwrap());
        let condition = |kind: &str, status: &str, second| NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some("R".into()),
            message: Some("m".into()),
            last_transition_time: Some(at(second)),
        };
        let old = [condition("Mine", "True", 1), condition("Kept", "True", 2)];
        let wanted = vec![
            ("Kept", true, "R", "m".to_owned()),
            ("New", false, "R", "m".to_owned()),
        ];
        let all = said(&old, wanted, at(9));
        let expected = [old[0].clone(), old[1].clone(), condition("New", "False", 9)];
        assert_eq!(all, expected);
        let turned = said(&all, vec![("Kept", false, "R", "m".to_owned())], at(10));
        assert_eq!(turned[1], condition("Kept", "False", 10));
    }
}
