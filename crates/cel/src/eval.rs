//! Expressions to values, at a cost.
//!
//! Every step is paid for before it is made, so that an expression of a client cannot hold the server. `&&`, `||`
//! and the macros built on them have a value when one side decides, whatever becomes of the other.

use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;

use crate::ast::{Expr, Kind, Loop, Make};
use crate::error::EvalError;
use crate::functions;
use crate::pattern;
use crate::value::{Map, Value};

/// Cost of a step.
const STEP: u64 = 1;
/// Cost of making a list.
const LIST: u64 = 10;
/// Cost of making a map.
const MAP: u64 = 30;
/// Characters and items that cost one.
const PER_COST: u64 = 10;
/// Most regular expressions kept by one run.
const REGEX_KEPT: usize = 16;

/// Outcome of a step.
pub type Outcome = Result<Value, EvalError>;

/// One run of an expression.
pub struct Machine<'a> {
    base: &'a [(&'a str, Value)],
    scope: Vec<(&'a str, Value)>,
    budget: &'a mut u64,
    regexes: HashMap<String, Regex>,
}

impl<'a> Machine<'a> {
    /// A run with these variables, which may cost what the budget holds.
    pub fn new(base: &'a [(&'a str, Value)], budget: &'a mut u64) -> Self {
        Self {
            base,
            scope: Vec::new(),
            budget,
            regexes: HashMap::new(),
        }
    }

    /// Pays for something.
    pub fn pay(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.budget.checked_sub(cost) {
            Some(left) => {
                *self.budget = left;
                Ok(())
            }
            None => {
                *self.budget = 0;
                Err(EvalError::Budget)
            }
        }
    }

    /// A compiled regular expression.
    pub fn regex(&mut self, text: &str) -> Result<Regex, EvalError> {
        if let Some(found) = self.regexes.get(text) {
            return Ok(found.clone());
        }
        // Compiling is far dearer than matching.
        self.pay(text.len() as u64)?;
        let regex = pattern::compile(text)
            .map_err(|why| EvalError::failed(format!("error parsing regexp: {why}")))?;
        if self.regexes.len() < REGEX_KEPT {
            self.regexes.insert(text.to_owned(), regex.clone());
        }
        Ok(regex)
    }

    /// The value of an expression.
    pub fn eval(&mut self, expr: &'a Expr) -> Outcome {
        match &expr.kind {
            Kind::Literal(value) => Ok(value.clone()),
            Kind::Name(name) => {
                self.pay(STEP)?;
                self.name(name)
            }
            Kind::Select {
                operand,
                field,
                optional,
            } => {
                let operand = self.eval(operand)?;
                self.pay(STEP)?;
                select(&operand, field, *optional)
            }
            Kind::Has { operand, field } => {
                let operand = self.eval(operand)?;
                self.pay(STEP)?;
                has(&operand, field)
            }
            Kind::Index {
                operand,
                index,
                optional,
            } => {
                let operand = self.eval(operand)?;
                let index = self.eval(index)?;
                self.pay(STEP)?;
                at(&operand, &index, *optional)
            }
            Kind::Call { target, name, args } => self.call(target.as_deref(), name, args),
            Kind::And(a, b) => self.decide(a, b, false),
            Kind::Or(a, b) => self.decide(a, b, true),
            Kind::If(test, yes, no) => match self.eval(test)? {
                Value::Bool(true) => self.eval(yes),
                Value::Bool(false) => self.eval(no),
                _ => Err(no_overload()),
            },
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Loop(parts) => self.run(parts),
        }
    }

    fn name(&self, name: &str) -> Outcome {
        let bound = self.scope.iter().rev().chain(self.base);
        if let Some((_, value)) = bound.into_iter().find(|(n, _)| *n == name) {
            return Ok(value.clone());
        }
        match name {
            "int" | "uint" | "double" | "bool" | "string" | "bytes" | "list" | "map" | "type"
            | "null_type" => Ok(Value::Type(name.into())),
            _ => Err(EvalError::failed(format!("no such attribute(s): {name}"))),
        }
    }

    /// `a && b` and `a || b`: `decided` is the value that settles it.
    fn decide(&mut self, a: &'a Expr, b: &'a Expr, decided: bool) -> Outcome {
        let left = self.eval(a);
        match left {
            Ok(Value::Bool(value)) if value == decided => return Ok(Value::Bool(decided)),
            Err(EvalError::Budget) => return left,
            _ => {}
        }
        let right = self.eval(b)?;
        match (left, right) {
            (_, Value::Bool(value)) if value == decided => Ok(Value::Bool(decided)),
            (Ok(Value::Bool(_)), Value::Bool(_)) => Ok(Value::Bool(!decided)),
            (Err(error), _) => Err(error),
            _ => Err(no_overload()),
        }
    }

    fn call(&mut self, target: Option<&'a Expr>, name: &'a str, args: &'a [Expr]) -> Outcome {
        let mut values = Vec::with_capacity(args.len() + 1);
        for expr in target.into_iter().chain(args) {
            values.push(self.eval(expr)?);
        }
        // An optional's alternative is made only when it is needed, but it costs little here.
        let sizes: u64 = values.iter().map(Value::size).sum();
        self.pay(STEP + sizes / PER_COST)?;
        functions::call(self, name, target.is_some(), &values)
    }

    fn list(&mut self, items: &'a [(bool, Expr)]) -> Outcome {
        self.pay(LIST)?;
        let mut out = Vec::with_capacity(items.len());
        for (optional, item) in items {
            let value = self.eval(item)?;
            match value {
                Value::Optional(inner) if *optional => out.extend(inner.map(|v| (*v).clone())),
                value => out.push(value),
            }
        }
        Ok(out.into())
    }

    fn map(&mut self, entries: &'a [(bool, Expr, Expr)]) -> Outcome {
        self.pay(MAP)?;
        let mut out = Map::default();
        for (optional, key, value) in entries {
            let key = self.eval(key)?;
            let value = match self.eval(value)? {
                Value::Optional(inner) if *optional => match inner {
                    Some(inner) => (*inner).clone(),
                    None => continue,
                },
                value => value,
            };
            insert(&mut out, key, value)?;
        }
        Ok(Value::Map(Arc::new(out)))
    }

    fn run(&mut self, parts: &'a Loop) -> Outcome {
        let range = self.eval(&parts.range)?;
        match parts.make {
            Make::Bind => self.with(&parts.first, range, &parts.body),
            Make::OptMap | Make::OptFlatMap => match range {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(inner)) => {
                    let made = self.with(&parts.first, (*inner).clone(), &parts.body)?;
                    Ok(match parts.make {
                        Make::OptMap => Value::Optional(Some(Arc::new(made))),
                        _ => made,
                    })
                }
                _ => Err(no_overload()),
            },
            _ => self.over(parts, &range),
        }
    }

    fn with(&mut self, name: &'a str, value: Value, body: &'a Expr) -> Outcome {
        self.scope.push((name, value));
        let result = self.eval(body);
        self.scope.pop();
        result
    }

    fn over(&mut self, parts: &'a Loop, range: &Value) -> Outcome {
        let pairs = pairs(range).ok_or_else(no_overload)?;
        let mut gather = Gather::new(parts.make);
        for (key, value) in pairs {
            self.pay(STEP)?;
            let mark = self.scope.len();
            match &parts.second {
                Some(second) => {
                    self.scope.push((&parts.first, key.clone()));
                    self.scope.push((second, value.clone()));
                }
                None => {
                    let item = if range.is_map() { &key } else { &value };
                    self.scope.push((&parts.first, item.clone()));
                }
            }
            let step = self.step(parts);
            let item = if range.is_map() { key.clone() } else { value };
            self.scope.truncate(mark);
            if gather.take(step, key, item)? {
                break;
            }
        }
        gather.finish()
    }

    /// The body's value; `None` if the filter leaves the item out.
    fn step(&mut self, parts: &'a Loop) -> Result<Option<Value>, EvalError> {
        if let Some(filter) = &parts.filter {
            match self.eval(filter)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(None),
                _ => return Err(no_overload()),
            }
        }
        self.eval(&parts.body).map(Some)
    }
}

