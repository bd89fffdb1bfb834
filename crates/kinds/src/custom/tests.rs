//! Values and what is wrong with them, in upstream's words.

use serde_json::{Value, json};

use super::*;
use crate::testing::texts;

fn kind(spec: Value) -> Kind {
    kind_with(
        json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object", "properties": {"phase": {"type": "string", "maxLength": 3}}}}}),
    )
}

fn kind_with(schema: Value) -> Kind {
    let definition = json!({"spec": {
        "group": "a.example.com", "scope": "Cluster",
        "names": {"plural": "as", "singular": "a", "kind": "A", "listKind": "AList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "additionalPrinterColumns": [
                {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                {"name": "Labels", "type": "string", "jsonPath": ".metadata.labels"},
                {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                {"name": "On", "type": "boolean", "jsonPath": ".spec.on"}]}]}});
    let mut kinds = api::custom::kinds_of(&definition, &|_| String::new());
    kinds.remove(0).0
}

fn object(spec: Value) -> Value {
    json!({"kind": "A", "apiVersion": "a.example.com/v1", "metadata": {"name": "x"}, "spec": spec})
}

fn broken(schema: Value, spec: Value) -> Vec<String> {
    let kind = kind(schema);
    let custom = kind.custom.clone().unwrap();
    texts(&validate(&kind, &custom, &object(spec), None))
}

#[test]
fn every_keyword_has_its_words() {
    let s = |kind: &str, more: Value| {
        let mut schema = json!({"type": kind});
        schema
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"type": "object", "properties": {"x": schema}})
    };
    for (schema, value, want) in [
        (
            s("integer", json!({})),
            json!("a"),
            r#"spec.x: Invalid value: "string": spec.x in body must be of type integer: "string""#,
        ),
        (
            s("string", json!({})),
            json!(1),
            r#"spec.x: Invalid value: "integer": spec.x in body must be of type string: "integer""#,
        ),
        (
            s("integer", json!({"format": "int64"})),
            json!(true),
            r#"spec.x: Invalid value: "": spec.x in body must be of type int64: """#,
        ),
        (
            s("boolean", json!({})),
            Value::Null,
            r#"spec.x: Invalid value: "null": spec.x in body must be of type boolean: "null""#,
        ),
        (
            s("string", json!({"maxLength": 1})),
            json!("ab"),
            "spec.x: Too long: may not be more than 1 bytes",
        ),
        (
            s("string", json!({"minLength": 3})),
            json!("ab"),
            r#"spec.x: Invalid value: "ab": spec.x in body should be at least 3 chars long"#,
        ),
        (
            s("string", json!({"pattern": "^a$"})),
            json!("b"),
            r#"spec.x: Invalid value: "b": spec.x in body should match '^a$'"#,
        ),
        (
            s("string", json!({"enum": ["a", "b"]})),
            json!("c"),
            r#"spec.x: Unsupported value: "c": supported values: "a", "b""#,
        ),
        (
            s("string", json!({"format": "date-time"})),
            json!("c"),
            r#"spec.x: Invalid value: "c": spec.x in body must be of type date-time: "c""#,
        ),
        (
            s("integer", json!({"maximum": 3})),
            json!(4),
            "spec.x: Invalid value: 4: spec.x in body should be less than or equal to 3",
        ),
        (
            s("integer", json!({"minimum": 3, "exclusiveMinimum": true})),
            json!(3),
            "spec.x: Invalid value: 3: spec.x in body should be greater than 3",
        ),
        (
            s("number", json!({"minimum": 1.5})),
            json!(1.25),
            "spec.x: Invalid value: 1.25: spec.x in body should be greater than or equal to 1.5",
        ),
        (
            s("integer", json!({"multipleOf": 2})),
            json!(3),
            "spec.x: Invalid value: 3: spec.x in body should be a multiple of 2",
        ),
        (
            s("integer", json!({"format": "int32"})),
            json!(3_000_000_000_i64),
            r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.x"#,
        ),
        (
            s("array", json!({"items": {"type": "string"}, "maxItems": 1})),
            json!(["a", "b"]),
            "spec.x: Too many: 2: must have at most 1 items",
        ),
        (
            s("array", json!({"items": {"type": "string"}, "minItems": 1})),
            json!([]),
            "spec.x: Invalid value: 0: spec.x in body should have at least 1 items",
        ),
        (
            s("array", json!({"items": {"type": "string"}})),
            json!(["a", 1]),
            r#"spec.x[1]: Invalid value: "integer": spec.x[1] in body must be of type string: "integer""#,
        ),
        (
            s(
                "object",
                json!({"maxProperties": 1, "additionalProperties": {"type": "string"}}),
            ),
            json!({"a": "b", "c": "d"}),
            "spec.x: Too many: 2: must have at most 1 items",
        ),
        (
            s("object", json!({"minProperties": 1})),
            json!({}),
            "spec.x: Invalid value: 0: spec.x in body should have at least 1 properties",
        ),
        (
            s(
                "object",
                json!({"additionalProperties": {"type": "string"}}),
            ),
            json!({"a": 1}),
            r#"spec.x.a: Invalid value: "integer": spec.x.a in body must be of type string: "integer""#,
        ),
        (
            s("object", json!({"additionalProperties": false})),
            json!({"a": 1}),
            r#"spec.x: Invalid value: "a": spec.x.a in body is a forbidden property"#,
        ),
        (
            s("object", json!({"required": ["a"]})),
            json!({}),
            "spec.x.a: Required value",
        ),
    ] {
        assert_eq!(broken(schema, json!({"x": value})), [want]);
    }
}

