//! What the containers of a pod are told of it, in variables and in files.

use api::{FieldError, meta, names};
use serde_json::Value;

use crate::check::{named, one_of, quantity};

/// Resources that can be told.
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Units that bytes can be told in.
const BYTE_UNITS: &[&str] = &[
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

/// A field of the pod, one of the allowed or a single label or annotation.
pub(super) fn told_field(reference: &Value, allowed: &[&str], at: &str) -> Vec<FieldError> {
    let path = meta::str_at(reference, &["fieldPath"]);
    let own = format!("{at}.fieldPath");
    if let Some((field, key)) = subscript(path) {
        return match field {
            "metadata.annotations" => {
                let key = key.to_lowercase();
                named(names::qualified_name(&key), at, &key)
            }
            "metadata.labels" => named(names::qualified_name(key), at, key),
            _ => {
                let why = format!("error converting fieldPath: field label not supported: {path}");
                vec![FieldError::invalid(own, path, why)]
            }
        };
    }
    if path.is_empty() {
        return vec![FieldError::required(own, "")];
    }
    let odd = !allowed.contains(&path);
    let error = odd.then(|| FieldError::not_supported(own, path, allowed));
    error.into_iter().collect()
}

/// `metadata.labels['key']`: the field and the key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']")?.split_once("['")
}

/// A resource of a container; files have to say of which one.
pub(super) fn told_resource(reference: &Value, in_file: bool, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = meta::str_at(reference, &["resource"]);
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if in_file && meta::str_at(reference, &["containerName"]).is_empty() {
        errors.push(FieldError::required(format!("{at}.containerName"), ""));
    } else if !huge {
        errors.extend(one_of(name, format!("{at}.resource"), RESOURCES));
    }
    let bytes = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the";
    let (units, why) = match name.split_once('.').map_or("", |(_, resource)| resource) {
        "cpu" => (
            &["1m", "1"][..],
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        ),
        "memory" => (BYTE_UNITS, format!("{bytes} memory resource")),
        "ephemeral-storage" => (
            BYTE_UNITS,
            format!("{bytes} local ephemeral storage resource"),
        ),
        _ if huge => (BYTE_UNITS, format!("{bytes} hugepages resource")),
        _ => return errors,
    };
    let divisor = quantity(reference, &["divisor"]).filter(|d| !d.is_zero());
    if divisor.is_some_and(|d| !units.contains(&d.to_string().as_str())) {
        errors.push(FieldError::invalid(format!("{at}.divisor"), name, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_texts;
    use serde_json::json;

    #[test]
    fn fields_and_resources() {
        let allowed = &["metadata.name"];
        for (path, expected) in [
            ("metadata.name", &[][..]),
            ("metadata.labels['a/b']", &[]),
            ("metadata.annotations['A/b']", &[]),
            ("", &["f.fieldPath: Required value"]),
            (
                "spec.x",
                &[
                    "f.fieldPath: Unsupported value: \"spec.x\": supported values: \"metadata.name\"",
                ],
            ),
            (
                "metadata.labels['a b']",
                &["f: Invalid value: \"a b\": name part must consist of…"],
            ),
        ] {
            assert_texts(
                &told_field(&json!({"fieldPath": path}), allowed, "f"),
                expected,
                &path,
            );
        }
        for (reference, expected) in [
            (json!({"resource": "limits.cpu", "divisor": "1m"}), &[][..]),
            (
                json!({"resource": "limits.hugepages-2Mi", "divisor": "0"}),
                &[],
            ),
            (
                json!({"resource": "limits.cpu", "divisor": "2"}),
                &[
                    "r.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource",
                ],
            ),
            (
                json!({"resource": "limits.gpu"}),
                &["r.resource: Unsupported value: \"limits.gpu\"…"],
            ),
        ] {
            assert_texts(&told_resource(&reference, false, "r"), expected, &reference);
        }
        assert_texts(
            &told_resource(&json!({"resource": "limits.cpu"}), true, "r"),
            &["r.containerName: Required value"],
            &"file",
        );
    }
}
