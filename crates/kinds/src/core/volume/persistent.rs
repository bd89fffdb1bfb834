//! What a PersistentVolume, or one that is written inside an attachment, must hold to.

use api::{FieldError, meta, names};
use serde_json::{Map, Value, json};

use super::{access_modes, positive};
use crate::check::{IMMUTABLE, named, one_of_if_set, quantity};
use crate::core::pod::placement::node_selector;
use crate::core::sources;

const MODES: &[&str] = &["Block", "Filesystem"];
const POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
/// Labels of nodes that got their final names later: before, after.
const FINAL_LABELS: [(&str, &str); 5] = [
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    (
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
    ),
];

/// Every broken rule of a PersistentVolume of a name.
pub(super) fn validate(volume: &Value) -> Vec<FieldError> {
    let empty = Value::Object(Map::new());
    let spec = volume.get("spec").unwrap_or(&empty);
    let at = "spec";
    let mut errors = modes(spec, at);
    errors.extend(capacity(spec, at));
    errors.extend(one_of_if_set(
        meta::str_at(spec, &["persistentVolumeReclaimPolicy"]),
        format!("{at}.persistentVolumeReclaimPolicy"),
        POLICIES,
    ));
    errors.extend(node_affinity(spec, at));
    errors.extend(source(spec, meta::name(volume), at));
    let class = meta::str_at(spec, &["storageClassName"]);
    if !class.is_empty() {
        let at = format!("{at}.storageClassName");
        errors.extend(named(names::dns1123_subdomain(class), &at, class));
    }
    if let Some(mode) = spec
        .get("volumeMode")
        .and_then(Value::as_str)
        .filter(|m| !MODES.contains(m))
    {
        errors.push(FieldError::not_supported(
            format!("{at}.volumeMode"),
            mode,
            MODES,
        ));
    }
    errors.extend(attributes_class(spec, at));
    errors
}

/// Every broken rule of a spec that is written inside another object, for drivers that moved out of the cluster.
pub(crate) fn validate_inline(spec: &Value, at: &str) -> Vec<FieldError> {
    const CONTEXT: &str = "in the context of inline volumes";
    let mut errors = Vec::new();
    let path = |field: &str| format!("{at}.{field}");
    let forbid =
        |field: &str| FieldError::forbidden(path(field), format!("may not be specified {CONTEXT}"));
    let is_set = |field: &str| match spec.get(field) {
        None | Some(Value::Null) => false,
        Some(Value::Object(map)) => {
            field == "claimRef" || field == "nodeAffinity" || !map.is_empty()
        }
        Some(Value::String(text)) => !text.is_empty(),
        Some(_) => true,
    };
    errors.extend(
        ["claimRef", "capacity"]
            .into_iter()
            .filter(|f| is_set(f))
            .map(forbid),
    );
    if spec.get("csi").is_none() {
        let why = format!("has to be specified {CONTEXT}");
        errors.push(FieldError::required(path("csi"), why));
    }
    errors.extend(modes(spec, at));
    let policy = meta::str_at(spec, &["persistentVolumeReclaimPolicy"]);
    if !matches!(policy, "" | "Retain") {
        let why = format!("may only be Retain {CONTEXT}");
        errors.push(FieldError::forbidden(
            path("persistentVolumeReclaimPolicy"),
            why,
        ));
    }
    if is_set("nodeAffinity") {
        errors.push(forbid("nodeAffinity"));
    }
    errors.extend(source(spec, "", at));
    if is_set("storageClassName") {
        errors.push(forbid("storageClassName"));
    }
    if spec
        .get("volumeMode")
        .is_some_and(|mode| mode != "Filesystem")
    {
        let why = format!("may not specify volumeMode other than Filesystem {CONTEXT}");
        errors.push(FieldError::forbidden(path("volumeMode"), why));
    }
    errors
}

fn modes(spec: &Value, at: &str) -> Vec<FieldError> {
    let at = format!("{at}.accessModes");
    let none = meta::list_at(spec, &["accessModes"]).is_empty();
    let missing = none.then(|| FieldError::required(&at, ""));
    missing.into_iter().chain(access_modes(spec, &at)).collect()
}

fn capacity(spec: &Value, at: &str) -> Vec<FieldError> {
    let at = format!("{at}.capacity");
    let capacity = spec.get("capacity").and_then(Value::as_object);
    let count = capacity.map_or(0, Map::len);
    let mut errors = Vec::new();
    if count == 0 {
        errors.push(FieldError::required(&at, ""));
    }
    if count > 1 || capacity.is_none_or(|c| !c.contains_key("storage")) {
        errors.push(FieldError::not_supported(
            &at,
            json!(capacity),
            &["storage"],
        ));
    }
    for name in capacity.into_iter().flat_map(Map::keys) {
        let Some(amount) = quantity(spec, &["capacity", name]) else {
            continue;
        };
        let at = format!("{at}[{name}]");
        errors.extend(super::basic(&amount, &at));
        errors.extend(positive(&amount, &at));
    }
    errors
}

