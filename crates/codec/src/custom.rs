//! Custom resources: what decoding does to them in place of the typed walk of built-in kinds.
//!
//! Only metadata has types that decoding knows (also that of resources embedded in others); everything else
//! is pruned here and checked later, all errors at once, against the definition's schema.

use api::custom::{self, Custom, Node};
use serde_json::Value;

use crate::walk;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Prunes `obj` and brings its metadata into form; returns the paths of unknown fields.
///
/// # Errors
/// The first value of metadata that is of a wrong type, in the words of upstream's decoder.
pub fn check(obj: &mut Value, custom: &Custom) -> Result<Vec<String>, String> {
    let mut unknown = metadata(obj)?
        .into_iter()
        .map(|path| format!("metadata.{path}"))
        .collect::<Vec<_>>();
    if !custom.preserve_unknown {
        unknown.extend(custom::prune(obj, custom.schema.as_ref()));
        custom::drop_nulls(obj, custom.schema.as_ref());
    }
    if let Some(schema) = &custom.schema {
        let mut inner = Vec::new();
        embedded(obj, schema, &mut String::new(), &mut inner)?;
        inner.sort();
        unknown.extend(inner);
    }
    Ok(unknown)
}

/// Brings `obj`, which was read from the store, up to the schema as it is now: what was written under an
/// older one may have unknown fields and lack defaults.
pub fn refresh(obj: &mut Value, custom: &Custom) {
    if !custom.preserve_unknown {
        custom::prune(obj, custom.schema.as_ref());
        custom::drop_nulls(obj, custom.schema.as_ref());
    }
    if let Some(schema) = &custom.schema {
        custom::fill(obj, schema);
    }
}

fn metadata(resource: &mut Value) -> Result<Vec<String>, String> {
    let (Some(metadata), Some(schema)) = (resource.get_mut("metadata"), api::schema(OBJECT_META))
    else {
        return Ok(Vec::new());
    };
    walk::check(metadata, schema)
}

/// Checks the metadata of embedded resources below a value.
fn embedded(
    value: &mut Value,
    schema: &Node,
    path: &mut String,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let mark = path.len();
    match value {
        Value::Object(_) => {
            if schema.embedded {
                let at = |e: String| format!("{path}.metadata: {e}");
                let found = metadata(value).map_err(at)?;
                unknown.extend(found.iter().map(|f| format!("{path}.metadata.{f}")));
            }
            for (key, child) in value.as_object_mut().into_iter().flatten() {
                let Some(inner) = schema.field(key) else {
                    continue;
                };
                if mark > 0 {
                    path.push('.');
                }
                path.push_str(key);
                embedded(child, inner, path, unknown)?;
                path.truncate(mark);
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else {
                return Ok(());
            };
            for (index, child) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                embedded(child, inner, path, unknown)?;
                path.truncate(mark);
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::{ContentType, FieldValidation, decode, default};
    use serde_json::{Value, json};

    fn kind() -> api::Kind {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer", "default": 3},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        }}}});
        let definition = json!({"spec": {
            "group": "a.example.com", "scope": "Namespaced",
            "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let mut kinds = api::custom::kinds_of(&definition, &|_| String::new());
        kinds.remove(0).0
    }

    fn read(body: Value, validation: FieldValidation) -> Result<(Value, Vec<String>), String> {
        let kind = kind();
        let bytes = body.to_string();
        decode(bytes.as_bytes(), ContentType::Json, &kind, validation)
            .map(|(mut object, warnings)| {
                default(&kind, &mut object);
                (object, warnings)
            })
            .map_err(|s| s.message)
    }

    #[test]
    fn bodies_are_pruned_and_filled_in() {
        let body = json!({"metadata": {"name": "x", "odd": 1, "labels": null}, "spec": {"color": "red",
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "even": 2}, "spec": {"x": 1}}}});
        let error = read(body.clone(), FieldValidation::Strict).unwrap_err();
        assert_eq!(
            error,
            r#"A in version "v1" cannot be handled as a A: strict decoding error: unknown field "metadata.odd", unknown field "spec.color", unknown field "spec.pod.metadata.even""#
        );
        let (object, warnings) = read(body, FieldValidation::Warn).unwrap();
        assert_eq!(warnings.len(), 3);
        assert_eq!(object["metadata"], json!({"name": "x"}));
        assert_eq!(
            object["spec"],
            json!({"pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"x": 1}}, "size": 3})
        );
    }

    #[test]
    fn metadata_has_types() {
        let body = json!({"metadata": {"labels": {"a": 1}}});
        assert_eq!(
            read(body, FieldValidation::Warn).unwrap_err(),
            r#"A in version "v1" cannot be handled as a A: json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"#
        );
    }
}
