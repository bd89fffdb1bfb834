//! Storage classes and CSI kinds.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::{IMMUTABLE, immutable, internal, named, not_negative, one_of, one_of_if_set};
use crate::core::sources::driver_name;
use crate::core::volume::validate_inline;
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
        let mut attach = immutable(new, old, &["spec", "attachRequired"]);
        if let Some(error) = &mut attach {
            // Upstream writes it in this way.
            error.path = "spec.attachedRequired".to_owned();
        }
        let modes = immutable(new, old, &["spec", "volumeLifecycleModes"]);
        attach.into_iter().chain(modes).collect()
    },
    ..Simple::BASE
};

/// Rules of CSINodes.
pub(crate) static NODES: Simple = Simple {
    cells: &[Cell::Name, Cell::Len(&["spec", "drivers"]), Cell::Age],
    validate: validate_node,
    validate_update: |new, old| {
        let fixed = |d: &Value| {
            ["name", "nodeID", "topologyKeys"]
                .map(|field| d.get(field).cloned().unwrap_or_default())
        };
        let before = meta::list_at(old, &["spec", "drivers"]);
        let changed = |driver: &&Value| {
            let known = before.iter().find(|o| o["name"] == driver["name"]);
            known.is_some_and(|known| fixed(known) != fixed(driver))
        };
        let drivers = meta::list_at(new, &["spec", "drivers"]).iter();
        let refuse = |d: &Value| FieldError::invalid("spec.drivers", internal(d), IMMUTABLE);
        drivers.filter(changed).map(refuse).collect()
    },
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
    validate_create: validate_new_attachment,
    validate_status: |new, _| validate_attachment(new),
    validate_update: |new, old| immutable(new, old, &["spec"]).into_iter().collect(),
    ..Simple::BASE
};

/// Rules of VolumeAttributesClasses.
pub(crate) static ATTRIBUTES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["driverName"]), Cell::Age],
    changes_first: true,
    validate: |obj| {
        let mut errors = qualified(obj, "driverName");
        errors.extend(parameters(obj));
        let given = obj.get("parameters").and_then(Value::as_object);
        if given.is_none_or(serde_json::Map::is_empty) {
            let why = "must contain at least one key/value pair";
            errors.push(FieldError::required("parameters", why));
        }
        errors
    },
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

/// The name of a driver that may have a domain in front.
fn qualified(obj: &Value, field: &str) -> Vec<FieldError> {
    let name = meta::str_at(obj, &[field]).to_lowercase();
    if name.is_empty() {
        return vec![FieldError::required(field, "")];
    }
    named(names::qualified_name(&name), field, &name)
}

fn validate_class(obj: &Value) -> Vec<FieldError> {
    let mut errors = qualified(obj, "provisioner");
    errors.extend(parameters(obj));
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
    errors.extend(topologies(obj));
    errors
}

/// Most parameters of a class.
const PARAMETERS_MAX: usize = 512;
/// Largest parameters of a class, names and values together, in bytes.
const PARAMETERS_BYTES: usize = 256 << 10;
/// Longest name that a driver has for a node, in bytes.
const NODE_ID_MAX: usize = 192;