fn node_affinity(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(affinity) = spec.get("nodeAffinity") else {
        return Vec::new();
    };
    let at = format!("{at}.nodeAffinity.required");
    match affinity.get("required") {
        Some(required) => node_selector(required, &at),
        None => vec![FieldError::required(
            at,
            "must specify required node constraints",
        )],
    }
}

fn source(spec: &Value, name: &str, at: &str) -> Vec<FieldError> {
    let (kind, others) = sources::first(sources::OF_VOLUMES, |k| spec.get(k).is_some(), at);
    let mut errors = Vec::new();
    if let Some(kind) = kind {
        errors.extend(sources::validate(kind, &spec[kind], at, Some(name)));
        if kind == "local" && spec.get("nodeAffinity").is_none() {
            let why = "Local volume requires node affinity";
            errors.push(FieldError::required(
                format!("{at}.local.nodeAffinity"),
                why,
            ));
        }
    }
    errors.extend(others);
    if kind.is_none() {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
    let path = meta::str_at(spec, &["hostPath", "path"]);
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let whole = path.starts_with('/') && parts.count() == 0;
    if whole && meta::str_at(spec, &["persistentVolumeReclaimPolicy"]) == "Recycle" {
        let why = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(FieldError::forbidden(
            format!("{at}.persistentVolumeReclaimPolicy"),
            why,
        ));
    }
    errors
}

fn attributes_class(spec: &Value, at: &str) -> Vec<FieldError> {
    let Some(class) = spec
        .get("volumeAttributesClassName")
        .and_then(Value::as_str)
    else {
        return Vec::new();
    };
    let path = format!("{at}.volumeAttributesClassName");
    let mut errors = if class.is_empty() {
        vec![FieldError::required(path, "an empty string is disallowed")]
    } else {
        named(names::dns1123_subdomain(class), &path, class)
    };
    if spec.get("csi").is_none() {
        let why = "has to be specified when using volumeAttributesClassName";
        errors.push(FieldError::required(format!("{at}.csi"), why));
    }
    errors
}

/// Every broken rule of a change.
pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if source_of(new, Some(old)) != source_of(old, None) {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden("spec.persistentvolumesource", why));
    }
    errors.extend(super::mode_stays(new, old));
    let affinity = |of| meta::get(of, &["spec", "nodeAffinity"]).cloned();
    if let Some(mut was) = affinity(old) {
        let is = affinity(new).unwrap_or_default();
        finish_labels(&mut was, &is);
        if is != was {
            let why = format!("{IMMUTABLE}, except for updating from beta label to GA");
            errors.push(FieldError::invalid("nodeAffinity", is, why));
        }
    }
    let class = ["spec", "volumeAttributesClassName"];
    if meta::get(old, &class).is_some() && meta::get(new, &class).is_none() {
        let why = "update from non-nil value to nil is forbidden";
        errors.push(FieldError::forbidden("spec.volumeAttributesClassName", why));
    }
    errors
}

/// The source of a volume, without the secret for expansion that the old one did not have.
fn source_of(volume: &Value, old: Option<&Value>) -> Map<String, Value> {
    let spec = volume.get("spec").unwrap_or(&Value::Null);
    let of = |kind: &&str| Some(((*kind).to_owned(), spec.get(*kind)?.clone()));
    let mut all: Map<String, Value> = sources::OF_VOLUMES.iter().filter_map(of).collect();
    let secret = ["spec", "csi", "controllerExpandSecretRef"];
    if old.is_some_and(|old| meta::get(old, &secret).is_none())
        && let Some(csi) = all.get_mut("csi").and_then(Value::as_object_mut)
    {
        csi.remove(secret[2]);
    }
    all
}

