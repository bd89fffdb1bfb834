//! What holds for every kind, around the strategy of each.

use std::borrow::Cow;

use api::time::{self, Timestamp};
use api::{FieldError, Kind, meta};
use serde_json::{Map, Value};

use crate::metadata::{validate_metadata, validate_metadata_update};
use crate::registry::strategy;
use crate::strategy::Ctx;

/// Fills in what depends on other fields; call after `codec::default`.
pub fn default(kind: &Kind, obj: &mut Value) {
    strategy(kind).default(obj);
}

/// Makes a new object fit to be stored: no status of the client's, generation 1.
pub fn prepare_create(obj: &mut Value, ctx: &Ctx<'_>) {
    let rules = strategy(ctx.kind);
    if ctx.kind.has_status() && !rules.keeps_status_on_create() {
        meta::remove(obj, &["status"]);
    }
    if rules.has_generation() {
        meta::set(obj, &["metadata", "generation"], 1.into());
    }
    rules.prepare_create(obj, ctx);
    if ctx.kind.has_status() && ctx.kind.custom.is_none() && obj.get("status").is_none() {
        meta::set(obj, &["status"], Value::Object(serde_json::Map::new()));
    }
}

/// Makes an update fit to be stored: the old status stays, the generation counts real changes.
pub fn prepare_update(new: &mut Value, old: &Value, ctx: &Ctx<'_>) {
    let rules = strategy(ctx.kind);
    if ctx.kind.has_status() {
        put_back(new, old, "status");
    }
    keep_system_metadata(new, old);
    rules.prepare_update(new, old, ctx);
    if rules.has_generation() {
        let generation = meta::int_at(old, &["metadata", "generation"]).unwrap_or(0);
        let unguarded = !ctx.kind.has_status() && new.get("status") != old.get("status");
        let next = if content_differs(new, old) || (ctx.kind.custom.is_some() && unguarded) {
            generation + 1
        } else {
            generation
        };
        meta::set(new, &["metadata", "generation"], next.into());
    }
}

/// Makes a write of the status subresource fit to be stored: only status and managed fields change.
pub fn prepare_status_update(new: &mut Value, old: &Value, ctx: &Ctx<'_>) {
    // Upstream keeps labels and annotations sent with a status for most kinds; finalizers and owners stay.
    let taken: &[&str] = if ctx.kind.custom.is_some() {
        &["managedFields", "resourceVersion"]
    } else {
        &["labels", "annotations", "managedFields", "resourceVersion"]
    };
    // Pieced together rather than copied and changed: statuses are most of what a cluster writes.
    let (Value::Object(mut sent), Some(old_fields)) = (std::mem::take(new), old.as_object()) else {
        return;
    };
    let metadata = match (old_fields.get("metadata"), sent.remove("metadata")) {
        (Some(Value::Object(old)), Some(Value::Object(sent))) => replaced(old, sent, taken),
        (Some(Value::Object(old)), _) => replaced(old, Map::new(), taken),
        (_, Some(Value::Object(sent))) => replaced(&Map::new(), sent, taken),
        _ => Map::new(),
    };
    sent.insert("metadata".to_owned(), Value::Object(metadata));
    *new = Value::Object(replaced(old_fields, sent, &["metadata", "status"]));
    if ctx.kind.custom.is_none() {
        strategy(ctx.kind).prepare_status_update(new, old, ctx);
    }
}

/// `old` with what `sent` has, or has not, in the named fields.
fn replaced(
    old: &Map<String, Value>,
    mut sent: Map<String, Value>,
    fields: &[&str],
) -> Map<String, Value> {
    let mut out = Map::with_capacity(old.len() + 1);
    for (key, value) in old {
        if !fields.contains(&key.as_str()) {
            // What is the same is taken over rather than copied.
            let same = sent.remove_entry(key).filter(|(_, v)| v == value);
            let (key, value) = same.unwrap_or_else(|| (key.clone(), value.clone()));
            out.insert(key, value);
        } else if let Some(value) = sent.remove(key) {
            out.insert(key.clone(), value);
        }
    }
    for field in fields {
        if let Some((key, value)) = sent.remove_entry(*field) {
            out.insert(key, value);
        }
    }
    out
}