/// What a macro has gathered so far.
struct Gather {
    make: Make,
    items: Vec<Value>,
    entries: Map,
    count: u64,
    error: Option<EvalError>,
}

impl Gather {
    fn new(make: Make) -> Self {
        Self {
            make,
            items: Vec::new(),
            entries: Map::default(),
            count: 0,
            error: None,
        }
    }

    /// Takes in one step; true ends the loop.
    fn take(
        &mut self,
        step: Result<Option<Value>, EvalError>,
        key: Value,
        item: Value,
    ) -> Result<bool, EvalError> {
        let value = match step {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(false),
            Err(EvalError::Budget) => return Err(EvalError::Budget),
            Err(error) if matches!(self.make, Make::All | Make::Exists) => {
                self.error.get_or_insert(error);
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        match self.make {
            Make::Map => self.items.push(value),
            Make::MapValues => insert(&mut self.entries, key, value)?,
            Make::MapEntries => match value {
                Value::Map(made) => {
                    for (key, value) in &made.0 {
                        insert(&mut self.entries, key.clone(), value.clone())?;
                    }
                }
                _ => return Err(no_overload()),
            },
            _ => {
                let Value::Bool(holds) = value else {
                    return Err(no_overload());
                };
                self.count += u64::from(holds);
                match self.make {
                    Make::Filter if holds => self.items.push(item),
                    Make::All if !holds => {
                        self.error = None;
                        self.count = 0;
                        self.items.push(Value::Null);
                        return Ok(true);
                    }
                    Make::Exists if holds => return Ok(true),
                    _ => {}
                }
            }
        }
        Ok(false)
    }

    fn finish(self) -> Outcome {
        match self.make {
            // An item in the list marks the one for which it does not hold.
            Make::All if !self.items.is_empty() => Ok(Value::Bool(false)),
            Make::Exists if self.count > 0 => Ok(Value::Bool(true)),
            Make::All | Make::Exists => match self.error {
                Some(error) => Err(error),
                None => Ok(Value::Bool(self.make == Make::All)),
            },
            Make::ExistsOne => Ok(Value::Bool(self.count == 1)),
            Make::MapValues | Make::MapEntries => Ok(Value::Map(Arc::new(self.entries))),
            _ => Ok(self.items.into()),
        }
    }
}

/// Keys and values of a map, indexes and items of a list; `None` for anything else.
fn pairs(range: &Value) -> Option<Vec<(Value, Value)>> {
    Some(match range {
        Value::List(list) => list
            .items
            .iter()
            .enumerate()
            .map(|(i, v)| (Value::Int(i64::try_from(i).unwrap_or(i64::MAX)), v.clone()))
            .collect(),
        Value::Map(map) => map.0.clone(),
        Value::Defaulting(map) => map.0.0.clone(),
        _ => return None,
    })
}

fn insert(map: &mut Map, key: Value, value: Value) -> Result<(), EvalError> {
    if !matches!(
        key,
        Value::String(_) | Value::Int(_) | Value::Uint(_) | Value::Bool(_)
    ) {
        return Err(EvalError::failed(format!(
            "unsupported key type: {}",
            key.type_name()
        )));
    }
    if map.get(&key).is_some() {
        return Err(EvalError::failed(format!(
            "insert failed: key {} already exists",
            functions::text(&key)
        )));
    }
    map.0.push((key, value));
    Ok(())
}

/// The failure of a function that does not know its arguments.
pub fn no_overload() -> EvalError {
    EvalError::failed("no such overload")
}

fn no_key(key: &str) -> EvalError {
    EvalError::failed(format!("no such key: {key}"))
}

fn select(operand: &Value, field: &str, optional: bool) -> Outcome {
    match operand {
        Value::Map(map) => match (map.field(field), optional) {
            (Some(value), false) => Ok(value.clone()),
            (Some(value), true) => Ok(Value::Optional(Some(Arc::new(value.clone())))),
            (None, true) => Ok(Value::Optional(None)),
            (None, false) => Err(no_key(field)),
        },
        Value::Defaulting(_) => at(operand, &Value::from(field), optional),
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => match select(inner, field, true) {
            Ok(value) => Ok(value),
            Err(_) => Ok(Value::Optional(None)),
        },
        _ => Err(no_overload()),
    }
}

fn has(operand: &Value, field: &str) -> Outcome {
    match operand {
        Value::Map(map) => Ok(Value::Bool(map.field(field).is_some())),
        Value::Defaulting(_) => Ok(Value::Bool(true)),
        Value::Optional(None) => Ok(Value::Bool(false)),
        Value::Optional(Some(inner)) => has(inner, field),
        _ => Err(no_overload()),
    }
}

fn at(operand: &Value, index: &Value, optional: bool) -> Outcome {
    let found = match operand {
        Value::Optional(None) => return Ok(Value::Optional(None)),
        Value::Optional(Some(inner)) => return at(inner, index, true),
        Value::Map(map) => map
            .get(index)
            .cloned()
            .ok_or_else(|| no_key(&functions::text(index))),
        Value::Defaulting(map) => {
            let (entries, missing) = &**map;
            Ok(entries.get(index).unwrap_or(missing).clone())
        }
        Value::List(list) => {
            let position = match index {
                Value::Int(n) => *n,
                Value::Uint(n) => i64::try_from(*n).unwrap_or(i64::MAX),
                #[expect(clippy::cast_possible_truncation, reason = "whole numbers only")]
                Value::Double(n) if n.fract() == 0.0 => *n as i64,
                _ => return Err(no_overload()),
            };
            usize::try_from(position)
                .ok()
                .and_then(|p| list.items.get(p))
                .cloned()
                .ok_or_else(|| EvalError::failed(format!("index out of bounds: {position}")))
        }
        _ => return Err(no_overload()),
    };
    if !optional {
        return found;
    }
    Ok(Value::Optional(found.ok().map(Arc::new)))
}
