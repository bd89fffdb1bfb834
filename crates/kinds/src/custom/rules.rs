//! Rules that definitions write as expressions (`x-kubernetes-validations`).
//!
//! Rules about changes see the old value as `oldSelf` where there is one to compare with: fields of the same name,
//! and items of lists that are maps. What all rules of an object cost together is bounded.

use std::collections::BTreeMap;

use api::custom::{Node, Rule};
use api::{FieldError, ListType};
use cel::{EvalError, Program, Type, Value};
use serde_json::Value as Json;

use super::cel_types::{resource, type_of, value_of};

/// Most that one expression may cost, as upstream counts.
const PER_CALL: u64 = 1_000_000;
/// Most that all expressions of an object may cost together.
const PER_OBJECT: u64 = 10_000_000;
/// Longest message that an expression makes, in bytes.
const MESSAGE_MAX: usize = 5 * 1024;

/// A compiled rule.
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    uses_old: bool,
    /// The field that is blamed, below the rule's own.
    field_path: String,
}

/// The rules of a schema and of all below it.
#[derive(Default)]
pub(super) struct Rules {
    own: Vec<Compiled>,
    /// The schema as expressions see it, if it has rules of its own.
    seen: Option<Node>,
    properties: BTreeMap<String, Rules>,
    items: Option<Box<Rules>>,
    others: Option<Box<Rules>>,
}

impl Rules {
    /// Compiles the rules of a schema; `root` tells that it is a resource's.
    pub fn of(node: &Node, root: bool) -> Self {
        let seen =
            (!node.rules.is_empty()).then(|| if root { resource(node) } else { node.clone() });
        let own = seen
            .as_ref()
            .map(|seen| node.rules.iter().map(|r| compile(r, seen)).collect())
            .unwrap_or_default();
        let below = |node: &Node| Some(Self::of(node, false)).filter(|rules| !rules.is_empty());
        Self {
            own,
            seen,
            properties: node
                .properties
                .iter()
                .filter_map(|(name, inner)| Some((name.clone(), below(inner)?)))
                .collect(),
            items: node.items.as_deref().and_then(below).map(Box::new),
            others: node.others().and_then(below).map(Box::new),
        }
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty()
            && self.properties.is_empty()
            && self.items.is_none()
            && self.others.is_none()
    }

    /// Every rule that a value breaks; `schema` is what the rules were made of.
    pub fn validate(&self, schema: &Node, value: &Json, old: Option<&Json>) -> Vec<FieldError> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut run = Run {
            errors: Vec::new(),
            budget: PER_OBJECT,
            path: String::new(),
            root: true,
        };
        let place = Place {
            old,
            current: old,
            parent: None,
        };
        // Running out of budget is an error of its own, which is among the others.
        let _ = run.node(self, schema, value, place);
        run.errors
    }
}

fn compile(rule: &Rule, seen: &Node) -> Compiled {
    let own = type_of(seen).unwrap_or(Type::Dyn);
    let variables = variables(rule, own);
    let program = Program::compile(&rule.rule, &variables).map_err(|e| e.text);
    let message = Some(&rule.message_expression)
        .filter(|m| !m.is_empty())
        .and_then(|m| Program::compile(m, &variables).ok());
    Compiled {
        uses_old: program.as_ref().is_ok_and(|p| p.uses("oldSelf")),
        field_path: field_path(seen, &rule.field_path).unwrap_or_default(),
        program,
        message,
        rule: rule.clone(),
    }
}

/// The variables of a rule about values of a type.
pub(super) fn variables(rule: &Rule, own: Type) -> [(&'static str, Type); 2] {
    let old = if rule.optional_old_self == Some(true) {
        Type::Optional(own.clone().into())
    } else {
        own.clone()
    };
    [("self", own), ("oldSelf", old)]
}

/// A path such as `.spec.a['b.c']` in the form errors have; `None` if it leads nowhere in the schema.
pub(super) fn field_path(schema: &Node, path: &str) -> Option<String> {
    let mut at = schema;
    let mut out = String::new();
    let mut rest = path;
    while !rest.is_empty() {
        let (key, tail, named) = if let Some(inner) = rest.strip_prefix("['") {
            let (key, tail) = inner.split_once("']")?;
            (key.to_owned(), tail, !at.properties.is_empty())
        } else {
            let inner = rest.strip_prefix('.')?;
            let end = inner.find(['.', '[']).unwrap_or(inner.len());
            let (key, tail) = inner.split_at(end);
            (key.to_owned(), tail, !at.properties.is_empty())
        };
        at = if named {
            at.properties.get(&key)?
        } else {
            at.others()?
        };
        match (named, out.is_empty()) {
            (true, true) => out.push_str(&key),
            (true, false) => out.push_str(&format!(".{key}")),
            (false, _) => out.push_str(&format!("[{key}]")),
        }
        rest = tail;
    }
    (!out.is_empty()).then_some(out)
}

/// The old values that a value is compared with.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// What rules see as `oldSelf`.
    old: Option<&'a Json>,
    /// What was here, if values can be told apart here.
    current: Option<&'a Json>,
    /// The nearest value above of which that is known, now and before.
    parent: Option<(&'a Json, &'a Json)>,
}

