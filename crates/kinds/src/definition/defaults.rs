//! Defaults in schemas: they must be valid values, without fields that would be dropped.

use api::FieldError;
use api::custom::{Node, prune_part};

use crate::custom::{validate_embedded, validate_value};

/// Every broken rule of the defaults in a schema at a path.
pub(super) fn validate(schema: &Node, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, path, false, true, &mut errors);
    errors
}

/// `in_meta` tells that the value is type or metadata of a resource, which others check.
fn walk(node: &Node, path: &str, in_meta: bool, root: bool, errors: &mut Vec<FieldError>) {
    if let Some(default) = node.default.as_ref().filter(|_| !in_meta) {
        let at = format!("{path}.default");
        let mut pruned = default.clone();
        prune_part(&mut pruned, node);
        if pruned != *default {
            let why = "must not have unknown fields";
            errors.push(FieldError::invalid(at.as_str(), default.clone(), why));
        }
        let mut found = validate_embedded(node, default);
        found
            .iter_mut()
            .for_each(|e| e.path = format!("{at}.{}", e.path));
        if found.is_empty() {
            found = validate_value(node, default, &at);
        }
        errors.extend(found);
    }
    if let Some(items) = &node.items {
        walk(items, &format!("{path}.items"), in_meta, false, errors);
    }
    for (name, inner) in &node.properties {
        let is_meta = matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        let resource = root || node.embedded;
        let in_meta = (in_meta && !node.embedded) || (resource && is_meta);
        let at = format!("{path}.properties[{name}]");
        walk(inner, &at, in_meta, false, errors);
    }
}
