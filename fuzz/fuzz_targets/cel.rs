//! Expressions: compiled, and run within a budget.
#![no_main]

use cel::{Program, Type, Value};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// What one run may cost: what upstream allows an expression of a schema.
const BUDGET: u64 = 10_000_000;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(program) = Program::compile(text, &[("self", Type::Dyn), ("oldSelf", Type::Dyn)]) else {
        return;
    };
    let object =
        json!({"a": 1, "b": "two", "c": [1, 2, 3], "d": {"x": "y"}, "e": [{"k": "1"}, {"k": "2"}]});
    let value = Value::from_json(&object);
    let mut budget = BUDGET;
    let _ = program.run(&[("self", value.clone()), ("oldSelf", value)], &mut budget);
});