#[test]
fn what_fits_is_accepted() {
    let schema = json!({"type": "object", "properties": {
        "i": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 9},
        "f": {"type": "number"}, "n": {"type": "string", "nullable": true},
        "p": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "e": {"type": "number", "enum": [1, 2]},
    }});
    for spec in [
        json!({"i": 3, "f": 1, "n": null, "p": "80%", "e": 1}),
        json!({"i": 3.0, "f": 1.5, "p": 80, "e": 2.0}),
    ] {
        assert!(
            broken(schema.clone(), spec.clone()).is_empty(),
            "{:?}",
            broken(schema.clone(), spec)
        );
    }
    assert_eq!(
        broken(schema, json!({"p": 1.5}))[0],
        r#"spec.p: Invalid value: "number": spec.p in body must be of type integer,string: "number""#
    );
}

#[test]
fn alternatives() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(
        broken(schema.clone(), json!({})),
        [
            r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid"#,
            "spec.a: Required value",
        ]
    );
    assert_eq!(
        broken(schema.clone(), json!({"a": "1", "b": "2"})),
        [
            r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
        ]
    );
    assert!(broken(schema, json!({"a": "1"})).is_empty());
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}, {"minProperties": 2}],
        "not": {"required": ["z"]}, "allOf": [{"maxProperties": 3}]});
    assert_eq!(
        broken(schema, json!({"z": 1})),
        [
            r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#,
            "spec.a: Required value",
            r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#,
        ]
    );
}

#[test]
fn all_errors_at_once_in_order() {
    let schema = json!({"type": "object", "required": ["c"], "properties": {
        "a": {"type": "string"}, "b": {"type": "integer"}, "c": {"type": "string"}}});
    assert_eq!(broken(schema, json!({"b": "x", "a": 1})).len(), 3);
}

#[test]
fn lists_that_are_sets_or_maps() {
    let schema = json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n", "p"],
            "items": {"type": "object", "properties": {"n": {"type": "string"}, "p": {"type": "integer"}}}},
    }});
    let spec = json!({"set": ["a", "b", "a", "a"], "map": [{"n": "x", "p": 1}, {"n": "x", "p": 2}, {"p": 1, "n": "x"}]});
    assert_eq!(
        broken(schema, spec),
        [
            r#"spec.map[2]: Duplicate value: {"n":"x","p":1}"#,
            r#"spec.set[2]: Duplicate value: "a""#,
        ]
    );
}

