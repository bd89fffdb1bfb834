//! PersistentVolumes and PersistentVolumeClaims.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::{Value, json};

use crate::cells::{age, or, text};
use crate::check::{NOT_NEGATIVE, immutable, one_of, quantity};
use crate::strategy::{Ctx, Strategy};

const MODES: &[&str] = &[
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Fields of a volume's spec that are no volume source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// Rules of PersistentVolumes.
pub(crate) struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn default(&self, volume: &mut Value) {
        if let Some(path) = volume.get_mut("spec").and_then(|s| s.get_mut("hostPath"))
            && path.get("type").is_none()
        {
            meta::set(path, &["type"], "".into());
        }
    }

    fn prepare_create(&self, volume: &mut Value, _ctx: &Ctx<'_>) {
        volume["status"] = json!({"phase": "Pending"});
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value, ctx: &Ctx<'_>) {
        if meta::str_at(new, &["status", "phase"]) != meta::str_at(old, &["status", "phase"]) {
            meta::set(
                new,
                &["status", "lastPhaseTransitionTime"],
                api::time::format(ctx.now).into(),
            );
        }
    }

    fn validate(&self, volume: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let Some(spec) = volume.get("spec") else {
            return vec![
                FieldError::required("spec.accessModes", ""),
                FieldError::required("spec.capacity", ""),
            ];
        };
        if meta::list_at(spec, &["accessModes"]).is_empty() {
            errors.push(FieldError::required("spec.accessModes", ""));
        }
        errors.extend(access_modes(spec));
        let capacity = spec.get("capacity").and_then(Value::as_object);
        if capacity.is_none_or(serde_json::Map::is_empty) {
            errors.push(FieldError::required("spec.capacity", ""));
        } else if capacity.is_some_and(|c| !c.contains_key("storage") || c.len() > 1) {
            errors.push(FieldError::not_supported(
                "spec.capacity",
                json!(capacity),
                &["storage"],
            ));
        } else if let Some(q) =
            quantity(spec, &["capacity", "storage"]).filter(|q| q.is_negative() || q.is_zero())
        {
            errors.push(FieldError::invalid(
                "spec.capacity[storage]",
                q.to_string(),
                "must be greater than zero",
            ));
        }
        errors.extend(one_of(
            meta::str_at(spec, &["persistentVolumeReclaimPolicy"]),
            "spec.persistentVolumeReclaimPolicy",
            &["Delete", "Recycle", "Retain"],
        ));
        errors.extend(one_of(
            meta::str_at(spec, &["volumeMode"]),
            "spec.volumeMode",
            &["Block", "Filesystem"],
        ));
        errors.extend(source(spec));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if sources(new) != sources(old) {
            errors.push(FieldError::forbidden(
                "spec.persistentvolumesource",
                "spec.persistentvolumesource is immutable after creation",
            ));
        }
        errors.extend(immutable(new, old, &["spec", "volumeMode"]));
        if meta::get(old, &["spec", "nodeAffinity"]).is_some() {
            errors.extend(immutable(new, old, &["spec", "nodeAffinity"]));
        }
        errors
    }

    fn row(&self, volume: &Value, now: Timestamp) -> Option<Vec<Value>> {
        let spec = volume.get("spec").unwrap_or(&Value::Null);
        let claim = spec.get("claimRef").map_or_else(String::new, |c| {
            format!("{}/{}", text(c, &["namespace"]), text(c, &["name"]))
        });
        Some(vec![
            meta::name(volume).into(),
            text(spec, &["capacity", "storage"]).into(),
            short_modes(meta::list_at(spec, &["accessModes"])).into(),
            text(spec, &["persistentVolumeReclaimPolicy"]).into(),
            phase(volume).into(),
            claim.into(),
            class(volume).into(),
            or(text(spec, &["volumeAttributesClassName"]), "<unset>").into(),
            text(volume, &["status", "reason"]).into(),
            age(volume, now).into(),
            or(text(spec, &["volumeMode"]), "<unset>").into(),
        ])
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[("name", &["metadata", "name"])]
    }
}

