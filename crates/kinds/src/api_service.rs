//! APIServices: group-versions of the API and who serves them, this server or another one behind a service.

use api::time::Timestamp;
use api::{FieldError, meta, names};
use serde_json::Value;

use crate::cells::{Cell, condition, render, text};
use crate::check::{named, one_of, port};
use crate::strategy::{Ctx, Strategy};

/// Highest priority of a group.
const GROUP_PRIORITY_MAX: i64 = 20_000;
/// Highest priority of a version.
const VERSION_PRIORITY_MAX: i64 = 1_000;

const CELLS: [Cell; 4] = [
    Cell::Name,
    Cell::With(target),
    Cell::With(available),
    Cell::Age,
];

pub(crate) struct ApiService;

impl Strategy for ApiService {
    fn default(&self, obj: &mut Value) {
        let remote = meta::get(obj, &["spec", "service"]).is_some_and(Value::is_object);
        if remote && meta::get(obj, &["spec", "service", "port"]).is_none() {
            meta::set(obj, &["spec", "service", "port"], 443.into());
        }
    }

    fn prepare_create(&self, obj: &mut Value, ctx: &Ctx<'_>) {
        if meta::get(obj, &["spec", "service"]).is_none() {
            let reason = ("Local", "Local APIServices are always available");
            crate::set_condition(obj, "Available", true, reason, ctx.now);
        }
    }

    fn validate(&self, obj: &Value) -> Vec<FieldError> {
        validate(obj)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let conditions = meta::list_at(new, &["status", "conditions"]);
        let status = |(i, c): (usize, &Value)| {
            let path = format!("status.conditions[{i}].status");
            one_of(
                text(c, &["status"]).as_str(),
                path,
                &["False", "True", "Unknown"],
            )
        };
        conditions.iter().enumerate().filter_map(status).collect()
    }

    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Option<Vec<Value>> {
        Some(render(&CELLS, obj, now))
    }

    fn requires_resource_version(&self) -> bool {
        true
    }
}

fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = |field| meta::str_at(obj, &["spec", field]);
    let (group, version) = (spec("group"), spec("version"));
    let mut errors = Vec::new();
    let wanted = format!("{version}.{group}");
    if meta::name(obj) != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.push(FieldError::invalid("metadata.name", meta::name(obj), why));
    }
    if group.is_empty() && version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required("spec.group", why));
    }
    if !group.is_empty() {
        errors.extend(named(names::dns1123_subdomain(group), "spec.group", group));
    }
    errors.extend(named(
        names::dns1035_label(version),
        "spec.version",
        version,
    ));
    for (field, max) in [
        ("groupPriorityMinimum", GROUP_PRIORITY_MAX),
        ("versionPriority", VERSION_PRIORITY_MAX),
    ] {
        let number = meta::int_at(obj, &["spec", field]).unwrap_or(0);
        if !(1..=max).contains(&number) {
            let why = format!("must be positive and less than {max}");
            errors.push(FieldError::invalid(format!("spec.{field}"), number, why));
        }
    }
    errors.extend(validate_service(obj));
    errors
}

fn validate_service(obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let bundle = meta::str_at(obj, &["spec", "caBundle"]);
    let insecure = meta::bool_at(obj, &["spec", "insecureSkipTLSVerify"]);
    let Some(service) = meta::get(obj, &["spec", "service"]).filter(|s| s.is_object()) else {
        if !bundle.is_empty() {
            let why = "local APIServices may not have a caBundle";
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            errors.push(FieldError::invalid("spec.caBundle", shown, why));
        }
        if insecure {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, why));
        }
        return errors;
    };
    for field in ["namespace", "name"] {
        if meta::str_at(service, &[field]).is_empty() {
            errors.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    let number = meta::int_at(service, &["port"]).unwrap_or(0);
    if port(number, "").is_some() {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid("spec.service.port", number, why));
    }
    if insecure && !bundle.is_empty() {
        let why = "may not be true if caBundle is present";
        errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, why));
    }
    errors
}

fn target(obj: &Value, _now: Timestamp) -> Value {
    match meta::get(obj, &["spec", "service"]) {
        Some(service) => format!(
            "{}/{}",
            text(service, &["namespace"]),
            text(service, &["name"])
        )
        .into(),
        None => "Local".into(),
    }
}

fn available(obj: &Value, _now: Timestamp) -> Value {
    let Some(condition) = condition(obj, "Available") else {
        return "Unknown".into();
    };
    let (status, reason) = (text(condition, &["status"]), text(condition, &["reason"]));
    if status == "True" || reason.is_empty() {
        status
    } else {
        format!("{status} ({reason})")
    }
    .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules() {
        let fields =
            |obj: Value| -> Vec<String> { validate(&obj).into_iter().map(|e| e.path).collect() };
        let good = json!({"metadata": {"name": "v1.a.io"}, "spec": {"group": "a.io", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"namespace": "n", "name": "s", "port": 443}}});
        assert!(fields(good.clone()).is_empty());
        let mut bad = good.clone();
        bad["metadata"]["name"] = "v2.a.io".into();
        bad["spec"]["versionPriority"] = 1001.into();
        bad["spec"]["service"] = json!({"port": 0});
        bad["spec"]["caBundle"] = "aaaa".into();
        bad["spec"]["insecureSkipTLSVerify"] = true.into();
        assert_eq!(
            fields(bad),
            [
                "metadata.name",
                "spec.versionPriority",
                "spec.service.namespace",
                "spec.service.name",
                "spec.service.port",
                "spec.insecureSkipTLSVerify"
            ]
        );
        let mut local = good;
        local["spec"]["service"] = Value::Null;
        local["spec"]["insecureSkipTLSVerify"] = true.into();
        assert_eq!(fields(local), ["spec.insecureSkipTLSVerify"]);
    }
}