impl<'a> Place<'a> {
    /// Whether nothing changed here, so that what is wrong was wrong before.
    fn is_unchanged(&self, value: &Json) -> bool {
        match (self.current, self.parent) {
            (Some(old), _) => old == value,
            (None, Some((new, old))) => new == old,
            (None, None) => false,
        }
    }

    /// The place of a value below, which `old` and `current` are known of.
    fn below(&self, value: &'a Json, old: Option<&'a Json>, current: Option<&'a Json>) -> Self {
        let parent = match self.current {
            Some(before) => Some((value, before)),
            None => self.parent,
        };
        let current = self.current.and(current);
        Self {
            old,
            current,
            parent,
        }
    }
}

/// No rules are run any more.
struct Spent;

struct Run {
    errors: Vec<FieldError>,
    budget: u64,
    path: String,
    root: bool,
}

impl Run {
    fn node<'a>(
        &mut self,
        rules: &Rules,
        schema: &Node,
        value: &'a Json,
        place: Place<'a>,
    ) -> Result<(), Spent> {
        if value.is_null() {
            return Ok(());
        }
        self.own(rules, value, place)?;
        let mark = self.path.len();
        let at_root = std::mem::take(&mut self.root);
        match value {
            Json::Object(map) => {
                for (key, child) in map {
                    let named = rules.properties.get(key).zip(schema.properties.get(key));
                    let (inner, node) = match (named, &rules.others, schema.others()) {
                        (Some(found), ..) => {
                            let dot = if mark > 0 { "." } else { "" };
                            self.path.push_str(&format!("{dot}{key}"));
                            found
                        }
                        (None, Some(others), Some(node))
                            if !schema.properties.contains_key(key) =>
                        {
                            self.path.push_str(&format!("[{key}]"));
                            (&**others, node)
                        }
                        _ => continue,
                    };
                    let old = place.old.and_then(|old| old.get(key));
                    let type_field = at_root && matches!(key.as_str(), "kind" | "apiVersion");
                    let current = place
                        .current
                        .filter(|_| !type_field)
                        .and_then(|c| c.get(key));
                    self.node(inner, node, child, place.below(value, old, current))?;
                    self.path.truncate(mark);
                }
            }
            Json::Array(items) => {
                let (Some(inner), Some(node)) = (&rules.items, schema.items.as_deref()) else {
                    return Ok(());
                };
                for (index, child) in items.iter().enumerate() {
                    let old = place.old.and_then(|old| counterpart(schema, child, old));
                    let current = place
                        .current
                        .and_then(|old| counterpart(schema, child, old));
                    self.path.push_str(&format!("[{index}]"));
                    self.node(inner, node, child, place.below(value, old, current))?;
                    self.path.truncate(mark);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn fail(&mut self, kind: &str, why: String) {
        let path = if self.path.is_empty() {
            "<nil>"
        } else {
            &self.path
        };
        self.errors.push(FieldError::invalid(path, kind, why));
    }

    fn own(&mut self, rules: &Rules, value: &Json, place: Place<'_>) -> Result<(), Spent> {
        let Some(seen) = &rules.seen else {
            return Ok(());
        };
        let own = value_of(value, seen);
        let old = place
            .old
            .filter(|o| !o.is_null())
            .map(|o| value_of(o, seen));
        for compiled in &rules.own {
            let optional = compiled.rule.optional_old_self == Some(true);
            if compiled.uses_old && old.is_none() && !optional {
                continue;
            }
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    self.fail(&seen.kind, format!("rule compile error: {why}"));
                    continue;
                }
            };
            let mut variables = vec![("self", own.clone())];
            match (&old, optional) {
                (old, true) => {
                    let old = old.clone().map(Into::into);
                    variables.push(("oldSelf", Value::Optional(old)));
                }
                (Some(old), false) => variables.push(("oldSelf", old.clone())),
                (None, false) => {}
            }
            if !self.holds(compiled, program, &variables, &seen.kind)? {
                self.broken(compiled, &variables, (value, &seen.kind), place)?;
            }
        }
        Ok(())
    }

    /// Runs a program within what is left; `Ok(None)` if it failed, which is noted.
    fn run(&mut self, program: &Program, variables: &[(&str, Value)]) -> Result<Value, EvalError> {
        let mut limit = PER_CALL.min(self.budget);
        let before = limit;
        let result = program.run(variables, &mut limit);
        self.budget -= before - limit;
        result
    }

    /// Whether a rule holds; one that fails is noted, and counts as holding.
    fn holds(
        &mut self,
        compiled: &Compiled,
        program: &Program,
        variables: &[(&str, Value)],
        kind: &str,
    ) -> Result<bool, Spent> {
        const OUT: &str = "validation failed due to running out of cost budget, no further validation rules will be run";
        if self.budget == 0 {
            self.fail(kind, OUT.to_owned());
            return Err(Spent);
        }
        let rule = shown(&compiled.rule);
        match self.run(program, variables) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(_) => Ok(false),
            Err(EvalError::Budget) if self.budget == 0 => {
                self.fail(kind, OUT.to_owned());
                Err(Spent)
            }
            Err(error @ EvalError::Budget) => {
                self.fail(kind, format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"));
                Err(Spent)
            }
            Err(EvalError::Failed(why)) => {
                let text = if why.starts_with("no such overload") {
                    format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
                    )
                } else {
                    format!("{why} evaluating rule: {rule}")
                };
                self.fail(kind, text);
                Ok(true)
            }
        }
    }

    /// Notes a rule that does not hold, unless it did not hold before either.
    fn broken(
        &mut self,
        compiled: &Compiled,
        variables: &[(&str, Value)],
        (value, kind): (&Json, &str),
        place: Place<'_>,
    ) -> Result<(), Spent> {
        let made = match &compiled.message {
            None => None,
            Some(program) => match self.run(program, variables) {
                Ok(message) => message.as_str().and_then(usable),
                Err(EvalError::Budget) => {
                    self.fail(kind, "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_owned());
                    return Err(Spent);
                }
                Err(EvalError::Failed(_)) => None,
            },
        };
        if !compiled.uses_old && place.is_unchanged(value) {
            return Ok(());
        }
        let rule = &compiled.rule;
        let detail = made.unwrap_or_else(|| match rule.message.trim() {
            "" => format!("failed rule: {}", rule.rule.trim()),
            message => message.to_owned(),
        });
        let path = match (self.path.as_str(), compiled.field_path.as_str()) {
            ("", "") => "<nil>".to_owned(),
            ("", field) => field.to_owned(),
            (path, "") => path.to_owned(),
            (path, field) => format!("{path}.{field}"),
        };
        self.errors.push(match rule.reason.as_str() {
            "FieldValueForbidden" => FieldError::forbidden(path, detail),
            "FieldValueRequired" => FieldError::required(path, detail),
            "FieldValueDuplicate" => FieldError::duplicate(path, value.clone()),
            _ if matches!(kind, "object" | "array") => FieldError::unshown(path, detail),
            _ => FieldError::invalid(path, value.clone(), detail),
        });
        Ok(())
    }
}

/// How messages call a rule.
fn shown(rule: &Rule) -> &str {
    match rule.message.trim() {
        "" => rule.rule.trim(),
        message => message,
    }
}

/// A message that can be shown.
fn usable(message: &str) -> Option<String> {
    let message = message.trim();
    let fits = !message.is_empty() && message.len() <= MESSAGE_MAX && !message.contains('\n');
    fits.then(|| message.to_owned())
}

/// The item of an old list that has the same keys: only lists that are maps have any.
fn counterpart<'a>(list: &Node, item: &Json, old: &'a Json) -> Option<&'a Json> {
    if list.list_type != Some(ListType::Map) {
        return None;
    }
    let keys = |v: &Json| -> Vec<Option<Json>> {
        list.map_keys.iter().map(|k| v.get(k).cloned()).collect()
    };
    let wanted = keys(item);
    old.as_array()?.iter().find(|o| keys(o) == wanted)
}
