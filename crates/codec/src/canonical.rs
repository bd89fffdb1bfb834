//! The stored form of an object: compact JSON, type and metadata first, no resource version.

use bytes::Bytes;
use serde_json::Value;

/// The bytes to store. `metadata.resourceVersion` is left out: it is the revision of the store's key.
pub fn canonical(obj: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let empty = serde_json::Map::new();
    let fields = obj.as_object().unwrap_or(&empty);
    for key in ["kind", "apiVersion"] {
        if let Some(value) = fields.get(key) {
            push_field(&mut out, key, value);
        }
    }
    if let Some(metadata) = fields.get("metadata").and_then(Value::as_object) {
        separate(&mut out);
        out.extend_from_slice(b"\"metadata\":{");
        for (key, value) in metadata.iter().filter(|(k, _)| *k != "resourceVersion") {
            push_field(&mut out, key, value);
        }
        out.push(b'}');
    }
    let rest = |k: &str| !matches!(k, "kind" | "apiVersion" | "metadata" | "status");
    for (key, value) in fields.iter().filter(|(k, _)| rest(k)) {
        push_field(&mut out, key, value);
    }
    if let Some(status) = fields.get("status") {
        push_field(&mut out, "status", status);
    }
    out.push(b'}');
    out.into()
}

fn separate(out: &mut Vec<u8>) {
    if out.last().is_some_and(|b| *b != b'{') {
        out.push(b',');
    }
}

fn push_field(out: &mut Vec<u8>, key: &str, value: &Value) {
    separate(out);
    // A Vec takes all that is written and JSON trees have string keys only: neither can fail.
    let _ = serde_json::to_writer(&mut *out, key);
    out.push(b':');
    let _ = serde_json::to_writer(&mut *out, value);
}

/// Stored bytes with `metadata.resourceVersion` put in, without parsing them. Bytes that do not
/// come from [`canonical`] (no metadata object near the start) are returned as they are.
pub fn splice_resource_version(stored: &[u8], revision: u64) -> Bytes {
    const MARK: &[u8] = b"\"metadata\":{";
    // Type fields are short: metadata begins within the first few hundred bytes.
    const WITHIN: usize = 1024;
    let head = &stored[..stored.len().min(WITHIN)];
    let Some(at) = head
        .windows(MARK.len())
        .position(|w| w == MARK)
        .map(|i| i + MARK.len())
    else {
        return Bytes::copy_from_slice(stored);
    };
    let comma = if stored.get(at) == Some(&b'}') {
        ""
    } else {
        ","
    };
    let field = format!("\"resourceVersion\":\"{revision}\"{comma}");
    let mut out = Vec::with_capacity(stored.len() + field.len());
    out.extend_from_slice(&stored[..at]);
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(&stored[at..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_are_sorted_whatever_other_crates_ask_of_serde_json() {
        let labels: Value = serde_json::from_str(r#"{"b":1,"a":{"d":2,"c":3}}"#).unwrap();
        assert_eq!(labels.to_string(), r#"{"a":{"c":3,"d":2},"b":1}"#);
    }

    #[test]
    fn order_and_resource_version() {
        let obj = json!({"status": {}, "spec": {"b": 1}, "metadata": {"name": "x", "resourceVersion": "5"}, "apiVersion": "v1", "kind": "Pod"});
        let bytes = canonical(&obj);
        assert_eq!(&bytes[..], br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"},"spec":{"b":1},"status":{}}"#);
        let with = splice_resource_version(&bytes, 7);
        let back: Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(back["metadata"]["resourceVersion"], "7");
        assert_eq!(canonical(&back), bytes);
        assert_eq!(
            &splice_resource_version(br#"{"metadata":{}}"#, 1)[..],
            br#"{"metadata":{"resourceVersion":"1"}}"#
        );
    }
}
