//! DaemonSets.

use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{default_template, validate_lasting_template};
use crate::cells::Cell;
use crate::check::{count_or_percent, immutable, not_negative, one_of, workload_selector};
use crate::simple::Simple;

const TEMPLATE: &[&str] = &["spec", "template", "spec"];

/// Rules of DaemonSets.
pub(crate) static DAEMON_SETS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Int(&["status", "desiredNumberScheduled"]),
        Cell::Int(&["status", "currentNumberScheduled"]),
        Cell::Int(&["status", "numberReady"]),
        Cell::Int(&["status", "updatedNumberScheduled"]),
        Cell::Int(&["status", "numberAvailable"]),
        Cell::Labels(&["spec", "template", "spec", "nodeSelector"]),
        Cell::Age,
        Cell::Containers(TEMPLATE),
        Cell::Images(TEMPLATE),
        Cell::Selector(&["spec", "selector"]),
    ],
    generation: true,
    warnings: super::template_warnings,
    default,
    validate,
    validate_update: |new, old| {
        immutable(new, old, &["spec", "selector"])
            .into_iter()
            .collect()
    },
    ..Simple::BASE
};

fn default(obj: &mut Value) {
    default_template(obj, &["spec", "template"]);
    if meta::str_at(obj, &["spec", "updateStrategy", "type"]) == "RollingUpdate" {
        let rolling = meta::object_at(obj, &["spec", "updateStrategy", "rollingUpdate"]);
        rolling.entry("maxUnavailable").or_insert_with(|| json!(1));
        rolling.entry("maxSurge").or_insert_with(|| json!(0));
    }
}

fn validate(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = not_negative(spec, "spec", &["minReadySeconds", "revisionHistoryLimit"]);
    errors.extend(workload_selector(spec, "daemonset"));
    errors.extend(validate_lasting_template(spec, "DaemonSet"));
    errors.extend(one_of(
        meta::str_at(spec, &["updateStrategy", "type"]),
        "spec.updateStrategy.type",
        &["RollingUpdate", "OnDelete"],
    ));
    let at = "spec.updateStrategy.rollingUpdate";
    for field in ["maxUnavailable", "maxSurge"] {
        errors.extend(count_or_percent(
            meta::get(spec, &["updateStrategy", "rollingUpdate", field]),
            &format!("{at}.{field}"),
        ));
    }
    errors
}
