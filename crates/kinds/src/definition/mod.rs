//! apiextensions: CustomResourceDefinitions.
//!
//! A schema that is accepted here can be served: it is structural, its defaults are valid values, and its
//! expressions compile. Conditions and accepted names are set by whoever serves the definitions.
//!
//! Where all versions say the same, errors name the field that upstream had before there were versions
//! (`spec.validation`, `spec.subresources`): that is what users find in others' answers.

mod conversion;
mod defaults;
mod expressions;
mod names;
mod schema;
mod structural;
mod versions;

use api::custom::Node;
use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::cells::{Cell, render};
use crate::check::immutable;
use crate::strategy::{Ctx, Strategy};

pub use structural::problems as structural_problems;

/// Holds a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The strategy of CustomResourceDefinitions.
pub(crate) struct Definition;

impl Strategy for Definition {
    fn default(&self, obj: &mut Value) {
        fill(obj);
    }

    fn prepare_create(&self, obj: &mut Value, _ctx: &Ctx<'_>) {
        let stored: Vec<String> = versions::storage(obj).into_iter().collect();
        obj["status"] = json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored});
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value, _ctx: &Ctx<'_>) {
        let Some(storage) = versions::storage(new) else {
            return;
        };
        let mut stored = meta::list_at(new, &["status", "storedVersions"]).to_vec();
        if !stored.iter().any(|v| *v == storage) {
            stored.push(storage.into());
            meta::set(new, &["status", "storedVersions"], stored.into());
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<FieldError> {
        validate(obj, None)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = validate(new, old.get("spec"));
        if api::custom::condition_is_true(old, "Established") {
            errors.extend(immutable(new, old, &["spec", "scope"]));
            errors.extend(immutable(new, old, &["spec", "names", "kind"]));
        }
        errors.extend(immutable(new, old, &["spec", "group"]));
        errors.extend(immutable(new, old, &["spec", "names", "plural"]));
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let accepted = meta::get(new, &["status", "acceptedNames"]);
        names::validate(accepted.unwrap_or(&Value::Null), "status.acceptedNames")
    }

    fn hold_on_delete(&self, obj: &Value, now: Timestamp) -> Option<Value> {
        let mut held = obj.clone();
        let mut finalizers = meta::list_at(obj, &["metadata", "finalizers"]).to_vec();
        if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
            finalizers.push(CLEANUP_FINALIZER.into());
        }
        meta::set(&mut held, &["metadata", "finalizers"], finalizers.into());
        let why = (
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        );
        set_condition(&mut held, "Terminating", true, why, now);
        Some(held)
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        schema::warnings(obj)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(&[Cell::Name, Cell::CreatedAt], obj, now))
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn requires_resource_version(&self) -> bool {
        true
    }
}

/// Sets a condition of a definition, with reason and message.
pub fn set_condition(
    definition: &mut Value,
    kind: &str,
    holds: bool,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let status = if holds { "True" } else { "False" };
    let mut conditions = meta::list_at(definition, &["status", "conditions"]).to_vec();
    let old = conditions
        .iter()
        .position(|c| meta::str_at(c, &["type"]) == kind);
    let unchanged = old.filter(|at| meta::str_at(&conditions[*at], &["status"]) == status);
    let since = unchanged
        .map(|at| meta::str_at(&conditions[at], &["lastTransitionTime"]).to_owned())
        .filter(|t| !t.is_empty())
        .unwrap_or_else(|| api::time::format(now));
    let condition = json!({
        "lastTransitionTime": since,
        "message": message,
        "reason": reason,
        "status": status,
        "type": kind,
    });
    match old {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    meta::set(definition, &["status", "conditions"], conditions.into());
}

fn fill(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec").filter(|s| s.is_object()) else {
        return;
    };
    let kind = meta::str_at(spec, &["names", "kind"]).to_owned();
    if !kind.is_empty() {
        for (field, value) in [
            ("singular", kind.to_lowercase()),
            ("listKind", format!("{kind}List")),
        ] {
            if meta::str_at(spec, &["names", field]).is_empty() {
                meta::set(spec, &["names", field], value.into());
            }
        }
    }
    if spec.get("conversion").is_none() {
        meta::set(spec, &["conversion", "strategy"], "None".into());
    }
    let service = ["conversion", "webhook", "clientConfig", "service"];
    if let Some(service) = meta::get(spec, &service)
        && service.get("port").is_none()
    {
        let port = ["conversion", "webhook", "clientConfig", "service", "port"];
        meta::set(spec, &port, 443.into());
    }
    if meta::list_at(obj, &["status", "storedVersions"]).is_empty()
        && let Some(storage) = versions::storage(obj)
    {
        meta::set(obj, &["status", "storedVersions"], json!([storage]));
    }
}

