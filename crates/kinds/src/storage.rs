//! Storage classes and CSI kinds.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, text};
use crate::check::{IMMUTABLE, immutable, named, not_negative, one_of, one_of_if_set};
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
        let refuse = |d: &Value| FieldError::invalid("CSINodeDriver", d.clone(), IMMUTABLE);
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
        let path = format!("{at}.topologyKeys");
        for (j, key) in keys.iter().enumerate() {
            let text = key.as_str().unwrap_or_default();
            if keys[..j].contains(key) {
                errors.push(FieldError::duplicate(path.as_str(), text));
            }
            errors.extend(named(names::qualified_name(text), &path, text));
        }
        let again = |d: &Value| meta::str_at(d, &["name"]) == name;
        if drivers[..i].iter().any(again) {
            errors.push(FieldError::duplicate(format!("{at}.name"), name));
        }
    }
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

    #[test]
    fn classes() {
        let of = |more: Value| {
            let mut class = json!({"provisioner": "a.io/b", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
            let more = more.as_object().cloned().unwrap_or_default();
            class.as_object_mut().unwrap().extend(more);
            all(&validate_class(&class))
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
        assert_eq!(all(&validate_node(&good)), [""; 0]);
        let odd = of(
            json!([{"name": "a.io", "nodeID": "", "topologyKeys": ["k", "k"], "allocatable": {"count": -1}},
            {"name": "a.io", "nodeID": "n"}, {"name": "", "nodeID": "x".repeat(193)}]),
        );
        let errors = all(&validate_node(&odd));
        let long = format!(
            "spec.drivers[2].nodeID: Invalid value: \"{}\": must be 192 characters or less",
            "x".repeat(193)
        );
        assert_eq!(
            errors,
            [
                "spec.drivers[0].nodeID: Required value",
                "spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0",
                "spec.drivers[0].topologyKeys: Duplicate value: \"k\"",
                "spec.drivers[1].name: Duplicate value: \"a.io\"",
                "spec.drivers[2].name: Required value",
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