fn parameters(obj: &Value) -> Vec<FieldError> {
    let at = "parameters";
    let map = obj.get(at).and_then(Value::as_object);
    let count = map.map_or(0, serde_json::Map::len);
    if count > PARAMETERS_MAX {
        return vec![FieldError::too_long(at, PARAMETERS_MAX)];
    }
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in map.into_iter().flatten() {
        if key.is_empty() {
            errors.push(FieldError::invalid(at, "", "field can not be empty."));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > PARAMETERS_BYTES {
        errors.push(FieldError::too_long(at, PARAMETERS_BYTES));
    }
    errors
}

/// Terms of topologies that volumes may be made in.
fn topologies(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let terms = meta::list_at(obj, &["allowedTopologies"]);
    for (i, term) in terms.iter().enumerate() {
        let at = format!("allowedTopologies[{i}]");
        let expressions = meta::list_at(term, &["matchLabelExpressions"]);
        for (j, expression) in expressions.iter().enumerate() {
            let at = format!("{at}.matchLabelExpressions[{j}]");
            let key = meta::str_at(expression, &["key"]);
            let values = meta::list_at(expression, &["values"]);
            if values.is_empty() {
                errors.push(FieldError::required(format!("{at}.values"), ""));
            }
            for (k, value) in values.iter().enumerate() {
                if values[..k].contains(value) {
                    let at = format!("{at}.values[{k}]");
                    errors.push(FieldError::duplicate(at, value.clone()));
                }
            }
            errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
            let again = |e: &Value| meta::str_at(e, &["key"]) == key;
            if expressions[..j].iter().any(again) {
                errors.push(FieldError::duplicate(format!("{at}.key"), key));
            }
        }
        if terms[..i].contains(term) {
            let at = format!("{at}.matchLabelExpressions");
            errors.push(FieldError::duplicate(at, ""));
        }
    }
    errors
}

fn validate_node(obj: &Value) -> Vec<FieldError> {
    let drivers = meta::list_at(obj, &["spec", "drivers"]);
    let mut errors = Vec::new();
    for (i, driver) in drivers.iter().enumerate() {
        let at = format!("spec.drivers[{i}]");
        let name = meta::str_at(driver, &["name"]);
        errors.extend(driver_name(name, &format!("{at}.name")));
        let id = meta::str_at(driver, &["nodeID"]);
        if id.is_empty() {
            errors.push(FieldError::required(format!("{at}.nodeID"), ""));
        } else if id.len() > NODE_ID_MAX {
            let why = format!("must be {NODE_ID_MAX} characters or less");
            errors.push(FieldError::invalid(format!("{at}.nodeID"), id, why));
        }
        let allocatable = driver.get("allocatable").unwrap_or(&Value::Null);
        let path = format!("{at}.allocatable");
        errors.extend(not_negative(allocatable, &path, &["count"]));
        let keys = meta::list_at(driver, &["topologyKeys"]);
        let again = |d: &Value| meta::str_at(d, &["name"]) == name;
        if drivers[..i].iter().any(again) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
        for (j, key) in keys.iter().enumerate() {
            let text = key.as_str().unwrap_or_default();
            if text.is_empty() {
                errors.push(FieldError::required(at.as_str(), ""));
            }
            if keys[..j].contains(key) {
                errors.push(FieldError::duplicate(at.as_str(), text));
            }
            errors.extend(named(names::qualified_name(text), &at, text));
        }
    }
    errors
}

/// Longest life of a token for a driver, in seconds.
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// Shortest time between two looks at what a driver can still attach, in seconds.
const PERIOD_SECONDS_MIN: i64 = 10;
/// Longest message of a failed attachment, in bytes.
const MESSAGE_MAX: usize = 1024;
/// Largest metadata of an attachment, in bytes.
const METADATA_BYTES: usize = 256 << 10;
/// Shortest life of a token for a driver, in seconds.
const TOKEN_SECONDS_MIN: i64 = 600;

fn validate_driver(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    // Upstream writes the first in this way.
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if spec.get(field).is_none() {
            errors.push(FieldError::required(format!("spec.{shown}"), ""));
        }
    }
    errors.extend(one_of_if_set(
        meta::str_at(spec, &["fsGroupPolicy"]),
        "spec.fsGroupPolicy",
        &["File", "None", "ReadWriteOnceWithFSType"],
    ));
    errors.extend(token_requests(meta::list_at(spec, &["tokenRequests"])));
    let modes = meta::list_at(spec, &["volumeLifecycleModes"]);
    let allowed = &["Persistent", "Ephemeral"];
    let odd = |mode: &&str| !allowed.contains(mode);
    let refuse = |mode| FieldError::not_supported("spec.volumeLifecycleModes", mode, allowed);
    errors.extend(
        modes
            .iter()
            .filter_map(Value::as_str)
            .filter(odd)
            .map(refuse),
    );
    if spec.get("seLinuxMount").is_none() {
        errors.push(FieldError::required("spec.seLinuxMount", ""));
    }
    let field = "nodeAllocatableUpdatePeriodSeconds";
    if let Some(n) = meta::int_at(spec, &[field]).filter(|n| *n < PERIOD_SECONDS_MIN) {
        let why = "must be greater than or equal to 10 seconds";
        errors.push(FieldError::invalid(format!("spec.{field}"), n, why));
    }
    errors
}

fn token_requests(requests: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let at = format!("spec.tokenRequests[{i}]");
        let of = |request| meta::str_at(request, &["audience"]);
        let audience = of(request);
        if requests[..i].iter().any(|r| of(r) == audience) {
            errors.push(FieldError::duplicate(format!("{at}.audience"), audience));
            continue;
        }
        let at = format!("{at}.expirationSeconds");
        let why = match meta::int_at(request, &["expirationSeconds"]) {
            Some(n) if n < TOKEN_SECONDS_MIN => "may not specify a duration less than 10 minutes",
            Some(n) if n > TOKEN_SECONDS_MAX => {
                "may not specify a duration larger than 2^32 seconds"
            }
            _ => continue,
        };
        let shown = request
            .get("expirationSeconds")
            .cloned()
            .unwrap_or_default();
        errors.push(FieldError::invalid(at, shown, why));
    }
    errors
}