fn sources(volume: &Value) -> Vec<(&String, &Value)> {
    let spec = volume.get("spec").and_then(Value::as_object);
    let mut out: Vec<_> = spec
        .into_iter()
        .flatten()
        .filter(|(k, _)| !NOT_SOURCES.contains(&k.as_str()))
        .collect();
    out.sort_by_key(|(k, _)| *k);
    out
}

fn source(spec: &Value) -> Vec<FieldError> {
    let given: Vec<&String> = spec
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k)
        .filter(|k| !NOT_SOURCES.contains(&k.as_str()))
        .collect();
    let mut errors: Vec<FieldError> = given
        .iter()
        .skip(1)
        .map(|k| {
            FieldError::forbidden(
                format!("spec.{k}"),
                "may not specify more than 1 volume type",
            )
        })
        .collect();
    if given.is_empty() {
        errors.push(FieldError::required("spec", "must specify a volume type"));
    }
    for kind in ["hostPath", "local"] {
        if let Some(source) = spec.get(kind) {
            let path = meta::str_at(source, &["path"]);
            if path.is_empty() {
                errors.push(FieldError::required(format!("spec.{kind}.path"), ""));
            } else if path.split('/').any(|p| p == "..") {
                errors.push(FieldError::invalid(
                    format!("spec.{kind}.path"),
                    path,
                    "must not contain '..'",
                ));
            }
        }
    }
    if spec.get("local").is_some() && spec.get("nodeAffinity").is_none() {
        errors.push(FieldError::required(
            "spec.nodeAffinity",
            "Local volume requires node affinity",
        ));
    }
    errors
}

