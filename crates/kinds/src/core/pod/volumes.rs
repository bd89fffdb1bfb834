//! Rules of the volumes of a pod.

use std::collections::HashSet;

use api::{FieldError, meta, names};
use serde_json::Value;

use super::told::{told_field, told_resource};
use crate::check::{label_selector, named, one_of_if_set, quantity};
use crate::core::sources::{self, TOO_LONG_PORTAL, descending};
use crate::core::volume::validate_template;

/// Kinds of sources, in upstream's order.
const KINDS: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
/// Fields of a pod that files can hold.
const TOLD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// Shortest and longest life of a token in a file, in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The names of the volumes that are in order, and every broken rule.
pub(super) fn validate_volumes(volumes: &[Value], at: &str) -> (HashSet<String>, Vec<FieldError>) {
    let mut seen = HashSet::new();
    let mut errors = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = meta::str_at(volume, &["name"]);
        let mut wrong = validate_source(volume, &at);
        let path = format!("{at}.name");
        if name.is_empty() {
            wrong.push(FieldError::required(&path, ""));
        } else {
            wrong.extend(named(names::dns1123_label(name), &path, name));
        }
        if seen.contains(name) {
            wrong.push(FieldError::duplicate(path, name));
        }
        if wrong.is_empty() {
            seen.insert(name.to_owned());
        }
        errors.extend(wrong);
    }
    (seen, errors)
}

/// What the claims that a pod brings itself may not be called, and that nothing else in the pod uses them.
pub(super) fn own_claims(pod: &Value) -> Vec<FieldError> {
    let volumes = meta::list_at(pod, &["spec", "volumes"]);
    let claim_of =
        |volume: &Value| format!("{}-{}", meta::name(pod), meta::str_at(volume, &["name"]));
    let own: Vec<String> = volumes
        .iter()
        .filter(|v| v.get("ephemeral").is_some())
        .map(claim_of)
        .collect();
    let mut errors = Vec::new();
    for (i, volume) in volumes.iter().enumerate() {
        let at = format!("spec.volumes[{i}]");
        if volume.get("ephemeral").is_some() {
            let claim = claim_of(volume);
            for why in names::dns1123_subdomain(&claim) {
                let name = meta::str_at(volume, &["name"]);
                let why = format!("PVC name {claim:?}: {why}");
                errors.push(FieldError::invalid(format!("{at}.name"), name, why));
            }
        }
        let used = meta::str_at(volume, &["persistentVolumeClaim", "claimName"]);
        if own.iter().any(|claim| claim == used) {
            let at = format!("{at}.persistentVolumeClaim.claimName");
            let why = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(FieldError::invalid(at, used, why));
        }
    }
    errors
}

fn validate_source(volume: &Value, at: &str) -> Vec<FieldError> {
    let (kind, others) = sources::first(KINDS, |kind| volume.get(kind).is_some(), at);
    let Some(kind) = kind else {
        return vec![FieldError::required(at, "must specify a volume type")];
    };
    let source = &volume[kind];
    let path = format!("{at}.{kind}");
    let mut errors = match kind {
        "emptyDir" if quantity(source, &["sizeLimit"]).is_some_and(|q| q.is_negative()) => {
            let why = "SizeLimit field must be a valid resource quantity";
            vec![FieldError::forbidden(format!("{path}.sizeLimit"), why)]
        }
        "secret" => files(source, "secretName", &path),
        "configMap" => files(source, "name", &path),
        "downwardAPI" => {
            let mut errors: Vec<FieldError> =
                mode(source, "defaultMode", &path).into_iter().collect();
            let items = meta::list_at(source, &["items"]).iter();
            errors.extend(items.flat_map(|item| told_file(item, &path)));
            errors
        }
        "projected" => {
            let mut errors: Vec<FieldError> =
                mode(source, "defaultMode", &path).into_iter().collect();
            errors.extend(projected(meta::list_at(source, &["sources"]), &path));
            errors
        }
        "ephemeral" => match source.get("volumeClaimTemplate") {
            Some(template) => validate_template(template, &format!("{path}.volumeClaimTemplate")),
            None => vec![FieldError::required(
                format!("{path}.volumeClaimTemplate"),
                "",
            )],
        },
        "image" => one_of_if_set(
            meta::str_at(source, &["pullPolicy"]),
            format!("{path}.pullPolicy"),
            &["Always", "IfNotPresent", "Never"],
        )
        .into_iter()
        .collect(),
        _ => sources::validate(kind, source, at, None),
    };
    let name = meta::str_at(volume, &["name"]);
    if volume
        .get("iscsi")
        .is_some_and(|source| sources::long_portal(name, source))
    {
        errors.push(FieldError::invalid(
            format!("{at}.name"),
            name,
            TOO_LONG_PORTAL,
        ));
    }
    errors.extend(others);
    errors
}

