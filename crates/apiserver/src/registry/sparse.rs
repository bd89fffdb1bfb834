//! Reading a few fields of a stored object without building its tree: what admission asks of other objects, and what
//! indexes keep of all of them.

use api::fields;
use api::meta;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

pub use api::fields::Path;

/// The object with nothing in it but what lies at `paths`.
///
/// # Errors
/// When the bytes are no JSON.
pub fn read(bytes: &[u8], paths: &[Path<'_>]) -> serde_json::Result<Value> {
    let Some(places) = fields::places(bytes, paths) else {
        return read_any(bytes, paths);
    };
    let mut object = Value::Object(Map::new());
    for (path, place) in paths.iter().zip(places) {
        if let Some((start, end)) = place {
            let value = serde_json::from_slice(&bytes[start..end])?;
            meta::set(&mut object, path, value);
        }
    }
    Ok(object)
}

/// The same for text that somebody else wrote.
fn read_any(bytes: &[u8], paths: &[Path<'_>]) -> serde_json::Result<Value> {
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
        for bytes in [object.to_string(), format!("{object:#}")] {
            let read = |paths: &[Path<'_>]| super::read(bytes.as_bytes(), paths).unwrap();
            assert_eq!(
                read(&[&["spec", "nodeName"], &["metadata", "name"]]),
                json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}})
            );
            assert_eq!(
                read(&[&["status", "conditions"]]),
                json!({"status": {"conditions": [{"type": "Ready"}]}})
            );
            assert_eq!(read(&[]), json!({}));
        }
        assert!(super::read(b"{\"a\":1", &[&["a"]]).is_err());
    }

    #[test]
    fn a_field_reads_as_it_does_in_the_whole_tree() {
        let object = json!({
            "a": {"a": 1, "b": {"c": "x"}, "c": null}, "b": [{"a": 1}], "c": "text", "d": {"b": 2.5, "c": true},
        });
        let texts = [object.to_string(), format!("{object:#}")];
        let keys = ["a", "b", "c", "d", "e"];
        for (first, second) in keys.iter().flat_map(|k| keys.map(|l| (*k, l))) {
            let path = [first, second];
            for text in &texts {
                let sparse = super::read(text.as_bytes(), &[&path, &["a", "b", "c"]]).unwrap();
                assert_eq!(
                    meta::get(&sparse, &path),
                    meta::get(&object, &path),
                    "{path:?}"
                );
            }
        }
    }
}
