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
    ..Simple::BASE
};

/// node: RuntimeClasses.
pub(crate) static RUNTIME_CLASSES: Simple = Simple {
    cells: &[Cell::Name, Cell::Text(&["handler"]), Cell::Age],
    validate: |obj| {
        let handler = meta::str_at(obj, &["handler"]);
        if handler.is_empty() {
            vec![FieldError::required("handler", "")]
        } else {
            crate::check::named(names::dns1123_label(handler), "handler", handler)
        }
    },
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
    errors
}

fn validate_priority(obj: &Value) -> Vec<FieldError> {
    /// Values above are for the system's own classes.
    const HIGHEST_USER: i64 = 1_000_000_000;
    let mut errors = Vec::new();
    let (name, value) = (meta::name(obj), meta::int_at(obj, &["value"]).unwrap_or(0));
    if name.starts_with("system-")
        && !matches!(name, "system-cluster-critical" | "system-node-critical")
    {
        errors.push(FieldError::forbidden(
            "metadata.name",
            "priority class names with 'system-' prefix are reserved for system use only",
        ));
    } else if !name.starts_with("system-") && value > HIGHEST_USER {
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
