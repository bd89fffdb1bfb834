//! JSON patch as upstream's library reads RFC 6902, which clients count on:
//!
//! - a key that is not there is null: `test` finds it equal to null, `replace` sets it;
//! - indices below zero count from the end of a list;
//! - what `copy` makes is bounded.

use api::Status;
use serde::Deserialize;
use serde_json::Value;

/// Most operations a JSON patch may have, as upstream bounds it.
pub const MAX_OPERATIONS: usize = 10_000;
/// Most bytes that the copies of a patch may make, as upstream bounds them.
const MAX_COPIED_BYTES: usize = 3 << 20;

#[derive(Deserialize)]
struct Operation {
    #[serde(default)]
    op: String,
    path: Option<String>,
    from: Option<String>,
    #[serde(default)]
    value: Value,
}

/// An operation does not apply; nobody is told more.
struct Refused;

/// Applies a JSON patch.
///
/// # Errors
/// 400 for what is no patch, 413 for too many operations, 422 when an operation does not apply.
pub fn json_patch(original: &Value, patch: &Value) -> Result<Value, Status> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > MAX_OPERATIONS {
        let why = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {operations}"
        );
        return Err(Status::too_large(why));
    }
    let patch: Vec<Operation> = Deserialize::deserialize(patch)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let mut out = original.clone();
    let mut room = MAX_COPIED_BYTES;
    // Upstream says no more than this, whichever operation fails.
    let refused = "the server rejected our request due to an error in our request";
    for operation in patch {
        operate(&mut out, operation, &mut room)
            .map_err(|Refused| Status::failure(422, "Invalid", refused))?;
    }
    Ok(out)
}

fn operate(doc: &mut Value, operation: Operation, room: &mut usize) -> Result<(), Refused> {
    let path = operation.path.ok_or(Refused)?;
    let from = operation.from.ok_or(Refused);
    match operation.op.as_str() {
        "add" => find(doc, &path)?.add(operation.value),
        "remove" => find(doc, &path)?.remove().map(drop),
        "replace" if path.is_empty() => {
            *doc = operation.value;
            Ok(())
        }
        "replace" => find(doc, &path)?.replace(operation.value),
        "test" if path.is_empty() => equal(doc, &operation.value),
        "test" => equal(find(doc, &path)?.get()?, &operation.value),
        "move" => {
            let value = find(doc, &from?)?.remove()?;
            find(doc, &path)?.add(value)
        }
        "copy" => {
            let value = find(doc, &from?)?.get()?.clone();
            let bytes = value.to_string().len();
            *room = room.checked_sub(bytes).ok_or(Refused)?;
            find(doc, &path)?.add(value)
        }
        _ => Err(Refused),
    }
}

fn equal(found: &Value, wanted: &Value) -> Result<(), Refused> {
    if found == wanted {
        Ok(())
    } else {
        Err(Refused)
    }
}

/// A place in a document: where it is kept, and what it is called there.
struct Place<'a> {
    parent: &'a mut Value,
    key: String,
}

/// The place that a pointer means; its parent must be there.
fn find<'a>(doc: &'a mut Value, pointer: &str) -> Result<Place<'a>, Refused> {
    let (parents, key) = pointer.rsplit_once('/').ok_or(Refused)?;
    let mut parent = doc;
    for part in parents.split('/').skip(1) {
        parent = match parent {
            Value::Object(map) => map.get_mut(&unescaped(part)).ok_or(Refused)?,
            Value::Array(items) => {
                let at = index(part, items.len())?;
                items.get_mut(at).ok_or(Refused)?
            }
            _ => return Err(Refused),
        };
    }
    let key = unescaped(key);
    Ok(Place { parent, key })
}

