//! APIServices of what this server serves itself, kept in step with it.
//!
//! Group-versions that are built in are registered when the server starts, those of custom resources as they come and go.

use std::collections::BTreeMap;

use api::{Kind, meta};
use serde_json::{Value, json};

/// Label of APIServices that this server makes and removes.
pub(super) const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Priority of the groups of custom resources, and of their versions.
const CUSTOM: (i64, i64) = (1000, 100);
/// Priority of a built-in group that is not listed.
const OTHER: i64 = 15_700;

/// Priorities of groups, highest first.
const GROUPS: [(&str, i64); 24] = [
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("resource.k8s.io", 15_900),
    ("storagemigration.k8s.io", 15_800),
    ("apiregistration.k8s.io", 20_000),
    ("lifecycle.k8s.io", 15_700),
];

/// Priority of a built-in version within its group.
fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        ("coordination.k8s.io", "v1beta1") => 13,
        (_, "v1") => 15,
        (_, v) if v.contains("beta") => 12,
        _ => 9,
    }
}

/// The APIServices there should be, by name.
pub(super) fn desired<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for kind in kinds {
        // This group is about the others: upstream does not register it with itself.
        if kind.group == "apiregistration.k8s.io" {
            continue;
        }
        let name = format!("{}.{}", kind.version, kind.group);
        all.entry(name)
            .or_insert_with_key(|name| object(kind, name));
    }
    all
}

fn object(kind: &Kind, name: &str) -> Value {
    let (group, version) = (kind.group.as_str(), kind.version.as_str());
    let (when, (group_priority, version_priority)) = if kind.custom.is_some() {
        ("true", CUSTOM)
    } else {
        let found = GROUPS.iter().find(|(g, _)| *g == group);
        let of_group = found.map_or(OTHER, |(_, p)| *p);
        ("onstart", (of_group, version_priority(group, version)))
    };
    let mut spec = json!({"groupPriorityMinimum": group_priority, "version": version, "versionPriority": version_priority});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": name, "labels": {MANAGED: when}}, "spec": spec,
    })
}

/// What is to be done about one APIService.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Make it.
    Create(Value),
    /// Its spec should be this one.
    Respec(String, Value),
    /// What it is about is not served any more.
    Delete(String),
}

/// What makes the APIServices there are those there should be. Those that people made stay as they are.
pub(super) fn plan<'a>(
    desired: &BTreeMap<String, Value>,
    existing: impl Fn(&str) -> Option<&'a Value>,
    all: impl Iterator<Item = &'a Value>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (name, wanted) in desired {
        match existing(name) {
            None => steps.push(Step::Create(wanted.clone())),
            Some(found)
                if meta::label(found, MANAGED).is_some() && found["spec"] != wanted["spec"] =>
            {
                steps.push(Step::Respec(name.clone(), wanted["spec"].clone()));
            }
            Some(_) => {}
        }
    }
    for found in all {
        if meta::label(found, MANAGED).is_some() && !desired.contains_key(meta::name(found)) {
            steps.push(Step::Delete(meta::name(found).to_owned()));
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_ones_follow_what_is_served() {
        let wanted = desired(api::kinds());
        assert_eq!(wanted["v1.apps"]["spec"]["groupPriorityMinimum"], 17_800);
        assert_eq!(wanted["v1."]["spec"]["versionPriority"], 1);
        assert_eq!(wanted["v2.autoscaling"]["spec"]["versionPriority"], 30);
        assert_eq!(wanted["v1.apps"]["metadata"]["labels"][MANAGED], "onstart");

        let two: BTreeMap<String, Value> = wanted.into_iter().take(2).collect();
        let names: Vec<&String> = two.keys().collect();
        let mut changed = two[names[0]].clone();
        changed["spec"]["versionPriority"] = 99.into();
        let gone = json!({"metadata": {"name": "v1.gone", "labels": {MANAGED: "true"}}});
        let foreign = json!({"metadata": {"name": "v1.foreign"}});
        let there = [changed, gone, foreign];
        let steps = plan(
            &two,
            |name| there.iter().find(|o| meta::name(o) == name),
            there.iter(),
        );
        let spec = two[names[0]]["spec"].clone();
        assert_eq!(
            steps,
            [
                Step::Respec(names[0].clone(), spec),
                Step::Create(two[names[1]].clone()),
                Step::Delete("v1.gone".into())
            ]
        );
    }
}
