//! Pods get the number and preemption policy of their priority class.

use std::sync::Arc;

use api::meta;
use serde_json::{Value, json};

use super::{Admitted, Operation, Plugin, Review};
use crate::registry::sparse::Path;
use crate::registry::{Fail, Memo};

const CLASSES: (&str, &str, &str) = ("scheduling.k8s.io", "v1", "priorityclasses");
/// What is asked of the class that a pod names.
const LOOKED_AT: &[Path<'_>] = &[&["value"], &["preemptionPolicy"]];

/// The plugin.
#[derive(Default)]
pub struct Priority {
    /// The class of pods that name none.
    default: Memo<Option<Value>>,
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates("", "pods") || review.is("scheduling.k8s.io", "priorityclasses")
    }

    fn mutate<'a>(&'a self, review: &'a Review<'a>, object: &'a mut Value) -> Admitted<'a> {
        Box::pin(async move {
            if review.creates("", "pods") {
                self.complete(review, object).await?;
            }
            Ok(())
        })
    }

    fn validate<'a>(&'a self, review: &'a Review<'a>, object: &'a Value) -> Admitted<'a> {
        Box::pin(async move {
            let class = review.is("scheduling.k8s.io", "priorityclasses");
            if !class
                || review.operation == Operation::Delete
                || !meta::bool_at(object, &["globalDefault"])
            {
                return Ok(());
            }
            let all = review.registry.read_all(CLASSES, "").await?;
            match default_class(&all).filter(|c| meta::name(c) != review.name) {
                Some(other) => {
                    let why = format!(
                        "PriorityClass {} is already marked as default. Only one default can exist",
                        meta::name(other)
                    );
                    Err(review.forbidden(&why))
                }
                None => Ok(()),
            }
        })
    }
}

fn default_class(classes: &[Value]) -> Option<&Value> {
    let value = |c: &Value| meta::int_at(c, &["value"]).unwrap_or(0);
    classes
        .iter()
        .filter(|c| meta::bool_at(c, &["globalDefault"]))
        .min_by_key(|c| value(c))
}

impl Priority {
    async fn complete(&self, review: &Review<'_>, pod: &mut Value) -> Result<(), Fail> {
        let name = meta::str_at(pod, &["spec", "priorityClassName"]).to_owned();
        let class = if name.is_empty() {
            let default = |all: &[Value]| default_class(all).cloned();
            let found = review
                .registry
                .read_memo(CLASSES, "", &self.default, default);
            found.await?
        } else {
            let found = review.registry.read_part(CLASSES, "", &name, LOOKED_AT);
            let found = found.await?;
            Arc::new(Some(found.ok_or_else(|| {
                review.forbidden(&format!("no PriorityClass with name {name} was found"))
            })?))
        };
        let class = class.as_ref().as_ref();
        let value = class.and_then(|c| meta::int_at(c, &["value"])).unwrap_or(0);
        let policy = class
            .map(|c| meta::str_at(c, &["preemptionPolicy"]).to_owned())
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "PreemptLowerPriority".to_owned());
        if meta::int_at(pod, &["spec", "priority"]).is_some_and(|given| given != value) {
            let given = meta::int_at(pod, &["spec", "priority"]).unwrap_or(0);
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            );
            return Err(review.forbidden(&why));
        }
        let given = meta::str_at(pod, &["spec", "preemptionPolicy"]);
        if !given.is_empty() && given != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(review.forbidden(&why));
        }
        if let Some(class) = class.filter(|_| name.is_empty()) {
            meta::set(
                pod,
                &["spec", "priorityClassName"],
                meta::name(class).into(),
            );
        }
        meta::set(pod, &["spec", "priority"], json!(value));
        meta::set(pod, &["spec", "preemptionPolicy"], json!(policy));
        Ok(())
    }
}
