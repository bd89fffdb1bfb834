//! Storage classes and CSI kinds.

use api::time::Timestamp;
use api::{FieldError, meta};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::{immutable, one_of};
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
    create_on_update: true,
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
    validate_update: |new, old| immutable(new, old, &["spec"]).into_iter().collect(),
    ..Simple::BASE
};

/// Rules of VolumeAttributesClasses.
pub(crate) static ATTRIBUTES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["driverName"]), Cell::Age],
    validate_update: |new, old| {
        [&["driverName"][..], &["parameters"][..]]
            .into_iter()
            .filter_map(|p| immutable(new, old, p))
            .collect()
    },
    ..Simple::BASE
};

fn forbidden(error: FieldError) -> FieldError {
    let detail = match error.path.as_str() {
        "parameters" => "updates to parameters are forbidden.",
        "provisioner" => "updates to provisioner are forbidden.",
        "reclaimPolicy" => "updates to reclaimPolicy are forbidden.",
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