fn validate_capacity(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(topology) = obj.get("nodeTopology") {
        errors.extend(crate::check::label_selector(topology, "nodeTopology"));
    }
    let class = meta::str_at(obj, &["storageClassName"]);
    errors.extend(named(
        names::dns1123_subdomain(class),
        "storageClassName",
        class,
    ));
    if let Some(amount) = crate::check::quantity(obj, &["capacity"]).filter(|q| q.is_negative()) {
        let why = crate::check::NOT_NEGATIVE;
        errors.push(FieldError::invalid("capacity", amount.to_string(), why));
    }
    errors
}

fn validate_attachment(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let attacher = meta::str_at(spec, &["attacher"]);
    let mut errors = Vec::new();
    if attacher.is_empty() {
        errors.push(FieldError::required("spec.attacher", ""));
    }
    let volume = meta::get(spec, &["source", "persistentVolumeName"]).and_then(Value::as_str);
    let inline = meta::get(spec, &["source", "inlineVolumeSpec"]);
    let why = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (volume, inline) {
        (None, None) => errors.push(FieldError::required("spec.source", why)),
        (Some(_), Some(_)) => errors.push(FieldError::forbidden("spec.source", why)),
        (Some(""), None) => {
            let why = "must specify non empty persistentVolumeName";
            let at = "spec.source.persistentVolumeName";
            errors.push(FieldError::required(at, why));
        }
        (Some(_), None) => {}
        (None, Some(inline)) => {
            errors.extend(validate_inline(inline, "spec.source.inlineVolumeSpec"));
        }
    }
    let node = meta::str_at(spec, &["nodeName"]);
    errors.extend(named(names::dns1123_subdomain(node), "spec.nodeName", node));
    errors.extend(attachment_status(obj));
    errors
}

/// What only new attachments are held to.
fn validate_new_attachment(obj: &Value) -> Vec<FieldError> {
    let mut errors = driver_name(meta::str_at(obj, &["spec", "attacher"]), "spec.attacher");
    let at = ["spec", "source", "persistentVolumeName"];
    if let Some(volume) = meta::get(obj, &at).and_then(Value::as_str) {
        errors.extend(named(
            names::dns1123_subdomain(volume),
            &at.join("."),
            volume,
        ));
    }
    errors
}

