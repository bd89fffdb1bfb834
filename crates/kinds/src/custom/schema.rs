//! Checks values against schemas, with upstream's words, order and quirks: all errors at once.
//!
//! Under ratcheting a value that is equal to the old one has no errors, and neither has what is below it. Fields
//! are compared with fields of the same name; items only in lists that are maps, where they have keys.

use api::custom::{Additional, Node};
use api::{FieldError, ListType};
use serde_json::{Map, Value};

use super::formats;
use super::pattern::Patterns;
use super::problem::{Problem, Show, number};

/// Every broken rule of a value, or of what an update changes of it. Paths begin at `base`.
pub(super) fn validate(
    schema: &Node,
    patterns: &Patterns,
    value: &Value,
    old: Option<&Value>,
    base: Option<&str>,
) -> Vec<FieldError> {
    let mut check = Check {
        patterns,
        path: String::new(),
        root: base.is_none(),
    };
    let outcome = check.ratcheted(schema, value, old);
    outcome
        .problems
        .into_iter()
        .map(|p| p.into_field_error(base))
        .collect()
}

/// What one schema says of one value.
#[derive(Default)]
struct Outcome {
    problems: Vec<Problem>,
    /// How many checks were made: of several alternatives, the errors of the one with most checks are shown.
    checks: usize,
}

impl Outcome {
    fn of(problem: Problem) -> Self {
        Self {
            problems: vec![problem],
            checks: 0,
        }
    }

    fn is_valid(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, problem: Problem) {
        if !self.problems.iter().any(|p| p.message == problem.message) {
            self.problems.push(problem);
        }
    }

    fn merge(&mut self, other: Self) {
        self.checks += other.checks;
        other.problems.into_iter().for_each(|p| self.add(p));
    }
}

struct Check<'a> {
    patterns: &'a Patterns,
    path: String,
    /// Whether the top is a resource, whose type cannot be compared with an old one.
    root: bool,
}

