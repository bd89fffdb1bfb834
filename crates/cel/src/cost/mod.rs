//! What an expression can cost at most, before it runs.
//!
//! The figures decide which rules may be written into a definition, so they are upstream's to the digit, with the
//! places where upstream guesses oddly: a value whose origin is lost is taken to be as large as the whole that the
//! expression is about, and scalars of a schema have no size at all.
//!
//! Macros are priced as the loops that upstream makes of them; the parts of such a loop are named beside the numbers.

mod calls;
mod span;

use std::collections::BTreeMap;

use crate::ast::{Expr, Kind, Loop, Make};
use crate::types::Type;
use crate::value::Value;
use calls::Arg;
use span::Span;

/// Cost of naming a variable or a field.
const NAME: u64 = 1;
/// Cost of calling anything.
const CALL: u64 = 1;
/// Cost of making a list.
const LIST: u64 = 10;
/// Cost of making a map.
const MAP: u64 = 30;

/// How large values of a type can be.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// Most items, entries, characters or bytes; 0 for what has none.
    pub max: u64,
    /// Items of a list, values of a map.
    pub items: Option<Box<Bounds>>,
    /// Keys of a map.
    pub keys: Option<Box<Bounds>>,
    /// Fields of an object, by the names that expressions use.
    pub fields: BTreeMap<String, Bounds>,
    /// Fields that are not among them.
    pub others: Option<Box<Bounds>>,
}

/// The most that an expression can cost when a variable is within the bounds: `None` stands for any variable, and
/// whatever comes from nowhere.
pub fn most<'a>(expr: &'a Expr, variable: Option<&'a str>, bounds: &'a Bounds) -> u64 {
    let mut estimator = Estimator {
        variable,
        root: bounds,
        scope: Vec::new(),
    };
    estimator.of(expr).cost
}

/// Where in the variable a value comes from.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// Nobody knows.
    Nowhere,
    /// From there; or from a part that the bounds say nothing about.
    At(Option<&'a Bounds>),
}

/// How large the keys and values of a container are that was made by an expression.
#[derive(Debug, Clone, Copy)]
struct Entry {
    is_list: bool,
    key: Span,
    value: Span,
}

impl Entry {
    fn or(self, other: Self) -> Self {
        Self {
            is_list: self.is_list,
            key: self.key.or(other.key),
            value: self.value.or(other.value),
        }
    }
}

/// What is known of the value of an expression, and what it costs to get it.
#[derive(Debug, Clone, Copy)]
struct Estimate<'a> {
    cost: u64,
    size: Option<Span>,
    entry: Option<Entry>,
    place: Place<'a>,
}

impl Estimate<'_> {
    fn costs(cost: u64) -> Self {
        Self {
            cost,
            size: None,
            entry: None,
            place: Place::Nowhere,
        }
    }

    fn size(&self) -> Span {
        self.size.unwrap_or(Span::UNKNOWN)
    }
}

/// A variable of a macro.
struct Local<'a> {
    name: &'a str,
    size: Option<Span>,
    entry: Option<Entry>,
    place: Place<'a>,
}

struct Estimator<'a> {
    variable: Option<&'a str>,
    root: &'a Bounds,
    scope: Vec<Local<'a>>,
}

/// One step down from a place.
enum Step<'a> {
    Items,
    Keys,
    Indices,
    Field(&'a str),
}

impl<'a> Estimator<'a> {
    fn of(&mut self, expr: &'a Expr) -> Estimate<'a> {
        let mut found = self.parts(expr);
        let local = match &expr.kind {
            Kind::Name(name) => self.local(name).and_then(|l| l.size),
            _ => None,
        };
        found.size = found
            .size
            .or_else(|| written(&expr.kind))
            .or_else(|| self.bound(found.place))
            .or_else(|| is_scalar(&expr.result).then(|| Span::exactly(1)))
            .or(local);
        found
    }

    fn local(&self, name: &str) -> Option<&Local<'a>> {
        self.scope.iter().rev().find(|l| l.name == name)
    }

