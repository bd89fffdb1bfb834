//! Lists and sets: upstream's list library, and what the language's extensions add.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Answer, fail, int};
use crate::error::EvalError;
use crate::eval::Outcome;
use crate::value::{List, Value};

/// Longest list that is made here.
const MADE_MAX: i64 = 100_000;

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    if let ("size", [value]) = (name, args) {
        return size(value);
    }
    if let ("lists.range", [Value::Int(n)]) = (name, args) {
        return Some(if (0..=MADE_MAX).contains(n) {
            Ok((0..*n).map(Value::Int).collect::<Vec<_>>().into())
        } else {
            fail("lists.range: size out of range")
        });
    }
    let Some((Value::List(list), rest)) = args.split_first() else {
        return None;
    };
    match (name, rest) {
        ("isSorted", []) => Some(is_sorted(&list.items)),
        ("sum", []) => Some(sum(&list.items)),
        ("min", []) => Some(extreme(&list.items, Ordering::Less, "min")),
        ("max", []) => Some(extreme(&list.items, Ordering::Greater, "max")),
        ("indexOf", [item]) => Some(Ok(position(list.items.iter().position(|i| i.equals(item))))),
        ("lastIndexOf", [item]) => Some(Ok(position(
            list.items.iter().rposition(|i| i.equals(item)),
        ))),
        ("join", []) => Some(join(&list.items, "")),
        ("join", [Value::String(separator)]) => Some(join(&list.items, separator)),
        ("reverse", []) => Some(Ok(list
            .items
            .iter()
            .rev()
            .cloned()
            .collect::<Vec<_>>()
            .into())),
        ("first", []) => Some(Ok(Value::Optional(
            list.items.first().cloned().map(Arc::new),
        ))),
        ("last", []) => Some(Ok(Value::Optional(
            list.items.last().cloned().map(Arc::new),
        ))),
        ("distinct", []) => Some(Ok(distinct(list))),
        ("flatten", []) => Some(Ok(flatten(list, 1))),
        ("flatten", [Value::Int(depth)]) => Some(Ok(flatten(list, *depth))),
        ("slice", [Value::Int(from), Value::Int(to)]) => Some(slice(list, *from, *to)),
        ("sort", []) => Some(sort(list)),
        ("includes", [item]) => Some(Ok(list.items.iter().any(|i| i.equals(item)).into())),
        ("sets.contains", [Value::List(other)]) => Some(Ok(covers(list, other).into())),
        ("sets.equivalent", [Value::List(other)]) => {
            Some(Ok((covers(list, other) && covers(other, list)).into()))
        }
        ("sets.intersects", [Value::List(other)]) => {
            let shared = |i: &Value| other.items.iter().any(|o| o.equals(i));
            Some(Ok(list.items.iter().any(shared).into()))
        }
        _ => None,
    }
}

fn size(value: &Value) -> Answer {
    let size = match value {
        Value::String(s) => s.chars().count(),
        Value::Bytes(b) => b.len(),
        Value::List(l) => l.items.len(),
        Value::Map(m) => m.0.len(),
        Value::Defaulting(m) => m.0.0.len(),
        _ => return None,
    };
    Some(Ok(int(size)))
}

fn position(found: Option<usize>) -> Value {
    found.map_or(Value::Int(-1), int)
}

fn order(a: &Value, b: &Value) -> Result<Ordering, EvalError> {
    a.compare(b).ok_or_else(crate::eval::no_overload)
}

fn is_sorted(items: &[Value]) -> Outcome {
    for pair in items.windows(2) {
        if order(&pair[0], &pair[1])? == Ordering::Greater {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum(items: &[Value]) -> Outcome {
    let mut items = items.iter();
    let Some(first) = items.next() else {
        return Ok(Value::Int(0));
    };
    items.try_fold(first.clone(), |sum, item| {
        super::operators::call("_+_", &[sum, item.clone()])
            .unwrap_or_else(|| Err(crate::eval::no_overload()))
    })
}

fn extreme(items: &[Value], wanted: Ordering, name: &str) -> Outcome {
    let mut items = items.iter();
    let Some(mut best) = items.next() else {
        return fail(format!("{name} called on empty list"));
    };
    for item in items {
        if order(item, best)? == wanted {
            best = item;
        }
    }
    Ok(best.clone())
}

fn join(items: &[Value], separator: &str) -> Outcome {
    let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
    match texts {
        Some(texts) => Ok(texts.join(separator).into()),
        None => fail("no such overload"),
    }
}

fn distinct(list: &List) -> Value {
    let mut out: Vec<Value> = Vec::new();
    for item in &list.items {
        if !out.iter().any(|o| o.equals(item)) {
            out.push(item.clone());
        }
    }
    out.into()
}

fn flatten(list: &List, depth: i64) -> Value {
    let mut out = Vec::new();
    for item in &list.items {
        match item {
            Value::List(inner) if depth > 0 => match flatten(inner, depth - 1) {
                Value::List(flat) => out.extend(flat.items.iter().cloned()),
                other => out.push(other),
            },
            other => out.push(other.clone()),
        }
    }
    out.into()
}

fn slice(list: &List, from: i64, to: i64) -> Outcome {
    let bound = |n: i64| usize::try_from(n).ok().filter(|n| *n <= list.items.len());
    match (bound(from), bound(to)) {
        (Some(from), Some(to)) if from <= to => Ok(list.items[from..to].to_vec().into()),
        _ => fail(format!(
            "cannot slice({from}, {to}), list is length {}",
            list.items.len()
        )),
    }
}

fn sort(list: &List) -> Outcome {
    let mut items = list.items.clone();
    for pair in items.windows(2) {
        order(&pair[0], &pair[1])?;
    }
    items.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
    Ok(items.into())
}

fn covers(list: &List, other: &List) -> bool {
    let has = |item: &Value| list.items.iter().any(|i| i.equals(item));
    other.items.iter().all(has)
}
