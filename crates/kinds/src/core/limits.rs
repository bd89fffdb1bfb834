//! LimitRanges.

use api::{FieldError, Quantity, meta, names};
use serde_json::Value;

use crate::cells::Cell;
use crate::check::{named, quantity};
use crate::core::resources::{container_resource, is_shared, resource_name};
use crate::simple::Simple;

/// Rules of LimitRanges.
pub(crate) static LIMITS: Simple = Simple {
    cells: &[Cell::Name, Cell::CreatedAt],
    default: default_limits,
    validate: validate_limits,
    create_on_update: true,
    ..Simple::BASE
};

fn default_limits(obj: &mut Value) {
    let items = obj
        .get_mut("spec")
        .and_then(|s| s.get_mut("limits"))
        .and_then(Value::as_array_mut);
    for item in items
        .into_iter()
        .flatten()
        .filter(|i| meta::str_at(i, &["type"]) == "Container")
    {
        fill(item, "max", "default");
        fill(item, "default", "defaultRequest");
        fill(item, "min", "defaultRequest");
    }
}

fn fill(item: &mut Value, from: &str, to: &str) {
    let Some(source) = item.get(from).and_then(Value::as_object).cloned() else {
        return;
    };
    let target = meta::object_at(item, &[to]);
    for (name, value) in source {
        target.entry(name).or_insert(value);
    }
}

fn validate_limits(obj: &Value) -> Vec<FieldError> {
    let all = meta::list_at(obj, &["spec", "limits"]);
    let mut errors = Vec::new();
    for (i, item) in all.iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        let of = |item| meta::str_at(item, &["type"]);
        let (kind, path) = (of(item), format!("{at}.type"));
        let wrong = names::qualified_name(kind);
        let standard = ["Container", "PersistentVolumeClaim", "Pod"].contains(&kind);
        if wrong.is_empty() && !kind.contains('/') && !standard {
            let why = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid(&path, kind, why));
        }
        errors.extend(named(wrong, &path, kind));
        if all[..i].iter().any(|earlier| of(earlier) == kind) {
            errors.push(FieldError::duplicate(path, kind));
        }
        errors.extend(limit(item, kind, &at));
    }
    errors
}

/// What one item limits.
fn limit(item: &Value, kind: &str, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut all: Vec<&str> = Vec::new();
    let fields = |field: &str| item.get(field).and_then(Value::as_object);
    for field in [
        "max",
        "min",
        "default",
        "defaultRequest",
        "maxLimitRequestRatio",
    ] {
        let given = fields(field);
        if kind == "Pod" && field.starts_with("default") {
            if given.is_some_and(|map| !map.is_empty()) {
                let why = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(format!("{at}.{field}"), why));
            }
            continue;
        }
        if field == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
            let has = |field: &str| meta::get(item, &[field, "storage"]).is_some();
            if !has("min") && !has("max") {
                let why =
                    "either minimum or maximum storage value is required, but neither was provided";
                errors.push(FieldError::required(format!("{at}.limits"), why));
            }
        }
        for name in given.into_iter().flat_map(|map| map.keys()) {
            let at = format!("{at}.{field}[{name}]");
            errors.extend(match kind {
                "Pod" | "Container" => container_resource(name, &at),
                _ => resource_name(name, &at),
            });
            if !all.contains(&name.as_str()) {
                all.push(name);
            }
        }
    }
    for name in all {
        errors.extend(bounds(item, kind, name, at));
    }
    errors
}

/// How the numbers of one resource go together.
fn bounds(item: &Value, kind: &str, name: &str, at: &str) -> Vec<FieldError> {
    let of = |field: &str| quantity(item, &[field, name]);
    let of_containers = |field: &str| of(field).filter(|_| kind != "Pod");
    let (min, max) = (of("min"), of("max"));
    let (default, request) = (of_containers("default"), of_containers("defaultRequest"));
    let mut errors = Vec::new();
    // The smaller, the larger, both as they are called, and where which of them is shown.
    let mut ordered = |small: Option<Quantity>,
                       large: Option<Quantity>,
                       called: [&str; 2],
                       field: &str,
                       shown: Option<Quantity>| {
        if let (Some(a), Some(b), Some(shown)) = (small, large, shown)
            && a > b
        {
            let [small, large] = called;
            let why = format!("{small} value {a} is greater than {large} value {b}");
            let at = format!("{at}.{field}[{name}]");
            errors.push(FieldError::invalid(at, shown.to_string(), why));
        }
    };
    ordered(min, max, ["min", "max"], "min", min);
    ordered(
        min,
        request,
        ["min", "default request"],
        "defaultRequest",
        request,
    );
    ordered(
        request,
        max,
        ["default request", "max"],
        "defaultRequest",
        request,
    );
    ordered(
        request,
        default,
        ["default request", "default limit"],
        "defaultRequest",
        request,
    );
    ordered(min, default, ["min", "default"], "default", min);
    ordered(default, max, ["default", "max"], "default", max);
    errors.extend(ratio(item, name, at));
    if let (Some(default), Some(request)) = (default, request)
        && !is_shared(name)
        && default != request
    {
        let why = format!(
            "default value {default} must equal to defaultRequest value {request} in {name}"
        );
        let at = format!("{at}.defaultRequest[{name}]");
        errors.push(FieldError::invalid(at, request.to_string(), why));
    }
    errors
}