impl Check<'_> {
    fn ratcheted(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let mut outcome = self.node(node, value, old);
        if !outcome.is_valid() && old == Some(value) {
            outcome.problems.clear();
        }
        outcome
    }

    fn problem(&self, value: impl Into<Value>, show: Show, words: &str) -> Problem {
        let message = format!("{} in body {words}", self.path);
        Problem::new(&self.path, value.into(), show, message)
    }

    fn wrong_type(&self, wanted: &str, found: &str) -> Problem {
        let words = format!("must be of type {wanted}: {found:?}");
        self.problem(found, Show::Type, &words)
    }

    fn node(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        if value.is_null() {
            out.merge(self.null(node));
            out.merge(self.allowed(node, value));
            return out;
        }
        let types = types(node);
        let format = format_of(node, &types);
        if !types.is_empty() || !format.is_empty() {
            out.merge(self.kind(&types, format, value));
            out.checks += 1;
        }
        out.merge(self.alternatives(node, value, old));
        out.checks += 1;
        match value {
            Value::String(text) => {
                out.merge(self.string(node, text));
                out.checks += 1;
                if formats::is_known(format) {
                    if !formats::matches(format, text) {
                        out.add(self.wrong_type(format, text));
                    }
                    out.checks += 1;
                }
            }
            Value::Number(_) => {
                out.merge(self.number(node, &types, format, value));
                out.checks += 1;
            }
            Value::Array(items) => {
                out.merge(self.array(node, items, old));
                out.checks += 1;
            }
            _ => {}
        }
        out.merge(self.allowed(node, value));
        out.checks += 1;
        if let Value::Object(map) = value {
            out.merge(self.object(node, map, old));
            out.checks += 1;
        }
        out.checks += 1;
        out
    }

    fn null(&self, node: &Node) -> Outcome {
        let types = types(node);
        if types.is_empty() || node.nullable {
            return Outcome {
                checks: 1,
                ..Outcome::default()
            };
        }
        Outcome::of(self.wrong_type(&types.join(","), "null"))
    }

    /// Type and, for numbers, format.
    fn kind(&self, types: &[&str], format: &str, value: &Value) -> Outcome {
        let passed = Outcome {
            checks: 1,
            ..Outcome::default()
        };
        let (found, found_format) = match value {
            Value::Bool(_) => ("boolean", ""),
            Value::String(_) => ("string", ""),
            Value::Number(n) if n.is_f64() => ("number", "float64"),
            Value::Number(_) => ("integer", "int64"),
            Value::Array(_) => ("array", ""),
            _ => ("object", ""),
        };
        let has = |name: &str| types.contains(&name);
        let whole = found == "number" && value.as_f64().is_some_and(is_whole) && has("integer");
        let widened = found == "integer" && has("number");
        let textual = matches!(value, Value::String(_) | Value::Array(_));
        let fits = has(found) || whole || widened;
        let formatted = !format.is_empty();
        if formatted && !textual && !fits && found_format != format {
            return Outcome::of(self.wrong_type(format, found_format));
        }
        let numeric = has("number") || has("integer");
        if formatted && textual && !numeric {
            return passed;
        }
        if !fits {
            return Outcome::of(self.wrong_type(&types.join(","), found));
        }
        passed
    }

    fn allowed(&self, node: &Node, value: &Value) -> Outcome {
        let allowed = &node.checks.allowed;
        if allowed.is_empty() || allowed.iter().any(|a| !a.is_null() && same(a, value)) {
            return Outcome::default();
        }
        let words = "should be one of the allowed values";
        Outcome::of(self.problem(value.clone(), Show::OneOf(allowed.clone()), words))
    }

    /// allOf, anyOf, oneOf and not.
    fn alternatives(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        if !node.any_of.is_empty() {
            out.merge(self.any_of(node, value, old));
        }
        if !node.one_of.is_empty() {
            out.merge(self.one_of(node, value, old));
        }
        let mut valid = 0;
        for part in &node.all_of {
            let found = self.node(part, value, old);
            valid += usize::from(found.is_valid());
            out.merge(found);
        }
        if valid != node.all_of.len() {
            let none = if valid == 0 { ". None validated" } else { "" };
            out.add(Problem::composite(format!(
                "{:?} must validate all the schemas (allOf){none}",
                self.path
            )));
        }
        if let Some(not) = &node.not
            && self.node(not, value, old).is_valid()
        {
            out.add(Problem::composite(format!(
                "{:?} must not validate the schema (not)",
                self.path
            )));
        }
        out.checks += 1;
        out
    }

    fn any_of(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let mut best: Option<Outcome> = None;
        for part in &node.any_of {
            let found = self.node(part, value, old);
            if found.is_valid() {
                return found;
            }
            if best.as_ref().is_none_or(|b| found.checks > b.checks) {
                best = Some(found);
            }
        }
        let mut out = Outcome::of(Problem::composite(format!(
            "{:?} must validate at least one schema (anyOf)",
            self.path
        )));
        out.merge(best.unwrap_or_default());
        out
    }

    fn one_of(&mut self, node: &Node, value: &Value, old: Option<&Value>) -> Outcome {
        let (mut best, mut first, mut valid) = (None::<Outcome>, None::<Outcome>, 0);
        for part in &node.one_of {
            let found = self.node(part, value, old);
            if found.is_valid() {
                valid += 1;
                best = None;
                first.get_or_insert(found);
            } else if valid == 0 && best.as_ref().is_none_or(|b| found.checks > b.checks) {
                best = Some(found);
            }
        }
        if valid == 1 {
            return first.unwrap_or_default();
        }
        let found = match valid {
            0 => "Found none valid".to_owned(),
            n => format!("Found {n} valid alternatives"),
        };
        let mut out = Outcome::of(Problem::composite(format!(
            "{:?} must validate one and only one schema (oneOf). {found}",
            self.path
        )));
        out.merge(best.unwrap_or_default());
        out
    }

    /// The first broken check of a string.
    fn string(&self, node: &Node, text: &str) -> Outcome {
        let checks = &node.checks;
        let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = checks.max_length.filter(|max| length > *max) {
            let words = format!("should be at most {max} chars long");
            return Outcome::of(self.problem(text, Show::TooLong(max), &words));
        }
        if let Some(min) = checks.min_length.filter(|min| length < *min) {
            let words = format!("should be at least {min} chars long");
            return Outcome::of(self.problem(text, Show::Plain, &words));
        }
        if checks.pattern.is_empty() {
            return Outcome::default();
        }
        let shown = match self.patterns.get(&checks.pattern) {
            Ok(regex) if regex.is_match(text) => return Outcome::default(),
            Ok(_) => checks.pattern.clone(),
            Err(why) => format!("{}, but pattern is invalid: {why}", checks.pattern),
        };
        Outcome::of(self.problem(text, Show::Plain, &format!("should match '{shown}'")))
    }

    fn number(&self, node: &Node, types: &[&str], format: &str, value: &Value) -> Outcome {
        let Some(float) = value.as_f64() else {
            return Outcome::default();
        };
        let range = Range::of(types, format);
        let mut out = Outcome {
            checks: 1,
            ..Outcome::default()
        };
        if !range.holds(value) {
            out.add(range.problem("Checked", &self.path));
        }
        let checks = &node.checks;
        let bounds = [
            (checks.multiple_of, "MultipleOf"),
            (checks.maximum, "Maximum boundary"),
            (checks.minimum, "Minimum boundary"),
        ];
        for (index, (limit, what)) in bounds.into_iter().enumerate() {
            let Some(limit) = limit else { continue };
            let fits = range.holds(&float_value(limit));
            if !fits {
                out.add(range.problem(what, &self.path));
            }
            let whole = value.as_i64().filter(|_| fits);
            let found = match index {
                0 => self.multiple(value, whole, float, limit),
                1 => self.bound(value, whole, float, limit, Some(checks.exclusive_maximum)),
                _ => self.lower(value, whole, float, limit, checks.exclusive_minimum),
            };
            found.into_iter().for_each(|p| out.add(p));
        }
        out
    }

    fn multiple(
        &self,
        value: &Value,
        whole: Option<i64>,
        float: f64,
        factor: f64,
    ) -> Option<Problem> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "as upstream compares integers"
        )]
        let (positive, divides, shown) = match whole {
            Some(n) => {
                let factor = factor as i64;
                let divides = n.checked_rem(factor).is_some_and(|rest| rest == 0);
                (factor > 0, divides, factor.to_string())
            }
            None => {
                let times = if factor < 1.0 {
                    1.0 / factor * float
                } else {
                    float / factor
                };
                (factor > 0.0, is_whole(times), number(factor))
            }
        };
        if !positive {
            let message = format!(
                "factor MultipleOf declared for {} must be positive: {shown}",
                self.path
            );
            return Some(Problem::new(
                &self.path,
                float_value(factor),
                Show::Plain,
                message,
            ));
        }
        let words = format!("should be a multiple of {shown}");
        (!divides).then(|| self.problem(value.clone(), Show::Plain, &words))
    }

    fn bound(
        &self,
        value: &Value,
        whole: Option<i64>,
        float: f64,
        max: f64,
        exclusive: Option<bool>,
    ) -> Option<Problem> {
        let exclusive = exclusive.unwrap_or_default();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "as upstream compares integers"
        )]
        let (above, equal, shown) = match whole {
            Some(n) => (n > max as i64, n == max as i64, (max as i64).to_string()),
            None => (float > max, same_float(float, max), number(max)),
        };
        let words = if exclusive {
            format!("should be less than {shown}")
        } else {
            format!("should be less than or equal to {shown}")
        };
        (above || (exclusive && equal)).then(|| self.problem(value.clone(), Show::Plain, &words))
    }

    fn lower(
        &self,
        value: &Value,
        whole: Option<i64>,
        float: f64,
        min: f64,
        exclusive: bool,
    ) -> Option<Problem> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "as upstream compares integers"
        )]
        let (below, equal, shown) = match whole {
            Some(n) => (n < min as i64, n == min as i64, (min as i64).to_string()),
            None => (float < min, same_float(float, min), number(min)),
        };
        let words = if exclusive {
            format!("should be greater than {shown}")
        } else {
            format!("should be greater than or equal to {shown}")
        };
        (below || (exclusive && equal)).then(|| self.problem(value.clone(), Show::Plain, &words))
    }

    fn array(&mut self, node: &Node, items: &[Value], old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        if let Some(inner) = node.items.as_deref() {
            for (index, item) in items.iter().enumerate() {
                let before = old.and_then(|old| counterpart(node, item, old));
                let mark = self.path.len();
                self.path.push_str(&format!("[{index}]"));
                let found = self.ratcheted(inner, item, before);
                self.path.truncate(mark);
                out.merge(found);
            }
        }
        let checks = &node.checks;
        let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_items.filter(|min| size < *min) {
            let words = format!("should have at least {min} items");
            out.add(self.problem(size, Show::Plain, &words));
        }
        if let Some(max) = checks.max_items.filter(|max| size > *max) {
            let words = format!("should have at most {max} items");
            out.add(self.problem(size, Show::TooMany(size, max), &words));
        }
        let repeats = |(index, item): (usize, &Value)| items[..index].contains(item);
        if checks.unique_items && items.iter().enumerate().any(repeats) {
            out.add(self.problem(Value::Null, Show::Plain, "shouldn't contain duplicates"));
        }
        out.checks += 1;
        out
    }

    fn object(&mut self, node: &Node, map: &Map<String, Value>, old: Option<&Value>) -> Outcome {
        let mut out = Outcome::default();
        let checks = &node.checks;
        let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(min) = checks.min_properties.filter(|min| size < *min) {
            let words = format!("should have at least {min} properties");
            out.add(self.problem(size, Show::Plain, &words));
        }
        if let Some(max) = checks.max_properties.filter(|max| size > *max) {
            let words = format!("should have at most {max} properties");
            out.add(self.problem(size, Show::TooMany(size, max), &words));
        }
        let unlisted = map
            .iter()
            .filter(|(k, _)| !node.properties.contains_key(*k));
        match &node.additional {
            Some(Additional::Allowed(false)) => {
                for (key, _) in unlisted {
                    let message = format!("{}.{key} in body is a forbidden property", self.path);
                    let value = Value::from(key.as_str());
                    out.add(Problem::new(&self.path, value, Show::Plain, message));
                }
            }
            Some(Additional::Schema(inner)) => {
                for (key, child) in unlisted {
                    out.merge(self.field(inner, key, child, old));
                }
            }
            _ => {}
        }
        for (key, inner) in &node.properties {
            if let Some(child) = map.get(key) {
                out.merge(self.field(inner, key, child, old));
            }
        }
        for key in node.required.iter().filter(|k| !map.contains_key(*k)) {
            let name = format!("{}.{key}", self.path);
            let message = format!("{name} in body is required");
            out.add(Problem::new(&name, Value::Null, Show::Required, message));
        }
        out
    }

    fn field(&mut self, node: &Node, key: &str, value: &Value, old: Option<&Value>) -> Outcome {
        let at_root = self.root && self.path.is_empty();
        let type_field = at_root && matches!(key, "kind" | "apiVersion");
        let before = old.filter(|_| !type_field).and_then(|old| old.get(key));
        let mark = self.path.len();
        if mark > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        let outcome = self.ratcheted(node, value, before);
        self.path.truncate(mark);
        outcome
    }
}

