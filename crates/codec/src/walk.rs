//! The schema walk: every value of an object against its shape.

use std::fmt::Write as _;

use api::{Field, Quantity, Schema, Shape};
use serde_json::Value;

/// Where the walk is: the path for unknown fields has indexes, the one of type errors has not (as Go's decoder says it).
struct Walk<'s> {
    path: String,
    unknown: Vec<String>,
    /// Name of the struct around the current value, and the field stack below the root.
    owner: &'s str,
    fields: Vec<&'s str>,
}

/// Checks `obj` in place: nulls, empty lists and maps that may be absent, and unknown fields are
/// dropped, quantities and times are normalized.
/// Returns the paths of unknown fields.
///
/// # Errors
/// The first value of a wrong type, in the words of upstream's decoder.
pub fn check(obj: &mut Value, schema: &Schema) -> Result<Vec<String>, String> {
    let mut walk = Walk {
        path: String::new(),
        unknown: Vec::new(),
        owner: schema.short_name(),
        fields: Vec::new(),
    };
    walk.object(obj, schema)?;
    Ok(walk.unknown)
}

/// What Go's decoder calls a JSON value.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl<'s> Walk<'s> {
    fn mismatch(&self, value: &Value, want: &str) -> String {
        let what = match value {
            Value::Number(n)
                if !want.starts_with("string")
                    && !want.starts_with("bool")
                    && !want.contains('.')
                    && !want.contains('[') =>
            {
                format!("number {n}")
            }
            other => type_name(other).to_owned(),
        };
        if self.fields.is_empty() {
            return format!("json: cannot unmarshal {what} into Go value of type {want}");
        }
        format!(
            "json: cannot unmarshal {what} into Go struct field {}.{} of type {want}",
            self.owner,
            self.fields.join(".")
        )
    }

    fn object(&mut self, value: &mut Value, schema: &'s Schema) -> Result<(), String> {
        let Value::Object(map) = value else {
            return Err(self.mismatch(value, &go_struct(schema)));
        };
        let outer = std::mem::replace(&mut self.owner, schema.short_name());
        let mut dropped = Vec::new();
        for (key, child) in map.iter_mut() {
            let mark = self.enter_key(key);
            match schema.field(key) {
                None if schema.open => {}
                None => {
                    self.unknown.push(self.path.clone());
                    dropped.push(key.clone());
                }
                Some(_) if child.is_null() => dropped.push(key.clone()),
                Some(field) => {
                    self.fields.push(&field.name);
                    self.shape(child, &field.shape, Some(field))?;
                    self.fields.pop();
                    if is_nothing(child, field) {
                        dropped.push(key.clone());
                    }
                }
            }
            self.path.truncate(mark);
        }
        for key in dropped {
            map.remove(&key);
        }
        self.owner = outer;
        Ok(())
    }

    fn enter_key(&mut self, key: &str) -> usize {
        let mark = self.path.len();
        if mark > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        mark
    }

    fn shape(
        &mut self,
        value: &mut Value,
        shape: &'s Shape,
        field: Option<&'s Field>,
    ) -> Result<(), String> {
        match shape {
            Shape::Any => Ok(()),
            Shape::Object(reference) => match reference.get() {
                Some(schema) => self.object(value, schema),
                None => Ok(()),
            },
            Shape::Array(item) => self.array(value, item, field),
            Shape::Map(item) => self.map(value, item),
            scalar => self.scalar(value, scalar),
        }
    }

    fn array(
        &mut self,
        value: &mut Value,
        item: &'s Shape,
        field: Option<&'s Field>,
    ) -> Result<(), String> {
        let Value::Array(items) = value else {
            return Err(self.mismatch(value, &format!("[]{}", go_type(item))));
        };
        for (index, child) in items.iter_mut().enumerate() {
            if child.is_null() {
                *child = zero(item);
            }
            let mark = self.path.len();
            // Writing to a string cannot fail.
            let _ = write!(self.path, "[{index}]");
            self.shape(child, item, field)?;
            self.path.truncate(mark);
        }
        Ok(())
    }

    fn map(&mut self, value: &mut Value, item: &'s Shape) -> Result<(), String> {
        let Value::Object(map) = value else {
            return Err(self.mismatch(value, &format!("map[string]{}", go_type(item))));
        };
        for (key, child) in map.iter_mut() {
            if child.is_null() {
                *child = zero(item);
            }
            let mark = self.enter_key(key);
            self.shape(child, item, None)?;
            self.path.truncate(mark);
        }
        Ok(())
    }

    fn scalar(&mut self, value: &mut Value, shape: &Shape) -> Result<(), String> {
        let fits = match shape {
            Shape::String => value.is_string(),
            Shape::Bool => value.is_boolean(),
            Shape::Int32 => integer(value).is_some_and(|n| i32::try_from(n).is_ok()),
            Shape::Int64 => integer(value).is_some(),
            Shape::Number => value.is_number(),
            Shape::Bytes => return self.bytes(value),
            Shape::Time | Shape::MicroTime => {
                return self.time(value, matches!(shape, Shape::MicroTime));
            }
            Shape::Quantity => return quantity(value),
            Shape::IntOrString => {
                value.is_string() || integer(value).is_some_and(|n| i32::try_from(n).is_ok())
            }
            _ => true,
        };
        if !fits {
            return Err(self.mismatch(value, &go_type(shape)));
        }
        // 1.0 is an integer to Go's decoder of typed fields only when written so; trees keep whole floats as integers.
        if matches!(shape, Shape::Int32 | Shape::Int64 | Shape::IntOrString)
            && let (true, Some(n)) = (value.is_f64(), integer(value))
        {
            *value = n.into();
        }
        Ok(())
    }

    fn bytes(&self, value: &Value) -> Result<(), String> {
        use base64::Engine as _;
        let Some(text) = value.as_str() else {
            return Err(self.mismatch(value, "[]uint8"));
        };
        // Go's decoder skips line breaks.
        let clean: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        match base64::engine::general_purpose::STANDARD.decode(&clean) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _)) => {
                Err(format!("illegal base64 data at input byte {at}"))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {}", clean.len())),
        }
    }

    fn time(&self, value: &mut Value, micro: bool) -> Result<(), String> {
        let Some(text) = value.as_str() else {
            return Err(self.mismatch(value, "string"));
        };
        let layout = if micro {
            "2006-01-02T15:04:05.000000Z07:00"
        } else {
            "2006-01-02T15:04:05Z07:00"
        };
        let Some(time) = api::time::parse(text) else {
            let quoted = format!("{text:?}");
            return Err(format!(
                "parsing time {quoted} as {layout:?}: cannot parse {quoted} as \"2006\""
            ));
        };
        *value = if micro {
            api::time::format_micro(time)
        } else {
            api::time::format(time)
        }
        .into();
        Ok(())
    }
}

