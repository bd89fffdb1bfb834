//! Definitions and what is wrong with them.

use super::*;
use crate::generic::{validate_create, validate_update};

fn kind() -> &'static api::Kind {
    api::kind("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap()
}

fn definition(schema: Value) -> Value {
    let mut out = json!({
        "kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "as.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "as", "kind": "A"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    });
    Definition.default(&mut out);
    out
}

fn broken(obj: &Value) -> Vec<String> {
    validate_create(kind(), obj)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn spec(schema: Value) -> Value {
    json!({"type": "object", "properties": {"spec": schema}})
}

#[test]
fn names_are_filled_in() {
    let obj = definition(json!({"type": "object"}));
    assert_eq!(obj["spec"]["names"]["singular"], "a");
    assert_eq!(obj["spec"]["names"]["listKind"], "AList");
    assert_eq!(obj["spec"]["conversion"]["strategy"], "None");
    assert_eq!(obj["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(broken(&obj), Vec::<String>::new());
}

#[test]
fn schemas_must_be_structural() {
    const AT: &str = "spec.validation.openAPIV3Schema";
    for (schema, want) in [
        (json!({}), ": Required value: must not be empty at the root"),
        (
            spec(json!({"properties": {"a": {"type": "string"}}})),
            "Required value: must not be empty for specified object fields",
        ),
        (
            spec(json!({"type": "array"})),
            ".properties[spec].items: Required value: must be specified",
        ),
        (
            spec(json!({"type": "object", "anyOf": [{"type": "object"}]})),
            ".properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "anyOf": [{"required": ["a"], "properties": {"a": {}}}]}),
            ".properties[a]: Required value: because it is defined in spec.validation.openAPIV3Schema.anyOf[0].properties[a]",
        ),
        (
            spec(json!({"type": "string", "pattern": "("})),
            "must be a valid regular expression",
        ),
        (
            spec(json!({"type": "text"})),
            r#".properties[spec].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string""#,
        ),
        (
            spec(json!({"type": "object", "$ref": "x"})),
            ".properties[spec].$ref: Forbidden: $ref is not supported",
        ),
        (
            spec(json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true})),
            "uniqueItems cannot be set to true",
        ),
        (
            spec(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            ),
            "additionalProperties and properties are mutual exclusive",
        ),
        (
            spec(json!({"type": "string", "default": 1})),
            r#".properties[spec].default: Invalid value: "integer":"#,
        ),
        (
            spec(json!({"type": "object", "default": {"x": 1}})),
            "must not have unknown fields",
        ),
        (
            spec(
                json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
            ),
            "x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            spec(
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "properties": {"a": {"type": "string"}}}}),
            ),
            "it must have a default or be a required property",
        ),
        (
            spec(
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}),
            ),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "must not specify anything other than name and generateName",
        ),
        (
            json!({"type": "object", "properties": {"kind": {"type": "string", "default": "A"}}}),
            "must not be set in top-level kind",
        ),
        (
            json!({"type": "object", "nullable": true}),
            "nullable cannot be true at the root",
        ),
        (
            spec(json!({"type": "string", "x-kubernetes-validations": [{"rule": ""}]})),
            "rule is not specified",
        ),
    ] {
        let errors = broken(&definition(schema.clone()));
        assert!(
            errors.iter().any(|e| e.starts_with(AT) && e.contains(want)),
            "{schema} {errors:?}"
        );
    }
}

#[test]
fn good_schemas() {
    for schema in [
        spec(json!({"x-kubernetes-int-or-string": true})),
        spec(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        spec(
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "^a$"}]}),
        ),
        spec(json!({"x-kubernetes-preserve-unknown-fields": true})),
        spec(
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
        ),
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}}),
        spec(
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}}),
        ),
        spec(
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "x", "enum": ["x", "y"]}}, "oneOf": [{"properties": {"a": {"enum": ["x"]}}}, {"properties": {"a": {"enum": ["y"]}}}]}),
        ),
    ] {
        assert_eq!(
            broken(&definition(schema.clone())),
            Vec::<String>::new(),
            "{schema}"
        );
    }
}

