//! Adding what the store keeps outside an object to its stored bytes, without parsing them: on the way out of
//! the API server, and where a client in the same process shares the store's bytes.
//!
//! Stored values are canonical JSON: `kind`, `apiVersion` and `metadata` come first, in this order, and
//! `metadata` has no `resourceVersion`. So the first `"metadata":{` of a value is the place where the
//! revision goes, and everything before it is the type of the object.

use bytes::{Bytes, BytesMut};

use crate::brackets::nested_end;

const METADATA: &[u8] = b"\"metadata\":{";
const RESOURCE_VERSION: &[u8] = b"\"resourceVersion\":\"";
/// Longest decimal of a revision, with quotes, comma and name around it.
const EXTRA: usize = 48;
/// Strings up to this length, in bytes, are searched byte by byte.
const SHORT: usize = 16;

/// Byte offset just behind `"metadata":{`.
fn metadata_start(value: &[u8]) -> Option<usize> {
    memchr::memmem::find(value, METADATA).map(|at| at + METADATA.len())
}

/// What was never stored, as the answer to a dry run, has revision 0 and shows none.
fn push_revision(out: &mut BytesMut, revision: u64, rest: &[u8]) {
    if revision == 0 {
        return;
    }
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut n = revision;
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(RESOURCE_VERSION);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(if rest.first() == Some(&b'}') {
        b"\""
    } else {
        b"\","
    });
}

/// Appends `value` with its revision.
pub fn append_object(out: &mut BytesMut, value: &[u8], revision: u64) {
    let start = metadata_start(value).unwrap_or(value.len());
    out.reserve(value.len() + EXTRA);
    out.extend_from_slice(&value[..start]);
    if start < value.len() {
        push_revision(out, revision, &value[start..]);
    }
    out.extend_from_slice(&value[start..]);
}

/// Appends `value` as an item of a list: upstream leaves `kind` and `apiVersion` out there, but for `custom` ones.
pub fn append_item(out: &mut BytesMut, value: &[u8], revision: u64, custom: bool) {
    if custom {
        return append_object(out, value, revision);
    }
    let start = metadata_start(value).unwrap_or(value.len());
    if start == value.len() {
        out.extend_from_slice(value);
        return;
    }
    out.reserve(value.len() + EXTRA);
    out.extend_from_slice(b"{");
    out.extend_from_slice(METADATA);
    push_revision(out, revision, &value[start..]);
    out.extend_from_slice(&value[start..]);
}

/// `value` with its revision.
pub fn object(value: &[u8], revision: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + EXTRA);
    append_object(&mut out, value, revision);
    out.freeze()
}

/// One line of a watch response.
pub fn watch_event(kind: &str, value: &[u8], revision: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + EXTRA + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    append_object(&mut out, value, revision);
    out.extend_from_slice(b"}\n");
    out.freeze()
}

/// One line of a watch response whose object is the metadata of `value` alone; `None` if it has none.
pub fn metadata_event(kind: &str, value: &[u8], revision: u64, version: &str) -> Option<Bytes> {
    let start = metadata_start(value)?;
    let metadata = &value[start..start + nested_end(&value[start..], (b'{', b'}'))?];
    let mut out = BytesMut::with_capacity(metadata.len() + EXTRA + 120);
    for text in [
        "{\"type\":\"",
        kind,
        "\",\"object\":{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"",
        version,
        "\",\"metadata\":{",
    ] {
        out.extend_from_slice(text.as_bytes());
    }
    push_revision(&mut out, revision, metadata);
    out.extend_from_slice(metadata);
    out.extend_from_slice(b"}}\n");
    Some(out.freeze())
}

/// Length of the rest of a JSON string, its closing quote included.
pub(crate) fn string_end(rest: &[u8]) -> Option<usize> {
    // Most strings are shorter than what a search by many bytes at once takes to begin.
    let short = &rest[..rest.len().min(SHORT)];
    let mut from = match short.iter().position(|b| matches!(b, b'"' | b'\\')) {
        Some(at) if short[at] == b'"' => return Some(at + 1),
        Some(at) => at,
        None => short.len(),
    };
    loop {
        let at = from + memchr::memchr2(b'"', b'\\', rest.get(from..)?)?;
        if rest[at] == b'"' {
            return Some(at + 1);
        }
        from = at + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_goes_first_into_metadata() {
        let v = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"},"data":{"x":"\"metadata\":{"}}"#;
        assert_eq!(
            object(v, 120),
            &br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"120","name":"a"},"data":{"x":"\"metadata\":{"}}"#[..]
        );
        let mut item = BytesMut::new();
        append_item(&mut item, v, 0, false);
        assert!(item.starts_with(br#"{"metadata":{"name":"a"}"#));
        assert_eq!(
            object(br#"{"kind":"X","apiVersion":"v1","metadata":{}}"#, 7),
            &br#"{"kind":"X","apiVersion":"v1","metadata":{"resourceVersion":"7"}}"#[..]
        );
        assert_eq!(
            watch_event("ADDED", br#"{"metadata":{"name":"a"}}"#, 3),
            &b"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"resourceVersion\":\"3\",\"name\":\"a\"}}}\n"[..]
        );
    }

    #[test]
    fn metadata_alone_is_cut_out_of_the_bytes() {
        let event = |value: &[u8]| metadata_event("MODIFIED", value, 9, "meta.k8s.io/v1");
        for metadata in [
            r#"{}"#,
            r#"{"name":"a"}"#,
            r#"{"name":"a","labels":{"x":"}"},"annotations":{"y":"\"}}\\"},"ownerReferences":[{"uid":"1"}]}"#,
        ] {
            let value = format!(
                r#"{{"kind":"Pod","apiVersion":"v1","metadata":{metadata},"spec":{{"metadata":{{}}}}}}"#
            );
            let line = event(value.as_bytes()).unwrap();
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            let mut metadata: serde_json::Value = serde_json::from_str(metadata).unwrap();
            metadata["resourceVersion"] = "9".into();
            let object = serde_json::json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
            assert_eq!(
                line,
                serde_json::json!({"type": "MODIFIED", "object": object})
            );
        }
        for broken in [
            &b"{}"[..],
            br#"{"metadata":{"a":"b"#,
            br#"{"metadata":{"a\"#,
            br#"{"metadata":{"#,
        ] {
            assert_eq!(event(broken), None);
        }
    }
}
