//! Storage classes and CSI kinds.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::{immutable, named, one_of, one_of_if_set};
use crate::simple::Simple;

/// Rules of StorageClasses.
pub(crate) static CLASSES: Simple = Simple {
    cells: &[
        Cell::With(class_name),
        Cell::Text(&["provisioner"]),
        Cell::TextOr(&["reclaimPolicy"], "Delete"),
        Cell::TextOr(&["volumeBindingMode"], "<unset>"),
        Cell::Bool(&["allowVolumeExpansion"]),
        Cell::Age,
    ],
    validate: validate_class,
    validate_update: |new, old| {
        let fixed: [&[&str]; 4] = [
            &["parameters"],
            &["provisioner"],
            &["reclaimPolicy"],
            &["volumeBindingMode"],
        ];
        fixed
            .into_iter()
            .filter_map(|path| immutable(new, old, path))
            .map(forbidden)
            .collect()
    },
    ..Simple::BASE
};

/// Rules of CSIDrivers.
pub(crate) static DRIVERS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Bool(&["spec", "attachRequired"]),
        Cell::Bool(&["spec", "podInfoOnMount"]),
        Cell::Bool(&["spec", "storageCapacity"]),
        Cell::Age,
    ],
    generation: true,
    validate: validate_driver,
    validate_update: |new, old| {
        let fixed: [&[&str]; 2] = [
            &["spec", "attachRequired"],
            &["spec", "volumeLifecycleModes"],
        ];
        let changed = fixed.into_iter().filter_map(|p| immutable(new, old, p));
        changed.collect()
    },
    ..Simple::BASE
};

/// Rules of CSINodes.
pub(crate) static NODES: Simple = Simple {
    cells: &[Cell::Name, Cell::Len(&["spec", "drivers"]), Cell::Age],
    ..Simple::BASE
};

/// Rules of CSIStorageCapacities.
pub(crate) static CAPACITIES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["storageClassName"]),
        Cell::TextOr(&["capacity"], "<unset>"),
    ],
    validate: validate_capacity,
    validate_update: |new, old| {
        let fixed: [&[&str]; 2] = [&["nodeTopology"], &["storageClassName"]];
        let changed = fixed.into_iter().filter_map(|p| immutable(new, old, p));
        changed.collect()
    },
    ..Simple::BASE
};

/// Rules of VolumeAttachments.
pub(crate) static ATTACHMENTS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "attacher"]),
        Cell::Text(&["spec", "source", "persistentVolumeName"]),
        Cell::Text(&["spec", "nodeName"]),
        Cell::Bool(&["status", "attached"]),
        Cell::Age,
    ],
    validate: validate_attachment,
    validate_update: |new, old| immutable(new, old, &["spec"]).into_iter().collect(),
    ..Simple::BASE
};

/// Rules of VolumeAttributesClasses.
pub(crate) static ATTRIBUTES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["driverName"]), Cell::Age],
    validate: |obj| driver_name(meta::str_at(obj, &["driverName"]), "driverName"),
    validate_update: |new, old| {
        [&["driverName"][..], &["parameters"][..]]
            .into_iter()
            .filter_map(|p| immutable(new, old, p))
            .map(forbidden)
            .collect()
    },
    ..Simple::BASE
};

fn forbidden(error: FieldError) -> FieldError {
    let detail = match error.path.as_str() {
        "parameters" => "updates to parameters are forbidden.",
        "provisioner" => "updates to provisioner are forbidden.",
        "reclaimPolicy" => "updates to reclaimPolicy are forbidden.",
        "driverName" => "updates to driverName are forbidden.",
        _ => return error,
    };
    FieldError::forbidden(error.path, detail)
}

fn class_name(obj: &Value, _now: Timestamp) -> Value {
    let is = |key: &str| meta::annotation(obj, key) == Some("true");
    let default = is("storageclass.kubernetes.io/is-default-class")
        || is("storageclass.beta.kubernetes.io/is-default-class");
    let name = text(obj, &["metadata", "name"]);
    if default {
        format!("{name} (default)")
    } else {
        name
    }
    .into()
}

fn validate_class(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let provisioner = meta::str_at(obj, &["provisioner"]);
    if provisioner.is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    } else {
        errors.extend(crate::check::named(
            api::names::qualified_name(&provisioner.to_lowercase()),
            "provisioner",
            provisioner,
        ));
    }
    errors.extend(one_of(
        meta::str_at(obj, &["reclaimPolicy"]),
        "reclaimPolicy",
        &["Delete", "Retain"],
    ));
    errors.extend(one_of(
        meta::str_at(obj, &["volumeBindingMode"]),
        "volumeBindingMode",
        &["Immediate", "WaitForFirstConsumer"],
    ));
    errors
}

/// Longest name of a driver, in bytes.
const DRIVER_MAX: usize = 63;
/// Shortest life of a token for a driver, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;

fn driver_name(name: &str, at: &str) -> Vec<FieldError> {
    if name.is_empty() {
        return vec![FieldError::required(at, "")];
    }
    let mut errors = Vec::new();
    if name.len() > DRIVER_MAX {
        errors.push(FieldError::too_long(at, DRIVER_MAX));
    }
    let why = names::dns1123_subdomain(&name.to_lowercase());
    errors.extend(named(why, at, name));
    errors
}