#[test]
fn versions_names_and_conversion() {
    let mut obj = definition(json!({"type": "object"}));
    obj["metadata"]["name"] = "bs.example.com".into();
    obj["spec"]["names"]["shortNames"] = json!(["A_"]);
    obj["spec"]["names"]["listKind"] = "A".into();
    obj["spec"]["conversion"] =
        json!({"strategy": "Webhook", "webhook": {"clientConfig": {"url": "http://x"}}});
    obj["spec"]["versions"][0]["additionalPrinterColumns"] =
        json!([{"name": "x", "type": "text", "jsonPath": "spec"}]);
    obj["spec"]["versions"][0]["subresources"] =
        json!({"scale": {"specReplicasPath": ".status.x"}});
    obj["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".spec"}]);
    obj["status"]["storedVersions"] = json!(["v1", "v0"]);
    let errors = broken(&obj);
    for want in [
        "metadata.name: Invalid value: \"bs.example.com\": must be spec.names.plural+\".\"+spec.group",
        "spec.names.shortNames[0]: Invalid value: \"A_\"",
        "spec.names.listKind: Invalid value: \"A\": kind and listKind may not be the same",
        "spec.conversion.webhookClientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme",
        "spec.conversion.conversionReviewVersions: Required value",
        "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
        "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .",
        "spec.subresources.scale.specReplicasPath: Invalid value: \".status.x\": should be a json path under .spec",
        "spec.subresources.scale.statusReplicasPath: Required value",
        "spec.selectableFields[0].jsonPath: Invalid value: \".spec\": is an invalid path",
        "status.storedVersions[1]: Invalid value: \"v0\": missing from spec.versions",
    ] {
        assert!(
            errors.iter().any(|e| e.starts_with(want)),
            "{want} {errors:#?}"
        );
    }
}

#[test]
fn what_cannot_change() {
    let mut old = definition(json!({"type": "object"}));
    let mut new = old.clone();
    new["spec"]["scope"] = "Cluster".into();
    assert!(validate_update(kind(), &new, &old).is_empty());
    set_condition(
        &mut old,
        "Established",
        true,
        ("InitialNamesAccepted", ""),
        api::time::Timestamp::UNIX_EPOCH,
    );
    let errors = validate_update(kind(), &new, &old);
    assert_eq!(
        errors[0].to_string(),
        "spec.scope: Invalid value: \"Cluster\": field is immutable"
    );
}

#[test]
fn protected_groups_need_approval() {
    let mut obj = definition(json!({"type": "object"}));
    obj["metadata"]["name"] = "as.x.k8s.io".into();
    obj["spec"]["group"] = "x.k8s.io".into();
    assert_eq!(
        broken(&obj),
        [
            "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"
        ]
    );
    obj["metadata"]["annotations"] =
        json!({"api-approved.kubernetes.io": "https://github.com/x/pull/1"});
    assert!(broken(&obj).is_empty());
}

#[test]
fn deletion_waits_for_the_objects() {
    let now = api::time::Timestamp::UNIX_EPOCH;
    let held = crate::hold_on_delete(kind(), &definition(json!({"type": "object"})), now).unwrap();
    assert_eq!(held["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
    assert!(api::custom::condition_is_true(&held, "Terminating"));
}

#[test]
fn real_definitions_are_accepted() {
    let folder = "/work/shared/api/gateway-api-crds";
    for part in ["standard", "experimental"] {
        let Ok(files) = std::fs::read_dir(format!("{folder}/{part}")) else {
            return;
        };
        for file in files.flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap();
            // Files of several documents hold no definitions.
            let Ok((mut obj, _)) = codec::parse(text.as_bytes(), codec::ContentType::Yaml) else {
                continue;
            };
            if obj["kind"] == "CustomResourceDefinition" {
                codec::check(&mut obj, kind(), Vec::new(), codec::FieldValidation::Strict).unwrap();
                Definition.default(&mut obj);
                assert_eq!(broken(&obj), Vec::<String>::new(), "{:?}", file.path());
            }
        }
    }
}

#[test]
fn expressions_are_compiled_when_they_are_written() {
    for (schema, want) in [
        (
            spec(
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.nope == 1"}], "properties": {"a": {"type": "integer"}}}),
            ),
            "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.nope == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
        ),
        (
            spec(json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self + 1"}]})),
            "cel expression must evaluate to a bool",
        ),
        (
            spec(
                json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0", "messageExpression": "self"}]}),
            ),
            "messageExpression must evaluate to a string",
        ),
        (
            spec(
                json!({"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > oldSelf"}]}}),
            ),
            "oldSelf cannot be used on the uncorrelatable portion of the schema within spec.validation.openAPIV3Schema.properties[spec]",
        ),
        (
            spec(
                json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 0", "optionalOldSelf": true}]}),
            ),
            "may not be set if oldSelf is not used in rule",
        ),
        (
            spec(
                json!({"type": "object", "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".x"}]}),
            ),
            "must be a valid path",
        ),
    ] {
        let errors = broken(&definition(schema));
        assert!(errors.iter().any(|e| e.contains(want)), "{want} {errors:?}");
    }
    let good = spec(json!({"type": "integer", "x-kubernetes-validations": [
        {"rule": "self >= oldSelf.orValue(0)", "optionalOldSelf": true, "messageExpression": "'%d is too small'.format([self])"}]}));
    assert_eq!(broken(&definition(good)), Vec::<String>::new());
}

#[test]
fn rules_must_be_affordable() {
    const RULE: &str = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Forbidden";
    const HINT: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let list = |max: Value| {
        spec(
            json!({"type": "array", "maxItems": max, "items": {"type": "string"},
            "x-kubernetes-validations": [{"rule": "self.all(x, self.exists(y, x == y))"}]}),
        )
    };
    let dear = definition(list(Value::Null));
    assert_eq!(
        broken(&dear),
        [
            format!(
                "{RULE}: estimated rule cost exceeds budget by factor of more than 100x {HINT}"
            ),
            format!(
                "{RULE}: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
            ),
            format!(
                "spec.validation.openAPIV3Schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x {HINT}"
            ),
        ]
    );
    assert_eq!(
        broken(&definition(list(json!(6)))),
        [format!(
            "{RULE}: estimated rule cost exceeds budget by factor of 1.132488x {HINT}"
        )]
    );
    assert_eq!(
        broken(&definition(list(json!(7)))),
        [format!(
            "{RULE}: estimated rule cost exceeds budget by factor of 1.5x {HINT}"
        )]
    );
    assert_eq!(broken(&definition(list(json!(5)))), Vec::<String>::new());

    // Each rule is paid for as often as there can be values, and all are paid for together.
    let many = |n: usize| {
        let rules: Vec<Value> = (0..n)
            .map(|_| json!({"rule": "self.contains('x')"}))
            .collect();
        json!({"type": "array", "maxItems": 30, "items": {"type": "string", "x-kubernetes-validations": rules}})
    };
    assert_eq!(broken(&definition(spec(many(10)))), Vec::<String>::new());
    let errors = broken(&definition(spec(many(11))));
    assert_eq!(errors.len(), 5, "{errors:?}");
    let named = "spec.validation.openAPIV3Schema.properties[spec].items.x-kubernetes-validations";
    assert!(
        errors[..4].iter().all(|e| e.starts_with(named)),
        "{errors:?}"
    );
    assert!(
        errors[4].contains("exceeds budget by factor of 1.038"),
        "{errors:?}"
    );

    let message = spec(
        json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [
        {"rule": "true", "messageExpression": "self[0] + self[1] + self[2] + self[3] + self[4] + self[5] + self[6] + self[7]"}]}),
    );
    let errors = broken(&definition(message));
    assert!(
        errors[0].contains(
            "].messageExpression: Forbidden: estimated messageExpression cost exceeds budget"
        ),
        "{errors:?}"
    );
}

/// A definition that was made when nobody counted can still be changed elsewhere.
#[test]
fn rules_that_were_accepted_stay() {
    let schema = spec(
        json!({"type": "array", "maxItems": 7, "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(x, self.exists(y, x == y))"}]}),
    );
    let mut old = definition(schema);
    old["metadata"]["resourceVersion"] = "1".into();
    old["status"] = json!({"storedVersions": ["v1"]});
    let mut new = old.clone();
    new["spec"]["versions"][0]["served"] = false.into();
    let texts = |new: &Value| -> Vec<String> {
        validate_update(kind(), new, &old)
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(texts(&new), Vec::<String>::new());
    new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["maxItems"] =
        8.into();
    assert_eq!(texts(&new).len(), 1);
}
