//! LimitRanges: default requests and limits of containers, and bounds on containers, pods and claims.

use std::collections::BTreeMap;

use api::{Quantity, meta};
use serde_json::{Map, Value};

use super::{Admitted, Operation, Plugin, Review};
use crate::registry::Fail;

const LIMIT_RANGES: (&str, &str, &str) = ("", "v1", "limitranges");

/// The plugin.
pub struct LimitRanger;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods") || review.is("", "persistentvolumeclaims")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if !review.creates("", "pods") {
                return Ok(());
            }
            for range in review
                .registry
                .read_all(LIMIT_RANGES, review.namespace)
                .await?
            {
                for limit in meta::list_at(&range, &["spec", "limits"]) {
                    if meta::str_at(limit, &["type"]) == "Container" {
                        fill(object, limit);
                    }
                }
            }
            Ok(())
        })
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let pod = review.creates("", "pods");
            let claim =
                review.operation != Operation::Delete && review.is("", "persistentvolumeclaims");
            if !pod && !claim {
                return Ok(());
            }
            let mut errors = Vec::new();
            for range in review
                .registry
                .read_all(LIMIT_RANGES, review.namespace)
                .await?
            {
                for limit in meta::list_at(&range, &["spec", "limits"]) {
                    check(object, limit, pod, &mut errors);
                }
            }
            refuse(review, &errors)
        })
    }
}

fn refuse(review: &Review<'_>, errors: &[String]) -> Result<(), Fail> {
    match errors {
        [] => Ok(()),
        [one] => Err(review.forbidden(one)),
        many => Err(review.forbidden(&format!("[{}]", many.join(", ")))),
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: Option<&Value>) -> Amounts {
    let entries = value.and_then(Value::as_object).into_iter().flatten();
    entries
        .filter_map(|(k, v)| Some((k.clone(), quantity(v)?)))
        .collect()
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => s.parse().ok(),
        Value::Number(n) => n.to_string().parse().ok(),
        _ => None,
    }
}

fn containers_mut(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    spec.into_iter()
        .flat_map(Map::iter_mut)
        .filter(|(k, _)| matches!(k.as_str(), "initContainers" | "containers"))
        .filter_map(|(_, v)| v.as_array_mut())
        .flatten()
}

/// Puts a limit's defaults where a container names nothing; a limit alone is its request, too.
fn fill(pod: &mut Value, limit: &Value) {
    for container in containers_mut(pod) {
        for (field, default) in [("limits", "default"), ("requests", "defaultRequest")] {
            for (resource, amount) in limit
                .get(default)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                let at = meta::object_at(container, &["resources", field]);
                at.entry(resource.as_str())
                    .or_insert_with(|| amount.clone());
            }
        }
    }
}

fn check(object: &Value, limit: &Value, pod: bool, errors: &mut Vec<String>) {
    match (meta::str_at(limit, &["type"]), pod) {
        ("Container", true) => {
            let all = ["initContainers", "containers"].map(|l| meta::list_at(object, &["spec", l]));
            for container in all.into_iter().flatten() {
                let requests = amounts(meta::get(container, &["resources", "requests"]));
                let limits = amounts(meta::get(container, &["resources", "limits"]));
                bounds("Container", limit, &requests, &limits, errors);
            }
        }
        ("Pod", true) => {
            let sum = |field: &str| {
                let mut total = Amounts::new();
                for container in meta::list_at(object, &["spec", "containers"]) {
                    for (resource, amount) in amounts(meta::get(container, &["resources", field])) {
                        let sum = match total.get(&resource) {
                            Some(so_far) => *so_far + amount,
                            None => amount,
                        };
                        total.insert(resource, sum);
                    }
                }
                total
            };
            bounds("Pod", limit, &sum("requests"), &sum("limits"), errors);
        }
        ("PersistentVolumeClaim", false) => {
            let requests = amounts(meta::get(object, &["spec", "resources", "requests"]));
            bounds(
                "PersistentVolumeClaim",
                limit,
                &requests,
                &Amounts::new(),
                errors,
            );
        }
        _ => {}
    }
}

fn bounds(
    what: &str,
    limit: &Value,
    requests: &Amounts,
    limits: &Amounts,
    errors: &mut Vec<String>,
) {
    for (resource, min) in amounts(limit.get("min")) {
        match requests.get(&resource) {
            None => errors.push(format!(
                "minimum {resource} usage per {what} is {min}.  No request is specified"
            )),
            Some(asked) if *asked < min => {
                errors.push(format!(
                    "minimum {resource} usage per {what} is {min}, but request is {asked}"
                ));
            }
            Some(_) => {}
        }
    }
    for (resource, max) in amounts(limit.get("max")) {
        let used = if what == "PersistentVolumeClaim" {
            requests
        } else {
            limits
        };
        let word = if what == "PersistentVolumeClaim" {
            "request"
        } else {
            "limit"
        };
        match used.get(&resource) {
            None => errors.push(format!(
                "maximum {resource} usage per {what} is {max}.  No {word} is specified"
            )),
            Some(asked) if *asked > max => {
                errors.push(format!(
                    "maximum {resource} usage per {what} is {max}, but {word} is {asked}"
                ));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_fill_gaps_and_bounds_hold() {
        let limit = json!({"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}});
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}}}]}});
        fill(&mut pod, &limit);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["spec"]["containers"][1]["resources"]["limits"]["cpu"],
            "2"
        );
        let mut errors = Vec::new();
        check(&pod, &limit, true, &mut errors);
        assert_eq!(
            errors,
            ["maximum cpu usage per Container is 1, but limit is 2"]
        );
    }
}
