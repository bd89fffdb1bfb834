//! Versions of a definition: their names, schemas, subresources, columns and selectable fields.

use std::collections::{BTreeMap, HashSet};

use api::custom::Node;
use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{parsed, schema};

/// Most fields that objects can be selected by.
const SELECTABLE_MAX: usize = 8;
/// Longest text that warns of a deprecated version, in bytes.
const WARNING_MAX: usize = 256;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = [
    "byte",
    "date",
    "date-time",
    "double",
    "float",
    "int32",
    "int64",
    "password",
];

/// The version objects are stored in.
pub(super) fn storage(definition: &Value) -> Option<String> {
    meta::list_at(definition, &["spec", "versions"])
        .iter()
        .find(|v| meta::bool_at(v, &["storage"]))
        .map(|v| meta::str_at(v, &["name"]).to_owned())
}

/// Every broken rule of the versions of a definition's spec, of which `old` was accepted before.
pub(super) fn validate(spec: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let versions = meta::list_at(spec, &["versions"]);
    let mut errors = Vec::new();
    for (index, version) in versions.iter().enumerate() {
        if schema_of(version).is_none() {
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            errors.push(FieldError::required(path, ""));
        }
    }
    let has_default =
        |v: &Value| parsed(schema_of(v)).is_some_and(|s| s.any(&|node| node.default.is_some()));
    if meta::bool_at(spec, &["preserveUnknownFields"]) && versions.iter().any(has_default) {
        let why = "must be false in order to use defaults in the schema";
        errors.push(FieldError::invalid("spec.preserveUnknownFields", true, why));
    }
    for (index, version) in versions.iter().enumerate() {
        errors.extend(one(versions, index, version, is_accepted(version, old)));
    }
    let mut names = HashSet::new();
    let unique = versions
        .iter()
        .all(|v| names.insert(meta::str_at(v, &["name"])));
    let mut refuse = |why: &str| {
        errors.push(FieldError::invalid("spec.versions", json!(versions), why));
    };
    if !unique {
        refuse("must contain unique version names");
    }
    let stored = versions.iter().filter(|v| meta::bool_at(v, &["storage"]));
    if stored.count() != 1 {
        refuse("must have exactly one version marked as storage version");
    }
    errors
}

fn schema_of(version: &Value) -> Option<&Value> {
    meta::get(version, &["schema", "openAPIV3Schema"]).filter(|s| s.is_object())
}

