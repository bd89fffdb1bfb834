//! Rules of the volumes of a pod.

use std::collections::HashSet;

use api::{FieldError, meta, names};
use serde_json::Value;

use super::containers::local_path;
use crate::check::{named, one_of_if_set};

const HOST_PATH_TYPES: &[&str] = &[
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

/// The names of the volumes, and every broken rule.
pub(super) fn validate_volumes(volumes: &[Value], at: &str) -> (HashSet<String>, Vec<FieldError>) {
    let mut seen = HashSet::new();
    let mut errors = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = meta::str_at(volume, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        } else {
            errors.extend(named(
                names::dns1123_label(name),
                &format!("{at}.name"),
                name,
            ));
        }
        if !seen.insert(name.to_owned()) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        errors.extend(validate_sources(volume, &at));
    }
    (seen, errors)
}

fn validate_sources(volume: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut count = 0;
    for (kind, source) in volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| *k != "name")
    {
        count += 1;
        let at = format!("{at}.{kind}");
        if count > 1 {
            errors.push(FieldError::forbidden(
                at,
                "may not specify more than 1 volume type",
            ));
        } else {
            errors.extend(validate_source(kind, source, &at));
        }
    }
    if count == 0 {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
    errors
}

fn validate_source(kind: &str, source: &Value, at: &str) -> Vec<FieldError> {
    let required = |field: &str| {
        meta::str_at(source, &[field])
            .is_empty()
            .then(|| FieldError::required(format!("{at}.{field}"), ""))
    };
    let mut errors = Vec::new();
    match kind {
        "hostPath" => {
            errors.extend(required("path"));
            if meta::str_at(source, &["path"])
                .split('/')
                .any(|p| p == "..")
            {
                errors.push(FieldError::invalid(
                    format!("{at}.path"),
                    meta::str_at(source, &["path"]),
                    "must not contain '..'",
                ));
            }
            errors.extend(one_of_if_set(
                meta::str_at(source, &["type"]),
                format!("{at}.type"),
                HOST_PATH_TYPES,
            ));
        }
        "secret" => {
            errors.extend(required("secretName"));
            errors.extend(validate_items(source, at));
        }
        "configMap" => {
            errors.extend(required("name"));
            errors.extend(validate_items(source, at));
        }
        "persistentVolumeClaim" => errors.extend(required("claimName")),
        "nfs" => {
            errors.extend(required("server"));
            errors.extend(required("path"));
        }
        "csi" => errors.extend(required("driver")),
        "emptyDir"
            if crate::check::quantity(source, &["sizeLimit"]).is_some_and(|q| q.is_negative()) =>
        {
            errors.push(FieldError::forbidden(
                format!("{at}.sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
        "projected" => errors.extend(validate_projected(source, at)),
        _ => {}
    }
    if let Some(mode) = meta::int_at(source, &["defaultMode"]).filter(|m| !(0..=0o777).contains(m))
    {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(
            format!("{at}.defaultMode"),
            mode,
            detail,
        ));
    }
    errors
}

fn validate_items(source: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, item) in meta::list_at(source, &["items"]).iter().enumerate() {
        let at = format!("{at}.items[{i}]");
        for field in ["key", "path"] {
            if meta::str_at(item, &[field]).is_empty() {
                errors.push(FieldError::required(format!("{at}.{field}"), ""));
            }
        }
        errors.extend(local_path(
            meta::str_at(item, &["path"]),
            &format!("{at}.path"),
        ));
    }
    errors
}

fn validate_projected(source: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, part) in meta::list_at(source, &["sources"]).iter().enumerate() {
        let at = format!("{at}.sources[{i}]");
        let kinds = part.as_object().map_or(0, serde_json::Map::len);
        if kinds > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 volume type",
            ));
        }
        for kind in ["secret", "configMap"] {
            if let Some(inner) = part.get(kind) {
                if meta::str_at(inner, &["name"]).is_empty() {
                    errors.push(FieldError::required(format!("{at}.{kind}.name"), ""));
                }
                errors.extend(validate_items(inner, &format!("{at}.{kind}")));
            }
        }
        if let Some(token) = part.get("serviceAccountToken") {
            if meta::str_at(token, &["path"]).is_empty() {
                errors.push(FieldError::required(
                    format!("{at}.serviceAccountToken.path"),
                    "",
                ));
            }
            if let Some(n) = meta::int_at(token, &["expirationSeconds"]).filter(|n| *n < 600) {
                let detail = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(
                    format!("{at}.serviceAccountToken.expirationSeconds"),
                    n,
                    detail,
                ));
            }
        }
    }
    errors
}