    /// The size that the bounds give to a place.
    fn bound(&self, place: Place<'a>) -> Option<Span> {
        match place {
            Place::At(Some(bounds)) => Some(Span::up_to(bounds.max)),
            _ => None,
        }
    }

    fn step(&self, from: Place<'a>, step: Step<'_>) -> Place<'a> {
        let at = match from {
            // The first step of a way is taken for the name of a variable.
            Place::Nowhere => return Place::At(self.variable.is_none().then_some(self.root)),
            Place::At(None) => return from,
            Place::At(Some(at)) => at,
        };
        Place::At(match step {
            Step::Items => at.items.as_deref(),
            Step::Keys => at.keys.as_deref(),
            Step::Indices => None,
            Step::Field(name) => at.fields.get(name).or(at.others.as_deref()),
        })
    }

    /// The sum over parts, and the sizes of any of them.
    fn all(&mut self, parts: impl Iterator<Item = &'a Expr>) -> (u64, Span) {
        let mut cost = 0u64;
        let mut size: Option<Span> = None;
        for part in parts {
            let found = self.of(part);
            cost = cost.saturating_add(found.cost);
            size = Some(size.map_or(found.size(), |s| s.or(found.size())));
        }
        (cost, size.unwrap_or(Span::exactly(0)))
    }

    fn parts(&mut self, expr: &'a Expr) -> Estimate<'a> {
        match &expr.kind {
            Kind::Literal(_) => Estimate::costs(0),
            Kind::Name(name) => self.name(name),
            Kind::Select {
                operand,
                field,
                optional,
            } => self.select(operand, field, *optional),
            Kind::Has { operand, .. } => Estimate::costs(self.of(operand).cost),
            Kind::Index {
                operand,
                index,
                optional,
            } => self.index(operand, index, *optional),
            Kind::Call { target, name, args } => self.call(target.as_deref(), name, args),
            Kind::And(a, b) | Kind::Or(a, b) => {
                Estimate::costs(self.of(a).cost.saturating_add(self.of(b).cost))
            }
            Kind::If(test, yes, no) => self.branch(test, yes, no),
            Kind::List(items) => {
                let (cost, value) = self.all(items.iter().map(|(_, item)| item));
                Estimate {
                    entry: Some(Entry {
                        is_list: true,
                        key: Span::exactly(1),
                        value,
                    }),
                    ..Estimate::costs(cost.saturating_add(LIST))
                }
            }
            Kind::Map(entries) => {
                let (keys, key) = self.all(entries.iter().map(|(_, key, _)| key));
                let (values, value) = self.all(entries.iter().map(|(_, _, value)| value));
                Estimate {
                    entry: Some(Entry {
                        is_list: false,
                        key,
                        value,
                    }),
                    ..Estimate::costs(keys.saturating_add(values).saturating_add(MAP))
                }
            }
            Kind::Loop(parts) => self.run(parts),
        }
    }

    fn name(&mut self, name: &str) -> Estimate<'a> {
        let (place, entry) = match self.local(name) {
            Some(local) => (local.place, local.entry),
            None => {
                let known = self.variable.is_none_or(|v| v == name);
                (Place::At(known.then_some(self.root)), None)
            }
        };
        Estimate {
            entry,
            place,
            ..Estimate::costs(NAME)
        }
    }

    fn select(&mut self, operand: &'a Expr, field: &str, optional: bool) -> Estimate<'a> {
        let from = self.of(operand);
        if optional {
            return Estimate::costs(from.cost.saturating_add(CALL));
        }
        let price = match operand.result {
            Type::Map(..) | Type::Object(_) => NAME,
            _ => 0,
        };
        Estimate {
            place: self.step(from.place, Step::Field(field)),
            ..Estimate::costs(from.cost.saturating_add(price))
        }
    }

    fn index(&mut self, operand: &'a Expr, index: &'a Expr, optional: bool) -> Estimate<'a> {
        let from = self.of(operand);
        let cost = from
            .cost
            .saturating_add(self.of(index).cost)
            .saturating_add(CALL);
        if optional || matches!(operand.result, Type::Optional(_)) {
            return Estimate::costs(cost);
        }
        Estimate {
            size: from.entry.map(|e| e.value),
            place: self.step(from.place, Step::Items),
            ..Estimate::costs(cost)
        }
    }

    fn branch(&mut self, test: &'a Expr, yes: &'a Expr, no: &'a Expr) -> Estimate<'a> {
        let (test, yes, no) = (self.of(test), self.of(yes), self.of(no));
        Estimate {
            size: Some(yes.size().or(no.size())),
            entry: yes.entry.zip(no.entry).map(|(a, b)| a.or(b)),
            ..Estimate::costs(test.cost.saturating_add(yes.cost.max(no.cost)))
        }
    }

    fn call(&mut self, target: Option<&'a Expr>, name: &str, args: &'a [Expr]) -> Estimate<'a> {
        let target = target.map(|t| self.argument(t));
        let args: Vec<Arg<'a>> = args.iter().map(|a| self.argument(a)).collect();
        let own = calls::price(name, target.as_ref(), &args);
        let paid = target.iter().chain(&args).map(|a| a.found.cost);
        let cost = paid.fold(own.cost, u64::saturating_add);
        let first = args.first().map(|a| a.found);
        let (size, entry) = match name {
            // What is only called differently stays what it is.
            "dyn" => (first.and_then(|f| f.size), first.and_then(|f| f.entry)),
            "_+_" => {
                let both = args.iter().map(|a| a.found.entry);
                let both = both.reduce(|a, b| a.zip(b).map(|(a, b)| a.or(b)));
                (own.size, both.flatten())
            }
            _ => (own.size, None),
        };
        Estimate {
            size,
            entry,
            ..Estimate::costs(cost)
        }
    }

    fn argument(&mut self, expr: &'a Expr) -> Arg<'a> {
        let found = self.of(expr);
        // Items of a list that comes from nowhere are not looked for.
        let item = match found.place {
            Place::Nowhere => None,
            place => self.bound(self.step(place, Step::Items)),
        };
        Arg { expr, found, item }
    }

    /// The variables of a macro over a range.
    fn bind(&mut self, parts: &'a Loop, range: &Estimate<'a>) {
        let is_list = match range.entry {
            Some(entry) => entry.is_list,
            None => matches!(parts.range.result, Type::List(_)),
        };
        let key = (range.entry.map(|e| e.key), Step::Keys);
        let index = (range.entry.map(|e| e.key), Step::Indices);
        let value = (range.entry.map(|e| e.value), Step::Items);
        let variables = match (&parts.second, is_list) {
            (None, true) => vec![(&parts.first, value)],
            (None, false) => vec![(&parts.first, key)],
            (Some(second), true) => vec![(&parts.first, index), (second, value)],
            (Some(second), false) => vec![(&parts.first, key), (second, value)],
        };
        for (name, (size, step)) in variables {
            let place = self.step(range.place, step);
            self.scope.push(Local {
                name,
                size,
                entry: None,
                place,
            });
        }
    }

    /// The size of the first variable of a macro.
    fn first_size(&self, parts: &'a Loop) -> Span {
        let scalar = match &parts.range.result {
            Type::List(of) | Type::Map(of, _) => is_scalar(of),
            _ => false,
        };
        let local = self.local(&parts.first);
        local
            .and_then(|l| self.bound(l.place))
            .or_else(|| scalar.then(|| Span::exactly(1)))
            .or_else(|| local.and_then(|l| l.size))
            .unwrap_or(Span::UNKNOWN)
    }

    fn run(&mut self, parts: &'a Loop) -> Estimate<'a> {
        let range = self.of(&parts.range);
        match parts.make {
            Make::Bind => return self.bound_to(parts, range),
            Make::OptMap => return self.optional(parts, &range, CALL),
            Make::OptFlatMap => return self.optional(parts, &range, 0),
            _ => {}
        }
        let mark = self.scope.len();
        self.bind(parts, &range);
        let filter = parts.filter.as_ref().map(|f| self.of(f).cost);
        let body = self.of(&parts.body);
        let item = self.first_size(parts);
        self.scope.truncate(mark);

        // What is made first, then what each step costs, then what is made of the outcome.
        let (first, step, last) = match parts.make {
            // true; @not_strictly_false(it); it && body; it
            Make::All => (0, body.cost.saturating_add(NAME + CALL + NAME), NAME),
            // false; @not_strictly_false(!it); it || body; it
            Make::Exists => (0, body.cost.saturating_add(NAME + CALL + CALL + NAME), NAME),
            // 0; body ? it + 1 : it; it == 1
            Make::ExistsOne => (0, body.cost.saturating_add(NAME + CALL), NAME + CALL),
            // []; body ? it + [item] : it; it
            Make::Filter => (
                LIST,
                body.cost.saturating_add(NAME + NAME + LIST + CALL),
                NAME,
            ),
            // []; it + [body]; it
            Make::Map => (LIST, body.cost.saturating_add(NAME + LIST + CALL), NAME),
            // {}; @mapInsert(it, key, body); it
            Make::MapValues => (MAP, body.cost.saturating_add(NAME + NAME + CALL), NAME),
            // {}; @mapInsert(it, body); it
            _ => (MAP, body.cost.saturating_add(NAME + CALL), NAME),
        };
        let step = step.saturating_add(filter.unwrap_or(0));
        let count = range.size();
        let steps = count.max.saturating_mul(step);
        let cost = [first, last, steps]
            .into_iter()
            .fold(range.cost, u64::saturating_add);
        let made = |value: Span| Entry {
            is_list: true,
            key: Span::exactly(1),
            value: value.or(Span::exactly(0)),
        };
        let (size, entry) = match parts.make {
            Make::All | Make::Exists | Make::ExistsOne => (Span::exactly(1), None),
            Make::Filter => (count, Some(made(item))),
            Make::Map => (count, Some(made(body.size()))),
            _ => (count, None),
        };
        Estimate {
            size: Some(size),
            entry,
            ..Estimate::costs(cost)
        }
    }

    /// `cel.bind`, a loop over an empty list.
    fn bound_to(&mut self, parts: &'a Loop, value: Estimate<'a>) -> Estimate<'a> {
        self.scope.push(Local {
            name: &parts.first,
            size: value.size,
            entry: value.entry,
            place: value.place,
        });
        let body = self.of(&parts.body);
        self.scope.pop();
        Estimate {
            size: body.size,
            entry: body.entry,
            ..Estimate::costs(LIST.saturating_add(value.cost).saturating_add(body.cost))
        }
    }

    /// `range.hasValue() ? wrapped(cel.bind(first, range.value(), body)) : optional.none()`
    fn optional(&mut self, parts: &'a Loop, range: &Estimate<'a>, wrap: u64) -> Estimate<'a> {
        let inner = match &parts.range.result {
            Type::Optional(inner) => &**inner,
            other => other,
        };
        let value = Estimate {
            size: is_scalar(inner).then(|| Span::exactly(1)),
            ..Estimate::costs(range.cost.saturating_add(CALL))
        };
        let bound = self.bound_to(parts, value);
        let cost = [CALL, wrap, bound.cost]
            .into_iter()
            .fold(range.cost, u64::saturating_add);
        Estimate {
            size: Some(Span::UNKNOWN),
            ..Estimate::costs(cost)
        }
    }
}

/// The size of what is written out.
fn written(kind: &Kind) -> Option<Span> {
    let size = match kind {
        Kind::Literal(Value::String(text)) => text.chars().count(),
        Kind::Literal(Value::Bytes(bytes)) => bytes.len(),
        Kind::Literal(_) => 1,
        Kind::List(items) => items.len(),
        Kind::Map(entries) => entries.len(),
        _ => return None,
    };
    Some(Span::exactly(size as u64))
}

/// Whether all values of a type are as large.
fn is_scalar(of: &Type) -> bool {
    match of {
        Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp => {
            true
        }
        Type::Optional(inner) => is_scalar(inner),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
