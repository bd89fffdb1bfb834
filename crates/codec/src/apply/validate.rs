//! Whether an applied configuration fits its schema, in upstream's words.

use api::Shape;
use serde_json::Value;

use super::path::PathElement;
use super::typed::{Atom, List, Ty, field_type, item_element};

/// Most errors that are told; a configuration has hardly more.
const MAX_ERRORS: usize = 100;

/// What does not fit; `None` if all does.
pub fn validate(config: &Value, ty: Ty<'_>) -> Option<String> {
    let mut walk = Walk::default();
    walk.value(config, ty);
    match walk.errors.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => {
            let lines: Vec<String> = many.iter().map(|e| format!("\n  {e}")).collect();
            Some(format!("errors:{}", lines.concat()))
        }
    }
}

/// A step that is written out only when something is wrong below it.
enum Step<'v> {
    Field(&'v str),
    Item(PathElement),
}

#[derive(Default)]
struct Walk<'v> {
    path: Vec<Step<'v>>,
    errors: Vec<String>,
}

impl<'v> Walk<'v> {
    fn error(&mut self, what: impl std::fmt::Display) {
        if self.errors.len() >= MAX_ERRORS {
            return;
        }
        let path: Vec<String> = self
            .path
            .iter()
            .map(|step| match step {
                Step::Field(name) => format!(".{name}"),
                Step::Item(element) => element.to_string(),
            })
            .collect();
        let separator = if path.is_empty() { "" } else { ": " };
        self.errors
            .push(format!("{}{separator}{what}", path.concat()));
    }

    fn field(&mut self, name: &'v str, value: &'v Value, ty: Ty<'_>) {
        self.path.push(Step::Field(name));
        self.value(value, ty);
        self.path.pop();
    }

    fn value(&mut self, value: &'v Value, ty: Ty<'_>) {
        if value.is_null() {
            return;
        }
        match (ty.atom(value), value) {
            (Atom::Struct { schema, .. }, Value::Object(map)) => {
                for (name, child) in map {
                    match field_type(schema, name) {
                        Some(ty) => self.field(name, child, ty),
                        None => {
                            self.path.push(Step::Field(name));
                            self.error("field not declared in schema");
                            self.path.pop();
                            return;
                        }
                    }
                }
            }
            (Atom::Map { item, .. }, Value::Object(map)) => {
                for (name, child) in map {
                    self.field(name, child, item);
                }
            }
            (Atom::Struct { .. } | Atom::Map { .. }, other) => {
                self.error(format_args!("expected map, got &{{{}}}", go_text(other)));
            }
            (Atom::List { kind, item }, Value::Array(items)) => self.items(items, kind, item),
            (Atom::List { .. }, other) => {
                self.error(format_args!("expected list, got &{{{}}}", go_text(other)));
            }
            (Atom::Scalar(shape), value) => self.scalar(value, shape),
        }
    }

    fn items(&mut self, items: &'v [Value], kind: List<'_>, ty: Ty<'_>) {
        let mut seen: Vec<PathElement> = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let element = if matches!(kind, List::Atomic) {
                PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX))
            } else {
                match item_element(kind, ty, item) {
                    Ok(element) => element,
                    Err(why) => return self.error(format_args!("element {index}: {why}")),
                }
            };
            self.path.push(Step::Item(element));
            self.value(item, ty);
            if let Some(Step::Item(element)) = self.path.pop() {
                seen.push(element);
            }
        }
        seen.sort();
        for same in seen.windows(2).filter(|w| w[0] == w[1]) {
            self.error(format_args!("duplicate entries for key {}", same[0]));
        }
    }

    fn scalar(&mut self, value: &Value, shape: Option<&Shape>) {
        let Some(shape) = shape else { return };
        match shape {
            Shape::Int32 | Shape::Int64 | Shape::Number if !value.is_number() => {
                self.error(format_args!(
                    "expected numeric (int or float), got {}",
                    go_type(value)
                ));
            }
            Shape::String | Shape::Bytes | Shape::Time | Shape::MicroTime if !value.is_string() => {
                self.error(format_args!(
                    "expected string, got &value.valueUnstructured{{Value:{}}}",
                    go_syntax(value)
                ));
            }
            Shape::Bool if !value.is_boolean() => {
                self.error(format_args!(
                    "expected boolean, got &{{{}}}",
                    go_text(value)
                ));
            }
            Shape::Quantity | Shape::IntOrString if value.is_object() || value.is_array() => {
                self.error(format_args!(
                    "expected any scalar, got &{{{}}}",
                    go_text(value)
                ));
            }
            _ => {}
        }
    }
}

/// Go's name of the type of a decoded value.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let mut items: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", go_text(v)))
                .collect();
            items.sort();
            format!("map[{}]", items.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

/// A value as Go writes it in source code.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(map) => {
            let mut items: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{k:?}:{}", go_syntax(v)))
                .collect();
            items.sort();
            format!("map[string]interface {{}}{{{}}}", items.join(", "))
        }
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages() {
        let ty = Ty::Object(api::schema("io.k8s.api.apps.v1.Deployment").unwrap());
        let pod =
            |container: Value| json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        let at = ".spec.template.spec.containers[name=\"a\"]";
        for (config, text) in [
            (
                json!({"spec": {"foo": 1}}),
                ".spec.foo: field not declared in schema".to_owned(),
            ),
            (
                json!({"spec": {"replicas": "3"}}),
                ".spec.replicas: expected numeric (int or float), got string".to_owned(),
            ),
            (
                json!({"metadata": {"labels": {"a": 1}}}),
                ".metadata.labels.a: expected string, got &value.valueUnstructured{Value:1}".to_owned(),
            ),
            (
                json!({"spec": {"paused": "x"}}),
                ".spec.paused: expected boolean, got &{x}".to_owned(),
            ),
            (
                json!({"spec": []}),
                ".spec: expected map, got &{[]}".to_owned(),
            ),
            (
                pod(json!({"name": "a", "env": {}})),
                format!("{at}.env: expected list, got &{{map[]}}"),
            ),
            (
                pod(json!({"name": "a", "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]})),
                format!("{at}.ports: duplicate entries for key [containerPort=1,protocol=\"TCP\"]"),
            ),
            (
                pod(json!({"name": "a", "command": [1]})),
                format!("{at}.command[0]: expected string, got &value.valueUnstructured{{Value:1}}"),
            ),
            (
                json!({"spec": {"replicas": "3", "paused": 1}}),
                "errors:\n  .spec.paused: expected boolean, got &{1}\n  .spec.replicas: expected numeric (int or float), got string".to_owned(),
            ),
        ] {
            assert_eq!(validate(&config, ty), Some(text));
        }
        assert_eq!(
            validate(
                &pod(json!({"name": "a", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}})),
                ty
            ),
            None
        );
    }
}
