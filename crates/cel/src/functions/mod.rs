//! The functions that expressions may call: the language's own, and upstream's libraries.
//!
//! Each module takes a name with its arguments (the target of a method first) and answers `None` if it has no
//! function of that name for such arguments.

mod lists;
mod net;
mod numbers;
mod operators;
mod strings;
mod time;
mod values;

use crate::error::EvalError;
use crate::eval::{Machine, Outcome, no_overload};
use crate::value::Value;

pub use time::{parse_duration, parse_timestamp};
pub use values::text;

type Answer = Option<Outcome>;

/// Calls a function.
///
/// # Errors
/// `no such overload` if there is none for these arguments, or what the function says.
pub fn call(machine: &mut Machine<'_>, name: &str, method: bool, args: &[Value]) -> Outcome {
    let operator = name.starts_with(['_', '@', '!', '-']);
    if operator {
        return operators::call(name, args).unwrap_or_else(|| Err(no_overload()));
    }
    strings::call(machine, name, method, args)
        .or_else(|| lists::call(name, args))
        .or_else(|| numbers::call(name, args))
        .or_else(|| time::call(name, args))
        .or_else(|| values::call(name, args))
        .or_else(|| net::call(name, args))
        .unwrap_or_else(|| Err(no_overload()))
}

fn fail<T>(why: impl Into<String>) -> Result<T, EvalError> {
    Err(EvalError::failed(why))
}

fn int(n: usize) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}
