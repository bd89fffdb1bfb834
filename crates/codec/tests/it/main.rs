//! What must hold for any object, whatever its kind and however odd.

mod merging;
mod worlds;

use api::Kind;
use codec::{ContentType, FieldValidation};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Keys that schemas know, so that random trees go deep into them.
const KEYS: &str = "(metadata|spec|status|template|containers|name|labels|ports|volumes|env|resources|limits|[$]patch|[$]retainKeys|data|x)";

fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9]{0,4}".prop_map(Value::from),
        Just(json!("delete")),
        Just(json!("replace")),
    ];
    leaf.prop_recursive(5, 48, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((KEYS, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn kind() -> impl Strategy<Value = &'static Kind> {
    (0..api::kinds().len()).prop_map(|i| &api::kinds()[i])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn accepted_objects_are_stable(kind in kind(), body in tree()) {
        let bytes = body.to_string();
        let Ok((mut obj, _)) = codec::decode(bytes.as_bytes(), ContentType::Json, kind, FieldValidation::Ignore) else { return Ok(()) };
        codec::default(kind, &mut obj);
        let mut twice = obj.clone();
        codec::default(kind, &mut twice);
        prop_assert_eq!(&twice, &obj);
        // What was accepted has no unknown fields left, and is accepted again as it is.
        let (again, warnings) = codec::decode(obj.to_string().as_bytes(), ContentType::Json, kind, FieldValidation::Strict).unwrap();
        prop_assert_eq!(&again, &obj);
        prop_assert!(warnings.is_empty());
        let spliced: Value = serde_json::from_slice(&codec::splice_resource_version(&codec::canonical(&obj), 7)).unwrap();
        if obj.get("metadata").is_some() {
            prop_assert_eq!(&spliced["metadata"]["resourceVersion"], "7");
        }
    }

    #[test]
    fn patches_never_panic_and_an_empty_one_changes_nothing(kind in kind(), original in tree(), patch in tree()) {
        if let Ok(out) = codec::patch::strategic_merge(kind, &original, &patch) {
            let twice = codec::patch::strategic_merge(kind, &out, &json!({}));
            if out.is_object() {
                prop_assert_eq!(twice.unwrap(), out);
            }
        }
        let _ = codec::patch::json_patch(&original, &patch);
        let _ = codec::patch::merge_patch(&original, &patch);
    }
}
