//! What a schema does to objects: unknown fields are dropped, nulls that mean nothing too, defaults filled in.

use serde_json::Value;

use super::Node;

/// Fields every resource has, embedded ones too.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops the fields of a resource that its schema does not know; `None` knows none. Returns the paths of
/// what was dropped, sorted.
pub fn prune(object: &mut Value, schema: Option<&Node>) -> Vec<String> {
    let mut pruner = Pruner::default();
    match schema {
        Some(node) => pruner.node(object, node, true, false),
        None => pruner.node(object, &Node::default(), true, false),
    }
    pruner.finish()
}

/// Drops what the schema of a part of a resource does not know; see [`prune`].
pub fn prune_part(value: &mut Value, schema: &Node) -> Vec<String> {
    let mut pruner = Pruner::default();
    pruner.node(value, schema, schema.embedded, false);
    pruner.finish()
}

#[derive(Default)]
struct Pruner {
    path: String,
    unknown: Vec<String>,
}

impl Pruner {
    fn finish(mut self) -> Vec<String> {
        self.unknown.sort();
        self.unknown
    }

    fn at_key(&mut self, key: &str, work: impl FnOnce(&mut Self)) {
        let mark = self.path.len();
        if mark > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        work(self);
        self.path.truncate(mark);
    }

    fn at_index(&mut self, index: usize, work: impl FnOnce(&mut Self)) {
        let mark = self.path.len();
        self.path.push_str(&format!("[{index}]"));
        work(self);
        self.path.truncate(mark);
    }

    /// `resource` tells that the node is a resource: its type and metadata stay. `kept` tells that a list of
    /// kept values is around it.
    fn node(&mut self, value: &mut Value, node: &Node, resource: bool, kept: bool) {
        let keeps = node.preserve_unknown || kept;
        match value {
            Value::Object(map) => {
                let mut dropped = Vec::new();
                for (key, child) in map.iter_mut() {
                    if resource && META.contains(&key.as_str()) {
                        continue;
                    }
                    match (node.properties.get(key), &node.additional) {
                        (Some(inner), _) => {
                            self.at_key(key, |p| p.node(child, inner, inner.embedded, false));
                        }
                        (None, Some(super::Additional::Schema(inner))) => {
                            self.at_key(key, |p| p.node(child, inner, inner.embedded, false));
                        }
                        (None, Some(super::Additional::Allowed(_))) => {
                            self.at_key(key, |p| p.unknown_below(child));
                        }
                        _ if keeps => {}
                        _ => {
                            self.at_key(key, |p| p.unknown.push(p.path.clone()));
                            dropped.push(key.clone());
                        }
                    }
                }
                for key in dropped {
                    map.remove(&key);
                }
            }
            Value::Array(items) => {
                for (index, child) in items.iter_mut().enumerate() {
                    self.at_index(index, |p| match &node.items {
                        Some(inner) => p.node(child, inner, inner.embedded, keeps),
                        None if keeps => {}
                        None => p.unknown_below(child),
                    });
                }
            }
            _ => {}
        }
    }

    /// A value without any schema keeps no fields.
    fn unknown_below(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (key, _) in std::mem::take(map) {
                    self.at_key(&key, |p| p.unknown.push(p.path.clone()));
                }
            }
            Value::Array(items) => {
                for (index, child) in items.iter_mut().enumerate() {
                    self.at_index(index, |p| p.unknown_below(child));
                }
            }
            _ => {}
        }
    }
}

/// Drops nulls of fields that cannot be null and have no default.
pub fn drop_nulls(value: &mut Value, schema: Option<&Node>) {
    match value {
        Value::Object(map) => {
            let field = |key: &str| schema.and_then(|s| s.field(key));
            map.retain(|key, child| {
                !(child.is_null() && field(key).is_some_and(|s| !s.nullable && s.default.is_none()))
            });
            for (key, child) in map.iter_mut() {
                drop_nulls(child, schema.and_then(|s| s.field(key)));
            }
        }
        Value::Array(items) => {
            let inner = schema.and_then(|s| s.items.as_deref());
            items.iter_mut().for_each(|v| drop_nulls(v, inner));
        }
        _ => {}
    }
}

/// Fills in defaults, also in place of nulls where null is no value. Idempotent.
pub fn fill(value: &mut Value, schema: &Node) {
    match value {
        Value::Object(map) => {
            for (key, inner) in &schema.properties {
                let Some(default) = &inner.default else {
                    continue;
                };
                if map.get(key).is_none_or(|v| v.is_null() && !inner.nullable) {
                    map.insert(key.clone(), default.clone());
                }
            }
            for (key, child) in map.iter_mut() {
                let Some(inner) = schema.field(key) else {
                    continue;
                };
                if !schema.properties.contains_key(key) {
                    replace_null(child, inner);
                }
                fill(child, inner);
            }
        }
        Value::Array(items) => {
            let Some(inner) = schema.items.as_deref() else {
                return;
            };
            for child in items {
                replace_null(child, inner);
                fill(child, inner);
            }
        }
        _ => {}
    }
}

fn replace_null(value: &mut Value, schema: &Node) {
    if value.is_null()
        && !schema.nullable
        && let Some(default) = &schema.default
    {
        *value = default.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(schema: Value) -> Node {
        Node::parse(&schema).unwrap()
    }

    #[test]
    fn unknown_fields_are_dropped_where_a_schema_speaks() {
        let schema = node(json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "strict": {"type": "object", "properties": {"x": {"type": "string"}}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"y": {"type": "string"}}}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"z": {"type": "string"}}}},
                "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
            }},
        }}));
        let mut object = json!({
            "apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x", "odd": 1}, "other": 1,
            "spec": {"a": "1", "b": 2, "free": {"any": {"thing": 1}, "strict": {"x": "1", "w": 2}},
                "map": {"k": {"y": "1", "q": 1}}, "list": [{"z": "1"}, {"z": "1", "r": 1}],
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"s": 1}, "status": {}}},
        });
        let unknown = prune(&mut object, Some(&schema));
        assert_eq!(
            unknown,
            [
                "other",
                "spec.b",
                "spec.free.strict.w",
                "spec.list[1].r",
                "spec.map.k.q",
                "spec.pod.spec.s",
                "spec.pod.status"
            ]
        );
        assert_eq!(
            object["spec"]["free"],
            json!({"any": {"thing": 1}, "strict": {"x": "1"}})
        );
        assert_eq!(object["spec"]["pod"]["metadata"], json!({"name": "p"}));
        assert_eq!(object["metadata"]["odd"], 1);
    }

    #[test]
    fn nulls_and_defaults() {
        let schema = node(json!({"type": "object", "properties": {
            "a": {"type": "string"},
            "b": {"type": "string", "nullable": true},
            "c": {"type": "string", "default": "C"},
            "d": {"type": "string", "default": "D", "nullable": true},
            "e": {"type": "object", "default": {}, "properties": {"f": {"type": "integer", "default": 1}}},
            "g": {"type": "array", "items": {"type": "object", "properties": {"h": {"type": "string", "default": "H"}}}},
        }}));
        let mut object = json!({"a": null, "b": null, "c": null, "d": null, "unknown": null, "g": [{}, {"h": "x"}]});
        drop_nulls(&mut object, Some(&schema));
        fill(&mut object, &schema);
        let filled = json!({"b": null, "c": "C", "d": null, "unknown": null, "e": {"f": 1},
            "g": [{"h": "H"}, {"h": "x"}]});
        assert_eq!(object, filled);
        fill(&mut object, &schema);
        assert_eq!(object, filled);
    }
}