fn attachment_status(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = meta::get(obj, &["status", "attachmentMetadata"]).and_then(Value::as_object);
    let size = |(k, v): (&String, &Value)| k.len() + v.as_str().map_or(0, str::len);
    if metadata.into_iter().flatten().map(size).sum::<usize>() > METADATA_BYTES {
        let at = "status.attachmentMetadata";
        errors.push(FieldError::too_long(at, METADATA_BYTES));
    }
    for field in ["attachError", "detachError"] {
        let Some(error) = meta::get(obj, &["status", field]) else {
            continue;
        };
        if meta::str_at(error, &["message"]).len() > MESSAGE_MAX {
            // Upstream names the other bound.
            let at = format!("status.{field}.message");
            errors.push(FieldError::too_long(at, METADATA_BYTES));
        }
        if let Some(code) = meta::int_at(error, &["errorCode"]).filter(|c| *c < 0) {
            let why = "must be between 0 and 2147483647, inclusive";
            let at = format!("status.{field}.errorCode");
            errors.push(FieldError::invalid(at, code, why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_updates, texts};
    use serde_json::json;

    #[test]
    fn drivers() {
        let driver = json!({"spec": {"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "seLinuxMount": false}});
        assert_rules(
            &driver,
            validate_driver,
            &[
                (
                    json!({"/spec/attachRequired": null, "/spec/seLinuxMount": null}),
                    &[
                        "spec.attachedRequired: Required value",
                        "spec.seLinuxMount: Required value",
                    ],
                ),
                (
                    json!({"/spec/fsGroupPolicy": "Any", "/spec/volumeLifecycleModes": ["Short"]}),
                    &[
                        "spec.fsGroupPolicy: Unsupported value: \"Any\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                        "spec.volumeLifecycleModes: Unsupported value: \"Short\": supported values: \"Persistent\", \"Ephemeral\"",
                    ],
                ),
                (
                    json!({"/spec/tokenRequests": [{"audience": "a"}, {"audience": "a", "expirationSeconds": 5}, {"expirationSeconds": 5}]}),
                    &[
                        "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                        "spec.tokenRequests[2].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                    ],
                ),
                (
                    json!({"/spec/nodeAllocatableUpdatePeriodSeconds": 9}),
                    &[
                        "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
                    ],
                ),
            ],
        );
        assert_updates(
            &driver,
            DRIVERS.validate_update,
            &[(
                json!({"/spec/attachRequired": false, "/spec/podInfoOnMount": true}),
                &["spec.attachedRequired: Invalid value: false: field is immutable"],
            )],
        );
    }

    #[test]
    fn what_may_not_change() {
        let class = json!({"driverName": "a.io", "parameters": {"a": "b"}});
        let other = json!({"driverName": "b.io", "parameters": {"a": "c"}});
        assert_eq!(
            texts(&(ATTRIBUTES.validate_update)(&other, &class)),
            [
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden."
            ]
        );
        let capacity = |class: &str| json!({"storageClassName": class, "capacity": "-1"});
        assert_eq!(
            texts(&(CAPACITIES.validate_update)(
                &capacity("b"),
                &capacity("a")
            )),
            ["storageClassName: Invalid value: \"b\": field is immutable"]
        );
        assert_eq!(
            texts(&validate_capacity(&capacity("a"))),
            ["capacity: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
    }

    #[test]
    fn attachments() {
        let attachment = json!({"spec": {"attacher": "a.io", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
        let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        assert_rules(
            &attachment,
            validate_attachment,
            &[
                (
                    json!({"/spec/attacher": "", "/spec/nodeName": "N"}),
                    &[
                        "spec.attacher: Required value",
                        "spec.nodeName: Invalid value: \"N\": a lowercase RFC 1123 subdomain…",
                    ],
                ),
                (
                    json!({"/spec/source": {}}),
                    &[&format!("spec.source: Required value: {one}")],
                ),
                (
                    json!({"/spec/source/inlineVolumeSpec": {}}),
                    &[&format!("spec.source: Forbidden: {one}")],
                ),
                (
                    json!({"/spec/source/persistentVolumeName": ""}),
                    &[
                        "spec.source.persistentVolumeName: Required value: must specify non empty persistentVolumeName",
                    ],
                ),
                (
                    json!({"/spec/source": {"inlineVolumeSpec": {"accessModes": ["ReadWriteOnce"], "nfs": {"server": "s", "path": "/"}}}}),
                    &[
                        "spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes",
                    ],
                ),
                (
                    json!({"/status/attachError": {"message": "x".repeat(1025), "errorCode": -1}}),
                    &[
                        "status.attachError.message: Too long: may not be more than 262144 bytes",
                        "status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                    ],
                ),
            ],
        );
        assert_rules(
            &attachment,
            ATTACHMENTS.validate_create,
            &[(
                json!({"/spec/attacher": "a_b", "/spec/source/persistentVolumeName": "A"}),
                &[
                    "spec.attacher: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain…",
                    "spec.source.persistentVolumeName: Invalid value: \"A\": a lowercase RFC 1123 subdomain…",
                ],
            )],
        );
    }

    #[test]
    fn classes() {
        let of = |more: Value| {
            let mut class = json!({"provisioner": "a.io/b", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
            let more = more.as_object().cloned().unwrap_or_default();
            class.as_object_mut().unwrap().extend(more);
            texts(&validate_class(&class))
        };
        assert_eq!(of(json!({"parameters": {"a": "b"}})), [""; 0]);
        assert_eq!(
            of(json!({"parameters": {"": "b"}})),
            ["parameters: Invalid value: \"\": field can not be empty."]
        );
        let large = "x".repeat(PARAMETERS_BYTES);
        assert_eq!(of(json!({"parameters": {"a": large}})).len(), 1);
        let term = json!({"matchLabelExpressions": [{"key": "a", "values": ["b", "b"]}, {"key": "a", "values": []}]});
        let at = "allowedTopologies[0].matchLabelExpressions";
        assert_eq!(
            of(json!({"allowedTopologies": [term]})),
            [
                format!("{at}[0].values[1]: Duplicate value: \"b\""),
                format!("{at}[1].values: Required value"),
                format!("{at}[1].key: Duplicate value: \"a\""),
            ]
        );
    }

    #[test]
    fn drivers_of_nodes() {
        let of = |drivers: Value| json!({"spec": {"drivers": drivers}});
        let good = of(
            json!([{"name": "a.io", "nodeID": "n", "topologyKeys": ["k"], "allocatable": {"count": 1}}]),
        );
        assert_eq!(texts(&validate_node(&good)), [""; 0]);
        let odd = of(
            json!([{"name": "a.io", "nodeID": "", "topologyKeys": ["k", "k"], "allocatable": {"count": -1}},
            {"name": "a.io", "nodeID": "n"}, {"name": "", "nodeID": "x".repeat(193)}]),
        );
        let errors = texts(&validate_node(&odd));
        let long = format!(
            "spec.drivers[2].nodeID: Invalid value: \"{}\": must be 192 characters or less",
            "x".repeat(193)
        );
        assert_eq!(
            errors,
            [
                "spec.drivers[0].nodeID: Required value",
                "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
                "spec.drivers[0]: Duplicate value: \"k\"",
                "spec.drivers[1].name: Duplicate value: \"a.io\"",
                "spec.drivers[2].name: Required value",
                "spec.drivers[2].name: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                &long,
            ]
        );
        let mut changed = good.clone();
        changed["spec"]["drivers"][0]["allocatable"]["count"] = 2.into();
        assert_eq!((NODES.validate_update)(&changed, &good), []);
        changed["spec"]["drivers"][0]["nodeID"] = "m".into();
        assert_eq!((NODES.validate_update)(&changed, &good).len(), 1);
    }
}
