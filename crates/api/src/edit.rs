//! Changing a few fields of a stored object's text, without building its tree: most of an object is none of the
//! business of whoever gives a pod its node.
//!
//! What is stored is compact JSON whose keys are written without escapes. Text of any other form is refused, never
//! changed wrongly.

use bytes::Bytes;
use serde_json::Value;

use crate::brackets::nested_end;
use crate::splice::string_end;

/// The path of a field from the root of an object.
pub type Path<'p> = &'p [&'p str];

/// A field and its new value; `None` takes the field out.
pub type Change<'p> = (Path<'p>, Option<Value>);

/// The text of an object with fields changed: those that were there stay in their places, new ones come last in
/// their object. `None` for text that is no compact JSON object, and for changes that cannot be made in it.
pub fn edited(text: &[u8], changes: &[Change<'_>]) -> Option<Bytes> {
    let changes: Vec<Step<'_>> = changes.iter().map(|(p, v)| (*p, v.as_ref())).collect();
    let mut out = Vec::with_capacity(text.len() + 512);
    object(text, &changes, &mut out)?;
    Some(out.into())
}

/// What is left of a change on the way to its field.
type Step<'c> = (Path<'c>, Option<&'c Value>);

/// Changes below one key.
fn below<'c>(changes: &[Step<'c>], key: &[u8]) -> Vec<Step<'c>> {
    let here = |(path, _): &&Step<'c>| path.first().is_some_and(|k| k.as_bytes() == key);
    let step = |(path, value): &Step<'c>| (&path[1..], *value);
    changes.iter().filter(here).map(step).collect()
}

/// Writes the changed object that is `text`.
fn object(text: &[u8], changes: &[Step<'_>], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = text.strip_prefix(b"{")?;
    let mut missing: Vec<Step<'_>> = changes.to_vec();
    out.push(b'{');
    while rest != b"}" {
        let key_end = 1 + string_end(rest.strip_prefix(b"\"")?)?;
        let value = rest.get(key_end..)?.strip_prefix(b":")?;
        let end = value_end(value)?;
        let key = &rest[1..key_end - 1];
        let inner = below(changes, key);
        if inner.is_empty() {
            separate(out);
            out.extend_from_slice(&rest[..key_end + 1 + end]);
        } else {
            field(key, Some(&value[..end]), &inner, out)?;
            missing.retain(|(path, _)| path.first().is_none_or(|k| k.as_bytes() != key));
        }
        rest = &value[end..];
        rest = match rest.strip_prefix(b",") {
            Some(more) if more.first() == Some(&b'"') => more,
            Some(_) => return None,
            None => rest,
        };
    }
    while let Some(key) = missing.first().and_then(|(path, _)| path.first()) {
        field(key.as_bytes(), None, &below(&missing, key.as_bytes()), out)?;
        missing.retain(|(path, _)| path.first() != Some(key));
    }
    out.push(b'}');
    missing.is_empty().then_some(())
}

/// Writes a field that changes, or in which something does.
fn field(key: &[u8], old: Option<&[u8]>, changes: &[Step<'_>], out: &mut Vec<u8>) -> Option<()> {
    let name = |out: &mut Vec<u8>| {
        separate(out);
        out.push(b'"');
        out.extend_from_slice(key);
        out.extend_from_slice(b"\":");
    };
    match changes {
        [([], None)] => {}
        [([], Some(value))] => {
            name(out);
            serde_json::to_writer(out, value).ok()?;
        }
        inner if old.is_none() && inner.iter().all(|(_, value)| value.is_none()) => {}
        inner => {
            name(out);
            object(old.unwrap_or(b"{}"), inner, out)?;
        }
    }
    Some(())
}

fn separate(out: &mut Vec<u8>) {
    if out.last().is_some_and(|b| *b != b'{') {
        out.push(b',');
    }
}

/// Length of the value that `text` begins with.
pub(crate) fn value_end(text: &[u8]) -> Option<usize> {
    Some(match text.first()? {
        b'"' => 1 + string_end(&text[1..])?,
        b'{' => 1 + nested_end(&text[1..], (b'{', b'}'))?,
        b'[' => 1 + nested_end(&text[1..], (b'[', b']'))?,
        b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => {
            text.iter().position(|b| matches!(b, b',' | b'}'))?
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(object: &mut Value, changes: &[Change<'_>]) {
        for (path, value) in changes {
            match value {
                Some(value) => meta::set(object, path, value.clone()),
                None => drop(meta::remove(object, path)),
            }
        }
    }

    #[test]
    fn fields_change_in_their_places_and_new_ones_come_last() {
        let old = concat!(
            r#"{"kind":"Pod","metadata":{"name":"a","annotations":{"x":"\"}{\\"}},"#,
            r#""spec":{"containers":[{"name":"{["}],"nodeSelector":{}},"status":{"phase":"Pending","n":1}}"#
        );
        let changes: [Change<'_>; 7] = [
            (&["spec", "nodeName"], Some("n".into())),
            (&["status", "conditions"], Some(json!([{"type": "a"}]))),
            (&["metadata", "annotations"], None),
            (&["metadata", "labels", "a"], Some("b".into())),
            (&["metadata", "labels", "c"], Some("d".into())),
            (&["metadata", "owners", "e"], None),
            (&["spec", "nodeSelector", "f"], Some("g".into())),
        ];
        let text = edited(old.as_bytes(), &changes).unwrap();
        let want = concat!(
            r#"{"kind":"Pod","metadata":{"name":"a","labels":{"a":"b","c":"d"}},"#,
            r#""spec":{"containers":[{"name":"{["}],"nodeSelector":{"f":"g"},"nodeName":"n"},"#,
            r#""status":{"phase":"Pending","n":1,"conditions":[{"type":"a"}]}}"#
        );
        assert_eq!(String::from_utf8_lossy(&text), want);
    }

    #[test]
    fn what_is_not_compact_json_is_refused() {
        let changes: [Change<'_>; 1] = [(&["a", "b"], Some(1.into()))];
        for text in [
            "",
            "[]",
            "{ \"a\":1}",
            "{\"a\": 1}",
            "{\"a\":{\"b\":1}",
            "{\"a\":1}",
            "{\"a\":{},}",
            "{}x",
            "{\"b\":[}",
        ] {
            assert_eq!(edited(text.as_bytes(), &changes), None, "{text}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c\"\\\\{}\\[\\],:é\n]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let key = prop_oneof!["[a-d]", "[\"\\\\{}é]{1,3}"];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// As changing the tree, wherever the way to the field leads through objects.
        #[test]
        fn text_changes_as_the_tree_does(mut old in tree(), value in tree(), a in "[a-d]", b in "[a-d]", gone: bool) {
            if !old.is_object() {
                old = json!({"a": old});
            }
            let (a, b) = (a.as_str(), b.as_str());
            let path = [a, b];
            let value = (!gone).then_some(value);
            let changes: [Change<'_>; 1] = [(&path, value)];
            let text = edited(old.to_string().as_bytes(), &changes);
            if old.get(a).is_some_and(|v| !v.is_object()) {
                prop_assert_eq!(text, None);
            } else {
                let mut new = old.clone();
                set(&mut new, &changes);
                let text: Value = serde_json::from_slice(&text.unwrap()).unwrap();
                prop_assert_eq!(text, new);
            }
        }

        #[test]
        fn any_text_is_survived(text in "[{}\\[\\]\":,a\\\\]{0,20}") {
            let _ = edited(text.as_bytes(), &[(&["a", "b"], Some(1.into()))]);
        }
    }
}
