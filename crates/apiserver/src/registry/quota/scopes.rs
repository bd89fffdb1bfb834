//! Which objects a quota speaks of. Pure.

use api::{Kind, meta};
use serde_json::Value;

/// Whether a quota's scopes take in an object. Scopes speak of pods, and one of them of claims.
pub(super) fn takes_in(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let plain = meta::list_at(quota, &["spec", "scopes"]).iter();
    let mut plain = plain.filter_map(Value::as_str);
    let mut chosen = meta::list_at(quota, &["spec", "scopeSelector", "matchExpressions"]).iter();
    plain.all(|scope| matches(kind, object, scope, "Exists", &[]))
        && chosen.all(|e| {
            let [scope, operator] = ["scopeName", "operator"].map(|f| meta::str_at(e, &[f]));
            matches(kind, object, scope, operator, meta::list_at(e, &["values"]))
        })
}

fn matches(kind: &Kind, object: &Value, scope: &str, operator: &str, values: &[Value]) -> bool {
    match (kind.group.as_str(), kind.resource.as_str()) {
        ("", "pods") if scope == "PriorityClass" => {
            let class = meta::str_at(object, &["spec", "priorityClassName"]);
            let named: Vec<&str> = Some(class).filter(|c| !c.is_empty()).into_iter().collect();
            names_one(&named, operator, values)
        }
        ("", "pods") => is_in(object, scope),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            names_one(&attributes(object), operator, values)
        }
        _ => false,
    }
}

/// Whether one of the classes that an object names is as asked for; an object without any has none of the values.
fn names_one(named: &[&str], operator: &str, values: &[Value]) -> bool {
    let listed = |name: &&str| values.iter().any(|v| v == name);
    match operator {
        "In" => named.iter().any(listed),
        "NotIn" => named.is_empty() || named.iter().any(|name| !listed(name)),
        "DoesNotExist" => named.is_empty(),
        _ => !named.is_empty(),
    }
}

/// The classes of attributes that a claim has, or is to get.
fn attributes(claim: &Value) -> Vec<&str> {
    let paths: [&[&str]; 3] = [
        &["spec", "volumeAttributesClassName"],
        &["status", "currentVolumeAttributesClassName"],
        &[
            "status",
            "modifyVolumeStatus",
            "targetVolumeAttributesClassName",
        ],
    ];
    let names = paths.into_iter().map(|path| meta::str_at(claim, path));
    names.filter(|name| !name.is_empty()).collect()
}

fn is_in(pod: &Value, scope: &str) -> bool {
    let ends = || meta::int_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0);
    let best_effort = || kinds::qos_class(pod) == "BestEffort";
    match scope {
        "Terminating" => ends(),
        "NotTerminating" => !ends(),
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "CrossNamespacePodAffinity" => looks_elsewhere(pod),
        _ => false,
    }
}

/// Whether where a pod may be depends on pods of other namespaces.
fn looks_elsewhere(pod: &Value) -> bool {
    let elsewhere = |term: &Value| {
        !meta::list_at(term, &["namespaces"]).is_empty()
            || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let terms = |when| meta::list_at(pod, &["spec", "affinity", kind, when]).iter();
        terms("requiredDuringSchedulingIgnoredDuringExecution").any(elsewhere)
            || terms("preferredDuringSchedulingIgnoredDuringExecution")
                .filter_map(|weighted| weighted.get("podAffinityTerm"))
                .any(elsewhere)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kind(resource: &str) -> &'static Kind {
        api::kind("", "v1", resource).unwrap()
    }

    #[test]
    fn scopes_take_in_pods() {
        let pod = |spec: Value| {
            let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
            for (key, value) in spec.as_object().unwrap() {
                pod["spec"][key] = value.clone();
            }
            pod
        };
        let asks = |what: &str| {
            let resources = json!({"requests": {what: "1"}});
            json!({"containers": [{"name": "c", "resources": resources}]})
        };
        let affinity = |term: Value| {
            json!({"affinity": {"podAntiAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
        };
        let weighted = json!({"affinity": {"podAffinity":
            {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 1, "podAffinityTerm": {"namespaces": ["other"]}}]}}});
        for (scope, spec, expected) in [
            ("BestEffort", json!({}), true),
            ("BestEffort", asks("cpu"), false),
            ("BestEffort", asks("ephemeral-storage"), true),
            ("NotBestEffort", asks("memory"), true),
            ("Terminating", json!({"activeDeadlineSeconds": 1}), true),
            ("Terminating", json!({}), false),
            ("NotTerminating", json!({}), true),
            ("PriorityClass", json!({"priorityClassName": "a"}), true),
            ("PriorityClass", json!({}), false),
            ("CrossNamespacePodAffinity", json!({}), false),
            ("CrossNamespacePodAffinity", affinity(json!({})), false),
            (
                "CrossNamespacePodAffinity",
                affinity(json!({"namespaceSelector": {}})),
                true,
            ),
            ("CrossNamespacePodAffinity", weighted, true),
            ("VolumeAttributesClass", json!({}), false),
        ] {
            let quota = json!({"spec": {"scopes": [scope]}});
            let found = takes_in(&quota, kind("pods"), &pod(spec.clone()));
            assert_eq!(found, expected, "{scope} {spec}");
            assert!(!takes_in(&quota, kind("secrets"), &json!({})));
        }
        assert!(takes_in(&json!({}), kind("secrets"), &json!({})));
    }

    #[test]
    fn classes_are_chosen_by_name() {
        let quota = |scope: &str, operator: &str| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": scope, "operator": operator, "values": ["a"]}]}}})
        };
        let claim = |spec: &str, status: &str| {
            json!({"spec": {"volumeAttributesClassName": spec},
                "status": {"currentVolumeAttributesClassName": status}})
        };
        for (operator, (is, was), expected) in [
            ("In", ("a", ""), true),
            ("In", ("b", "a"), true),
            ("In", ("b", ""), false),
            ("NotIn", ("a", ""), false),
            ("NotIn", ("b", "a"), true),
            ("NotIn", ("", ""), true),
            ("Exists", ("b", ""), true),
            ("DoesNotExist", ("", ""), true),
            ("DoesNotExist", ("", "b"), false),
        ] {
            let quota = quota("VolumeAttributesClass", operator);
            let found = takes_in(&quota, kind("persistentvolumeclaims"), &claim(is, was));
            assert_eq!(found, expected, "{operator} {is} {was}");
        }
        let pod = |class: &str| json!({"spec": {"priorityClassName": class, "containers": []}});
        for (operator, class, expected) in [
            ("In", "a", true),
            ("In", "b", false),
            ("NotIn", "a", false),
            ("NotIn", "", true),
            ("DoesNotExist", "", true),
        ] {
            let quota = quota("PriorityClass", operator);
            assert_eq!(takes_in(&quota, kind("pods"), &pod(class)), expected);
        }
    }
}
