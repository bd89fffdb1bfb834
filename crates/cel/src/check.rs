//! Types of expressions before they run: what cannot work is found when a rule is written, in upstream's words.

use std::sync::Arc;

use crate::ast::{Expr, Kind, Loop, Make};
use crate::error::Fault;
use crate::signatures;
use crate::types::{Bindings, Type, join};
use crate::value::Value;

/// Notes the type of an expression over these variables, and of all its parts; everything that is wrong with it.
pub fn check(expr: &mut Expr, variables: &[(&str, Type)]) -> Vec<Fault> {
    let mut checker = Checker {
        scope: variables
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), kind.clone()))
            .collect(),
        faults: Vec::new(),
    };
    checker.of(expr);
    checker.faults
}

struct Checker {
    scope: Vec<(String, Type)>,
    faults: Vec<Fault>,
}

fn list(item: Type) -> Type {
    Type::List(Arc::new(item))
}

fn optional(inner: Type) -> Type {
    match inner {
        Type::Optional(_) => inner,
        other => Type::Optional(Arc::new(other)),
    }
}

impl Checker {
    /// Notes what is wrong; what is behind it can be anything.
    fn fault(&mut self, at: usize, message: impl Into<String>) -> Type {
        self.faults.push(Fault::new(at, message));
        Type::Dyn
    }

    fn of(&mut self, expr: &mut Expr) -> Type {
        expr.result = self.type_of(expr);
        expr.result.clone()
    }

    fn type_of(&mut self, expr: &mut Expr) -> Type {
        match &mut expr.kind {
            Kind::Literal(value) => literal(value),
            Kind::Name(name) => self.name(expr.at, name),
            Kind::Select {
                operand,
                field,
                optional: may_be_absent,
            } => {
                let operand = self.of(operand);
                let found = self.field(expr.at, &operand, field);
                if *may_be_absent {
                    optional(found)
                } else {
                    found
                }
            }
            Kind::Has { operand, field } => {
                let operand = self.of(operand);
                self.field(expr.at, &operand, field);
                Type::Bool
            }
            Kind::Index {
                operand,
                index,
                optional: may_be_absent,
            } => {
                let (operand, index) = (self.of(operand), self.of(index));
                let found = self.item(expr.at, &operand, &index);
                if *may_be_absent {
                    optional(found)
                } else {
                    found
                }
            }
            Kind::Call { target, name, args } => {
                self.call(expr.at, target.as_deref_mut(), name, args)
            }
            Kind::And(a, b) => self.logic(expr.at, "_&&_", a, b),
            Kind::Or(a, b) => self.logic(expr.at, "_||_", a, b),
            Kind::If(test, yes, no) => self.branch(expr.at, test, yes, no),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Loop(parts) => self.run(parts),
        }
    }

    fn name(&mut self, at: usize, name: &str) -> Type {
        if let Some((_, kind)) = self.scope.iter().rev().find(|(n, _)| n == name) {
            return kind.clone();
        }
        match name {
            "int" | "uint" | "double" | "bool" | "string" | "bytes" | "list" | "map" | "type"
            | "null_type" => Type::Type,
            _ => self.fault(
                at,
                format!("undeclared reference to '{name}' (in container '')"),
            ),
        }
    }

    fn field(&mut self, at: usize, operand: &Type, field: &str) -> Type {
        match operand {
            Type::Dyn => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Object(fields) => match fields.fields.get(field) {
                Some(kind) => kind.clone(),
                None => self.fault(at, format!("undefined field '{field}'")),
            },
            Type::Optional(inner) => {
                let inner = self.field(at, inner, field);
                optional(inner)
            }
            other => self.fault(
                at,
                format!("type '{other}' does not support field selection"),
            ),
        }
    }

