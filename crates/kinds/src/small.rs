//! Kinds with a line or two of rules each, by group.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, labels, or, text};
use crate::check::{immutable, one_of, one_of_if_set};
use crate::simple::Simple;

/// core: ServiceAccounts.
pub(crate) static SERVICE_ACCOUNTS: Simple = Simple {
    cells: &[Cell::Name, Cell::Len(&["secrets"]), Cell::Age],
    ..Simple::BASE
};

/// core: ComponentStatuses.
pub(crate) static COMPONENT_STATUSES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| {
            match healthy(o, "status") {
                "True" => "Healthy",
                "False" => "Unhealthy",
                _ => "Unknown",
            }
            .into()
        }),
        Cell::With(|o, _| healthy(o, "message").into()),
        Cell::With(|o, _| healthy(o, "error").into()),
    ],
    ..Simple::BASE
};

/// A field of the condition that tells a component's health.
fn healthy<'a>(obj: &'a Value, field: &str) -> &'a str {
    let conditions = meta::list_at(obj, &["conditions"]);
    let health = conditions
        .iter()
        .find(|c| meta::str_at(c, &["type"]) == "Healthy");
    health.map_or("", |c| meta::str_at(c, &[field]))
}

/// core: PodTemplates.
pub(crate) static POD_TEMPLATES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Containers(&["template", "spec"]),
        Cell::Images(&["template", "spec"]),
        Cell::With(|o, _| labels(meta::get(o, &["template", "metadata", "labels"])).into()),
    ],
    generation: true,
    default: |obj| crate::apps::default_template(obj, &["template"]),
    validate: |obj| crate::core::pod::validate_template(obj.get("template"), "template"),
    ..Simple::BASE
};

/// coordination: Leases.
pub(crate) static LEASES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "holderIdentity"]),
        Cell::Age,
    ],
    create_on_update: true,
    validate: validate_lease,
    ..Simple::BASE
};

/// scheduling: PriorityClasses.
pub(crate) static PRIORITY_CLASSES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Int(&["value"]),
        Cell::Bool(&["globalDefault"]),
        Cell::Age,
        Cell::Text(&["preemptionPolicy"]),
    ],
    generation: true,
    validate: validate_priority,
    validate_update: |new, old| {
        let fixed = |field: &'static str| {
            let changed = new.get(field) != old.get(field);
            changed.then(|| FieldError::forbidden(field, "may not be changed in an update."))
        };
        let mut errors: Vec<FieldError> = fixed("value").into_iter().collect();
        errors.extend(immutable(new, old, &["preemptionPolicy"]));
        errors
    },
    ..Simple::BASE
};

/// policy: PodDisruptionBudgets.
pub(crate) static BUDGETS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::TextOr(&["spec", "minAvailable"], "N/A"),
        Cell::TextOr(&["spec", "maxUnavailable"], "N/A"),
        Cell::Int(&["status", "disruptionsAllowed"]),
        Cell::Age,
    ],
    generation: true,
    validate: |obj| {
        let spec = obj.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        if spec.get("minAvailable").is_some() && spec.get("maxUnavailable").is_some() {
            errors.push(FieldError::invalid(
                "spec",
                spec.clone(),
                "minAvailable and maxUnavailable cannot be both set",
            ));
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let (value, at) = (spec.get(field), format!("spec.{field}"));
            errors.extend(crate::check::count_or_percent(value, &at));
            errors.extend(crate::check::at_most_whole(value, &at));
        }
        if let Some(selector) = spec.get("selector") {
            let at = "spec.selector";
            errors.extend(crate::check::label_selector(selector, at));
        }
        errors.extend(one_of_if_set(
            meta::str_at(spec, &["unhealthyPodEvictionPolicy"]),
            "spec.unhealthyPodEvictionPolicy",
            &["AlwaysAllow", "IfHealthyBudget"],
        ));
        errors
    },
    validate_status: |new, _| {
        let status = new.get("status").unwrap_or(&Value::Null);
        let counts = [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ];
        crate::check::not_negative(status, "status", &counts)
    },
    ..Simple::BASE
};

/// node: RuntimeClasses.
pub(crate) static RUNTIME_CLASSES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["handler"]), Cell::Age],
    validate: validate_runtime_class,
    validate_update: |new, old| immutable(new, old, &["handler"]).into_iter().collect(),
    ..Simple::BASE
};

/// admissionregistration: both webhook configurations.
pub(crate) static WEBHOOKS: Simple = Simple {
    cells: &[Cell::Name, Cell::Len(&["webhooks"]), Cell::Age],
    generation: true,
    ..Simple::BASE
};