#[test]
fn embedded_resources() {
    let schema = json!({"type": "object", "properties": {"t": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}});
    assert_eq!(
        broken(
            schema,
            json!({"t": {"kind": "a b", "metadata": {"name": ".."}}})
        )
        .len(),
        3
    );
}

#[test]
fn updates_are_not_refused_for_what_they_leave() {
    let kind = kind(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string"},
        "list": {"type": "array", "items": {"type": "string", "maxLength": 1}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
            "properties": {"k": {"type": "string"}, "v": {"type": "string", "maxLength": 1}, "w": {"type": "string"}}}},
    }}));
    let custom = kind.custom.clone().unwrap();
    let old = object(json!({"a": "long", "list": ["long"], "map": [{"k": "1", "v": "long"}]}));
    let change = |spec: Value| texts(&validate(&kind, &custom, &object(spec), Some(&old)));
    let kept = json!({"a": "long", "b": "new", "list": ["long"], "map": [{"k": "0"}, {"k": "1", "v": "long", "w": "new"}]});
    assert_eq!(change(kept), Vec::<String>::new());
    assert_eq!(
        change(json!({"a": "longer", "list": ["long", "b"]})),
        [
            "spec.a: Too long: may not be more than 1 bytes",
            "spec.list[0]: Too long: may not be more than 1 bytes",
        ]
    );
}

#[test]
fn status_and_scale() {
    let kind = kind(json!({"type": "object"}));
    let custom = kind.custom.clone().unwrap();
    let old = object(json!({}));
    let mut new = object(json!({}));
    new["status"] = json!({"phase": "long", "replicas": -1, "selector": 1});
    assert_eq!(
        texts(&validate_status(&kind, &custom, &new, &old)),
        [
            "status.phase: Too long: may not be more than 3 bytes",
            ".status.replicas: Invalid value: -1: should be a non-negative integer",
            r#".status.selector: Invalid value: "": .status.selector accessor error: 1 is of the type int64, expected string"#,
        ]
    );
}