fn put_back_at(target: &mut Value, metadata: &Value, field: &str) {
    match metadata.get(field) {
        Some(value) => meta::set(target, &["metadata", field], value.clone()),
        None => {
            meta::remove(target, &["metadata", field]);
        }
    }
}

/// Makes a field of `target` what it is in `source`, present or not.
pub(crate) fn put_back(target: &mut Value, source: &Value, field: &str) {
    match source.get(field) {
        Some(value) => meta::set(target, &[field], value.clone()),
        None => {
            meta::remove(target, &[field]);
        }
    }
}

/// Fields of metadata that clients may leave out of an update but never change.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    for field in ["uid", "creationTimestamp", "generateName", "selfLink"] {
        let at = ["metadata", field];
        if meta::get(new, &at).is_none()
            && let Some(value) = meta::get(old, &at)
        {
            meta::set(new, &at, value.clone());
        }
    }
    // Deletion is decided by delete requests alone.
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        put_back_at(new, old.get("metadata").unwrap_or(&Value::Null), field);
    }
}

/// Whether anything but type, metadata and status differs.
pub(crate) fn content_differs(a: &Value, b: &Value) -> bool {
    let ignored = |k: &str| matches!(k, "kind" | "apiVersion" | "metadata" | "status");
    let one_way = |a: &Value, b: &Value| {
        a.as_object()
            .into_iter()
            .flatten()
            .any(|(k, v)| !ignored(k) && b.get(k) != Some(v))
    };
    one_way(a, b) || one_way(b, a)
}

/// Every broken rule of a new object.
pub fn validate_create(kind: &Kind, obj: &Value) -> Vec<FieldError> {
    let rules = strategy(kind);
    let mut errors = validate_metadata(kind, rules, obj);
    errors.extend(rules.validate(obj));
    errors.extend(rules.validate_create(obj));
    if let Some(custom) = &kind.custom {
        errors.extend(crate::custom::validate(kind, custom, obj, None));
    }
    errors
}

/// Every broken rule of an updated object and of the change.
pub fn validate_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let rules = strategy(kind);
    let mut errors = validate_metadata_update(new, old);
    errors.extend(validate_metadata(kind, rules, new));
    let (object, change) = (rules.validate(new), rules.validate_update(new, old));
    if rules.changes_first() {
        errors.extend(change.into_iter().chain(object));
    } else {
        errors.extend(object.into_iter().chain(change));
    }
    if let Some(custom) = &kind.custom {
        errors.extend(crate::custom::validate(kind, custom, new, Some(old)));
    }
    errors
}

/// Every broken rule of a change of status.
pub fn validate_status_update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    let rules = strategy(kind);
    let mut errors = validate_metadata_update(new, old);
    errors.extend(rules.validate_status_update(new, old));
    if let Some(custom) = &kind.custom {
        errors.extend(crate::custom::validate_status(kind, custom, new, old));
    }
    errors
}

/// Warnings for whoever writes the object.
pub fn warnings(kind: &Kind, obj: &Value) -> Vec<String> {
    if kind.custom.is_some() {
        return crate::custom::warnings(obj);
    }
    strategy(kind).warnings(obj)
}

/// Seconds of grace when a delete asks for none; `None` if objects go at once.
pub fn delete_grace(kind: &Kind, obj: &Value) -> Option<i64> {
    strategy(kind).delete_grace(obj)
}

/// An object that is being deleted for the first time, with what its kind adds then (finalizers, conditions);
/// `None` if it adds nothing.
pub fn hold_on_delete(kind: &Kind, obj: &Value, now: Timestamp) -> Option<Value> {
    if meta::get(obj, &["metadata", "deletionTimestamp"]).is_some() {
        return None;
    }
    strategy(kind).hold_on_delete(obj, now)
}

/// Cells of an object's table row, as many as the kind has columns.
pub fn row(kind: &Kind, obj: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = kind
        .custom
        .as_ref()
        .map(|custom| crate::custom::row(kind, custom, obj, now))
        .or_else(|| strategy(kind).row(obj, now))
        .unwrap_or_else(|| plain_row(kind, obj, now));
    cells.resize(kind.columns.len(), Value::Null);
    cells
}

fn plain_row(kind: &Kind, obj: &Value, now: Timestamp) -> Vec<Value> {
    let created = meta::str_at(obj, &["metadata", "creationTimestamp"]);
    let cell = |name: &str| match name {
        "Name" => Value::from(meta::name(obj)),
        "Age" => Value::from(time::age(created, now)),
        "Created At" => Value::from(created),
        _ => Value::Null,
    };
    kind.columns.iter().map(|c| cell(&c.name)).collect()
}

