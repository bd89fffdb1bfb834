//! Reading a few fields of a stored object without building its tree: what field selectors look at. A watch
//! with a field selector asks this of each object twice, as it was and as it is.

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

pub use api::edit::Path;

/// The object with nothing in it but what lies at `paths`.
///
/// # Errors
/// When the bytes are no JSON.
pub fn read(bytes: &[u8], paths: &[Path<'_>]) -> serde_json::Result<Value> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Part { paths }.deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// A value of which only what lies at `paths` counts.
struct Part<'p> {
    paths: &'p [Path<'p>],
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let below: Vec<Path<'_>> = self
                .paths
                .iter()
                .filter(|path| path.first() == Some(&&*key))
                .map(|path| &path[1..])
                .collect();
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else if below.iter().any(|path| path.is_empty()) {
                out.insert(key.into_owned(), map.next_value()?);
            } else {
                let value = map.next_value_seed(Part { paths: &below })?;
                out.insert(key.into_owned(), value);
            }
        }
        Ok(Value::Object(out))
    }

    // No path leads into what is no object.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_lies_at_the_paths_is_read() {
        let object = json!({
            "kind": "Pod", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"nodeName": "n", "nested": {"nodeName": "m"}, "list": [1, {"a": null}]},
            "status": {"conditions": [{"type": "Ready"}]},
        });
        let bytes = object.to_string();
        let read = |paths: &[Path<'_>]| super::read(bytes.as_bytes(), paths).unwrap();
        assert_eq!(
            read(&[&["spec", "nodeName"], &["metadata", "name"]]),
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}})
        );
        assert_eq!(
            read(&[&["status", "conditions"]]),
            json!({"status": {"conditions": [{"type": "Ready"}]}})
        );
        assert_eq!(
            read(&[&["spec", "list", "a"]]),
            json!({"spec": {"list": null}})
        );
        assert_eq!(read(&[&["status", "phase"]]), json!({"status": {}}));
        assert_eq!(read(&[]), json!({}));
        assert!(super::read(b"{\"a\":1", &[&["a"]]).is_err());
    }

    #[test]
    fn a_field_reads_as_it_does_in_the_whole_tree() {
        let object = json!({
            "a": {"a": 1, "b": {"c": "x"}, "c": null}, "b": [{"a": 1}], "c": "text", "d": {"b": 2.5, "c": true},
        });
        let bytes = object.to_string();
        let keys = ["a", "b", "c", "d", "e"];
        for (first, second) in keys.iter().flat_map(|k| keys.map(|l| (*k, l))) {
            let path = [first, second];
            let sparse = super::read(bytes.as_bytes(), &[&path, &["a", "b", "c"]]).unwrap();
            assert_eq!(
                api::meta::get(&sparse, &path),
                api::meta::get(&object, &path),
                "{path:?}"
            );
        }
    }
}