/// By how much a limit may be more than the request: at least once, and no more than the bounds leave room for.
fn ratio(item: &Value, name: &str, at: &str) -> Vec<FieldError> {
    let of = |field: &str| quantity(item, &[field, name]);
    let Some(ratio) = of("maxLimitRequestRatio") else {
        return Vec::new();
    };
    let mut errors = Vec::new();
    let mut refuse = |why: String| {
        let at = format!("{at}.maxLimitRequestRatio[{name}]");
        errors.push(FieldError::invalid(at, ratio.to_string(), why));
    };
    if ratio.milli_value() < 1000 {
        refuse(format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (of("min"), of("max")) {
        let room = max.as_f64() / min.as_f64();
        if ratio.as_f64() > room {
            refuse(format!("ratio {ratio} is greater than max/min = {room:.6}"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_rules;
    use serde_json::json;

    #[test]
    fn limits() {
        let limits = json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "2"}, "default": {"cpu": "1"},
            "defaultRequest": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "10"}}]}});
        let at = "spec.limits[0]";
        assert_rules(
            &limits,
            validate_limits,
            &[
                (
                    json!({"/spec/limits/0/type": "Odd"}),
                    &[&format!(
                        "{at}.type: Invalid value: \"Odd\": must be a standard limit type or fully qualified"
                    )],
                ),
                (
                    json!({"/spec/limits/1": {"type": "Container"}}),
                    &["spec.limits[1].type: Duplicate value: \"Container\""],
                ),
                (
                    json!({"/spec/limits/0": {"type": "Pod", "default": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "500m"}}}),
                    &[
                        &format!(
                            "{at}.default: Forbidden: may not be specified when `type` is 'Pod'"
                        ),
                        &format!(
                            "{at}.maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1"
                        ),
                    ],
                ),
                (
                    json!({"/spec/limits/0": {"type": "PersistentVolumeClaim"}}),
                    &[&format!(
                        "{at}.limits: Required value: either minimum or maximum storage value is required, but neither was provided"
                    )],
                ),
                (
                    json!({"/spec/limits/0/max": {"money": "1"}}),
                    &[
                        &format!(
                            "{at}.max[money]: Invalid value: \"money\": must be a standard resource type or fully qualified"
                        ),
                        &format!(
                            "{at}.max[money]: Invalid value: \"money\": must be a standard resource for containers"
                        ),
                    ],
                ),
                (
                    json!({"/spec/limits/0/min/cpu": "3", "/spec/limits/0/maxLimitRequestRatio": null}),
                    &[
                        &format!(
                            "{at}.min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2"
                        ),
                        &format!(
                            "{at}.defaultRequest[cpu]: Invalid value: \"500m\": min value 3 is greater than default request value 500m"
                        ),
                        &format!(
                            "{at}.default[cpu]: Invalid value: \"3\": min value 3 is greater than default value 1"
                        ),
                    ],
                ),
                (
                    json!({"/spec/limits/0/default/cpu": "3", "/spec/limits/0/defaultRequest/cpu": "4"}),
                    &[
                        &format!(
                            "{at}.defaultRequest[cpu]: Invalid value: \"4\": default request value 4 is greater than max value 2"
                        ),
                        &format!(
                            "{at}.defaultRequest[cpu]: Invalid value: \"4\": default request value 4 is greater than default limit value 3"
                        ),
                        &format!(
                            "{at}.default[cpu]: Invalid value: \"2\": default value 3 is greater than max value 2"
                        ),
                    ],
                ),
                (
                    json!({"/spec/limits/0/maxLimitRequestRatio/cpu": "21"}),
                    &[&format!(
                        "{at}.maxLimitRequestRatio[cpu]: Invalid value: \"21\": ratio 21 is greater than max/min = 20.000000"
                    )],
                ),
                (
                    json!({"/spec/limits/0": {"type": "Container", "default": {"a.io/b": "2"}, "defaultRequest": {"a.io/b": "1"}}}),
                    &[&format!(
                        "{at}.defaultRequest[a.io/b]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in a.io/b"
                    )],
                ),
            ],
        );
    }
}
