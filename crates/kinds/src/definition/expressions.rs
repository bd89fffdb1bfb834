//! Rules written as expressions, in all of a schema: what is wrong with them, and whether they can be afforded.
//!
//! An expression costs what one run of it can cost at most, as often as there can be values that it is about. What
//! all of a schema cost together is bounded too.

use api::FieldError;
use api::custom::{Node, Rule};
use serde_json::{Value, json};

use crate::custom::{Written, written_rules};

/// Most that one expression may cost.
const PER_EXPRESSION: u64 = 10_000_000;
/// Most that all expressions of a schema may cost.
const PER_SCHEMA: u64 = 100_000_000;
/// Expressions that are named when all together cost too much.
const NAMED: usize = 4;

/// Everything that is wrong with the expressions of a schema that is sound otherwise.
pub(super) fn validate(node: &Node, path: &str, accepted: bool) -> Vec<FieldError> {
    let mut walk = Walk {
        errors: Vec::new(),
        total: 0,
        dearest: Vec::new(),
        accepted,
    };
    walk.schema(node, path, Place::root());
    walk.sum(path);
    walk.errors
}

/// Where in a schema the walk is.
#[derive(Clone)]
struct Place {
    root: bool,
    /// The place above in which values cannot be told apart.
    uncorrelated: Option<String>,
    /// How many values there can be here; `None` if nothing bounds them.
    count: Option<u64>,
}

impl Place {
    fn root() -> Self {
        Self {
            root: true,
            uncorrelated: None,
            count: Some(1),
        }
    }

    /// The place of values of which each one here has up to `each`.
    fn below(&self, each: Option<u64>) -> Self {
        let count = self.count.zip(each);
        Self {
            root: false,
            uncorrelated: self.uncorrelated.clone(),
            count: count.map(|(here, each)| here.saturating_mul(each)),
        }
    }
}

struct Walk {
    errors: Vec<FieldError>,
    total: u64,
    dearest: Vec<(u64, String)>,
    accepted: bool,
}

impl Walk {
    fn schema(&mut self, node: &Node, path: &str, place: Place) {
        let limit = |max: Option<i64>| max.map(|n| u64::try_from(n).unwrap_or(0));
        if let Some(inner) = node.others() {
            let below = place.below(limit(node.checks.max_properties));
            self.schema(inner, &format!("{path}.additionalProperties"), below);
        }
        // A schema with other fields has no named ones, so that each value here has one of each.
        for (name, inner) in &node.properties {
            let at = format!("{path}.properties[{name}]");
            self.schema(inner, &at, place.below(Some(1)));
        }
        if let Some(inner) = &node.items {
            let mut below = place.below(limit(node.checks.max_items));
            if node.list_type != Some(api::ListType::Map) {
                below.uncorrelated.get_or_insert_with(|| path.to_owned());
            }
            self.schema(inner, &format!("{path}.items"), below);
        }
        let written = written_rules(node, place.root, place.uncorrelated.as_deref());
        let at =
            |index: usize, field: &str| format!("{path}.x-kubernetes-validations[{index}].{field}");
        self.costs(&written, place.count, &at);
        for wrong in written.wrong {
            let at = at(wrong.index, wrong.field);
            let value = given(&node.rules[wrong.index], wrong.field);
            self.errors.push(FieldError::invalid(at, value, wrong.why));
        }
    }

    fn costs(&mut self, written: &Written, count: Option<u64>, at: &dyn Fn(usize, &str) -> String) {
        for cost in &written.costs {
            // A message is made once, for the first value that breaks the rule.
            let (name, times) = match cost.field {
                "rule" => ("estimated rule cost", count.unwrap_or(written.most_values)),
                _ => ("estimated messageExpression cost", 1),
            };
            let most = cost.most.saturating_mul(times);
            let at = at(cost.index, cost.field);
            if !self.accepted && most > PER_EXPRESSION {
                let why = too_dear(name, most, PER_EXPRESSION);
                self.errors.push(FieldError::forbidden(at.clone(), why));
            }
            self.total = self.total.saturating_add(most);
            if most >= PER_SCHEMA / 100 {
                self.dearest.push((most, at));
            }
        }
    }

    fn sum(&mut self, path: &str) {
        if self.total <= PER_SCHEMA {
            return;
        }
        self.dearest
            .sort_by_key(|(most, _)| std::cmp::Reverse(*most));
        for (_, at) in self.dearest.drain(..).take(NAMED) {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            self.errors.push(FieldError::forbidden(at, why));
        }
        let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        let why = too_dear(name, self.total, PER_SCHEMA);
        self.errors.push(FieldError::forbidden(path, why));
    }
}

/// The part of a rule that is shown with what is wrong with it.
fn given(rule: &Rule, field: &str) -> Value {
    match field {
        "fieldPath" => json!(rule.field_path),
        "optionalOldSelf" => json!(rule.optional_old_self),
        _ => json!(rule.rule),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a factor for people")]
fn too_dear(name: &str, most: u64, limit: u64) -> String {
    let factor = most as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{name} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