fn unescaped(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

/// The index that is meant in a list of so many places.
fn index(key: &str, places: usize) -> Result<usize, Refused> {
    let meant: i64 = key.parse().map_err(|_| Refused)?;
    let places = i64::try_from(places).map_err(|_| Refused)?;
    let meant = if meant < 0 { meant + places } else { meant };
    if meant >= places {
        return Err(Refused);
    }
    usize::try_from(meant).map_err(|_| Refused)
}

impl<'a> Place<'a> {
    fn get(self) -> Result<&'a Value, Refused> {
        match self.parent {
            Value::Object(map) => Ok(map.get(&self.key).unwrap_or(&Value::Null)),
            Value::Array(items) => Ok(&items[index(&self.key, items.len())?]),
            _ => Err(Refused),
        }
    }

    fn add(self, value: Value) -> Result<(), Refused> {
        match self.parent {
            Value::Object(map) => {
                map.insert(self.key, value);
            }
            Value::Array(items) if self.key == "-" => items.push(value),
            Value::Array(items) => {
                let at = index(&self.key, items.len() + 1)?;
                items.insert(at, value);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn replace(self, value: Value) -> Result<(), Refused> {
        match self.parent {
            Value::Object(map) => {
                map.insert(self.key, value);
            }
            Value::Array(items) => {
                let at = index(&self.key, items.len())?;
                items[at] = value;
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn remove(self) -> Result<Value, Refused> {
        match self.parent {
            Value::Object(map) => map.remove(&self.key).ok_or(Refused),
            Value::Array(items) => {
                let at = index(&self.key, items.len())?;
                Ok(items.remove(at))
            }
            _ => Err(Refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_mean_what_upstream_takes_them_for() {
        let obj = || json!({"a": [1, 2], "b": {"c/d": 1, "n": null}});
        let ops = |ops: Value| json_patch(&obj(), &ops);
        for (applied, wanted) in [
            (
                json!([{"op": "test", "path": "/a/0", "value": 1}, {"op": "add", "path": "/a/-", "value": 3},
                    {"op": "replace", "path": "/b/c~1d", "value": 2}]),
                json!({"a": [1, 2, 3], "b": {"c/d": 2, "n": null}}),
            ),
            // What is not there is null.
            (
                json!([{"op": "test", "path": "/x", "value": null}, {"op": "test", "path": "/b/n", "value": null},
                    {"op": "test", "path": "/x"}, {"op": "replace", "path": "/x", "value": 1}]),
                json!({"a": [1, 2], "b": {"c/d": 1, "n": null}, "x": 1}),
            ),
            (
                json!([{"op": "remove", "path": "/a/-1"}, {"op": "add", "path": "/a/-1", "value": 9},
                    {"op": "add", "path": "/a/0", "value": 0}]),
                json!({"a": [0, 1, 9], "b": {"c/d": 1, "n": null}}),
            ),
            (
                json!([{"op": "move", "from": "/b/c~1d", "path": "/m"}, {"op": "copy", "from": "/a", "path": "/b/n"}]),
                json!({"a": [1, 2], "b": {"n": [1, 2]}, "m": 1}),
            ),
            (
                json!([{"op": "replace", "path": "", "value": {"z": 1}}, {"op": "test", "path": "", "value": {"z": 1}}]),
                json!({"z": 1}),
            ),
        ] {
            assert_eq!(ops(applied.clone()).unwrap(), wanted, "{applied}");
        }
    }

    #[test]
    fn what_does_not_apply_is_refused() {
        let obj = json!({"a": [1, 2], "b": "text"});
        for (operation, code) in [
            (json!({"op": "test", "path": "/a/0", "value": 5}), 422),
            (json!({"op": "test", "path": "/a/2", "value": null}), 422),
            (json!({"op": "test", "path": "/x/y", "value": null}), 422),
            (json!({"op": "test", "path": "/b", "value": null}), 422),
            (json!({"op": "remove", "path": "/x"}), 422),
            (json!({"op": "remove", "path": "/a/-3"}), 422),
            (json!({"op": "add", "path": "/a/3", "value": 1}), 422),
            (json!({"op": "add", "path": "/b/c", "value": 1}), 422),
            (json!({"op": "add", "path": "", "value": 1}), 422),
            (json!({"op": "replace", "path": "/a/x", "value": 1}), 422),
            (json!({"op": "move", "from": "/x", "path": "/y"}), 422),
            (json!({"op": "copy", "path": "/y"}), 422),
            (json!({"op": "swap", "path": "/a"}), 422),
            (json!({"op": "remove"}), 422),
            (json!({"op": "remove", "path": 7}), 400),
            (json!(7), 400),
        ] {
            let refused = json_patch(&obj, &json!([operation])).unwrap_err();
            assert_eq!(refused.code, code, "{operation}");
        }
        assert_eq!(json_patch(&obj, &json!({"a": 1})).unwrap_err().code, 400);
        let many = vec![json!({"op": "test", "path": "/a/0", "value": 1}); MAX_OPERATIONS + 1];
        assert_eq!(json_patch(&obj, &many.into()).unwrap_err().code, 413);
        let grow = json!({"op": "copy", "from": "", "path": "/b"});
        assert_eq!(json_patch(&obj, &json!([grow])).unwrap_err().code, 422);
        let doubled = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 40];
        let bomb = json_patch(&obj, &doubled.into()).unwrap_err();
        assert_eq!(bomb.code, 422, "copies of copies are bounded");
    }
}