/// Whether upstream would leave the value out when it writes the object: the types of its built-in
/// kinds do not tell an empty list or map from none. An empty struct says something.
fn is_nothing(value: &Value, field: &Field) -> bool {
    let empty = match (value, &field.shape) {
        (Value::Array(items), Shape::Array(_)) => items.is_empty(),
        (Value::Object(map), Shape::Map(_)) => map.is_empty(),
        _ => false,
    };
    empty && !field.required
}

fn integer(value: &Value) -> Option<i64> {
    if let Some(n) = value.as_i64() {
        return Some(n);
    }
    // Whole floats in the range where they are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let n = value
        .as_f64()
        .filter(|n| value.is_f64() && n.fract() == 0.0 && n.abs() < EXACT)?;
    #[allow(clippy::cast_possible_truncation)]
    Some(n as i64)
}

/// Quantities are rewritten in canonical form.
fn quantity(value: &mut Value) -> Result<(), String> {
    let text = match &*value {
        Value::String(s) => s.trim().to_owned(),
        Value::Number(n) => n.to_string(),
        _ => return Err(api::quantity::FORMAT_ERROR.to_owned()),
    };
    let parsed: Quantity = text
        .parse()
        .map_err(|e: api::quantity::ParseQuantityError| e.to_string())?;
    *value = parsed.to_string().into();
    Ok(())
}

fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Array(_) => Value::Array(Vec::new()),
        Shape::Object(_) | Shape::Map(_) => Value::Object(serde_json::Map::new()),
        Shape::Any | Shape::Time | Shape::MicroTime => Value::Null,
    }
}

/// `v1.Pod` of `io.k8s.api.core.v1.Pod`, as Go prints types.
fn go_struct(schema: &Schema) -> String {
    let mut parts = schema.name.rsplit('.');
    let name = parts.next().unwrap_or_default();
    match parts.next() {
        Some(package) => format!("{package}.{name}"),
        None => name.to_owned(),
    }
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::String => "string".into(),
        Shape::Bool => "bool".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Any => "interface {}".into(),
        Shape::Object(reference) => reference.get().map_or_else(String::new, go_struct),
        Shape::Array(item) => format!("[]{}", go_type(item)),
        Shape::Map(item) => format!("map[string]{}", go_type(item)),
    }
}