    fn item(&mut self, at: usize, operand: &Type, index: &Type) -> Type {
        let number = matches!(index, Type::Int | Type::Uint | Type::Double | Type::Dyn);
        match operand {
            Type::Dyn => Type::Dyn,
            Type::List(item) if number => (**item).clone(),
            Type::Map(key, value) if Bindings::default().accept(key, index) => (**value).clone(),
            Type::Optional(inner) => {
                let inner = self.item(at, inner, index);
                optional(inner)
            }
            _ => self.no_overload(at, "_[_]", None, &[operand.clone(), index.clone()]),
        }
    }

    fn no_overload(&mut self, at: usize, name: &str, target: Option<&Type>, args: &[Type]) -> Type {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let target = target.map(|t| format!("{t}.")).unwrap_or_default();
        let applied = format!("{target}({})", args.join(", "));
        self.fault(
            at,
            format!("found no matching overload for '{name}' applied to '{applied}'"),
        )
    }

    fn logic(&mut self, at: usize, name: &str, a: &mut Expr, b: &mut Expr) -> Type {
        let sides = [self.of(a), self.of(b)];
        if !sides.iter().all(|s| matches!(s, Type::Bool | Type::Dyn)) {
            self.no_overload(at, name, None, &sides);
        }
        Type::Bool
    }

    fn branch(&mut self, at: usize, test: &mut Expr, yes: &mut Expr, no: &mut Expr) -> Type {
        let parts = [self.of(test), self.of(yes), self.of(no)];
        let joined = join(&parts[1], &parts[2]);
        match joined {
            Some(joined) if matches!(parts[0], Type::Bool | Type::Dyn) => joined,
            _ => self.no_overload(at, "_?_:_", None, &parts),
        }
    }

    fn call(
        &mut self,
        at: usize,
        target: Option<&mut Expr>,
        name: &str,
        args: &mut [Expr],
    ) -> Type {
        let target = target.map(|t| self.of(t));
        let args: Vec<Type> = args.iter_mut().map(|a| self.argument(name, a)).collect();
        if matches!(name, "_<_" | "_<=_" | "_>_" | "_>=_") {
            return self.comparison(at, name, &args);
        }
        if signatures::of(name).is_empty() {
            return self.fault(
                at,
                format!("undeclared reference to '{name}' (in container '')"),
            );
        }
        let given: Vec<Type> = target.iter().chain(&args).cloned().collect();
        let mut result: Option<Type> = None;
        for (signature, bindings) in signatures::fitting(name, target.is_some(), &given) {
            let this = bindings.resolve(&signature.result);
            result = Some(match result {
                None => this,
                // Of several that fit, what is not known can be the result of any.
                Some(before) if before == this => before,
                Some(_) => Type::Dyn,
            });
        }
        result.unwrap_or_else(|| self.no_overload(at, name, target.as_ref(), &args))
    }

    /// The type of an argument; what is formatted may be a list of anything.
    fn argument(&mut self, name: &str, arg: &mut Expr) -> Type {
        match &mut arg.kind {
            Kind::List(items) if name == "format" => {
                items.iter_mut().for_each(|(_, item)| drop(self.of(item)));
                arg.result = list(Type::Dyn);
                arg.result.clone()
            }
            _ => self.of(arg),
        }
    }

    fn comparison(&mut self, at: usize, name: &str, args: &[Type]) -> Type {
        let number = |t: &Type| matches!(t, Type::Int | Type::Uint | Type::Double);
        let ordered = |t: &Type| {
            number(t)
                || matches!(
                    t,
                    Type::Bool
                        | Type::String
                        | Type::Bytes
                        | Type::Timestamp
                        | Type::Duration
                        | Type::Dyn
                )
        };
        let fits = match args {
            [a, b] => {
                let alike = a == b || *a == Type::Dyn || *b == Type::Dyn;
                ordered(a) && ordered(b) && (alike || (number(a) && number(b)))
            }
            _ => false,
        };
        if !fits {
            self.no_overload(at, name, None, args);
        }
        Type::Bool
    }

