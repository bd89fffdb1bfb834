//! Strategic merge patch: a merge patch whose lists merge by the keys that the schema names.
//!
//! Directives, all of which begin with `$`: `$patch: replace|merge|delete` on objects and list items,
//! `$retainKeys`, `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>`.

use api::{Field, Kind, Schema, Shape, Status};
use serde_json::{Map, Value};

/// How messages about malformed directives begin.
const BAD_FORMAT: &str = "invalid patch format";
const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of `kind`.
///
/// # Errors
/// 400 or 422 for patches that make no sense, with upstream's message.
pub fn strategic_merge(kind: &Kind, original: &Value, patch: &Value) -> Result<Value, Status> {
    let Some(patch) = patch.as_object() else {
        return Err(Status::bad_request(
            "error decoding patch: json: cannot unmarshal into map[string]interface {}",
        ));
    };
    let schema = kind.schema.get();
    merge_object(original, patch, schema).map_err(|why| {
        if why.starts_with(BAD_FORMAT) {
            Status::bad_request(why)
        } else {
            Status::failure(422, "Invalid", why)
        }
    })
}

type Merged<T> = Result<T, String>;

fn object_schema(shape: Option<&Shape>) -> Option<&Schema> {
    match shape? {
        Shape::Object(reference) => reference.get(),
        _ => None,
    }
}

/// Merges a patch into what is there (anything but an object counts as absent).
fn merge_object(
    original: &Value,
    patch: &Map<String, Value>,
    schema: Option<&Schema>,
) -> Merged<Value> {
    let mut out = match patch.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
        Some("replace") => {
            let rest = patch
                .iter()
                .filter(|(k, _)| *k != PATCH)
                .map(|(k, v)| (k.clone(), v.clone()));
            return Ok(Value::Object(rest.collect()));
        }
        Some("delete") => return Ok(Value::Object(Map::new())),
        Some("merge") | None => original.as_object().cloned().unwrap_or_default(),
        Some(other) => return Err(format!("Unknown {PATCH} type: {other} in map: {patch:?}")),
    };
    if let Some(keys) = patch.get(RETAIN_KEYS) {
        retain(&mut out, keys, patch)?;
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            delete_from(&mut out, list, value)?;
        }
    }
    for (key, value) in patch.iter().filter(|(k, _)| !is_directive(k)) {
        let field = schema.and_then(|s| s.field(key));
        let order = patch.get(&format!("{SET_ORDER}{key}"));
        merge_field(&mut out, key, value, field, order)?;
    }
    for (key, order) in patch {
        let Some(list) = key
            .strip_prefix(SET_ORDER)
            .filter(|l| !patch.contains_key(*l))
        else {
            continue;
        };
        let field = schema.and_then(|s| s.field(list));
        if let (Some(Value::Array(items)), Some(field)) = (out.get_mut(list), field) {
            let before = items.clone();
            sort(items, order, field.patch_merge_key.as_deref(), &before)?;
        }
    }
    Ok(Value::Object(out))
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM)
}

fn retain(out: &mut Map<String, Value>, keys: &Value, patch: &Map<String, Value>) -> Merged<()> {
    let bad = || "invalid patch format of retainKeys, should be a list of strings".to_owned();
    let keys: Vec<&str> = keys
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .map(|k| k.as_str().ok_or_else(bad))
        .collect::<Merged<_>>()?;
    let stray = patch
        .iter()
        .find(|(k, v)| !is_directive(k) && !v.is_null() && !keys.contains(&k.as_str()));
    if let Some((key, _)) = stray {
        return Err(format!(
            "{key} is in the patch but not in {RETAIN_KEYS}: every key present must be in the list"
        ));
    }
    out.retain(|k, _| keys.contains(&k.as_str()));
    Ok(())
}

