//! What must hold of apply and of patches whatever the schema: each list merges as its schema says, by key, as a
//! set or not at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::time::Timestamp;
use api::{Field, Kind, Schema, SchemaRef, Shape};
use codec::apply::{Context, Reset};
use codec::patch::{json_patch, merge_patch, strategic_merge};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::worlds::{Side, schema, settled, spec};

/// Without what is empty, as clients send it: Go's types cannot tell it from what is not there.
fn filled(value: &Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            let each = map
                .iter()
                .filter_map(|(k, v)| Some((k.clone(), filled(v)?)));
            let map: Map<String, Value> = each.collect();
            (!map.is_empty()).then_some(Value::Object(map))
        }
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => Some(items.iter().filter_map(filled).collect()),
        other => Some(other.clone()),
    }
}

fn apply(
    schema: &Schema,
    live: Option<&Value>,
    manager: &str,
    spec: &Value,
    force: bool,
) -> Result<Value, String> {
    let mut config = json!({"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}});
    if let Some(spec) = filled(spec) {
        config["spec"] = spec;
    }
    let context = Context {
        api_version: "v1",
        kind: "X",
        schema,
        subresource: "",
        reset: &Reset::Nothing,
        versions: &|_, _| None,
        now: Timestamp::UNIX_EPOCH,
    };
    let done = context.apply(live, &config, manager, force);
    done.map_err(|status| status.message.clone())
}

/// The object with lists that have no order in one order, and its owners by name.
fn seen(schema: &Schema, object: &Value) -> (Value, BTreeMap<String, Value>) {
    let field = schema.field("spec").unwrap();
    let mut spec = settled(&object["spec"], &field.shape, None);
    if spec.is_null() {
        spec = json!({});
    }
    let owners = object["metadata"]["managedFields"].as_array();
    let owner = |o: &Value| {
        let name = o["manager"].as_str().unwrap_or_default().to_owned();
        (name, settled(&o["fieldsV1"], &Shape::Any, None))
    };
    (spec, owners.into_iter().flatten().map(owner).collect())
}

/// A schema and what several parties want of an object of it.
fn configurations(sides: &'static [Side]) -> impl Strategy<Value = (Arc<Schema>, Vec<Value>)> {
    schema().prop_flat_map(move |schema| {
        let specs: Vec<_> = sides.iter().map(|side| spec(&schema, *side)).collect();
        (Just(schema), specs)
    })
}

/// A kind whose objects have that schema.
fn kind_of(schema: &Arc<Schema>) -> Kind {
    let mut kind = api::kind_by_gvk("", "v1", "ConfigMap").unwrap().clone();
    kind.schema = SchemaRef::own(schema.clone());
    kind
}

/// The strategic merge patch that makes `to` of `from`.
fn difference(schema: &Schema, from: &Map<String, Value>, to: &Map<String, Value>) -> Value {
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, next) in to {
        match (from.get(name), schema.field(name)) {
            (Some(before), _) if before == next => {}
            (Some(before), Some(field)) => field_difference(&mut patch, field, before, next),
            _ => {
                patch.insert(name.clone(), next.clone());
            }
        }
    }
    Value::Object(patch)
}

fn field_difference(patch: &mut Map<String, Value>, field: &Field, before: &Value, next: &Value) {
    let name = field.name.to_string();
    match (&field.shape, before, next) {
        (Shape::Object(inner), Value::Object(before), Value::Object(next)) => {
            patch.insert(name, difference(inner.get().unwrap(), before, next));
        }
        (Shape::Map(_), Value::Object(before), Value::Object(next)) => {
            patch.insert(name, difference(&Schema::default(), before, next));
        }
        (Shape::Array(item), Value::Array(before), Value::Array(next)) if field.patch_merge => {
            list_difference(patch, field, item, before, next);
        }
        _ => {
            patch.insert(name, next.clone());
        }
    }
}

fn list_difference(
    patch: &mut Map<String, Value>,
    field: &Field,
    item: &Shape,
    before: &[Value],
    next: &[Value],
) {
    let name = &field.name;
    let Some(key) = field.patch_merge_key.as_deref() else {
        let new: Vec<&Value> = next.iter().filter(|v| !before.contains(v)).collect();
        let gone: Vec<&Value> = before.iter().filter(|v| !next.contains(v)).collect();
        if !new.is_empty() {
            patch.insert(name.to_string(), json!(new));
        }
        if !gone.is_empty() {
            patch.insert(format!("$deleteFromPrimitiveList/{name}"), json!(gone));
        }
        patch.insert(format!("$setElementOrder/{name}"), json!(next));
        return;
    };
    let Shape::Object(inner) = item else { return };
    let find = |items: &[Value], of: &Value| items.iter().find(|i| i[key] == of[key]).cloned();
    let mut items = Vec::new();
    for wanted in next {
        let old = find(before, wanted).unwrap_or_else(|| json!({}));
        let (old, new) = (old.as_object().unwrap(), wanted.as_object().unwrap());
        let mut change = difference(inner.get().unwrap(), old, new);
        if change != json!({}) {
            change[key] = wanted[key].clone();
            items.push(change);
        }
    }
    for gone in before.iter().filter(|b| find(next, b).is_none()) {
        items.push(json!({"$patch": "delete", key: gone[key]}));
    }
    if !items.is_empty() {
        patch.insert(name.to_string(), items.into());
    }
    let order: Vec<Value> = next.iter().map(|i| json!({key: i[key]})).collect();
    patch.insert(format!("$setElementOrder/{name}"), order.into());
}

/// RFC 7386's patch that makes `to` of `from`, neither of which has nulls.
fn merge_difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let gone = from.keys().filter(|k| !to.contains_key(*k));
    let gone = gone.map(|k| (k.clone(), Value::Null));
    let kept = to.iter().filter(|(k, v)| from.get(*k) != Some(v));
    let kept = kept.map(|(k, v)| {
        let before = from.get(k).unwrap_or(&Value::Null);
        (k.clone(), merge_difference(before, v))
    });
    Value::Object(gone.chain(kept).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn applying_again_changes_nothing((schema, specs) in configurations(&[Side::All, Side::All, Side::All])) {
        let mut live = None;
        for (manager, spec) in ["a", "b", "a"].into_iter().zip(&specs) {
            let once = apply(&schema, live.as_ref(), manager, spec, true).unwrap();
            let twice = apply(&schema, Some(&once), manager, spec, false).unwrap();
            prop_assert_eq!(&twice, &once);
            live = Some(once);
        }
    }

    #[test]
    fn what_is_applied_is_there_and_goes_with_its_only_owner((schema, specs) in configurations(&[Side::All, Side::All])) {
        let first = apply(&schema, None, "a", &specs[0], false).unwrap();
        let wanted = settled(&specs[0], &schema.field("spec").unwrap().shape, None);
        prop_assert_eq!(&seen(&schema, &first).0, &wanted);
        // What is wanted no more is gone, the rest as if it had been the first wish.
        let second = apply(&schema, Some(&first), "a", &specs[1], false).unwrap();
        let fresh = apply(&schema, None, "a", &specs[1], false).unwrap();
        prop_assert_eq!(seen(&schema, &second), seen(&schema, &fresh));
        let nothing = apply(&schema, Some(&second), "a", &json!({}), false).unwrap();
        prop_assert_eq!(seen(&schema, &nothing).0, json!({}));
    }

    #[test]
    fn those_who_share_no_field_do_not_meet((schema, specs) in configurations(&[Side::Left, Side::Right])) {
        let in_order = |order: [usize; 2]| {
            let mut live = None;
            for n in order {
                live = Some(apply(&schema, live.as_ref(), ["a", "b"][n], &specs[n], false)?);
            }
            Ok::<_, String>(live.unwrap())
        };
        let (ab, ba) = (in_order([0, 1]).unwrap(), in_order([1, 0]).unwrap());
        prop_assert_eq!(seen(&schema, &ab), seen(&schema, &ba));
        // One leaves, and the other's fields stay.
        let left = apply(&schema, Some(&ab), "a", &json!({}), false).unwrap();
        let alone = apply(&schema, None, "b", &specs[1], false).unwrap();
        prop_assert_eq!(seen(&schema, &left), seen(&schema, &alone));
    }

    #[test]
    fn a_refused_apply_names_who_owns_and_force_takes_it((schema, specs) in configurations(&[Side::All, Side::All])) {
        let live = apply(&schema, None, "a", &specs[0], false).unwrap();
        let forced = apply(&schema, Some(&live), "b", &specs[1], true).unwrap();
        match apply(&schema, Some(&live), "b", &specs[1], false) {
            Ok(asked) => prop_assert_eq!(seen(&schema, &asked), seen(&schema, &forced)),
            Err(why) => prop_assert!(why.starts_with("Apply failed with ") && why.contains("\"a\""), "{}", why),
        }
        // Now all that was asked for is b's, so that b may change it.
        prop_assert!(apply(&schema, Some(&forced), "b", &specs[1], false).is_ok());
    }

    #[test]
    fn a_strategic_difference_makes_the_one_of_the_other((schema, specs) in configurations(&[Side::All, Side::All])) {
        let kind = kind_of(&schema);
        let object = |spec: &Value| json!({"metadata": {"name": "x"}, "spec": spec});
        let (from, to) = (object(&specs[0]), object(&specs[1]));
        let patch = difference(&schema, from.as_object().unwrap(), to.as_object().unwrap());
        let made = strategic_merge(&kind, &from, &patch).unwrap();
        prop_assert_eq!(&made, &to, "{}", patch);
        let again = strategic_merge(&kind, &made, &patch).unwrap();
        prop_assert_eq!(again, made);
    }

    #[test]
    fn a_merge_difference_makes_the_one_of_the_other((_, specs) in configurations(&[Side::All, Side::All])) {
        let patch = merge_difference(&specs[0], &specs[1]);
        prop_assert_eq!(&merge_patch(&specs[0], &patch), &specs[1], "{}", patch);
    }

    #[test]
    fn json_patches_happen_as_a_whole((_, specs) in configurations(&[Side::All, Side::All])) {
        let operations = json!(::json_patch::diff(&specs[0], &specs[1]));
        prop_assert_eq!(&json_patch(&specs[0], &operations).unwrap(), &specs[1]);
        let mut failing = operations.as_array().unwrap().clone();
        failing.push(json!({"op": "test", "path": "", "value": "never"}));
        let refused = json_patch(&specs[0], &failing.into()).unwrap_err();
        prop_assert_eq!(refused.code, 422);
    }
}
