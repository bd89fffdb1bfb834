//! Roles and their bindings. Names may be anything that fits in a path.

use api::selector::LabelSelector;
use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::{immutable, label_selector, named};
use crate::simple::Simple;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of Roles and ClusterRoles.
pub(crate) static ROLES: Simple = Simple {
    cells: &[Cell::Name, Cell::CreatedAt],
    name: names::path_segment,
    // Upstream serves a role without rules in this way, which clients written against it expect.
    default: |obj| {
        if obj.is_object() && obj.get("rules").is_none() {
            meta::set(obj, &["rules"], Value::Null);
        }
    },
    validate: |obj| {
        let mut errors = validate_rules(obj);
        errors.extend(aggregation(obj));
        errors
    },
    create_on_update: true,
    ..Simple::BASE
};

/// Rules of RoleBindings and ClusterRoleBindings.
pub(crate) static BINDINGS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(role),
        Cell::Age,
        Cell::With(|o, _| subjects(o, "User").into()),
        Cell::With(|o, _| subjects(o, "Group").into()),
        Cell::With(|o, _| subjects(o, "ServiceAccount").into()),
    ],
    name: names::path_segment,
    default: default_binding,
    validate: validate_binding,
    validate_update: |new, old| {
        let changed = immutable(new, old, &["roleRef"]);
        changed
            .map(|mut e| {
                e.detail = "cannot change roleRef".to_owned();
                e
            })
            .into_iter()
            .collect()
    },
    create_on_update: true,
    ..Simple::BASE
};

fn role(obj: &Value, _now: Timestamp) -> Value {
    format!(
        "{}/{}",
        text(obj, &["roleRef", "kind"]),
        text(obj, &["roleRef", "name"])
    )
    .into()
}

fn subjects(obj: &Value, kind: &str) -> String {
    let print = |s: &Value| {
        if kind == "ServiceAccount" {
            format!("{}/{}", text(s, &["namespace"]), text(s, &["name"]))
        } else {
            text(s, &["name"])
        }
    };
    let list = meta::list_at(obj, &["subjects"])
        .iter()
        .filter(|s| meta::str_at(s, &["kind"]) == kind);
    list.map(print).collect::<Vec<_>>().join(", ")
}

fn default_binding(obj: &mut Value) {
    if obj.get("roleRef").is_some() && meta::str_at(obj, &["roleRef", "apiGroup"]).is_empty() {
        meta::set(obj, &["roleRef", "apiGroup"], GROUP.into());
    }
    for subject in obj
        .get_mut("subjects")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if meta::str_at(subject, &["apiGroup"]).is_empty()
            && matches!(meta::str_at(subject, &["kind"]), "User" | "Group")
        {
            meta::set(subject, &["apiGroup"], GROUP.into());
        }
    }
}

