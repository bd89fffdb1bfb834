//! Rules of a pod spec.

use api::{FieldError, meta, names};
use serde_json::{Map, Value};

use super::containers::Scope;
use super::sysctls::validate_sysctls;
use super::volumes::validate_volumes;
use super::{placement, security};
use crate::check::{named, one_of, one_of_if_set};
use crate::metadata::{validate_annotations, validate_labels};

/// Rules of a pod template at a path.
pub(crate) fn validate_template(template: Option<&Value>, at: &str) -> Vec<FieldError> {
    let empty = Value::Object(Map::new());
    let template = template.unwrap_or(&empty);
    let mut errors = validate_labels(
        meta::get(template, &["metadata", "labels"]),
        &format!("{at}.labels"),
    );
    errors.extend(validate_annotations(
        meta::get(template, &["metadata", "annotations"]),
        &format!("{at}.annotations"),
    ));
    errors.extend(validate_spec(
        template.get("spec").unwrap_or(&empty),
        &format!("{at}.spec"),
    ));
    if !meta::list_at(template, &["spec", "ephemeralContainers"]).is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        let at = format!("{at}.spec.ephemeralContainers");
        errors.push(FieldError::forbidden(at, why));
    }
    errors
}

/// Rules of a pod spec at a path.
pub(super) fn validate_spec(spec: &Value, at: &str) -> Vec<FieldError> {
    let (volume_names, mut errors) =
        validate_volumes(meta::list_at(spec, &["volumes"]), &format!("{at}.volumes"));
    errors.extend(validate_sysctls(spec, at));
    let containers = meta::list_at(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{at}.containers"), ""));
    }
    let mut scope = Scope::new(volume_names, meta::bool_at(spec, &["hostNetwork"]));
    for list in ["containers", "initContainers"] {
        for (i, container) in meta::list_at(spec, &[list]).iter().enumerate() {
            errors.extend(scope.container(
                container,
                &format!("{at}.{list}[{i}]"),
                list == "initContainers",
            ));
        }
    }
    errors.extend(one_of(
        meta::str_at(spec, &["restartPolicy"]),
        format!("{at}.restartPolicy"),
        &["Always", "OnFailure", "Never"],
    ));
    errors.extend(super::names::dns(spec, at));
    errors.extend(super::names::aliases(
        meta::list_at(spec, &["hostAliases"]),
        &format!("{at}.hostAliases"),
    ));
    errors.extend(security::of_pod(spec, at));
    errors.extend(validate_scalars(spec, at));
    errors.extend(validate_tolerations(
        meta::list_at(spec, &["tolerations"]),
        &format!("{at}.tolerations"),
    ));
    if let Some(affinity) = spec.get("affinity") {
        errors.extend(placement::affinity(affinity, &format!("{at}.affinity")));
    }
    errors.extend(placement::spread(
        meta::list_at(spec, &["topologySpreadConstraints"]),
        &format!("{at}.topologySpreadConstraints"),
    ));
    errors
}