fn validate_driver(obj: &Value) -> Vec<FieldError> {
    let mut errors = driver_name(meta::name(obj), "metadata.name");
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    errors.extend(one_of_if_set(
        meta::str_at(spec, &["fsGroupPolicy"]),
        "spec.fsGroupPolicy",
        &["ReadWriteOnceWithFSType", "File", "None"],
    ));
    let modes = meta::list_at(spec, &["volumeLifecycleModes"]);
    for mode in modes.iter().filter_map(Value::as_str) {
        let allowed = &["Ephemeral", "Persistent"];
        errors.extend(one_of(mode, "spec.volumeLifecycleModes", allowed));
    }
    let requests = meta::list_at(spec, &["tokenRequests"]);
    for (i, request) in requests.iter().enumerate() {
        let at = format!("spec.tokenRequests[{i}]");
        let audience = meta::str_at(request, &["audience"]);
        let earlier = requests[..i].iter();
        if earlier
            .map(|r| meta::str_at(r, &["audience"]))
            .any(|a| a == audience)
        {
            errors.push(FieldError::duplicate(format!("{at}.audience"), audience));
        }
        let life = meta::int_at(request, &["expirationSeconds"]);
        if let Some(seconds) = life.filter(|s| *s < TOKEN_SECONDS_MIN) {
            let why = "may not specify a duration less than 10 minutes";
            let at = format!("{at}.expirationSeconds");
            errors.push(FieldError::invalid(at, seconds, why));
        }
    }
    errors
}

fn validate_capacity(obj: &Value) -> Vec<FieldError> {
    let class = meta::str_at(obj, &["storageClassName"]);
    let why = names::dns1123_subdomain(class);
    let mut errors = named(why, "storageClassName", class);
    for field in ["capacity", "maximumVolumeSize"] {
        let given = obj.get(field).cloned().unwrap_or_default();
        if crate::check::quantity(obj, &[field]).is_some_and(|q| q.is_negative()) {
            let why = crate::check::NOT_NEGATIVE;
            errors.push(FieldError::invalid(field, given, why));
        }
    }
    if let Some(topology) = obj.get("nodeTopology") {
        errors.extend(crate::check::label_selector(topology, "nodeTopology"));
    }
    errors
}

fn validate_attachment(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = driver_name(meta::str_at(spec, &["attacher"]), "spec.attacher");
    let volume = meta::get(spec, &["source", "persistentVolumeName"]);
    match (volume, meta::get(spec, &["source", "inlineVolumeSpec"])) {
        (None, None) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::required("spec.source", why));
        }
        (Some(_), Some(_)) => {
            let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(FieldError::forbidden("spec.source", why));
        }
        (Some(name), None) if name.as_str().is_none_or(str::is_empty) => {
            let why = "must specify non empty persistentVolumeName";
            let at = "spec.source.persistentVolumeName";
            errors.push(FieldError::required(at, why));
        }
        _ => {}
    }
    let node = meta::str_at(spec, &["nodeName"]);
    errors.extend(named(names::dns1123_subdomain(node), "spec.nodeName", node));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn drivers() {
        let driver = json!({"metadata": {"name": "d.example.com"}, "spec": {"fsGroupPolicy": "Any", "volumeLifecycleModes": ["Short"],
            "tokenRequests": [{"audience": "a"}, {"audience": "a", "expirationSeconds": 5}]}});
        assert_eq!(
            all(&validate_driver(&driver)),
            [
                "spec.fsGroupPolicy: Unsupported value: \"Any\": supported values: \"ReadWriteOnceWithFSType\", \"File\", \"None\"",
                "spec.volumeLifecycleModes: Unsupported value: \"Short\": supported values: \"Ephemeral\", \"Persistent\"",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[1].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes"
            ]
        );
        let next = json!({"spec": {"attachRequired": true}});
        let changed = (DRIVERS.validate_update)(&next, &json!({"spec": {"attachRequired": false}}));
        assert_eq!(
            all(&changed),
            ["spec.attachRequired: Invalid value: true: field is immutable"]
        );
    }

    #[test]
    fn what_may_not_change() {
        let class = json!({"driverName": "a.io", "parameters": {"a": "b"}});
        let other = json!({"driverName": "b.io", "parameters": {"a": "c"}});
        assert_eq!(
            all(&(ATTRIBUTES.validate_update)(&other, &class)),
            [
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden."
            ]
        );
        let capacity = |class: &str| json!({"storageClassName": class, "capacity": "-1"});
        assert_eq!(
            all(&(CAPACITIES.validate_update)(
                &capacity("b"),
                &capacity("a")
            )),
            ["storageClassName: Invalid value: \"b\": field is immutable"]
        );
        assert_eq!(
            all(&validate_capacity(&capacity("a"))),
            ["capacity: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
    }

    #[test]
    fn attachments() {
        let of = |source: Value| json!({"spec": {"attacher": "a.io", "nodeName": "n", "source": source}});
        assert!(validate_attachment(&of(json!({"persistentVolumeName": "v"}))).is_empty());
        let errors = all(&validate_attachment(&of(json!({}))));
        assert_eq!(
            errors,
            [
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName"
            ]
        );
    }
}