/// The item of an old list that has the same keys as an item: only lists that are maps have any.
fn counterpart<'a>(list: &Node, item: &Value, old: &'a Value) -> Option<&'a Value> {
    if list.list_type != Some(ListType::Map) {
        return None;
    }
    let key = |v: &Value| -> Vec<Option<Value>> {
        list.map_keys.iter().map(|k| v.get(k).cloned()).collect()
    };
    let wanted = key(item);
    old.as_array()?.iter().find(|o| key(o) == wanted)
}

fn types(node: &Node) -> Vec<&str> {
    if node.int_or_string {
        vec!["integer", "string"]
    } else if node.kind.is_empty() {
        Vec::new()
    } else {
        vec![node.kind.as_str()]
    }
}

/// The format, unless upstream has no check for it.
fn format_of<'a>(node: &'a Node, types: &[&str]) -> &'a str {
    let format = node.format.as_str();
    let known = match types {
        [] | ["string"] => formats::is_known(format),
        ["integer"] => matches!(format, "int32" | "int64"),
        ["number"] => matches!(format, "float" | "double"),
        // Several types have, as upstream counts them, none.
        [_, _] => formats::is_known(format),
        _ => false,
    };
    if known { format } else { "" }
}

/// Whether a float is an integer, within the accuracy that upstream allows.
fn is_whole(value: f64) -> bool {
    const LARGEST: f64 = 9_007_199_254_740_991.0;
    const ACCURACY: f64 = 1e-9;
    if value.is_nan() || value.is_infinite() || value.abs() > LARGEST {
        return false;
    }
    let rest = (value - value.trunc()).abs();
    rest == 0.0 || rest < ACCURACY * value.abs()
}

