//! The environment of expressions that select devices: what `device` is, and what such an
//! expression may be and cost. The API checks expressions with it, the scheduler runs them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::types::{Fields, Type};
use crate::value::{Map, Value};
use crate::{Bounds, EvalError, Program};

/// What one evaluation may cost.
pub const COST_MAX: u64 = 1_000_000;

const VARIABLE: &str = "device";

fn by_domain(of: Type) -> Type {
    let map = |of| Type::Map(Arc::new(Type::String), Arc::new(of));
    map(map(of))
}

fn variable() -> Type {
    let fields = [
        ("driver", Type::String),
        ("allowMultipleAllocations", Type::Bool),
        ("attributes", by_domain(Type::Dyn)),
        ("capacity", by_domain(Type::Opaque("kubernetes.Quantity"))),
    ];
    Type::Object(Arc::new(Fields {
        name: "kubernetes.DRADevice".to_owned(),
        fields: fields.map(|(n, t)| (n.to_owned(), t)).into(),
    }))
}

/// Domains, and attributes or capacities of one, that a device can have.
const NAMES_MAX: u64 = 32;
/// Longest domain and driver, in characters.
const DOMAIN_MAX: u64 = 63;
/// Longest name of an attribute or capacity, in characters.
const ID_MAX: u64 = 32;
/// Longest value of an attribute, in characters.
const VALUE_MAX: u64 = 64;

/// How large a device can be.
fn bounds() -> Bounds {
    let leaf = |max| Bounds {
        max,
        ..Bounds::default()
    };
    let map = |keys, items: Bounds, others: Option<Bounds>| Bounds {
        max: NAMES_MAX,
        keys: Some(Box::new(leaf(keys))),
        items: Some(Box::new(items)),
        others: others.map(Box::new),
        ..Bounds::default()
    };
    let value = || leaf(VALUE_MAX);
    let attributes = map(DOMAIN_MAX, map(ID_MAX, value(), Some(value())), None);
    let capacity = map(DOMAIN_MAX, map(ID_MAX, leaf(0), None), None);
    let fields = [
        ("driver", leaf(DOMAIN_MAX)),
        ("allowMultipleAllocations", leaf(1)),
        ("attributes", attributes),
        ("capacity", capacity),
    ];
    Bounds {
        fields: fields.map(|(n, b)| (n.to_owned(), b)).into(),
        ..Bounds::default()
    }
}

/// The most that an expression about a device can cost.
pub fn most(program: &Program) -> u64 {
    program.max_cost(Some(VARIABLE), &bounds())
}

/// Compiles an expression about a device.
///
/// # Errors
/// What is wrong with it, in upstream's words.
pub fn compile(text: &str) -> Result<Program, String> {
    let program = Program::compile(text, &[(VARIABLE, variable())])
        .map_err(|e| format!("compilation failed: {e}"))?;
    match &program.result {
        Type::Bool | Type::Dyn => Ok(program),
        other => Err(format!(
            "must evaluate to bool or the unknown type, not {other}"
        )),
    }
}

/// Attributes or capacities: values by domain and name.
pub type ByDomain = BTreeMap<String, Vec<(String, Value)>>;

/// What `device` stands for.
pub fn value(driver: &str, shared: bool, attributes: ByDomain, capacity: ByDomain) -> Value {
    // A domain that a device knows nothing of is empty rather than an error.
    let domains = |all: ByDomain| {
        let entries = all
            .into_iter()
            .map(|(domain, values)| (Value::from(domain), Value::object(values)));
        let empty = Value::Map(Arc::new(Map::default()));
        Value::Defaulting(Arc::new((Map(entries.collect()), empty)))
    };
    Value::object([
        ("driver".to_owned(), Value::from(driver)),
        ("allowMultipleAllocations".to_owned(), Value::from(shared)),
        ("attributes".to_owned(), domains(attributes)),
        ("capacity".to_owned(), domains(capacity)),
    ])
}

/// Whether the expression holds for what [`value`] made.
///
/// # Errors
/// When it fails, costs too much or is neither true nor false.
pub fn holds(program: &Program, device: &Value) -> Result<bool, EvalError> {
    let mut budget = COST_MAX;
    match program.run(&[(VARIABLE, device.clone())], &mut budget)? {
        Value::Bool(holds) => Ok(holds),
        other => Err(EvalError::failed(format!(
            "CEL result of type {} could not be converted to bool",
            other.type_name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_see_the_device() {
        let attributes = [(
            "gpu.example.com".to_owned(),
            vec![
                ("model".to_owned(), Value::from("a100")),
                ("index".to_owned(), Value::from(3)),
                ("driver".to_owned(), Value::semver("1.2.3").unwrap()),
            ],
        )];
        let capacity = [(
            "gpu.example.com".to_owned(),
            vec![(
                "memory".to_owned(),
                Value::Quantity(Arc::new("40Gi".parse().unwrap())),
            )],
        )];
        let device = value("gpu.example.com", false, attributes.into(), capacity.into());
        for (text, expected) in [
            ("device.driver == 'gpu.example.com'", Ok(true)),
            (
                "device.attributes['gpu.example.com'].model == 'a100'",
                Ok(true),
            ),
            ("device.attributes['gpu.example.com'].index > 3", Ok(false)),
            (
                "device.attributes['gpu.example.com'].driver.isGreaterThan(semver('1.2.0'))",
                Ok(true),
            ),
            (
                "device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) >= 0",
                Ok(true),
            ),
            (
                "'model' in device.attributes['other.example.com']",
                Ok(false),
            ),
            ("'other.example.com' in device.attributes", Ok(false)),
            (
                "has(device.attributes['other.example.com'].model)",
                Ok(false),
            ),
            (
                "device.attributes['other.example.com'].model == 'x'",
                Err("no such key: model"),
            ),
            (
                "cel.bind(d, device.attributes['gpu.example.com'], d.model == 'a100' && d.index == 3)",
                Ok(true),
            ),
            ("device.allowMultipleAllocations", Ok(false)),
            (
                "device.attributes['gpu.example.com'].model",
                Err("CEL result of type string could not be converted to bool"),
            ),
        ] {
            let found = holds(&compile(text).unwrap(), &device).map_err(|e| e.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn what_cannot_select_is_refused() {
        assert_eq!(
            compile("device.driver").unwrap_err(),
            "must evaluate to bool or the unknown type, not string"
        );
        assert!(
            compile("device.nothing == 1")
                .unwrap_err()
                .starts_with("compilation failed: ERROR: <input>:1:7")
        );
    }
}