fn access_modes(spec: &Value) -> Vec<FieldError> {
    let modes = meta::list_at(spec, &["accessModes"]);
    let mut errors: Vec<FieldError> = modes
        .iter()
        .filter_map(Value::as_str)
        .filter(|m| !MODES.contains(m))
        .map(|m| FieldError::not_supported("spec.accessModes", m, MODES))
        .collect();
    if modes.len() > 1 && modes.contains(&json!("ReadWriteOncePod")) {
        errors.push(FieldError::forbidden(
            "spec.accessModes",
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
    errors
}

fn short_modes(modes: &[Value]) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let given: Vec<&str> = short
        .iter()
        .filter(|(long, _)| modes.iter().any(|m| m == long))
        .map(|(_, s)| *s)
        .collect();
    given.join(",")
}

fn class(obj: &Value) -> String {
    meta::annotation(obj, CLASS_ANNOTATION)
        .map_or_else(|| text(obj, &["spec", "storageClassName"]), str::to_owned)
}

fn phase(obj: &Value) -> String {
    if meta::get(obj, &["metadata", "deletionTimestamp"]).is_some() {
        return "Terminating".to_owned();
    }
    text(obj, &["status", "phase"])
}

/// Rules of PersistentVolumeClaims.
pub(crate) struct PersistentVolumeClaim;

impl Strategy for PersistentVolumeClaim {
    fn default(&self, claim: &mut Value) {
        // The older field says the same as the newer one.
        for (from, to) in [
            ("dataSource", "dataSourceRef"),
            ("dataSourceRef", "dataSource"),
        ] {
            let Some(value) = meta::get(claim, &["spec", from]).cloned() else {
                continue;
            };
            if meta::get(claim, &["spec", to]).is_none()
                && meta::get(&value, &["namespace"]).is_none()
            {
                meta::set(claim, &["spec", to], value);
            }
        }
    }

    fn prepare_create(&self, claim: &mut Value, _ctx: &Ctx<'_>) {
        claim["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, claim: &Value) -> Vec<FieldError> {
        validate_claim_spec(claim.get("spec").unwrap_or(&Value::Null))
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut allowed = new.clone();
        let bound = meta::str_at(old, &["status", "phase"]) == "Bound";
        let was_unset = |path: &[&str]| meta::str_at(old, path).is_empty();
        let mut back = vec![];
        if was_unset(&["spec", "volumeName"]) {
            back.push(&["spec", "volumeName"][..]);
        }
        if meta::get(old, &["spec", "storageClassName"]).is_none() {
            // A class may be given once, when there was none.
            back.push(&["spec", "storageClassName"][..]);
        }
        if bound {
            back.push(&["spec", "resources", "requests"][..]);
            back.push(&["spec", "volumeAttributesClassName"][..]);
        }
        for path in back {
            match meta::get(old, path) {
                Some(value) => meta::set(&mut allowed, path, value.clone()),
                None => {
                    meta::remove(&mut allowed, path);
                }
            }
        }
        let mut errors = Vec::new();
        if allowed.get("spec") != old.get("spec") {
            errors.push(FieldError::forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"));
        }
        let storage = ["spec", "resources", "requests", "storage"];
        let capacity = quantity(old, &["status", "capacity", "storage"]);
        if let (Some(is), Some(was)) = (quantity(new, &storage), quantity(old, &storage))
            && is < was
            && capacity.is_none_or(|c| is <= c)
        {
            errors.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
        errors
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Option<Vec<Value>> {
        let bound = !text(claim, &["spec", "volumeName"]).is_empty();
        let (capacity, modes) = if bound {
            (
                text(claim, &["status", "capacity", "storage"]),
                short_modes(meta::list_at(claim, &["status", "accessModes"])),
            )
        } else {
            (String::new(), String::new())
        };
        Some(vec![
            meta::name(claim).into(),
            phase(claim).into(),
            text(claim, &["spec", "volumeName"]).into(),
            capacity.into(),
            modes.into(),
            class(claim).into(),
            or(
                text(claim, &["spec", "volumeAttributesClassName"]),
                "<unset>",
            )
            .into(),
            age(claim, now).into(),
            or(text(claim, &["spec", "volumeMode"]), "<unset>").into(),
        ])
    }

    fn field_labels(&self) -> crate::simple::FieldLabels {
        &[("name", &["metadata", "name"])]
    }
}

/// Rules of a claim's spec, also inside templates of claims.
pub(crate) fn validate_claim_spec(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if meta::list_at(spec, &["accessModes"]).is_empty() {
        errors.push(FieldError::required(
            "spec.accessModes",
            "at least 1 access mode is required",
        ));
    }
    errors.extend(access_modes(spec));
    match quantity(spec, &["resources", "requests", "storage"]) {
        None => errors.push(FieldError::required("spec.resources[storage]", "")),
        Some(q) if q.is_negative() => {
            errors.push(FieldError::invalid(
                "spec.resources[storage]",
                q.to_string(),
                NOT_NEGATIVE,
            ));
        }
        Some(q) if q.is_zero() => {
            errors.push(FieldError::invalid(
                "spec.resources[storage]",
                q.to_string(),
                "must be greater than zero",
            ));
        }
        Some(_) => {}
    }
    if let Some(selector) = spec.get("selector") {
        errors.extend(crate::check::label_selector(selector, "spec.selector"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "manual"}});
        assert!(PersistentVolumeClaim.validate(&claim).is_empty());
        let mut bound = claim.clone();
        bound["spec"]["volumeName"] = json!("v");
        assert!(
            PersistentVolumeClaim
                .validate_update(&bound, &claim)
                .is_empty(),
            "the binder names the volume"
        );
        let mut other = bound.clone();
        other["spec"]["volumeName"] = json!("w");
        assert_eq!(
            PersistentVolumeClaim.validate_update(&other, &bound).len(),
            1
        );
        let mut mode = claim.clone();
        mode["spec"]["accessModes"] = json!(["ReadWriteMany"]);
        assert_eq!(
            PersistentVolumeClaim.validate_update(&mode, &claim).len(),
            1
        );
        assert_eq!(
            PersistentVolumeClaim.validate(&json!({"spec": {}})).len(),
            2
        );
    }

    #[test]
    fn volumes() {
        let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}});
        assert!(PersistentVolume.validate(&volume).is_empty());
        let mut moved = volume.clone();
        moved["spec"]["hostPath"]["path"] = json!("/y");
        assert_eq!(
            PersistentVolume.validate_update(&moved, &volume)[0].to_string(),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
        );
        assert_eq!(
            short_modes(&[json!("ReadWriteMany"), json!("ReadWriteOnce")]),
            "RWO,RWX"
        );
    }
}
