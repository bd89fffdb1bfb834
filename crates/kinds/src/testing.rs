//! What the tests of this crate's rules share: an object that is fine, changes of it, and what is told of each.

use api::FieldError;
use serde_json::Value;

/// Stands at the end of an expected text for whatever follows.
const REST: char = '…';

/// The errors as they are told.
pub(crate) fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Asserts that the texts are these, in this order; one that ends in `…` need only begin alike.
pub(crate) fn assert_texts(errors: &[FieldError], expected: &[&str], what: &dyn std::fmt::Display) {
    let told = texts(errors);
    let alike = |(told, expected): (&String, &&str)| match expected.strip_suffix(REST) {
        Some(begin) => told.starts_with(begin),
        None => told == expected,
    };
    let same = told.len() == expected.len() && told.iter().zip(expected).all(alike);
    assert!(same, "{what}: {told:#?}, not {expected:#?}");
}

/// The object with the values at the paths (`/spec/ports/0/name`) changed; null takes a field away.
pub(crate) fn changed(valid: &Value, changes: &Value) -> Value {
    let mut out = valid.clone();
    for (path, value) in changes.as_object().into_iter().flatten() {
        let keys: Vec<&str> = path.split('/').skip(1).collect();
        put(&mut out, &keys, value);
    }
    out
}

fn put(target: &mut Value, keys: &[&str], value: &Value) {
    let Some((key, rest)) = keys.split_first() else {
        *target = value.clone();
        return;
    };
    let key = key.replace("~1", "/");
    if let Some(list) = target.as_array_mut() {
        let at: usize = key.parse().expect("a number");
        if at == list.len() {
            list.push(Value::Null);
        }
        return put(&mut list[at], rest, value);
    }
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let map = target.as_object_mut().expect("an object");
    if rest.is_empty() && value.is_null() {
        map.remove(&key);
    } else {
        put(map.entry(key).or_insert(Value::Null), rest, value);
    }
}

/// A change of the valid object and what is told of it.
pub(crate) type Row<'a> = (Value, &'a [&'a str]);

/// Asserts what is told of the valid object, which is nothing, and of each change of it.
pub(crate) fn assert_rules(
    valid: &Value,
    rules: impl Fn(&Value) -> Vec<FieldError>,
    rows: &[Row<'_>],
) {
    assert_texts(&rules(valid), &[], &"the valid object");
    for (changes, expected) in rows {
        assert_texts(&rules(&changed(valid, changes)), expected, changes);
    }
}

/// The same for changes of a stored object.
pub(crate) fn assert_updates(
    old: &Value,
    rules: impl Fn(&Value, &Value) -> Vec<FieldError>,
    rows: &[Row<'_>],
) {
    assert_rules(old, |new| rules(new, old), rows);
}
