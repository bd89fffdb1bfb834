//! Pods get what their runtime class costs, and where it may run.

use api::meta;
use serde_json::{Map, Value};

use super::{Admitted, Plugin, Review};
use crate::registry::Fail;

const CLASSES: (&str, &str, &str) = ("node.k8s.io", "v1", "runtimeclasses");

/// The plugin.
pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            let Some(class) = class_of(review, object).await? else {
                return Ok(());
            };
            set_overhead(object, &class)
                .and_then(|()| set_scheduling(object, &class))
                .map_err(|why| review.forbidden(&why))
        })
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let class = class_of(review, object).await?;
            let costs = class.as_ref().and_then(overhead_of);
            let given = meta::get(object, &["spec", "overhead"]);
            let why = match (costs, given) {
                (Some(costs), given) if given != Some(costs) => {
                    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
                }
                (None, Some(_)) => {
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                }
                _ => return Ok(()),
            };
            Err(review.forbidden(why))
        })
    }
}

async fn class_of(review: &Review<'_>, pod: &Value) -> Result<Option<Value>, Fail> {
    let name = meta::str_at(pod, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(None);
    }
    let found = review.registry.read(CLASSES, "", name).await?;
    let why = || review.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"));
    found.map(Some).ok_or_else(why)
}

fn overhead_of(class: &Value) -> Option<&Value> {
    meta::get(class, &["overhead", "podFixed"]).filter(|o| o.is_object())
}

fn set_overhead(pod: &mut Value, class: &Value) -> Result<(), String> {
    let Some(costs) = overhead_of(class) else {
        return Ok(());
    };
    if meta::get(pod, &["spec", "overhead"]).is_some_and(|given| given != costs) {
        let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
        return Err(why.to_owned());
    }
    meta::set(pod, &["spec", "overhead"], costs.clone());
    Ok(())
}

fn set_scheduling(pod: &mut Value, class: &Value) -> Result<(), String> {
    let Some(scheduling) = class.get("scheduling") else {
        return Ok(());
    };
    if let Some(wanted) = scheduling.get("nodeSelector").and_then(Value::as_object) {
        let selector: &mut Map<String, Value> = meta::object_at(pod, &["spec", "nodeSelector"]);
        for (key, value) in wanted {
            let given = selector.entry(key.clone()).or_insert_with(|| value.clone());
            if given != value {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}, pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(given)
                ));
            }
        }
    }
    let more = meta::list_at(scheduling, &["tolerations"]);
    if !more.is_empty() {
        let own = meta::list_at(pod, &["spec", "tolerations"]);
        let merged = merge(&[more, own].concat());
        meta::set(pod, &["spec", "tolerations"], merged.into());
    }
    Ok(())
}

/// Tolerations without those that another one contains; of equal ones the first stays.
fn merge(all: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let later = all[at + 1..].iter().any(|o| o != one && contains(o, one));
        if !later && !merged.iter().any(|o| contains(o, one)) {
            merged.push(one.clone());
        }
    }
    merged
}

/// Whether a toleration tolerates all that another one does.
fn contains(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let text = |v: &'_ Value, field: &str| meta::str_at(v, &[field]).to_owned();
    let exists = text(wide, "operator") == "Exists";
    let any_key = text(wide, "key").is_empty() && exists;
    if text(wide, "key") != text(narrow, "key") && !any_key {
        return false;
    }
    let effect = text(wide, "effect");
    if !effect.is_empty() && effect != text(narrow, "effect") {
        return false;
    }
    let seconds = |v: &Value| meta::int_at(v, &["tolerationSeconds"]);
    if effect == "NoExecute"
        && let Some(most) = seconds(wide)
        && seconds(narrow).is_none_or(|s| s > most)
    {
        return false;
    }
    let equal = |v: &Value| matches!(text(v, "operator").as_str(), "" | "Equal");
    exists || (equal(wide) && equal(narrow) && text(wide, "value") == text(narrow, "value"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wider_tolerations_take_the_place_of_narrower_ones() {
        let narrow = json!({"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"});
        let wide = json!({"key": "a", "operator": "Exists"});
        let other = json!({"key": "c", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let longer = json!({"key": "c", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        assert_eq!(merge(&[narrow.clone(), wide.clone()]).len(), 1);
        assert_eq!(merge(&[wide.clone(), narrow, wide.clone()]), [wide]);
        assert_eq!(merge(&[other, longer.clone()]), [longer]);
    }
}