/// Gives the labels in `was` their final names where `is` has them.
fn finish_labels(was: &mut Value, is: &Value) {
    let terms = was
        .pointer_mut("/required/nodeSelectorTerms")
        .and_then(Value::as_array_mut);
    for (i, term) in terms.into_iter().flatten().enumerate() {
        for list in ["matchExpressions", "matchFields"] {
            let all = term.get_mut(list).and_then(Value::as_array_mut);
            for (j, expression) in all.into_iter().flatten().enumerate() {
                let now = is.pointer(&format!("/required/nodeSelectorTerms/{i}/{list}/{j}/key"));
                let key = meta::str_at(expression, &["key"]);
                let last = FINAL_LABELS.iter().find(|(before, _)| *before == key);
                if let Some((_, after)) = last.filter(|(_, after)| now.is_some_and(|n| n == after))
                {
                    meta::set(expression, &["key"], (*after).into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_rules, assert_texts, assert_updates, changed};

    fn volume() -> Value {
        json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x", "type": ""},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}})
    }

    #[test]
    fn rules() {
        assert_rules(
            &volume(),
            validate,
            &[
                (
                    json!({"/spec": null}),
                    &[
                        "spec.accessModes: Required value",
                        "spec.capacity: Required value",
                        "spec.capacity: Unsupported value: null: supported values: \"storage\"",
                        "spec: Required value: must specify a volume type",
                    ],
                ),
                (
                    json!({"/spec/accessModes": ["Odd", "ReadWriteOncePod", "ReadWriteOnce"]}),
                    &[
                        "spec.accessModes: Unsupported value: \"Odd\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                        "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                    ],
                ),
                (
                    json!({"/spec/capacity": {"storage": "0", "cpu": "-1"}}),
                    &[
                        "spec.capacity: Unsupported value: {\"cpu\":\"-1\",\"storage\":\"0\"}: supported values: \"storage\"",
                        "spec.capacity[cpu]: Invalid value: -1: must be a valid resource quantity",
                        "spec.capacity[cpu]: Invalid value: \"-1\": must be greater than zero",
                        "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                    ],
                ),
                (
                    json!({"/spec/persistentVolumeReclaimPolicy": "Keep", "/spec/volumeMode": "Tape", "/spec/storageClassName": "A"}),
                    &[
                        "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Keep\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
                        "spec.storageClassName: Invalid value: \"A\": a lowercase RFC 1123 subdomain…",
                        "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                    ],
                ),
                (
                    json!({"/spec/hostPath": null, "/spec/local": {"path": "/x"}}),
                    &[
                        "spec.local.nodeAffinity: Required value: Local volume requires node affinity",
                    ],
                ),
                (
                    json!({"/spec/nodeAffinity": {}}),
                    &[
                        "spec.nodeAffinity.required: Required value: must specify required node constraints",
                    ],
                ),
                (
                    json!({"/spec/nfs": {}}),
                    &["spec.nfs: Forbidden: may not specify more than 1 volume type"],
                ),
                (
                    json!({"/spec/hostPath/path": "/./", "/spec/persistentVolumeReclaimPolicy": "Recycle"}),
                    &[
                        "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
                    ],
                ),
                (
                    json!({"/spec/volumeAttributesClassName": ""}),
                    &[
                        "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                        "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn inline() {
        let spec =
            json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": "d", "volumeHandle": "h"}});
        assert_texts(&validate_inline(&spec, "s"), &[], &spec);
        assert_texts(
            &validate_inline(&volume()["spec"], "s"),
            &[
                "s.capacity: Forbidden: may not be specified in the context of inline volumes",
                "s.csi: Required value: has to be specified in the context of inline volumes",
            ],
            &"a whole volume",
        );
    }

    #[test]
    fn what_stays() {
        let term = |key: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "Exists"}]}]}});
        let zone = "failure-domain.beta.kubernetes.io/zone";
        let old = changed(
            &volume(),
            &json!({"/spec/nodeAffinity": term(zone), "/spec/volumeAttributesClassName": "a"}),
        );
        assert_updates(
            &old,
            validate_update,
            &[
                (
                    json!({"/spec/claimRef": {"name": "c"}, "/spec/nodeAffinity": term("topology.kubernetes.io/zone"), "/spec/volumeAttributesClassName": "b"}),
                    &[],
                ),
                (
                    json!({"/spec/hostPath/path": "/y"}),
                    &[
                        "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
                    ],
                ),
                (
                    json!({"/spec/volumeMode": "Block"}),
                    &["volumeMode: Invalid value: \"Block\": field is immutable"],
                ),
                (
                    json!({"/spec/nodeAffinity": null}),
                    &[
                        "nodeAffinity: Invalid value: null: field is immutable, except for updating from beta label to GA",
                    ],
                ),
                (
                    json!({"/spec/volumeAttributesClassName": null}),
                    &[
                        "spec.volumeAttributesClassName: Forbidden: update from non-nil value to nil is forbidden",
                    ],
                ),
            ],
        );
        let csi = json!({"spec": {"csi": {"driver": "d", "volumeHandle": "h"}}});
        assert_updates(
            &csi,
            validate_update,
            &[(
                json!({"/spec/csi/controllerExpandSecretRef": {"name": "n", "namespace": "s"}, "/spec/nodeAffinity": term("a")}),
                &[],
            )],
        );
    }
}