    fn joined(&mut self, at: usize, so_far: Option<Type>, next: &Type) -> Option<Type> {
        let Some(before) = so_far else {
            return Some(next.clone());
        };
        match join(&before, next) {
            Some(both) => Some(both),
            None => {
                self.fault(at, format!("expected type '{before}' but found '{next}'"));
                Some(Type::Dyn)
            }
        }
    }

    fn list(&mut self, items: &mut [(bool, Expr)]) -> Type {
        let mut item = None;
        for (is_optional, expr) in items {
            let kind = unwrapped(self.of(expr), *is_optional);
            item = self.joined(expr.at, item, &kind);
        }
        list(item.unwrap_or(Type::Dyn))
    }

    fn map(&mut self, entries: &mut [(bool, Expr, Expr)]) -> Type {
        let (mut keys, mut values) = (None, None);
        for (is_optional, key, value) in entries {
            let kind = self.of(key);
            keys = self.joined(key.at, keys, &kind);
            let kind = unwrapped(self.of(value), *is_optional);
            values = self.joined(value.at, values, &kind);
        }
        let or_any = |t: Option<Type>| Arc::new(t.unwrap_or(Type::Dyn));
        Type::Map(or_any(keys), or_any(values))
    }

    fn run(&mut self, parts: &mut Loop) -> Type {
        let range = self.of(&mut parts.range);
        let mark = self.scope.len();
        let (first, second) = match (parts.make, &range) {
            (Make::Bind, _) => (range.clone(), Type::Dyn),
            (Make::OptMap | Make::OptFlatMap, Type::Optional(inner)) => {
                ((**inner).clone(), Type::Dyn)
            }
            (_, Type::List(item)) if parts.second.is_some() => (Type::Int, (**item).clone()),
            (_, Type::List(item)) => ((**item).clone(), Type::Dyn),
            (_, Type::Map(key, value)) => ((**key).clone(), (**value).clone()),
            (_, Type::Dyn) => (Type::Dyn, Type::Dyn),
            _ => {
                let message = format!(
                    "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                (self.fault(parts.range.at, message), Type::Dyn)
            }
        };
        self.scope.push((parts.first.clone(), first.clone()));
        if let Some(name) = &parts.second {
            self.scope.push((name.clone(), second));
        }
        if let Some(filter) = &mut parts.filter {
            self.expect_bool(filter);
        }
        let result = self.made(parts, &range, first);
        self.scope.truncate(mark);
        result
    }

    fn made(&mut self, parts: &mut Loop, range: &Type, first: Type) -> Type {
        match parts.make {
            Make::All | Make::Exists | Make::ExistsOne => {
                self.expect_bool(&mut parts.body);
                Type::Bool
            }
            Make::Filter => {
                self.expect_bool(&mut parts.body);
                list(first)
            }
            Make::Map => list(self.of(&mut parts.body)),
            Make::MapValues => {
                let key = match range {
                    Type::Map(key, _) => (**key).clone(),
                    Type::List(_) => Type::Int,
                    _ => Type::Dyn,
                };
                Type::Map(Arc::new(key), Arc::new(self.of(&mut parts.body)))
            }
            Make::MapEntries | Make::Bind | Make::OptFlatMap => self.of(&mut parts.body),
            Make::OptMap => Type::Optional(Arc::new(self.of(&mut parts.body))),
        }
    }

    fn expect_bool(&mut self, expr: &mut Expr) {
        let kind = self.of(expr);
        if !matches!(kind, Type::Bool | Type::Dyn) {
            self.fault(expr.at, format!("expected type 'bool' but found '{kind}'"));
        }
    }
}

fn unwrapped(kind: Type, is_optional: bool) -> Type {
    match kind {
        Type::Optional(inner) if is_optional => (*inner).clone(),
        other => other,
    }
}

fn literal(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::Dyn,
    }
}