fn delete_from(out: &mut Map<String, Value>, list: &str, values: &Value) -> Merged<()> {
    let values = values
        .as_array()
        .ok_or_else(|| format!("invalid patch format of {DELETE_FROM}{list}: should be a list"))?;
    if let Some(Value::Array(items)) = out.get_mut(list) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn merge_field(
    out: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    field: Option<&Field>,
    order: Option<&Value>,
) -> Merged<()> {
    match value {
        Value::Null => {
            out.remove(key);
        }
        Value::Object(patch) => {
            let was = out.get(key).cloned().unwrap_or_default();
            let merged = merge_shape(&was, patch, field.map(|f| &f.shape))?;
            if patch.get(PATCH).and_then(Value::as_str) == Some("delete") {
                out.remove(key);
            } else {
                out.insert(key.to_owned(), merged);
            }
        }
        Value::Array(items) => {
            let was = out
                .get(key)
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            out.insert(
                key.to_owned(),
                Value::Array(merge_list(was, items, field, order)?),
            );
        }
        scalar => {
            out.insert(key.to_owned(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_shape(was: &Value, patch: &Map<String, Value>, shape: Option<&Shape>) -> Merged<Value> {
    // A map of objects has one schema for all its values; plain maps and unknown fields have none.
    if let Some(Shape::Map(item)) = shape
        && let Shape::Object(_) = **item
        && !patch.contains_key(PATCH)
    {
        let mut out = was.as_object().cloned().unwrap_or_default();
        for (key, value) in patch {
            match value {
                Value::Null => {
                    out.remove(key);
                }
                Value::Object(inner) => {
                    let merged = merge_object(
                        out.get(key).unwrap_or(&Value::Null),
                        inner,
                        object_schema(Some(item)),
                    )?;
                    out.insert(key.clone(), merged);
                }
                other => {
                    out.insert(key.clone(), other.clone());
                }
            }
        }
        return Ok(Value::Object(out));
    }
    merge_object(was, patch, object_schema(shape))
}

fn merge_list(
    was: Vec<Value>,
    patch: &[Value],
    field: Option<&Field>,
    order: Option<&Value>,
) -> Merged<Vec<Value>> {
    let Some(field) = field.filter(|f| f.patch_merge) else {
        return Ok(patch.to_vec());
    };
    let item_schema = match &field.shape {
        Shape::Array(item) => object_schema(Some(item)),
        _ => None,
    };
    match (item_schema, field.patch_merge_key.as_deref()) {
        (Some(schema), Some(key)) => merge_objects(was, patch, schema, key, order),
        _ => {
            let before = was.clone();
            let mut out = was;
            for item in patch {
                if !out.contains(item) {
                    out.push(item.clone());
                }
            }
            if let Some(order) = order {
                sort(&mut out, order, None, &before)?;
            }
            Ok(out)
        }
    }
}

fn merge_objects(
    was: Vec<Value>,
    patch: &[Value],
    schema: &Schema,
    key: &str,
    order: Option<&Value>,
) -> Merged<Vec<Value>> {
    if patch
        .iter()
        .any(|p| p.get(PATCH).and_then(Value::as_str) == Some("replace"))
    {
        let kept = patch.iter().filter(|p| p.get(PATCH).is_none());
        return Ok(kept.cloned().collect());
    }
    let before = was.clone();
    let mut out = was;
    for item in patch {
        let Some(map) = item.as_object() else {
            return Err(format!("list element in patch is no map: {item}"));
        };
        let Some(id) = map.get(key) else {
            return Err(format!(
                "map: {item} does not contain declared merge key: {key}"
            ));
        };
        let found = out.iter().position(|o| o.get(key) == Some(id));
        match map.get(PATCH).map(|d| d.as_str().unwrap_or_default()) {
            Some("delete") => out.retain(|o| o.get(key) != Some(id)),
            Some("merge") | None => {
                let merged =
                    merge_object(found.map_or(&Value::Null, |i| &out[i]), map, Some(schema))?;
                match found {
                    Some(i) => out[i] = merged,
                    None => out.push(merged),
                }
            }
            Some(other) => return Err(format!("Unknown {PATCH} type: {other} in map: {item}")),
        }
    }
    if let Some(order) = order {
        sort(&mut out, order, Some(key), &before)?;
    }
    Ok(out)
}

/// Puts items into the order of `$setElementOrder`; items it does not name stay behind the item they
/// followed before (server-only items keep their relative place).
fn sort(items: &mut Vec<Value>, order: &Value, key: Option<&str>, before: &[Value]) -> Merged<()> {
    let order = order
        .as_array()
        .ok_or_else(|| format!("invalid patch format of {SET_ORDER}: should be a list"))?;
    let id = |v: &Value| key.map_or_else(|| v.clone(), |k| v.get(k).cloned().unwrap_or_default());
    let wanted: Vec<Value> = order.iter().map(&id).collect();
    let (mut named, unnamed): (Vec<Value>, Vec<Value>) = std::mem::take(items)
        .into_iter()
        .partition(|v| wanted.contains(&id(v)));
    named.sort_by_key(|v| wanted.iter().position(|w| *w == id(v)));
    // Merge both lists: a server-only item comes before the named items that it preceded originally.
    let place = |v: &Value| before.iter().position(|b| id(b) == id(v));
    let mut out = Vec::with_capacity(named.len() + unnamed.len());
    let mut rest = unnamed.into_iter().peekable();
    for item in named {
        let at = place(&item);
        while let Some(other) = rest.peek() {
            match (place(other), at) {
                (Some(o), Some(a)) if o < a => out.extend(rest.next()),
                _ => break,
            }
        }
        out.push(item);
    }
    out.extend(rest);
    *items = out;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn apply(original: Value, patch: Value) -> Value {
        strategic_merge(api::kind("", "v1", "pods").unwrap(), &original, &patch).unwrap()
    }

    #[test]
    fn lists_merge_by_key() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "x", "args": ["1"]}, {"name": "b", "image": "y"}]}});
        let got = apply(
            pod,
            json!({"spec": {"containers": [{"name": "b", "image": "z"}, {"name": "c"}, {"name": "a", "args": ["2"]}]}}),
        );
        assert_eq!(
            got["spec"]["containers"],
            json!([{"name": "a", "image": "x", "args": ["2"]}, {"name": "b", "image": "z"}, {"name": "c"}])
        );
    }

    #[test]
    fn directives() {
        let containers = json!([{"name": "a", "image": "x"}, {"name": "b"}]);
        let pod = json!({"metadata": {"finalizers": ["f/1", "f/2"], "labels": {"k": "v", "l": "w"}}, "spec": {"containers": containers,
            "volumes": [{"name": "v", "emptyDir": {}}]}});
        for (patch, path, want) in [
            (
                json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}),
                "/spec/containers",
                json!([{"name": "b"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            (
                json!({"metadata": {"labels": {"$patch": "replace", "n": "1"}}}),
                "/metadata/labels",
                json!({"n": "1"}),
            ),
            (
                json!({"metadata": {"labels": {"k": null}}}),
                "/metadata/labels",
                json!({"l": "w"}),
            ),
            (
                json!({"metadata": {"labels": {"$patch": "delete"}}}),
                "/metadata/labels",
                Value::Null,
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f/1"]}}),
                "/metadata/finalizers",
                json!(["f/2"]),
            ),
            (
                json!({"metadata": {"finalizers": ["f/3", "f/1"]}}),
                "/metadata/finalizers",
                json!(["f/1", "f/2", "f/3"]),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
                "/spec/volumes",
                json!([{"name": "v", "hostPath": {"path": "/x"}}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                "/spec/containers",
                json!([{"name": "b"}, {"name": "a", "image": "x"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "c"}, {"name": "a", "image": "x"}, {"name": "b"}]),
            ),
        ] {
            let got = apply(pod.clone(), patch.clone());
            assert_eq!(
                got.pointer(path).cloned().unwrap_or_default(),
                want,
                "{patch}"
            );
            assert!(!got.to_string().contains('$'), "{got}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let kind = api::kind("", "v1", "pods").unwrap();
        for patch in [
            json!([]),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"$patch": "bogus"}}),
            json!({"spec": {"$retainKeys": 1}}),
        ] {
            assert!(
                strategic_merge(kind, &json!({}), &patch).is_err(),
                "{patch}"
            );
        }
    }

    #[test]
    fn recreate_drops_rolling_update() {
        let kind = api::kind("apps", "v1", "deployments").unwrap();
        let was = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(
            strategic_merge(kind, &was, &patch).unwrap()["spec"]["strategy"],
            json!({"type": "Recreate"})
        );
    }
}
