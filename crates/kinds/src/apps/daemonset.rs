//! DaemonSets.

use api::{FieldError, meta};
use serde_json::{Value, json};

use super::{default_template, validate_lasting_template};
use crate::cells::Cell;
use crate::check::{count_or_percent, immutable, not_negative, one_of, workload_selector};
use crate::simple::Simple;

const GENERATION: &str = "deprecated.daemonset.template.generation";
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
    prepare: count_templates,
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

/// Counts the changes of the template in an annotation, which nobody else can write.
fn count_templates(new: &mut Value, old: Option<&Value>) {
    let template = |set| meta::get(set, &["spec", "template"]);
    let known = |set| {
        let count = meta::annotation(set, GENERATION)?.parse::<i64>().ok();
        count.filter(|count| *count > 0)
    };
    let count = match old {
        None => known(new).unwrap_or(1),
        Some(old) => {
            let changed = template(new) != template(old);
            known(old).unwrap_or(1) + i64::from(changed)
        }
    };
    let path = ["metadata", "annotations", GENERATION];
    meta::set(new, &path, count.to_string().into());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_the_template_are_counted() {
        let set = |image: &str, count: Option<&str>| {
            let annotations = count.map(|c| json!({GENERATION: c}));
            json!({"metadata": {"annotations": annotations}, "spec": {"template": {"image": image}}})
        };
        for (new, old, expected) in [
            (set("a", None), None, "1"),
            (set("a", Some("7")), None, "7"),
            (set("a", Some("x")), None, "1"),
            (set("a", Some("9")), Some(set("a", Some("3"))), "3"),
            (set("b", None), Some(set("a", Some("3"))), "4"),
            (set("b", None), Some(set("a", None)), "2"),
        ] {
            let mut found = new;
            count_templates(&mut found, old.as_ref());
            assert_eq!(meta::annotation(&found, GENERATION), Some(expected));
        }
    }
}