/// Field labels of the kind beside `metadata.name` and `metadata.namespace`, with their paths.
pub fn field_labels(kind: &Kind) -> &'static [(&'static str, &'static [&'static str])] {
    strategy(kind).field_labels()
}

/// The names of all fields that the kind can be selected by.
pub fn field_names(kind: &Kind) -> impl Iterator<Item = String> + '_ {
    let own = field_labels(kind)
        .iter()
        .map(|(name, _)| (*name).to_owned());
    let custom = kind.custom.iter().flat_map(|c| &c.selectable);
    ["metadata.name".to_owned()]
        .into_iter()
        .chain(kind.namespaced.then(|| "metadata.namespace".to_owned()))
        .chain(own)
        .chain(custom.map(|(name, _)| name.clone()))
}

/// The value a field selector compares with: empty when absent; `None` if the kind has no such field label.
pub fn field_value<'v>(kind: &Kind, obj: &'v Value, label: &str) -> Option<Cow<'v, str>> {
    if let Some(custom) = &kind.custom
        && let Some((_, path)) = custom.selectable.iter().find(|(name, _)| name == label)
    {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        return Some(selectable(meta::get(obj, &path)));
    }
    Some(selectable(meta::get(obj, field_path(kind, label)?)))
}

/// Where the value of a field label of a built-in kind is; `None` if the kind has no such field label.
pub fn field_path(kind: &Kind, label: &str) -> Option<&'static [&'static str]> {
    match label {
        "metadata.name" => Some(&["metadata", "name"]),
        "metadata.namespace" if kind.namespaced => Some(&["metadata", "namespace"]),
        _ => field_labels(kind)
            .iter()
            .find(|(name, _)| *name == label)
            .map(|(_, path)| *path),
    }
}

/// A field's value as selectors compare it.
fn selectable(value: Option<&Value>) -> Cow<'_, str> {
    match value {
        None | Some(Value::Null) => Cow::default(),
        Some(Value::String(s)) => s.into(),
        Some(other) => other.to_string().into(),
    }
}

/// Turns an object into another served version of its kind; `apiVersion` is set to that of `to`.
pub fn convert(obj: &mut Value, to: &Kind) {
    let from = meta::str_at(obj, &["apiVersion"]).to_owned();
    if from == to.api_version() {
        return;
    }
    match to.kind.as_str() {
        _ if to.custom.is_some() => {}
        "Event" => crate::core::event::convert(obj, &to.group),
        "HorizontalPodAutoscaler" => crate::autoscaling::convert(obj, to.version == "v1"),
        _ => {}
    }
    meta::set(obj, &["apiVersion"], to.api_version().into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_write_changes_the_status_and_little_else() {
        let kind = api::kind("apps", "v1", "deployments").unwrap();
        let ctx = Ctx {
            kind,
            now: Timestamp::UNIX_EPOCH,
            subresource: "status",
        };
        let old = json!({
            "kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": {"name": "d", "labels": {"a": "1"}, "finalizers": ["f"], "managedFields": [{"manager": "m"}]},
            "spec": {"replicas": 1}, "status": {"replicas": 1},
        });
        let mut new = json!({
            "kind": "Deployment", "apiVersion": "apps/v1",
            "metadata": {"name": "other", "annotations": {"b": "2"}, "managedFields": [{"manager": "n"}]},
            "spec": {"replicas": 5}, "status": {"replicas": 2},
        });
        prepare_status_update(&mut new, &old, &ctx);
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(new["status"], json!({"replicas": 2}));
        let metadata = &new["metadata"];
        assert_eq!(
            (&metadata["name"], &metadata["finalizers"]),
            (&json!("d"), &json!(["f"]))
        );
        assert_eq!(metadata["annotations"], json!({"b": "2"}));
        assert_eq!(metadata["managedFields"], json!([{"manager": "n"}]));
        // A status that is not sent goes.
        let mut new = json!({"metadata": {"name": "d", "labels": {"a": "1"}}});
        prepare_status_update(&mut new, &old, &ctx);
        let keys: Vec<&String> = new.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["apiVersion", "kind", "metadata", "spec"]);
    }
}
