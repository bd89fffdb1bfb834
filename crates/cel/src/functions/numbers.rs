//! Numbers: conversions, and the math library.

use std::cmp::Ordering;

use super::{Answer, fail};
use crate::error::EvalError;
use crate::eval::Outcome;
use crate::value::Value;

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    match (name, args) {
        ("int", [value]) => to_int(value),
        ("uint", [value]) => to_uint(value),
        ("double", [value]) => to_double(value),
        ("math.greatest", items) => Some(extreme(items, Ordering::Greater)),
        ("math.least", items) => Some(extreme(items, Ordering::Less)),
        (_, [a]) => one(name.strip_prefix("math.")?, a),
        (_, [Value::Int(a), Value::Int(b)]) => bits(name.strip_prefix("math.")?, *a, *b),
        (_, [Value::Uint(a), Value::Uint(b)]) => unsigned_bits(name.strip_prefix("math.")?, *a, *b),
        (_, [Value::Uint(a), Value::Int(b)]) => {
            let by = u64::try_from(*b).unwrap_or(64);
            unsigned_bits(name.strip_prefix("math.")?, *a, by)
        }
        _ => None,
    }
}

fn range() -> EvalError {
    EvalError::failed("integer overflow")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "within bounds"
)]
fn to_int(value: &Value) -> Answer {
    Some(match value {
        Value::Int(n) => Ok(Value::Int(*n)),
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| range()),
        Value::Double(n) if *n > i64::MIN as f64 && *n < i64::MAX as f64 => {
            Ok(Value::Int(*n as i64))
        }
        Value::Double(_) => Err(range()),
        Value::String(s) => match s.parse() {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => fail(format!("strconv.ParseInt: parsing {s:?}: invalid syntax")),
        },
        Value::Timestamp(t) => Ok(Value::Int(t.as_second())),
        Value::Duration(d) => Ok(Value::Int(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))),
        _ => return None,
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "within bounds"
)]
fn to_uint(value: &Value) -> Answer {
    Some(match value {
        Value::Uint(n) => Ok(Value::Uint(*n)),
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| range()),
        Value::Double(n) if *n >= 0.0 && *n < u64::MAX as f64 => Ok(Value::Uint(*n as u64)),
        Value::Double(_) => Err(range()),
        Value::String(s) => match s.parse() {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => fail(format!("strconv.ParseUint: parsing {s:?}: invalid syntax")),
        },
        _ => return None,
    })
}

fn to_double(value: &Value) -> Answer {
    if let Some(n) = value.as_double() {
        return Some(Ok(Value::Double(n)));
    }
    let text = value.as_str()?;
    Some(match text.parse() {
        Ok(n) => Ok(Value::Double(n)),
        Err(_) => fail(format!(
            "strconv.ParseFloat: parsing {text:?}: invalid syntax"
        )),
    })
}

fn extreme(args: &[Value], wanted: Ordering) -> Outcome {
    let items = match args {
        [Value::List(list)] => &list.items[..],
        items => items,
    };
    let mut items = items.iter();
    let Some(mut best) = items.next() else {
        return fail("math.@min(list) argument must not be empty");
    };
    for item in items {
        match item.compare(best) {
            Some(order) if order == wanted => best = item,
            Some(_) => {}
            None => return fail("no such overload"),
        }
    }
    match best {
        Value::Int(_) | Value::Uint(_) | Value::Double(_) => Ok(best.clone()),
        _ => fail("no such overload"),
    }
}

fn one(name: &str, a: &Value) -> Answer {
    Some(Ok(match (name, a) {
        ("ceil", Value::Double(n)) => Value::Double(n.ceil()),
        ("floor", Value::Double(n)) => Value::Double(n.floor()),
        ("round", Value::Double(n)) => Value::Double(n.round()),
        ("trunc", Value::Double(n)) => Value::Double(n.trunc()),
        ("sqrt", value) => Value::Double(value.as_double()?.sqrt()),
        ("abs", Value::Double(n)) => Value::Double(n.abs()),
        ("abs", Value::Uint(n)) => Value::Uint(*n),
        ("abs", Value::Int(n)) => return Some(n.checked_abs().map(Value::Int).ok_or_else(range)),
        ("sign", Value::Int(n)) => Value::Int(n.signum()),
        ("sign", Value::Uint(n)) => Value::Uint((*n).min(1)),
        ("sign", Value::Double(n)) if *n == 0.0 || n.is_nan() => Value::Double(*n),
        ("sign", Value::Double(n)) => Value::Double(n.signum()),
        ("isNaN", Value::Double(n)) => Value::Bool(n.is_nan()),
        ("isInf", Value::Double(n)) => Value::Bool(n.is_infinite()),
        ("isFinite", Value::Double(n)) => Value::Bool(n.is_finite()),
        ("bitNot", Value::Int(n)) => Value::Int(!n),
        ("bitNot", Value::Uint(n)) => Value::Uint(!n),
        _ => return None,
    }))
}

#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "bits are shifted as such"
)]
fn bits(name: &str, a: i64, b: i64) -> Answer {
    if name.starts_with("bitShift") && b < 0 {
        return Some(fail(format!("math.{name}() negative offset: {b}")));
    }
    let by = u32::try_from(b).unwrap_or(64);
    Some(Ok(Value::Int(match name {
        "bitAnd" => a & b,
        "bitOr" => a | b,
        "bitXor" => a ^ b,
        "bitShiftLeft" => a.checked_shl(by).unwrap_or(0),
        "bitShiftRight" => (a as u64).checked_shr(by).unwrap_or(0) as i64,
        _ => return None,
    })))
}

fn unsigned_bits(name: &str, a: u64, b: u64) -> Answer {
    let by = u32::try_from(b).unwrap_or(64);
    Some(Ok(Value::Uint(match name {
        "bitAnd" => a & b,
        "bitOr" => a | b,
        "bitXor" => a ^ b,
        "bitShiftLeft" => a.checked_shl(by).unwrap_or(0),
        "bitShiftRight" => a.checked_shr(by).unwrap_or(0),
        _ => return None,
    })))
}