fn mode(of: &Value, field: &str, at: &str) -> Option<FieldError> {
    let mode = meta::int_at(of, &[field]).filter(|m| !(0..=0o777).contains(m))?;
    Some(FieldError::invalid(format!("{at}.{field}"), mode, MODE))
}

/// Files from a Secret or ConfigMap, which is named by a field.
fn files(source: &Value, name: &str, at: &str) -> Vec<FieldError> {
    let missing = meta::str_at(source, &[name]).is_empty();
    let missing = missing.then(|| FieldError::required(format!("{at}.{name}"), ""));
    let mut errors: Vec<FieldError> = missing.into_iter().collect();
    errors.extend(mode(source, "defaultMode", at));
    for (i, item) in meta::list_at(source, &["items"]).iter().enumerate() {
        errors.extend(key_to_path(item, &format!("{at}.items[{i}]")));
    }
    errors
}

fn key_to_path(item: &Value, at: &str) -> Vec<FieldError> {
    let missing = ["key", "path"]
        .into_iter()
        .filter(|f| meta::str_at(item, &[f]).is_empty());
    let mut errors: Vec<FieldError> = missing
        .map(|f| FieldError::required(format!("{at}.{f}"), ""))
        .collect();
    errors.extend(local_path(
        meta::str_at(item, &["path"]),
        &format!("{at}.path"),
    ));
    errors.extend(mode(item, "mode", at));
    errors
}

/// A relative path that stays below where it is used, and that does not begin like the volume's own files.
fn local_path(path: &str, at: &str) -> Vec<FieldError> {
    let mut errors = descending(path, at);
    if path.starts_with("..") && !path.starts_with("../") {
        errors.push(FieldError::invalid(at, path, "must not start with '..'"));
    }
    errors
}

/// A file that holds a field or a resource of the pod.
fn told_file(item: &Value, at: &str) -> Vec<FieldError> {
    let path = meta::str_at(item, &["path"]);
    let mut errors = Vec::new();
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    }
    errors.extend(local_path(path, &format!("{at}.path")));
    match (item.get("fieldRef"), item.get("resourceFieldRef")) {
        (Some(field), resource) => {
            errors.extend(told_field(field, TOLD_FIELDS, &format!("{at}.fieldRef")));
            if resource.is_some() {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(at, "resource", why));
            }
        }
        (None, Some(resource)) => {
            errors.extend(told_resource(
                resource,
                true,
                &format!("{at}.resourceFieldRef"),
            ));
        }
        (None, None) => {
            let why = "one of fieldRef and resourceFieldRef is required";
            errors.push(FieldError::required(at, why));
        }
    }
    errors.extend(mode(item, "mode", at));
    errors
}

/// Several sources in one volume, whose files have names of their own.
fn projected(all: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut paths = HashSet::new();
    let mut again = |path: &str, shown: &str| {
        let known = !path.is_empty() && !paths.insert(path.to_owned());
        known.then(|| FieldError::invalid(at, shown, "conflicting duplicate paths"))
    };
    for (i, part) in all.iter().enumerate() {
        let own = format!("{at}.sources[{i}]");
        for kind in ["secret", "configMap"] {
            let Some(source) = part.get(kind) else {
                continue;
            };
            let own = format!("{own}.{kind}");
            let name = meta::str_at(source, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(format!("{own}.name"), ""));
            }
            for (j, item) in meta::list_at(source, &["items"]).iter().enumerate() {
                errors.extend(key_to_path(item, &format!("{own}.items[{j}]")));
                errors.extend(again(meta::str_at(item, &["path"]), name));
            }
        }
        if let Some(told) = part.get("downwardAPI") {
            for item in meta::list_at(told, &["items"]) {
                errors.extend(told_file(item, &format!("{own}.downwardAPI")));
                let path = meta::str_at(item, &["path"]);
                errors.extend(again(path, path));
            }
        }
        if let Some(token) = part.get("serviceAccountToken") {
            errors.extend(projected_token(
                token,
                &format!("{own}.serviceAccountToken"),
                at,
            ));
        }
        if let Some(bundle) = part.get("clusterTrustBundle") {
            let own = format!("{own}.clusterTrustBundle");
            errors.extend(trust_bundle(bundle, &own));
            let path = meta::str_at(bundle, &["path"]);
            errors.extend(again(path, path));
        }
        if part.as_object().map_or(0, serde_json::Map::len) > 1 {
            let why = "may not specify more than 1 volume type per source";
            errors.push(FieldError::forbidden(own, why));
        }
    }
    errors
}

/// Upstream names the path of the file at the volume (`at`).
fn projected_token(token: &Value, own: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(seconds) =
        meta::int_at(token, &["expirationSeconds"]).filter(|s| !TOKEN_SECONDS.contains(s))
    {
        let why = if seconds < *TOKEN_SECONDS.start() {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        errors.push(FieldError::invalid(
            format!("{own}.expirationSeconds"),
            seconds,
            why,
        ));
    }
    let path = meta::str_at(token, &["path"]);
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    } else {
        errors.extend(local_path(path, &format!("{at}.path")));
    }
    errors
}

