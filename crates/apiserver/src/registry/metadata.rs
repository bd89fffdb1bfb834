//! System fields of `metadata` on create and update. Pure: time, uid and random suffixes come in as arguments.

use api::meta;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Longest name made from `generateName`, without the random part.
const GENERATED_PREFIX_MAX: usize = 58;
/// Letters of the random part: no vowels and nothing that looks like another.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of the random part.
const SUFFIX_LENGTH: usize = 5;

/// Fields of `metadata` that only the server writes.
const SYSTEM_FIELDS: [&str; 4] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// `metadata` of an object, made if missing.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    meta::object_at(object, &["metadata"])
}

/// A name with the random part that `roll` draws (each call gives a number to reduce).
pub fn generated_name(prefix: &str, mut roll: impl FnMut() -> u32) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    for _ in 0..SUFFIX_LENGTH {
        name.push(SUFFIX_LETTERS[roll() as usize % SUFFIX_LETTERS.len()] as char);
    }
    name
}

/// Fills in the fields of a new object.
pub fn stamp_new(object: &mut Value, namespace: &str, uid: &str, now: Timestamp) {
    let metadata = of(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), namespace.into());
    }
    metadata.insert("uid".into(), uid.into());
    metadata.insert("creationTimestamp".into(), api::time::format(now).into());
}

/// Takes over what an update cannot change, when the new object says nothing about it.
pub fn carry_over(new: &mut Value, old: &Value, namespace: &str) {
    let Some(old) = old.get("metadata").and_then(Value::as_object) else {
        return;
    };
    let metadata = of(new);
    for field in ["selfLink", "resourceVersion"] {
        metadata.remove(field);
    }
    if !namespace.is_empty() {
        metadata.insert("namespace".into(), namespace.into());
    }
    // An object that says it is another one is refused later.
    let claims = metadata
        .get("uid")
        .and_then(Value::as_str)
        .is_some_and(|uid| !uid.is_empty());
    for field in SYSTEM_FIELDS {
        if field == "uid" && claims {
            continue;
        }
        match old.get(field) {
            // A client may shorten nothing here: the deletion fields belong to DELETE.
            Some(value) => {
                metadata.insert(field.into(), value.clone());
            }
            None => {
                metadata.remove(field);
            }
        }
    }
    if !metadata.contains_key("generation")
        && let Some(generation) = old.get("generation")
    {
        metadata.insert("generation".into(), generation.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn generated_names_stay_within_the_limit() {
        let mut n = 0;
        let mut roll = || {
            n += 1;
            n
        };
        assert_eq!(generated_name("web-", &mut roll), "web-cdfgh");
        assert_eq!(generated_name(&"x".repeat(80), &mut roll).len(), 63);
    }

    #[test]
    fn new_objects_get_system_fields() {
        let mut o =
            json!({"metadata": {"name": "a", "deletionTimestamp": "x", "resourceVersion": "4"}});
        stamp_new(&mut o, "ns", "u-1", Timestamp::UNIX_EPOCH);
        assert_eq!(
            o["metadata"],
            json!({"name": "a", "namespace": "ns", "uid": "u-1", "creationTimestamp": "1970-01-01T00:00:00Z"})
        );
    }
}