/// admissionregistration: ValidatingAdmissionPolicies.
pub(crate) static VALIDATING_POLICIES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Len(&["spec", "validations"]),
        Cell::With(param_kind),
        Cell::Age,
    ],
    generation: true,
    ..Simple::BASE
};

/// admissionregistration: MutatingAdmissionPolicies.
pub(crate) static MUTATING_POLICIES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Len(&["spec", "mutations"]),
        Cell::With(param_kind),
        Cell::Age,
    ],
    generation: true,
    ..Simple::BASE
};

/// admissionregistration: bindings of both policies.
pub(crate) static POLICY_BINDINGS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "policyName"]),
        Cell::With(param_ref),
        Cell::Age,
    ],
    generation: true,
    ..Simple::BASE
};

/// certificates: ClusterTrustBundles.
pub(crate) static TRUST_BUNDLES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["spec", "signerName"])],
    labels: &[("spec.signerName", &["spec", "signerName"])],
    name: names::path_segment,
    ..Simple::BASE
};

/// certificates: PodCertificateRequests.
pub(crate) static POD_CERTIFICATES: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "podName"]),
        Cell::Text(&["spec", "serviceAccountName"]),
        Cell::Text(&["spec", "nodeName"]),
        Cell::Text(&["spec", "signerName"]),
        Cell::With(|o, _| {
            let state = ["Issued", "Denied", "Failed"]
                .into_iter()
                .find(|s| crate::cells::condition_is_true(o, s));
            state.unwrap_or("Pending").into()
        }),
    ],
    labels: &[
        ("spec.signerName", &["spec", "signerName"]),
        ("spec.podName", &["spec", "podName"]),
        ("spec.nodeName", &["spec", "nodeName"]),
    ],
    ..Simple::BASE
};

/// storagemigration: StorageVersionMigrations.
pub(crate) static MIGRATIONS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::With(|o, _| {
            let (resource, group) = (
                text(o, &["spec", "resource", "resource"]),
                text(o, &["spec", "resource", "group"]),
            );
            if group.is_empty() {
                resource
            } else {
                format!("{resource}.{group}")
            }
            .into()
        }),
        Cell::Age,
    ],
    generation: true,
    ..Simple::BASE
};

fn validate_lease(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    if let Some(n) = meta::int_at(spec, &["leaseDurationSeconds"]).filter(|n| *n <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            n,
            "must be greater than 0",
        ));
    }
    errors.extend(crate::check::not_negative(
        spec,
        "spec",
        &["leaseTransitions"],
    ));
    let strategy = spec.get("strategy").and_then(Value::as_str);
    if let Some(strategy) = strategy {
        // Upstream names the field twice.
        let at = "spec.strategy.strategy";
        let known = ["OldestEmulationVersion"];
        if strategy.contains('/') {
            let why = names::qualified_name(strategy);
            errors.extend(crate::check::named(why, at, strategy));
        } else if !known.contains(&strategy) {
            errors.push(FieldError::not_supported(at, strategy, &known));
        }
    }
    let holder = meta::str_at(spec, &["preferredHolder"]);
    if !holder.is_empty() && strategy.is_none_or(str::is_empty) {
        let why = "may only be specified if `strategy` is defined";
        errors.push(FieldError::forbidden("spec.preferredHolder", why));
    }
    errors
}

fn validate_runtime_class(obj: &Value) -> Vec<FieldError> {
    let handler = meta::str_at(obj, &["handler"]);
    let mut errors = crate::check::named(names::dns1123_label(handler), "handler", handler);
    if let Some(fixed) = meta::get(obj, &["overhead", "podFixed"]) {
        let limits = serde_json::json!({"limits": fixed});
        errors.extend(crate::core::pod::validate_resources(
            Some(&limits),
            "overhead",
        ));
    }
    let at = "scheduling.nodeSelector";
    let nodes = meta::get(obj, &["scheduling", "nodeSelector"]);
    errors.extend(crate::metadata::validate_labels(nodes, at));
    let tolerations = meta::list_at(obj, &["scheduling", "tolerations"]);
    let at = "scheduling.tolerations";
    errors.extend(crate::core::pod::validate_tolerations(tolerations, at));
    let key = |t: &Value| ["key", "operator", "value", "effect"].map(|f| text(t, &[f]));
    for (i, toleration) in tolerations.iter().enumerate() {
        if tolerations[..i].iter().any(|t| key(t) == key(toleration)) {
            let shown = crate::check::internal(toleration);
            errors.push(FieldError::duplicate(format!("{at}[{i}]"), shown));
        }
    }
    errors
}