fn validate_binding(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let role = obj.get("roleRef").unwrap_or(&Value::Null);
    if meta::str_at(role, &["apiGroup"]) != GROUP {
        errors.push(FieldError::not_supported(
            "roleRef.apiGroup",
            text(role, &["apiGroup"]),
            &[GROUP],
        ));
    }
    let kinds: &[&str] = if meta::str_at(obj, &["kind"]) == "ClusterRoleBinding" {
        &["ClusterRole"]
    } else {
        &["Role", "ClusterRole"]
    };
    if !kinds.contains(&meta::str_at(role, &["kind"])) {
        errors.push(FieldError::not_supported(
            "roleRef.kind",
            text(role, &["kind"]),
            kinds,
        ));
    }
    let name = meta::str_at(role, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    } else {
        errors.extend(named(names::path_segment(name), "roleRef.name", name));
    }
    for (i, subject) in meta::list_at(obj, &["subjects"]).iter().enumerate() {
        let at = format!("subjects[{i}]");
        if meta::str_at(subject, &["name"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        match meta::str_at(subject, &["kind"]) {
            "ServiceAccount" => {
                let name = meta::str_at(subject, &["name"]);
                if !name.is_empty() {
                    let at = format!("{at}.name");
                    errors.extend(named(names::dns1123_subdomain(name), &at, name));
                }
                let group = meta::str_at(subject, &["apiGroup"]);
                if !group.is_empty() {
                    let at = format!("{at}.apiGroup");
                    errors.push(FieldError::not_supported(at, group, &[""]));
                }
                if meta::str_at(subject, &["namespace"]).is_empty()
                    && meta::str_at(obj, &["kind"]) == "ClusterRoleBinding"
                {
                    errors.push(FieldError::required(format!("{at}.namespace"), ""));
                }
            }
            "User" | "Group" => {
                let group = meta::str_at(subject, &["apiGroup"]);
                if group != GROUP {
                    errors.push(FieldError::not_supported(
                        format!("{at}.apiGroup"),
                        group,
                        &[GROUP],
                    ));
                }
            }
            other => errors.push(FieldError::not_supported(
                format!("{at}.kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    errors
}

/// The roles that a ClusterRole collects the rules of.
fn aggregation(obj: &Value) -> Vec<FieldError> {
    let Some(rule) = obj.get("aggregationRule") else {
        return Vec::new();
    };
    let at = "aggregationRule.clusterRoleSelectors";
    let selectors = meta::list_at(rule, &["clusterRoleSelectors"]);
    if selectors.is_empty() {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        return vec![FieldError::required(at, why)];
    }
    let mut errors = Vec::new();
    for (i, selector) in selectors.iter().enumerate() {
        let at = format!("{at}[{i}]");
        errors.extend(label_selector(selector, &at));
        if LabelSelector::from_value(selector).is_err() {
            let why = "invalid label selector.";
            errors.push(FieldError::invalid(at, Value::Null, why));
        }
    }
    errors
}

fn validate_rules(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let namespaced = meta::str_at(obj, &["kind"]) == "Role";
    for (i, rule) in meta::list_at(obj, &["rules"]).iter().enumerate() {
        let at = format!("rules[{i}]");
        let has = |field: &str| !meta::list_at(rule, &[field]).is_empty();
        if !has("verbs") {
            errors.push(FieldError::required(
                format!("{at}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if has("nonResourceURLs") {
            if namespaced {
                let urls = rule.get("nonResourceURLs").cloned().unwrap_or_default();
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    urls,
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                let urls = rule.get("nonResourceURLs").cloned().unwrap_or_default();
                errors.push(FieldError::invalid(
                    format!("{at}.nonResourceURLs"),
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        if !has("apiGroups") {
            errors.push(FieldError::required(
                format!("{at}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if !has("resources") {
            errors.push(FieldError::required(
                format!("{at}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates};
    use serde_json::json;

    #[test]
    fn roles() {
        let role = json!({"kind": "ClusterRole", "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
        assert_rules(
            &role,
            ROLES.validate,
            &[
                (json!({"/rules": null}), &[]),
                (
                    json!({"/rules/0": {}}),
                    &[
                        "rules[0].verbs: Required value: verbs must contain at least one value",
                        "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                        "rules[0].resources: Required value: resource rules must supply at least one resource",
                    ],
                ),
                (
                    json!({"/rules/0/nonResourceURLs": ["/x"]}),
                    &[
                        "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs",
                    ],
                ),
                (
                    json!({"/aggregationRule": {}}),
                    &[
                        "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
                    ],
                ),
            ],
        );
        let mut bare = json!({"kind": "Role"});
        (ROLES.default)(&mut bare);
        assert_eq!(bare, json!({"kind": "Role", "rules": null}));
    }

    #[test]
    fn bindings() {
        let binding = json!({"kind": "ClusterRoleBinding", "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]});
        assert_rules(
            &binding,
            validate_binding,
            &[
                (
                    json!({"/roleRef/kind": "Role", "/roleRef/name": "a/b"}),
                    &[
                        "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                        "roleRef.name: Invalid value: \"a/b\": may not contain '/'",
                    ],
                ),
                (
                    json!({"/subjects/0": {"kind": "ServiceAccount", "name": "A", "apiGroup": "x"}}),
                    &[
                        "subjects[0].name: Invalid value: \"A\": a lowercase RFC 1123 subdomain…",
                        "subjects[0].apiGroup: Unsupported value: \"x\": supported values: \"\"",
                        "subjects[0].namespace: Required value",
                    ],
                ),
                (
                    json!({"/subjects/0": {"kind": "Robot"}}),
                    &[
                        "subjects[0].name: Required value",
                        "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                    ],
                ),
            ],
        );
        assert_updates(
            &binding,
            BINDINGS.validate_update,
            &[
                (json!({"/subjects": []}), &[]),
                (
                    json!({"/roleRef/name": "o"}),
                    &[
                        "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"ClusterRole\",\"name\":\"o\"}: cannot change roleRef",
                    ],
                ),
            ],
        );
    }
}
