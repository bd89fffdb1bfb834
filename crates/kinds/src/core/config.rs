//! ConfigMaps and Secrets.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use base64::Engine as _;
use serde_json::{Map, Value};

use crate::cells::{Cell, render};
use crate::check::{IMMUTABLE, named};
use crate::strategy::{Ctx, Strategy};

/// Most bytes of data in one object.
const DATA_MAX: usize = 1024 * 1024;

/// Rules of ConfigMaps.
pub(crate) struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut size = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in entries(obj, field) {
                errors.extend(named(
                    names::config_map_key(key),
                    &format!("{field}[{key}]"),
                    key,
                ));
                if field == "data" && meta::get(obj, &["binaryData", key]).is_some() {
                    errors.push(FieldError::invalid(
                        format!("data[{key}]"),
                        key,
                        "duplicate of key present in binaryData",
                    ));
                }
                size += if field == "data" {
                    value.len()
                } else {
                    decoded_len(value)
                };
            }
        }
        if size > DATA_MAX {
            errors.push(FieldError::too_long("", DATA_MAX));
        }
        errors
    }

    fn changes_first(&self) -> bool {
        true
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        immutable_data(new, old)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        let count = |obj: &Value, _| {
            Value::from(entries(obj, "data").count() + entries(obj, "binaryData").count())
        };
        Some(render(
            &[Cell::Name, Cell::With(count), Cell::Age],
            obj,
            now,
        ))
    }
}

/// Rules of Secrets.
pub(crate) struct Secret;

impl Strategy for Secret {
    fn default(&self, obj: &mut Value) {
        let Some(plain) = meta::remove(obj, &["stringData"]) else {
            return;
        };
        let Value::Object(plain) = plain else { return };
        let data = meta::object_at(obj, &["data"]);
        for (key, value) in plain {
            let encoded = base64::engine::general_purpose::STANDARD
                .encode(value.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, _ctx: &Ctx<'_>) {
        // The type cannot change, so that leaving it out means the one it has.
        if meta::str_at(new, &["type"]).is_empty()
            && let Some(kind) = old.get("type")
        {
            meta::set(new, &["type"], kind.clone());
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut size = 0;
        for (key, value) in entries(obj, "data") {
            errors.extend(named(
                names::config_map_key(key),
                &format!("data[{key}]"),
                key,
            ));
            size += decoded_len(value);
        }
        if size > DATA_MAX {
            errors.push(FieldError::too_long("data", DATA_MAX));
        }
        errors.extend(validate_type(obj));
        errors
    }

    fn changes_first(&self) -> bool {
        true
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> = crate::check::immutable(new, old, &["type"])
            .into_iter()
            .collect();
        errors.extend(immutable_data(new, old));
        errors
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(
            &[
                Cell::Name,
                Cell::Text(&["type"]),
                Cell::Len(&["data"]),
                Cell::Age,
            ],
            obj,
            now,
        ))
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[("type", &["type"])]
    }
}

fn entries<'a>(obj: &'a Value, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    obj.get(field)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn decoded_len(base64: &str) -> usize {
    base64.trim_end_matches('=').len() * 3 / 4
}

fn validate_type(obj: &Value) -> Vec<FieldError> {
    let has = |key: &str| meta::get(obj, &["data", key]).is_some();
    let missing = |keys: &[&str]| -> Vec<FieldError> {
        keys.iter()
            .filter(|k| !has(k))
            .map(|k| FieldError::required(format!("data[{k}]"), ""))
            .collect()
    };
    match meta::str_at(obj, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            let named = meta::annotation(obj, annotation).is_some_and(|n| !n.is_empty());
            if named {
                Vec::new()
            } else {
                vec![FieldError::required(
                    format!("metadata.annotations[{annotation}]"),
                    "",
                )]
            }
        }
        "kubernetes.io/dockercfg" => validate_json(obj, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => validate_json(obj, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            missing(&["username", "password"])
        }
        "kubernetes.io/ssh-auth" if meta::str_at(obj, &["data", "ssh-privatekey"]).is_empty() => {
            vec![FieldError::required("data[ssh-privatekey]", "")]
        }
        "kubernetes.io/tls" => missing(&["tls.crt", "tls.key"]),
        _ => Vec::new(),
    }
}

fn validate_json(obj: &Value, key: &str) -> Vec<FieldError> {
    let Some(encoded) = meta::get(obj, &["data", key]).and_then(Value::as_str) else {
        return vec![FieldError::required(format!("data[{key}]"), "")];
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .unwrap_or_default();
    match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(_) => Vec::new(),
        Err(e) => vec![FieldError::invalid(
            format!("data[{key}]"),
            "<secret contents redacted>",
            e.to_string(),
        )],
    }
}

fn immutable_data(new: &Value, old: &Value) -> Vec<FieldError> {
    if !meta::bool_at(old, &["immutable"]) {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let forbidden =
        |field: &str| FieldError::forbidden(field, format!("{IMMUTABLE} when `immutable` is set"));
    if !meta::bool_at(new, &["immutable"]) {
        errors.push(forbidden("immutable"));
    }
    for field in ["data", "binaryData"] {
        if new.get(field) != old.get(field) {
            errors.push(forbidden(field));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets() {
        let mut secret = json!({"data": {"a": "eA=="}, "stringData": {"b": "yes", "a": "z"}});
        Secret.default(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "eg==", "b": "eWVz"}}));
        let tls = Secret.validate(&json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}));
        assert_eq!(tls[0].to_string(), "data[tls.key]: Required value");
        let frozen = json!({"immutable": true, "data": {"a": "eA=="}});
        assert_eq!(
            Secret.validate_update(&json!({"immutable": true}), &frozen)[0].to_string(),
            "data: Forbidden: field is immutable when `immutable` is set"
        );
        assert_eq!(
            Secret.validate_update(&json!({"type": "x"}), &json!({"type": "y"}))[0].to_string(),
            "type: Invalid value: \"x\": field is immutable"
        );
    }

    #[test]
    fn config_maps() {
        assert!(
            ConfigMap
                .validate(&json!({"data": {"my.cnf": "x"}}))
                .is_empty()
        );
        assert_eq!(ConfigMap.validate(&json!({"data": {"a/b": "x"}})).len(), 1);
        assert_eq!(
            ConfigMap
                .validate(&json!({"data": {"a": "x".repeat(DATA_MAX + 1)}}))
                .len(),
            1
        );
    }
}