fn validate_priority(obj: &Value) -> Vec<FieldError> {
    /// Values above are for the system's own classes.
    const HIGHEST_USER: i64 = 1_000_000_000;
    let mut errors = Vec::new();
    let (name, value) = (meta::name(obj), meta::int_at(obj, &["value"]).unwrap_or(0));
    let system = name.starts_with("system-");
    if let Some(why) = system.then(|| not_of_the_system(obj)).flatten() {
        errors.push(FieldError::forbidden(
            "metadata.name",
            format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
        ));
    } else if !system && value > HIGHEST_USER {
        errors.push(FieldError::forbidden(
            "value",
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER}"),
        ));
    }
    errors.extend(one_of(
        meta::str_at(obj, &["preemptionPolicy"]),
        "preemptionPolicy",
        &["Never", "PreemptLowerPriority"],
    ));
    errors
}

/// Why a class is none of those that every cluster has.
fn not_of_the_system(class: &Value) -> Option<String> {
    const CLASSES: [(&str, i64); 2] = [
        ("system-node-critical", 2_000_001_000),
        ("system-cluster-critical", 2_000_000_000),
    ];
    let name = meta::name(class);
    let Some((_, value)) = CLASSES.iter().find(|(known, _)| *known == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if meta::int_at(class, &["value"]) != Some(*value) {
        return Some(format!("value of {name} PriorityClass must be {value}"));
    }
    let default = meta::bool_at(class, &["globalDefault"]);
    default.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

fn param_kind(obj: &Value, _now: Timestamp) -> Value {
    match meta::get(obj, &["spec", "paramKind"]) {
        Some(p) => format!("{}/{}", text(p, &["apiVersion"]), text(p, &["kind"])).into(),
        None => "<unset>".into(),
    }
}

fn param_ref(obj: &Value, _now: Timestamp) -> Value {
    let Some(p) = meta::get(obj, &["spec", "paramRef"]) else {
        return "<unset>".into();
    };
    let (namespace, name) = (text(p, &["namespace"]), text(p, &["name"]));
    if name.is_empty() {
        return or(text(p, &["selector"]), "<unset>").into();
    }
    if namespace.is_empty() {
        name
    } else {
        format!("{namespace}/{name}")
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_rules;
    use serde_json::json;

    #[test]
    fn priorities() {
        let class = json!({"metadata": {"name": "a"}, "value": 5, "preemptionPolicy": "Never"});
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error:";
        assert_rules(
            &class,
            validate_priority,
            &[
                (
                    json!({"/value": 1_000_000_001}),
                    &[
                        "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
                    ],
                ),
                (
                    json!({"/metadata/name": "system-a"}),
                    &[&format!(
                        "{reserved} system-a is not a known system priority class"
                    )],
                ),
                (
                    json!({"/metadata/name": "system-node-critical"}),
                    &[&format!(
                        "{reserved} value of system-node-critical PriorityClass must be 2000001000"
                    )],
                ),
                (
                    json!({"/metadata/name": "system-node-critical", "/value": 2_000_001_000}),
                    &[],
                ),
            ],
        );
    }

    #[test]
    fn runtime_classes_and_leases() {
        let class = json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "1"}}, "scheduling": {"nodeSelector": {"a": "b"}}});
        assert_rules(
            &class,
            validate_runtime_class,
            &[
                (
                    json!({"/handler": "a.b"}),
                    &["handler: Invalid value: \"a.b\": a lowercase RFC 1123 label…"],
                ),
                (
                    json!({"/overhead/podFixed": {"cpu": "-1"}}),
                    &[
                        "overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                    ],
                ),
                (
                    json!({"/scheduling/nodeSelector": {"a b": "c"}}),
                    &["scheduling.nodeSelector: Invalid value: \"a b\": name part…"],
                ),
                (
                    json!({"/scheduling/tolerations": [{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]}),
                    &[
                        "scheduling.tolerations[1]: Duplicate value: {\"Key\":\"a\",\"Operator\":\"Exists\"}",
                    ],
                ),
            ],
        );
        let lease = json!({"spec": {"leaseDurationSeconds": 5}});
        assert_rules(
            &lease,
            validate_lease,
            &[
                (
                    json!({"/spec/leaseDurationSeconds": 0, "/spec/leaseTransitions": -1}),
                    &[
                        "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                        "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                    ],
                ),
                (
                    json!({"/spec/preferredHolder": "h"}),
                    &[
                        "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
                    ],
                ),
                (
                    json!({"/spec/strategy": "Odd"}),
                    &[
                        "spec.strategy.strategy: Unsupported value: \"Odd\": supported values: \"OldestEmulationVersion\"",
                    ],
                ),
            ],
        );
    }
}
