//! Schemas of custom resources: as they are written, with the type and metadata that every resource has.
//!
//! The older dialect cannot say everything, and its clients refuse what they do not understand: there, values
//! of unknown structure lose theirs.

use api::Kind;
use api::custom::Custom;
use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::schemas::{Dialect, OBJECT_META, gvks, with_description, wrap};

/// A kind whose type fields are described in words that hold for all.
const DESCRIBED: &str = "io.k8s.api.core.v1.ConfigMap";

/// The schema that is published for a custom kind.
pub(super) fn definition(
    kind: &Kind,
    custom: &Custom,
    dialect: Dialect,
    words: &Descriptions,
) -> Value {
    let keeps_unknown =
        custom.preserve_unknown || custom.schema.as_ref().is_some_and(|s| s.preserve_unknown);
    let bare = custom.schema.is_none() || (dialect == Dialect::V2 && keeps_unknown);
    let mut out = if bare {
        json!({"type": "object"})
    } else {
        let mut schema = custom.written.clone();
        adapt(&mut schema, dialect, words);
        type_fields(&mut schema, dialect, words);
        schema
    };
    let gvk = (
        kind.group.as_str(),
        kind.version.as_str(),
        kind.kind.as_str(),
    );
    out["x-kubernetes-group-version-kind"] = gvks(std::iter::once(gvk));
    if !custom.selectable.is_empty() {
        let fields = custom
            .selectable
            .iter()
            .map(|(label, _)| json!({"fieldPath": label}));
        out["x-kubernetes-selectable-fields"] = fields.collect();
    }
    out
}

/// Gives a resource's schema the fields that its definition does not write.
fn type_fields(schema: &mut Value, dialect: Dialect, words: &Descriptions) {
    let Value::Object(schema) = schema else {
        return;
    };
    let fields = schema
        .entry("properties")
        .or_insert_with(|| Value::Object(Map::new()));
    for field in ["apiVersion", "kind"] {
        let text = json!({"type": "string"});
        fields[field] = with_description(text, words.field(DESCRIBED, field));
    }
    let metadata = wrap(dialect.reference(OBJECT_META), dialect);
    fields["metadata"] = with_description(metadata, words.field(DESCRIBED, "metadata"));
}

/// Brings a schema, and all below it, into the form of the dialect.
fn adapt(schema: &mut Value, dialect: Dialect, words: &Descriptions) {
    let Value::Object(map) = schema else {
        return;
    };
    // Explicit and absent alternatives say the same of such a value.
    if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        let either = json!([{"type": "integer"}, {"type": "string"}]);
        map.entry("anyOf").or_insert(either);
    }
    if dialect == Dialect::V2 {
        narrow(map);
    }
    for field in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(field) {
            adapt(inner, dialect, words);
        }
    }
    for inner in map
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::values_mut)
    {
        adapt(inner, dialect, words);
    }
    let is = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let open = is("x-kubernetes-preserve-unknown-fields") && dialect == Dialect::V2;
    if is("x-kubernetes-embedded-resource") && !open {
        let mut required = map
            .get("required")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for field in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == field) {
                required.push(field.into());
            }
        }
        map.insert("required".to_owned(), required.into());
        type_fields(schema, dialect, words);
    }
}

/// Takes out of one node what the older dialect does not know.
fn narrow(map: &mut Map<String, Value>) {
    for field in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(field);
    }
    let is = |map: &Map<String, Value>, name: &str| map.get(name) == Some(&Value::Bool(true));
    let nullable = map.remove("nullable") == Some(Value::Bool(true));
    let open = is(map, "x-kubernetes-preserve-unknown-fields");
    if nullable || open {
        map.remove("items");
        map.remove("properties");
    }
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default();
    let shapeless = (kind == "array" && !map.contains_key("items")) || (kind == "object" && open);
    if nullable || shapeless {
        map.remove("type");
    }
    let can_be_null = |v: &Value| v.get("nullable") == Some(&Value::Bool(true));
    if map.get("additionalProperties").is_some_and(can_be_null) {
        map.remove("required");
    }
    let fields = map.get("properties").cloned().unwrap_or_default();
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| {
            let field = name.as_str().and_then(|n| fields.get(n));
            !field.is_some_and(can_be_null)
        });
        if required.is_empty() {
            map.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::openapi;

    fn kinds() -> Vec<api::Kind> {
        let schema = json!({"type": "object", "description": "A thing.", "properties": {
        "metadata": {"type": "object"},
        "spec": {"type": "object", "required": ["n", "s"], "properties": {
            "n": {"type": "string", "nullable": true},
            "s": {"type": "string", "pattern": "^a$", "anyOf": [{"minLength": 1}]},
            "port": {"x-kubernetes-int-or-string": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
        }}}});
        let definition = json!({"spec": {
            "group": "a.example.com", "scope": "Namespaced",
            "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema}}]}});
        let kinds = api::custom::kinds_of(&definition, &|_| String::new());
        kinds.into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn both_dialects() {
        let kinds = kinds();
        let v3 = openapi::v3(&kinds, "a.example.com", "v1").unwrap();
        let v3: Value = serde_json::from_slice(&v3).unwrap();
        let schema = &v3["components"]["schemas"]["com.example.a.v1.A"];
        assert_eq!(schema["description"], "A thing.");
        assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "A");
        assert!(schema["properties"]["metadata"]["allOf"][0]["$ref"].is_string());
        let spec = &schema["properties"]["spec"]["properties"];
        assert_eq!(spec["n"]["nullable"], true);
        assert_eq!(spec["port"]["anyOf"][0]["type"], "integer");
        assert_eq!(spec["pod"]["required"], json!(["kind", "apiVersion"]));
        let patch =
            &v3["paths"]["/apis/a.example.com/v1/namespaces/{namespace}/as/{name}/status"]["patch"];
        assert_eq!(
            patch["responses"]["200"]["content"]["application/json"]["schema"]["$ref"],
            "#/components/schemas/com.example.a.v1.A"
        );
        assert!(
            patch["requestBody"]["content"]
                .get("application/strategic-merge-patch+json")
                .is_none()
        );
        assert!(v3["components"]["schemas"]["com.example.a.v1.AList"].is_object());

        let v2: Value = serde_json::from_slice(&openapi::v2(&kinds, &[])).unwrap();
        let spec = &v2["definitions"]["com.example.a.v1.A"]["properties"]["spec"];
        assert_eq!(spec["required"], json!(["s"]));
        assert_eq!(spec["properties"]["n"], json!({}));
        assert!(spec["properties"]["s"].get("anyOf").is_none());
        assert_eq!(
            spec["properties"]["free"],
            json!({"x-kubernetes-preserve-unknown-fields": true})
        );
        assert!(openapi::v2_protobuf(&kinds, &[]).len() > 1000);
    }

    #[test]
    fn the_index_changes_with_the_schema() {
        let before = openapi::v3_index(&kinds());
        let mut kinds = kinds();
        let custom = std::sync::Arc::get_mut(kinds[0].custom.as_mut().unwrap()).unwrap();
        custom.written["properties"]["spec"]["properties"]["s"]["pattern"] = "^b$".into();
        assert_ne!(before, openapi::v3_index(&kinds));
    }
}