#[cfg(test)]
mod tests {
    use crate::{ContentType, FieldValidation, decode};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn decode_as(
        resource: (&str, &str),
        body: &str,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), String> {
        let kind = api::kind(resource.0, "v1", resource.1).unwrap();
        decode(body.as_bytes(), ContentType::Json, kind, validation).map_err(|s| s.message)
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let body = r#"{"metadata":{"name":"x","name":"y"},"spec":{"foo":1,"template":{"spec":{"containers":[{"name":"a","bar":2}]}}}}"#;
        let error = decode_as(("apps", "deployments"), body, FieldValidation::Strict).unwrap_err();
        assert_eq!(
            error,
            r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: duplicate field "metadata.name", unknown field "spec.foo", unknown field "spec.template.spec.containers[0].bar""#
        );
        let (obj, warnings) =
            decode_as(("apps", "deployments"), body, FieldValidation::Warn).unwrap();
        assert_eq!(warnings.len(), 3);
        assert_eq!(warnings[1], r#"unknown field "spec.foo""#);
        assert_eq!(
            obj["spec"],
            json!({"template": {"spec": {"containers": [{"name": "a"}]}}})
        );
        assert_eq!(obj["kind"], "Deployment");
    }

    #[test]
    fn type_errors_in_the_words_of_the_decoder() {
        for (resource, body, text) in [
            (
                ("apps", "deployments"),
                r#"{"spec":{"replicas":"3"}}"#,
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                ("apps", "deployments"),
                r#"{"spec":{"replicas":3000000000}}"#,
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                ("", "pods"),
                r#"{"spec":{"containers":{}}}"#,
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                ("", "pods"),
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                ("", "pods"),
                r#"{"spec":{"containers":[{"env":[{"value":true}]}]}}"#,
                "json: cannot unmarshal bool into Go struct field EnvVar.spec.containers.env.value of type string",
            ),
            (
                ("", "pods"),
                r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                ("", "secrets"),
                r#"{"data":{"a":"?"}}"#,
                "illegal base64 data at input byte 0",
            ),
        ] {
            let error = decode_as(resource, body, FieldValidation::Warn).unwrap_err();
            assert!(error.ends_with(&format!(": {text}")), "{error}");
        }
    }

    #[test]
    fn values_are_normalized() {
        let body = r#"{"metadata":{"creationTimestamp":null,"annotations":null},"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":0.5,"memory":"1024Ki"}},"livenessProbe":{"httpGet":{"port":80.0}}}]}}"#;
        let (obj, warnings) = decode_as(("", "pods"), body, FieldValidation::Strict).unwrap();
        assert!(warnings.is_empty());
        assert_eq!(obj["metadata"], json!({}));
        assert_eq!(
            obj["spec"]["containers"][0]["resources"]["limits"],
            json!({"cpu": "500m", "memory": "1Mi"})
        );
        assert_eq!(
            obj["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"].to_string(),
            "80"
        );
    }

    #[test]
    fn empty_lists_and_maps_are_none() {
        let body = r#"{"metadata":{"labels":{},"finalizers":[]},"spec":{"nodeSelector":{},"securityContext":{},
            "containers":[{"name":"a","command":[],"args":[""],"resources":{"limits":{}}}],"volumes":[{"name":"v","emptyDir":{}}]}}"#;
        let (obj, _) = decode_as(("", "pods"), body, FieldValidation::Strict).unwrap();
        assert_eq!(obj["metadata"], json!({}));
        assert_eq!(
            obj["spec"],
            json!({
                "securityContext": {},
                "containers": [{"name": "a", "args": [""], "resources": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
            })
        );
        let body = r#"{"spec":{"containers":[]}}"#;
        let (obj, _) = decode_as(("", "pods"), body, FieldValidation::Strict).unwrap();
        assert_eq!(obj["spec"], json!({"containers": []}));
    }

    #[test]
    fn other_kinds_are_refused() {
        assert!(decode_as(("", "pods"), r#"{"kind":"Service"}"#, FieldValidation::Warn).is_err());
        let error = decode_as(
            ("", "pods"),
            r#"{"apiVersion":"v2","kind":"Pod"}"#,
            FieldValidation::Warn,
        )
        .unwrap_err();
        assert_eq!(
            error,
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        assert!(decode_as(("", "pods"), "[]", FieldValidation::Warn).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(s in "[\\[\\]{}\":,a-z0-9]{0,60}") {
            let _ = decode_as(("", "pods"), &s, FieldValidation::Strict);
        }
    }
}