fn validate_scalars(spec: &Value, at: &str) -> Vec<FieldError> {
    // Negative grace periods are taken as 1, with a warning.
    let mut errors = Vec::new();
    if let Some(n) = meta::int_at(spec, &["activeDeadlineSeconds"])
        .filter(|n| !(1..=i64::from(i32::MAX)).contains(n))
    {
        let detail = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(
            format!("{at}.activeDeadlineSeconds"),
            n,
            detail,
        ));
    }
    type Rule = (&'static str, fn(&str) -> Vec<String>);
    let rules: [Rule; 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (field, rule) in rules {
        let value = meta::str_at(spec, &[field]);
        if !value.is_empty() {
            errors.extend(named(rule(value), &format!("{at}.{field}"), value));
        }
    }
    errors.extend(validate_labels(
        spec.get("nodeSelector"),
        &format!("{at}.nodeSelector"),
    ));
    for (i, gate) in meta::list_at(spec, &["readinessGates"]).iter().enumerate() {
        let kind = meta::str_at(gate, &["conditionType"]);
        let at = format!("{at}.readinessGates[{i}].conditionType");
        errors.extend(named(names::qualified_name(kind), &at, kind));
    }
    let gates = meta::list_at(spec, &["schedulingGates"]);
    for (i, gate) in gates.iter().enumerate() {
        let name = meta::str_at(gate, &["name"]);
        let at = format!("{at}.schedulingGates[{i}]");
        errors.extend(named(names::qualified_name(name), &at, name));
        if gates[..i].contains(gate) {
            errors.push(FieldError::duplicate(at, name));
        }
    }
    if let Some(os) = spec.get("os") {
        let at = format!("{at}.os.name");
        errors.extend(one_of(
            meta::str_at(os, &["name"]),
            at,
            &["linux", "windows"],
        ));
    }
    for (i, secret) in meta::list_at(spec, &["imagePullSecrets"])
        .iter()
        .enumerate()
    {
        if meta::str_at(secret, &["name"]).is_empty() {
            errors.push(FieldError::required(
                format!("{at}.imagePullSecrets[{i}].name"),
                "name must not be empty",
            ));
        }
    }
    errors
}

pub(crate) fn validate_tolerations(tolerations: &[Value], at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, t) in tolerations.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let (key, operator, value, effect) = (
            meta::str_at(t, &["key"]),
            meta::str_at(t, &["operator"]),
            meta::str_at(t, &["value"]),
            meta::str_at(t, &["effect"]),
        );
        if !key.is_empty() {
            errors.extend(named(names::qualified_name(key), &format!("{at}.key"), key));
        }
        if key.is_empty() && operator != "Exists" {
            errors.push(FieldError::invalid(format!("{at}.operator"), operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""));
        }
        if t.get("tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(FieldError::invalid(
                format!("{at}.effect"),
                effect,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "Exists" if !value.is_empty() => {
                errors.push(FieldError::invalid(
                    format!("{at}.operator"),
                    value,
                    "value must be empty when `operator` is 'Exists'",
                ));
            }
            "" | "Equal" | "Exists" | "Lt" | "Gt" => {}
            other => errors.push(FieldError::not_supported(
                format!("{at}.operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        errors.extend(one_of_if_set(
            effect,
            format!("{at}.effect"),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> Value {
        json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "containers": [{
            "name": "a", "image": "i:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
            "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {"limits": {"cpu": "1"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}], "env": [{"name": "A", "value": "1"}],
        }], "volumes": [{"name": "v", "emptyDir": {}}]})
    }

    #[test]
    fn a_good_pod_has_no_errors() {
        assert_eq!(validate_spec(&spec(), "spec"), vec![]);
    }

    #[test]
    fn each_broken_rule_has_its_path_and_message() {
        let c = "/containers/0";
        for (path, value, text) in [
            ("/containers", json!([]), "spec.containers: Required value"),
            (
                &*format!("{c}/name"),
                json!("B"),
                "spec.containers[0].name: Invalid value: \"B\": a lowercase RFC 1123 label",
            ),
            (
                &*format!("{c}/image"),
                json!(" i"),
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ),
            (
                &*format!("{c}/imagePullPolicy"),
                json!("x"),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ),
            (
                &*format!("{c}/ports/0/containerPort"),
                json!(0),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                &*format!("{c}/ports/0/protocol"),
                json!("X"),
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\"",
            ),
            (
                &*format!("{c}/volumeMounts/0/name"),
                json!("w"),
                "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
            ),
            (
                &*format!("{c}/env/0"),
                json!({"name": "A", "valueFrom": {}}),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of",
            ),
            (
                &*format!("{c}/resources"),
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                &*format!("{c}/resources"),
                json!({"limits": {"foo": "1"}}),
                "spec.containers[0].resources.limits[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
            ),
            (
                "/restartPolicy",
                json!("x"),
                "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                "/volumes/0",
                json!({"name": "v", "hostPath": {"path": "/x"}, "emptyDir": {}}),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                "/volumes/0",
                json!({"name": "v", "secret": {}}),
                "spec.volumes[0].secret.secretName: Required value",
            ),
        ] {
            let mut bad = spec();
            *bad.pointer_mut(path).expect("a path of the good pod") = value;
            let errors: Vec<String> = validate_spec(&bad, "spec")
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(
                errors.first().is_some_and(|e| e.starts_with(text)),
                "{path}: {errors:?}"
            );
        }
    }

    #[test]
    fn fields_that_only_exist_when_set() {
        for (field, value, text) in [
            (
                "tolerations",
                json!([{"operator": "Exists", "value": "x"}]),
                "spec.tolerations[0].operator: Invalid value: \"x\"",
            ),
            (
                "activeDeadlineSeconds",
                json!(0),
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ),
            (
                "nodeSelector",
                json!({"a b": "c"}),
                "spec.nodeSelector: Invalid value: \"a b\"",
            ),
            (
                "hostname",
                json!("A"),
                "spec.hostname: Invalid value: \"A\"",
            ),
            (
                "initContainers",
                json!([{"name": "a", "image": "i:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]),
                "spec.initContainers[0].name: Duplicate value: \"a\"",
            ),
        ] {
            let mut bad = spec();
            bad[field] = value;
            let errors: Vec<String> = validate_spec(&bad, "spec")
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(
                errors.first().is_some_and(|e| e.starts_with(text)),
                "{field}: {errors:?}"
            );
        }
    }
}