fn trust_bundle(bundle: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let text = |field: &str| bundle.get(field).and_then(Value::as_str);
    let selector = bundle.get("labelSelector");
    match (text("name"), text("signerName")) {
        (Some(_), Some(_)) => {
            let why = "only one of name and signerName may be used";
            errors.push(FieldError::invalid(at, crate::check::internal(bundle), why));
        }
        (Some(name), None) => {
            if name.is_empty() {
                let why = "must be a valid object name";
                errors.push(FieldError::required(format!("{at}.name"), why));
            }
            if let Some(selector) = selector {
                let why = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(
                    format!("{at}.labelSelector"),
                    selector.clone(),
                    why,
                ));
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                let why = "must be a valid signer name";
                errors.push(FieldError::required(format!("{at}.signerName"), why));
            }
            if let Some(selector) = selector {
                errors.extend(label_selector(selector, &format!("{at}.labelSelector")));
            }
        }
        (None, None) => {
            let why = "either name or signerName must be specified";
            errors.push(FieldError::required(at, why));
        }
    }
    let path = meta::str_at(bundle, &["path"]);
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    }
    errors.extend(local_path(path, &format!("{at}.path")));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_texts};
    use serde_json::json;

    #[test]
    fn every_source_has_its_rules() {
        let at = "spec.volumes[0]";
        for (source, expected) in [
            (
                json!({}),
                vec![format!("{at}: Required value: must specify a volume type")],
            ),
            (
                json!({"hostPath": {"path": "/x"}, "emptyDir": {"sizeLimit": "-1"}}),
                vec![
                    format!(
                        "{at}.emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity"
                    ),
                    format!("{at}.hostPath: Forbidden: may not specify more than 1 volume type"),
                ],
            ),
            (
                json!({"secret": {"defaultMode": 512, "items": [{"key": "k", "path": "/..a", "mode": -1}, {"path": "..b"}]}}),
                vec![
                    format!("{at}.secret.secretName: Required value"),
                    format!("{at}.secret.defaultMode: Invalid value: 512: {MODE}"),
                    format!(
                        "{at}.secret.items[0].path: Invalid value: \"/..a\": must be a relative path"
                    ),
                    format!("{at}.secret.items[0].mode: Invalid value: -1: {MODE}"),
                    format!("{at}.secret.items[1].key: Required value"),
                    format!(
                        "{at}.secret.items[1].path: Invalid value: \"..b\": must not start with '..'"
                    ),
                ],
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "a", "fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}, {"path": "b"}]}}),
                vec![
                    format!(
                        "{at}.downwardAPI.fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\""
                    ),
                    format!(
                        "{at}.downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"
                    ),
                ],
            ),
            (
                json!({"projected": {"sources": [
                {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}, "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
                {"serviceAccountToken": {"expirationSeconds": 5}}, {"clusterTrustBundle": {"path": "p"}}]}}),
                vec![
                    format!("{at}.projected: Invalid value: \"c\": conflicting duplicate paths"),
                    format!(
                        "{at}.projected.sources[0]: Forbidden: may not specify more than 1 volume type per source"
                    ),
                    format!(
                        "{at}.projected.sources[1].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes"
                    ),
                    format!("{at}.projected.path: Required value"),
                    format!(
                        "{at}.projected.sources[2].clusterTrustBundle: Required value: either name or signerName must be specified"
                    ),
                    format!("{at}.projected: Invalid value: \"p\": conflicting duplicate paths"),
                ],
            ),
            (
                json!({"ephemeral": {}}),
                vec![format!(
                    "{at}.ephemeral.volumeClaimTemplate: Required value"
                )],
            ),
            (
                json!({"image": {"pullPolicy": "Odd"}}),
                vec![format!(
                    "{at}.image.pullPolicy: Unsupported value: \"Odd\": supported values: \"Always\", \"IfNotPresent\", \"Never\""
                )],
            ),
        ] {
            let mut volume = source.clone();
            volume["name"] = "v".into();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            assert_texts(
                &validate_volumes(&[volume], "spec.volumes").1,
                &expected,
                &source,
            );
        }
    }

    #[test]
    fn claims_of_the_pod_itself() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"volumes": [{"name": "v", "ephemeral": {}}, {"name": "w", "persistentVolumeClaim": {"claimName": "c"}}]}});
        assert_rules(
            &pod,
            own_claims,
            &[
                (
                    json!({"/spec/volumes/1/persistentVolumeClaim/claimName": "p-v"}),
                    &[
                        "spec.volumes[1].persistentVolumeClaim.claimName: Invalid value: \"p-v\": must not reference a PVC that gets created for an ephemeral volume",
                    ],
                ),
                (
                    json!({"/metadata/name": "p".repeat(253)}),
                    &["spec.volumes[0].name: Invalid value: \"v\": PVC name \"…"],
                ),
            ],
        );
    }
}
