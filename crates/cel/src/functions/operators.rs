//! Operators: arithmetic without overflow, comparison, membership.

use std::cmp::Ordering;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Answer, fail};
use crate::error::EvalError;
use crate::value::Value;

fn overflow() -> EvalError {
    EvalError::failed("integer overflow")
}

pub(super) fn call(name: &str, args: &[Value]) -> Answer {
    match (name, args) {
        ("!_", [Value::Bool(b)]) => Some(Ok(Value::Bool(!b))),
        ("-_", [Value::Int(n)]) => Some(n.checked_neg().map(Value::Int).ok_or_else(overflow)),
        ("-_", [Value::Double(n)]) => Some(Ok(Value::Double(-n))),
        ("-_", [Value::Duration(d)]) => {
            Some(d.checked_neg().map(Value::Duration).ok_or_else(overflow))
        }
        ("_==_", [a, b]) => Some(Ok(Value::Bool(a.equals(b)))),
        ("_!=_", [a, b]) => Some(Ok(Value::Bool(!a.equals(b)))),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => compare(name, a, b),
        ("@in", [item, range]) => contains(item, range),
        ("_+_", [a, b]) => add(a, b),
        ("_-_", [a, b]) => subtract(a, b),
        ("_*_" | "_/_" | "_%_", [a, b]) => multiply(name, a, b),
        _ => None,
    }
}

fn compare(name: &str, a: &Value, b: &Value) -> Answer {
    let comparable = |v: &Value| {
        matches!(
            v,
            Value::Bool(_)
                | Value::Int(_)
                | Value::Uint(_)
                | Value::Double(_)
                | Value::String(_)
                | Value::Bytes(_)
                | Value::Timestamp(_)
                | Value::Duration(_)
        )
    };
    if !comparable(a) || !comparable(b) {
        return None;
    }
    let order = match (a.compare(b), a.as_double().and(b.as_double())) {
        (Some(order), _) => order,
        // Not a number: nothing holds.
        (None, Some(_)) => return Some(Ok(Value::Bool(false))),
        (None, None) => return None,
    };
    let holds = match name {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    };
    Some(Ok(Value::Bool(holds)))
}

fn contains(item: &Value, range: &Value) -> Answer {
    let found = match range {
        Value::List(list) => list.items.iter().any(|i| i.equals(item)),
        Value::Map(map) => map.get(item).is_some(),
        Value::Defaulting(map) => map.0.get(item).is_some(),
        _ => return None,
    };
    Some(Ok(Value::Bool(found)))
}

fn add(a: &Value, b: &Value) -> Answer {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        (Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint).ok_or_else(overflow),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => Ok(format!("{a}{b}").into()),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) => Ok(Value::List(Arc::new(a.concat(b)))),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            moved(*t, *d)
        }
        _ => return None,
    })
}

fn moved(time: Timestamp, by: SignedDuration) -> Result<Value, EvalError> {
    time.checked_add(by)
        .map(Value::Timestamp)
        .map_err(|_| EvalError::failed("timestamp overflow"))
}

fn subtract(a: &Value, b: &Value) -> Answer {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int).ok_or_else(overflow),
        (Value::Uint(a), Value::Uint(b)) => a.checked_sub(*b).map(Value::Uint).ok_or_else(overflow),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Timestamp(t), Value::Duration(d)) => match d.checked_neg() {
            Some(back) => moved(*t, back),
            None => Err(overflow()),
        },
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(Value::Duration(a.duration_since(*b))),
        _ => return None,
    })
}

fn multiply(name: &str, a: &Value, b: &Value) -> Answer {
    let zero = || {
        fail(if name == "_/_" {
            "division by zero"
        } else {
            "modulus by zero"
        })
    };
    Some(match (name, a, b) {
        ("_*_", Value::Int(a), Value::Int(b)) => {
            a.checked_mul(*b).map(Value::Int).ok_or_else(overflow)
        }
        ("_*_", Value::Uint(a), Value::Uint(b)) => {
            a.checked_mul(*b).map(Value::Uint).ok_or_else(overflow)
        }
        ("_*_", Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        ("_/_", Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        (_, Value::Int(_), Value::Int(0)) | (_, Value::Uint(_), Value::Uint(0)) => zero(),
        ("_/_", Value::Int(a), Value::Int(b)) => {
            a.checked_div(*b).map(Value::Int).ok_or_else(overflow)
        }
        ("_/_", Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a / b)),
        ("_%_", Value::Int(a), Value::Int(b)) => {
            a.checked_rem(*b).map(Value::Int).ok_or_else(overflow)
        }
        ("_%_", Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a % b)),
        _ => return None,
    })
}
