//! Roles and their bindings. Names may be anything that fits in a path.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::immutable;
use crate::simple::Simple;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Rules of Roles and ClusterRoles.
pub(crate) static ROLES: Simple = Simple {
    cells: &[Cell::Name, Cell::CreatedAt],
    name: names::path_segment,
    validate: validate_rules,
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
    if meta::str_at(role, &["name"]).is_empty() {
        errors.push(FieldError::required("roleRef.name", ""));
    }
    for (i, subject) in meta::list_at(obj, &["subjects"]).iter().enumerate() {
        let at = format!("subjects[{i}]");
        if meta::str_at(subject, &["name"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        match meta::str_at(subject, &["kind"]) {
            "ServiceAccount" => {
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