fn same_float(a: f64, b: f64) -> bool {
    a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_eq)
}

/// Equality of values, numbers by what they are worth.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if x.is_f64() != y.is_f64() => x
            .as_f64()
            .zip(y.as_f64())
            .is_some_and(|(x, y)| same_float(x, y)),
        _ => a == b,
    }
}

fn float_value(value: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
    let whole = (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64);
    whole.map_or_else(|| Value::from(value), Value::from)
}

/// Which numbers a type and format can hold.
enum Range<'a> {
    Integer(&'a str),
    Float32,
    Any,
}

impl<'a> Range<'a> {
    fn of(types: &[&str], format: &'a str) -> Self {
        match types {
            ["integer"] => Self::Integer(format),
            ["number"] if format == "float" => Self::Float32,
            _ => Self::Any,
        }
    }

    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Any => true,
            Self::Float32 => value
                .as_f64()
                .is_some_and(|f| f.abs() <= f64::from(f32::MAX)),
            Self::Integer(format) => {
                let whole = value
                    .as_i64()
                    .or_else(|| float_value(value.as_f64()?).as_i64());
                whole.is_some_and(|n| *format != "int32" || i32::try_from(n).is_ok())
            }
        }
    }

    fn problem(&self, what: &str, path: &str) -> Problem {
        let wanted = match self {
            Self::Integer("") => "integer (default format)".to_owned(),
            Self::Integer(format) => format!("integer with format {format}"),
            Self::Float32 => "number with format float".to_owned(),
            Self::Any => "number (default format)".to_owned(),
        };
        Problem::composite(format!("{what} value must be of type {wanted} in {path}"))
    }
}