fn validate(obj: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let text = |path: &[&str]| meta::str_at(spec, path);
    let mut errors = Vec::new();
    let wanted = format!("{}.{}", text(&["names", "plural"]), text(&["group"]));
    if meta::name(obj) != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", meta::name(obj), why));
    }
    errors.extend(group(text(&["group"])));
    errors.extend(crate::check::one_of(
        text(&["scope"]),
        "spec.scope",
        &["Cluster", "Namespaced"],
    ));
    errors.extend(versions::validate(spec, old));
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(&["names", field]).is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
        }
    }
    let given = spec.get("names").unwrap_or(&Value::Null);
    errors.extend(names::validate(given, "spec.names"));
    errors.extend(conversion::validate(spec));
    errors.extend(versions::validate_stored(obj));
    errors.extend(approval(obj));
    if meta::bool_at(spec, &["preserveUnknownFields"]) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, why));
    }
    errors
}

fn group(group: &str) -> Option<FieldError> {
    if group.is_empty() {
        return Some(FieldError::required("spec.group", ""));
    }
    let wrong = api::names::dns1123_subdomain(group);
    if !wrong.is_empty() {
        return Some(FieldError::invalid("spec.group", group, wrong.join(",")));
    }
    let why = "should be a domain with at least one dot";
    (!group.contains('.')).then(|| FieldError::invalid("spec.group", group, why))
}

/// Annotation that definitions in the community's groups carry.
const APPROVED: &str = "api-approved.kubernetes.io";

/// Whether the approval of a definition in one of the community's groups is fine, and the reason for the answer;
/// `None` for other groups.
pub fn approval_of(definition: &Value) -> Option<(bool, &'static str, String)> {
    let group = meta::str_at(definition, &["spec", "group"]);
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|p| group == *p || group.strip_suffix(p).is_some_and(|g| g.ends_with('.')));
    if !protected {
        return None;
    }
    let text = meta::annotation(definition, APPROVED).unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.trim_start_matches('/').is_empty()
    });
    Some(match text {
        "" => (
            false,
            "MissingAnnotation",
            format!("protected groups must have approval annotation {APPROVED:?}, {see}"),
        ),
        t if t.starts_with("unapproved") => (
            false,
            "UnapprovedAnnotation",
            format!("not approved: {t:?}"),
        ),
        t if is_url => (true, "ApprovedAnnotation", format!("approved in {t}")),
        _ => (
            false,
            "InvalidAnnotation",
            format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {see}"
            ),
        ),
    })
}

fn approval(obj: &Value) -> Option<FieldError> {
    let path = format!("metadata.annotations[{APPROVED}]");
    match approval_of(obj)? {
        (_, "MissingAnnotation", why) => Some(FieldError::required(path, why)),
        (_, "InvalidAnnotation", why) => {
            let text = meta::annotation(obj, APPROVED).unwrap_or_default();
            Some(FieldError::invalid(path, text, why))
        }
        _ => None,
    }
}

/// The parsed schema of a version, if it has one that can be parsed.
fn parsed(schema: Option<&Value>) -> Option<Node> {
    schema.and_then(|s| Node::parse(s).ok())
}

#[cfg(test)]
mod tests;
