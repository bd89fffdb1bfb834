//! PersistentVolumes and PersistentVolumeClaims.

mod claim;
mod persistent;

use api::time::Timestamp;
use api::{FieldError, Quantity, meta, storage_class};
use serde_json::{Value, json};

use crate::cells::{age, or, text};
use crate::check::immutable;
use crate::strategy::{Ctx, Strategy};

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

pub(crate) use claim::validate_template;
pub(crate) use persistent::validate_inline;

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
        persistent::validate(volume)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        persistent::validate_update(new, old)
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
            storage_class::of(volume).into(),
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

fn access_modes(spec: &Value, at: &str) -> Vec<FieldError> {
    let modes = meta::list_at(spec, &["accessModes"]);
    let modes = || modes.iter().filter_map(Value::as_str);
    let odd = modes().filter(|m| !MODES.contains(m));
    let mut errors: Vec<FieldError> = odd
        .map(|m| FieldError::not_supported(at, m, MODES))
        .collect();
    let alone = "ReadWriteOncePod";
    let others = modes().any(|m| m != alone && MODES.contains(&m));
    if others && modes().any(|m| m == alone) {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(at, why));
    }
    errors
}

/// A quantity above zero.
fn positive(amount: &Quantity, at: &str) -> Option<FieldError> {
    let why = "must be greater than zero";
    (amount.is_negative() || amount.is_zero())
        .then(|| FieldError::invalid(at, amount.to_string(), why))
}

/// A quantity that is not below zero, in older words.
fn basic(amount: &Quantity, at: &str) -> Option<FieldError> {
    let why = "must be a valid resource quantity";
    (amount.value() < 0).then(|| FieldError::invalid(at, amount.value(), why))
}

/// Whether a volume is a file system does not change. Upstream leaves out where in the object it says so.
fn mode_stays(new: &Value, old: &Value) -> Option<FieldError> {
    let mut error = immutable(new, old, &["spec", "volumeMode"])?;
    error.path = "volumeMode".to_owned();
    Some(error)
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
        claim::validate(claim.get("spec").unwrap_or(&Value::Null), "spec")
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        claim::validate_update(new, old)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        claim::validate_status(new)
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
            storage_class::of(claim).into(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_short_in_tables() {
        assert_eq!(
            short_modes(&[json!("ReadWriteMany"), json!("ReadWriteOnce")]),
            "RWO,RWX"
        );
    }
}