#[test]
fn rows() {
    let kind = kind(json!({"type": "object"}));
    let now = api::time::parse("2020-01-01T00:10:00Z").unwrap();
    let mut object = object(json!({"size": 3, "on": true}));
    object["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
    object["metadata"]["labels"] = json!({"a": "b"});
    object["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    assert_eq!(
        crate::row(&kind, &object, now),
        [
            json!("x"),
            json!(3),
            json!("10m"),
            json!(r#"{"a":"b"}"#),
            json!("True"),
            json!(true)
        ]
    );
}

#[test]
fn finalizers_of_nobody() {
    let object = json!({"metadata": {"finalizers": ["a.b", "a", "example.com/x", "orphan"]}});
    assert_eq!(warnings(&object).len(), 2);
    assert_eq!(
        warnings(&object)[1],
        r#"metadata.finalizers: "a": prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers"#
    );
}

#[test]
fn rules_written_as_expressions() {
    let kind = kind(json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "message": "min must not exceed max"},
            {"rule": "self.min <= self.max", "messageExpression": "'min is %d'.format([self.min])", "fieldPath": ".min", "reason": "FieldValueForbidden"},
            {"rule": "!has(oldSelf.name) || self.name == oldSelf.name"},
        ], "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]},
        "for": {"type": "string"}, "a-b": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "v must grow"}, {"rule": "self.v < 100"}],
            "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "words": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() < 3", "message": "too long"}]}},
    }}));
    let custom = kind.custom.clone().unwrap();
    let errors = |spec: Value, old: Option<Value>| {
        texts(&validate(
            &kind,
            &custom,
            &object(spec),
            old.map(object).as_ref(),
        ))
    };
    let good = json!({"min": 1, "max": 2, "name": "a", "list": [{"k": "x", "v": 1}]});
    assert!(errors(good.clone(), None).is_empty());
    assert_eq!(
        errors(
            json!({"min": 3, "max": 2, "name": "bad", "words": {"w": "long"}}),
            None
        ),
        [
            "spec: Invalid value: min must not exceed max",
            "spec.min: Forbidden: min is 3",
            r#"spec.name: Invalid value: "bad": failed rule: self != 'bad'"#,
            r#"spec.words[w]: Invalid value: "long": too long"#,
        ]
    );
    assert_eq!(
        errors(
            json!({"min": 1, "max": 2, "name": "b", "list": [{"k": "y", "v": 0}, {"k": "x", "v": 0}]}),
            Some(good)
        ),
        [
            "spec: Invalid value: failed rule: !has(oldSelf.name) || self.name == oldSelf.name",
            "spec.list[1]: Invalid value: v must grow",
        ]
    );
    // What was wrong before and is left alone is accepted.
    let old = json!({"min": 1, "max": 2, "name": "bad", "list": [{"k": "x", "v": 200}]});
    let new = json!({"min": 0, "max": 2, "name": "bad", "list": [{"k": "x", "v": 200}, {"k": "y", "v": 1}]});
    assert!(errors(new, Some(old)).is_empty());
    // Rules are not run on what is not sound otherwise.
    let found = errors(json!({"min": "x"}), None);
    assert!(
        found[1].contains("some validation rules were not checked"),
        "{found:?}"
    );
    // A rule that fails is an error.
    assert_eq!(
        errors(json!({"min": 1}), None)[0],
        r#"spec: Invalid value: "object": no such key: max evaluating rule: min must not exceed max"#
    );
}

#[test]
fn rules_see_escaped_names_and_formats() {
    let kind = kind(
        json!({"type": "object", "properties": {"for": {"type": "string"}, "a-b": {"type": "string"},
        "x/y__z.w": {"type": "string"}, "since": {"type": "string", "format": "date-time"}, "port": {"x-kubernetes-int-or-string": true},
        "data": {"type": "string", "format": "byte"}, "n": {"type": "number"}},
        "x-kubernetes-validations": [{"rule": "self.__for__ == 'f' && self.a__dash__b == 'ab' && self.x__slash__y__underscores__z__dot__w == 'v'"},
            {"rule": "self.since < timestamp('2025-01-01T00:00:00Z') && self.data == b'abc' && self.n == 1.0"},
            {"rule": "type(self.port) == int ? self.port > 0 : self.port.endsWith('%')"}]}),
    );
    let custom = kind.custom.clone().unwrap();
    let spec = json!({"for": "f", "a-b": "ab", "x/y__z.w": "v", "since": "2024-01-01T00:00:00Z", "port": "80%", "data": "YWJj", "n": 1});
    assert_eq!(
        texts(&validate(&kind, &custom, &object(spec), None)),
        Vec::<String>::new()
    );
}

#[test]
fn rules_of_the_whole_object_see_its_name() {
    let kind = kind_with(
        json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name.startsWith('a')", "message": "bad name"}]}),
    );
    let custom = kind.custom.clone().unwrap();
    assert_eq!(
        texts(&validate(&kind, &custom, &object(json!({})), None)),
        ["<nil>: Invalid value: bad name"]
    );
}

#[test]
fn rules_cannot_hold_the_server() {
    let kind = kind(
        json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))", "message": "too much"}]}}}),
    );
    let custom = kind.custom.clone().unwrap();
    let items: Vec<i64> = (0..1000).collect();
    let errors = texts(&validate(
        &kind,
        &custom,
        &object(json!({"l": items})),
        None,
    ));
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].contains("call cost exceeds limit for rule: too much"),
        "{errors:?}"
    );
}
