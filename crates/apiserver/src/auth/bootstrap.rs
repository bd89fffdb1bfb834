//! The RBAC objects every cluster starts with, made from the table in [`super::policy`].

use serde_json::{Value, json};

use super::policy::{AGGREGATED, BINDINGS, NAMESPACED, NODE, ROLES};
use super::rules::Rule;

const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const API_GROUP: &str = "rbac.authorization.k8s.io";

/// The default ClusterRoles, ClusterRoleBindings, Roles and RoleBindings, ready to be created.
/// They carry `rbac.authorization.kubernetes.io/autoupdate: "true"` and the label
/// `kubernetes.io/bootstrapping: rbac-defaults` as upstream's do.
pub fn bootstrap_rbac() -> Vec<Value> {
    let mut all = Vec::new();
    for role in ROLES {
        let mut object = object("ClusterRole", role.name, None);
        if let Some(target) = role.aggregate_to {
            let label = format!("rbac.authorization.k8s.io/aggregate-to-{target}");
            object["metadata"]["labels"][label] = json!("true");
        }
        object["rules"] = json!(rules(role.rules, &[]));
        all.push(object);
    }
    for (name, parts) in AGGREGATED {
        let mut object = object("ClusterRole", name, None);
        let selectors: Vec<Value> = selectors_of(name);
        object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
        if let Some(target) = aggregate_label(name) {
            object["metadata"]["labels"][target] = json!("true");
        }
        let sources = ROLES
            .iter()
            .filter(|r| r.aggregate_to.is_some_and(|t| parts.contains(&t)));
        let all_rules: Vec<Rule> = sources.flat_map(|r| rules(r.rules, &[])).collect();
        object["rules"] = json!(all_rules);
        all.push(object);
    }
    for (role, subjects) in BINDINGS {
        let mut object = object("ClusterRoleBinding", role, None);
        object["roleRef"] = role_ref("ClusterRole", role);
        if !subjects.is_empty() {
            object["subjects"] = subjects.iter().map(|s| subject(s)).collect();
        }
        all.push(object);
    }
    for role in NAMESPACED {
        let mut rules_object = object("Role", role.name, Some(role.namespace));
        rules_object["rules"] = json!(rules(role.rules, role.resource_names));
        all.push(rules_object);
        let mut binding = object("RoleBinding", role.name, Some(role.namespace));
        binding["roleRef"] = role_ref("Role", role.name);
        binding["subjects"] = role.subjects.iter().map(|s| subject(s)).collect();
        all.push(binding);
    }
    all
}

/// The rules of `system:node`.
pub fn node_rules() -> Vec<Rule> {
    rules(NODE, &[])
}

fn object(kind: &str, name: &str, namespace: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
    });
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn selectors_of(aggregated: &str) -> Vec<Value> {
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{aggregated}");
    vec![json!({"matchLabels": {label: "true"}})]
}

/// `edit` is itself part of `admin`, and `view` of `edit`.
fn aggregate_label(name: &str) -> Option<&'static str> {
    match name {
        "edit" => Some("rbac.authorization.k8s.io/aggregate-to-admin"),
        "view" => Some("rbac.authorization.k8s.io/aggregate-to-edit"),
        _ => None,
    }
}

fn role_ref(kind: &str, name: &str) -> Value {
    json!({"apiGroup": API_GROUP, "kind": kind, "name": name})
}

fn subject(short: &str) -> Value {
    match short.split_once(':') {
        Some(("ServiceAccount", account)) => {
            let (namespace, name) = account.split_once('/').unwrap_or(("default", account));
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        Some((kind, name)) => json!({"apiGroup": API_GROUP, "kind": kind, "name": name}),
        None => Value::Null,
    }
}

fn rules(short: &[(&str, &str, &str)], resource_names: &[&str]) -> Vec<Rule> {
    let words = |s: &str| -> Vec<String> { s.split(' ').map(str::to_owned).collect() };
    short
        .iter()
        .map(|(verbs, groups, things)| match *groups {
            "/" => Rule {
                verbs: words(verbs),
                non_resource_urls: words(things),
                ..Rule::default()
            },
            _ => Rule {
                verbs: words(verbs),
                api_groups: words(&groups.replace("core", "")),
                resources: words(things),
                resource_names: resource_names.iter().map(|n| (*n).to_owned()).collect(),
                ..Rule::default()
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(kind: &str, name: &str) -> Value {
        bootstrap_rbac()
            .into_iter()
            .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
            .unwrap()
    }

    #[test]
    fn cluster_admin_may_do_everything_and_is_bound_to_the_masters() {
        let role = find("ClusterRole", "cluster-admin");
        assert_eq!(role["rules"][0]["resources"], json!(["*"]));
        assert_eq!(role["rules"][1]["nonResourceURLs"], json!(["*"]));
        let binding = find("ClusterRoleBinding", "cluster-admin");
        assert_eq!(binding["subjects"][0]["name"], "system:masters");
    }

    #[test]
    fn aggregated_roles_hold_the_rules_of_the_lesser_ones() {
        let rules = |name: &str| find("ClusterRole", name)["rules"].as_array().unwrap().len();
        assert!(rules("admin") > rules("edit") && rules("edit") > rules("view"));
    }

    #[test]
    fn names_are_unique_and_every_subject_is_whole() {
        let mut seen = std::collections::HashSet::new();
        for object in bootstrap_rbac() {
            let id = format!(
                "{} {} {}",
                object["kind"], object["metadata"]["namespace"], object["metadata"]["name"]
            );
            assert!(seen.insert(id.clone()), "{id} twice");
            for subject in object["subjects"].as_array().into_iter().flatten() {
                assert!(subject["name"].is_string(), "{object}");
            }
        }
    }
}