/// Where a field that all versions may share is said to be: at the top if they do; `None` if it was said already.
fn place(versions: &[Value], index: usize, field: &str, hoisted: &str) -> Option<String> {
    let own = versions[index].get(field).filter(|v| !is_empty(v))?;
    let shared = versions.iter().all(|v| v.get(field) == Some(own));
    match (shared, index) {
        (true, 0) => Some(format!("spec.{hoisted}")),
        (true, _) => None,
        (false, _) => Some(format!("spec.versions[{index}].{field}")),
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Whether a version has the schema that it had before.
fn is_accepted(version: &Value, old: Option<&Value>) -> bool {
    let versions = old.map_or(&[][..], |spec| meta::list_at(spec, &["versions"]));
    let before = versions.iter().find(|v| v["name"] == version["name"]);
    before.is_some_and(|before| before.get("schema") == version.get("schema"))
}

fn one(versions: &[Value], index: usize, version: &Value, accepted: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = meta::str_at(version, &["name"]);
    let wrong = api::names::dns1035_label(name);
    if !wrong.is_empty() {
        let path = format!("spec.versions[{index}].name");
        errors.push(FieldError::invalid(path, name, wrong.join(",")));
    }
    errors.extend(deprecation(version, index));
    if let (Some(at), Some(written)) = (
        place(versions, index, "schema", "validation"),
        schema_of(version),
    ) {
        let has_status = meta::get(version, &["subresources", "status"]).is_some();
        errors.extend(schema::validate(
            written,
            &format!("{at}.openAPIV3Schema"),
            has_status,
            accepted,
        ));
    }
    if let Some(at) = place(versions, index, "subresources", "subresources") {
        errors.extend(subresources(&version["subresources"], &at));
    }
    let field = "additionalPrinterColumns";
    if let Some(at) = place(versions, index, field, field) {
        for (i, column) in meta::list_at(version, &[field]).iter().enumerate() {
            errors.extend(printer_column(column, &format!("{at}[{i}]")));
        }
    }
    if let Some(at) = place(versions, index, "selectableFields", "selectableFields") {
        let fields = meta::list_at(version, &["selectableFields"]);
        errors.extend(selectable(fields, parsed(schema_of(version)).as_ref(), &at));
    }
    errors
}

fn deprecation(version: &Value, index: usize) -> Vec<FieldError> {
    let Some(text) = version.get("deprecationWarning").and_then(Value::as_str) else {
        return Vec::new();
    };
    let mut wrong = Vec::new();
    if meta::bool_at(version, &["deprecated"]) {
        if text.len() > WARNING_MAX {
            wrong.push(format!("must be <= {WARNING_MAX} characters long"));
        }
        if text.is_empty() {
            wrong.push("must not be an empty string".to_owned());
        }
        if let Some((at, _)) = text.char_indices().find(|(_, c)| c.is_control()) {
            wrong.push(format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    } else {
        wrong.push("can only be set for deprecated versions".to_owned());
    }
    let path = format!("spec.versions[{index}].deprecationWarning");
    wrong
        .into_iter()
        .map(|why| FieldError::invalid(path.clone(), text, why))
        .collect()
}

fn simple_path(path: &str, at: &str) -> Option<FieldError> {
    let why = "must be a simple json path starting with .";
    (!path.starts_with('.')).then(|| FieldError::invalid(at, path, why))
}

fn subresources(subresources: &Value, at: &str) -> Vec<FieldError> {
    let Some(scale) = subresources.get("scale") else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    for (field, roots, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."][..], true),
        ("labelSelectorPath", &[".spec.", ".status."][..], false),
    ] {
        let path = meta::str_at(scale, &[field]);
        let at = format!("{at}.scale.{field}");
        if path.is_empty() {
            if required {
                errors.push(FieldError::required(at, ""));
            }
        } else if let Some(error) = simple_path(path, &at) {
            errors.push(error);
        } else if !roots.iter().any(|root| path.starts_with(root)) {
            let where_to = match roots {
                [one] => one.trim_end_matches('.').to_owned(),
                _ => "either .spec or .status".to_owned(),
            };
            let why = format!("should be a json path under {where_to}");
            errors.push(FieldError::invalid(at, path, why));
        }
    }
    errors
}

fn printer_column(column: &Value, at: &str) -> Vec<FieldError> {
    let text = |field: &str| meta::str_at(column, &[field]);
    let mut errors = Vec::new();
    if text("name").is_empty() {
        errors.push(FieldError::required(format!("{at}.name"), ""));
    }
    let one_of = |allowed: &[&str]| format!("must be one of {}", allowed.join(","));
    let kind = text("type");
    if kind.is_empty() {
        errors.push(FieldError::required(
            format!("{at}.type"),
            one_of(&COLUMN_TYPES),
        ));
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.push(FieldError::invalid(
            format!("{at}.type"),
            kind,
            one_of(&COLUMN_TYPES),
        ));
    }
    let format = text("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let why = one_of(&COLUMN_FORMATS);
        errors.push(FieldError::invalid(format!("{at}.format"), format, why));
    }
    let path = text("jsonPath");
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.JSONPath"), ""));
    } else {
        errors.extend(simple_path(path, &format!("{at}.JSONPath")));
    }
    errors
}

fn selectable(fields: &[Value], schema: Option<&Node>, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    for (index, field) in fields.iter().enumerate() {
        let path = meta::str_at(field, &["jsonPath"]);
        let at = format!("{at}[{index}].jsonPath");
        if path.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let found = match follow(path, schema) {
            Ok(found) => found,
            Err(why) => {
                let why = format!("is an invalid path: {why}");
                errors.push(FieldError::invalid(at, path, why));
                continue;
            }
        };
        if path.starts_with(".metadata") {
            let why = "must not point to fields in metadata";
            errors.push(FieldError::invalid(at.clone(), path, why));
        }
        if !matches!(found.kind.as_str(), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(at.clone(), path, why));
        }
        if seen.insert(path, ()).is_some() {
            errors.push(FieldError::duplicate(at, path));
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.push(FieldError::too_many(at, seen.len(), SELECTABLE_MAX));
    }
    errors
}

/// The schema that a path of fields leads to.
pub(super) fn follow<'a>(path: &str, schema: Option<&'a Node>) -> Result<&'a Node, String> {
    let mut at = schema.ok_or("schema is missing")?;
    let Some(rest) = path.strip_prefix('.') else {
        return Err(format!(
            "expected [ or . but got: {}",
            path.chars().next().unwrap_or(' ')
        ));
    };
    for key in rest.split('.') {
        at = at
            .field(key)
            .ok_or_else(|| format!("does not refer to a valid field: {key}"))?;
    }
    Ok(at)
}

/// Every broken rule of the versions that objects may be stored in.
pub(super) fn validate_stored(obj: &Value) -> Vec<FieldError> {
    let stored = meta::list_at(obj, &["status", "storedVersions"]);
    let at = "status.storedVersions";
    if stored.is_empty() {
        let why = "must have at least one stored version";
        return vec![FieldError::invalid(at, json!(stored), why)];
    }
    let versions = meta::list_at(obj, &["spec", "versions"]);
    let mut errors = Vec::new();
    if let Some(storage) = storage(obj)
        && !stored.iter().any(|v| *v == storage)
    {
        let why = format!("must have the storage version {storage}");
        errors.push(FieldError::invalid(at, json!(stored), why));
    }
    for (index, version) in stored.iter().enumerate() {
        if versions.iter().any(|v| v.get("name") == Some(version)) {
            continue;
        }
        let v = version.as_str().unwrap_or_default();
        let why = format!(
            "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions"
        );
        errors.push(FieldError::invalid(format!("{at}[{index}]"), v, why));
    }
    errors
}
