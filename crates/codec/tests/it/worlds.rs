//! Random schemas, and random objects that fit them.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Field, ListType, Schema, SchemaRef, Shape};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// The field that tells items of lists of objects apart.
const KEY: &str = "key";
/// Deepest nesting of a schema.
const DEPTH: u32 = 3;
/// Most fields of an object, and most entries of a map or list.
const WIDTH: usize = 4;

/// Which of two parties writes: parties never touch what the other may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Everything.
    All,
    /// Fields at even places, entries whose keys begin with `l`.
    Left,
    /// Fields at odd places, entries whose keys begin with `r`.
    Right,
}

impl Side {
    fn may(self, place: usize) -> bool {
        match self {
            Self::All => true,
            Self::Left => place.is_multiple_of(2),
            Self::Right => !place.is_multiple_of(2),
        }
    }

    fn keys(self) -> &'static str {
        match self {
            Self::All => "[lr][a-c]",
            Self::Left => "l[a-c]",
            Self::Right => "r[a-c]",
        }
    }
}

fn field(name: &str, shape: Shape) -> Field {
    Field {
        name: name.into(),
        shape,
        enum_values: Vec::new(),
        required: false,
        default: None,
        list_type: None,
        map_keys: Vec::new(),
        atomic: false,
        patch_merge: false,
        patch_retain_keys: false,
        patch_merge_key: None,
    }
}

fn of(fields: Vec<Field>) -> Arc<Schema> {
    let mut schema = Schema {
        fields,
        ..Schema::default()
    };
    schema.fields.sort_by(|a, b| a.name.cmp(&b.name));
    Arc::new(schema)
}

fn list(of: Shape) -> Shape {
    Shape::Array(Box::new(of))
}

/// A field of any kind but its name.
fn any_field(depth: u32) -> BoxedStrategy<Field> {
    let plain = prop_oneof![
        Just(field("", Shape::String)),
        Just(field("", Shape::Int64)),
        Just(field("", Shape::Bool)),
        Just(field("", Shape::Map(Box::new(Shape::String)))),
        Just(Field {
            list_type: Some(ListType::Atomic),
            ..field("", list(Shape::String))
        }),
        Just(Field {
            list_type: Some(ListType::Set),
            patch_merge: true,
            ..field("", list(Shape::String))
        }),
    ];
    if depth == 0 {
        return plain.boxed();
    }
    let nested = (any_fields(depth - 1), any::<bool>()).prop_map(|(fields, atomic)| Field {
        atomic,
        ..field("", Shape::Object(SchemaRef::own(of(fields))))
    });
    let keyed = any_fields(depth - 1).prop_map(|mut fields| {
        fields.push(Field {
            required: true,
            ..field(KEY, Shape::String)
        });
        Field {
            list_type: Some(ListType::Map),
            map_keys: vec![KEY.into()],
            patch_merge: true,
            patch_merge_key: Some(KEY.into()),
            ..field("", list(Shape::Object(SchemaRef::own(of(fields)))))
        }
    });
    prop_oneof![3 => plain, 2 => nested, 2 => keyed].boxed()
}

fn any_fields(depth: u32) -> impl Strategy<Value = Vec<Field>> {
    prop::collection::vec(any_field(depth), 1..=WIDTH).prop_map(|fields| {
        let named = fields.into_iter().enumerate();
        named
            .map(|(n, f)| Field {
                name: format!("f{n}").into(),
                ..f
            })
            .collect()
    })
}

/// The schema of a whole object whose `spec` is random.
pub fn schema() -> impl Strategy<Value = Arc<Schema>> {
    any_fields(DEPTH).prop_map(|fields| {
        let meta = SchemaRef::named("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta");
        of(vec![
            field("apiVersion", Shape::String),
            field("kind", Shape::String),
            field("metadata", Shape::Object(meta)),
            field("spec", Shape::Object(SchemaRef::own(of(fields)))),
        ])
    })
}

fn scalar(shape: &Shape) -> BoxedStrategy<Value> {
    match shape {
        Shape::Int64 => (0..3i64).prop_map(Value::from).boxed(),
        Shape::Bool => any::<bool>().prop_map(Value::from).boxed(),
        _ => "[xyz]".prop_map(Value::from).boxed(),
    }
}

fn value(field: &Field, side: Side) -> BoxedStrategy<Value> {
    match &field.shape {
        Shape::Object(inner) => {
            let side = if field.atomic { Side::All } else { side };
            inner.get().map_or_else(
                || Just(json!({})).boxed(),
                |s| fields_of(s, side).prop_map(Value::Object).boxed(),
            )
        }
        Shape::Map(_) => prop::collection::btree_map(side.keys(), "[xyz]", 0..WIDTH)
            .prop_map(|m| json!(m))
            .boxed(),
        Shape::Array(item) => match field.list_type {
            Some(ListType::Set) => prop::collection::btree_set(side.keys(), 0..WIDTH)
                .prop_map(|s| s.into_iter().collect::<Vec<_>>())
                .prop_shuffle()
                .prop_map(|s| json!(s))
                .boxed(),
            Some(ListType::Map) => {
                let Shape::Object(inner) = &**item else {
                    return Just(json!([])).boxed();
                };
                let fields = inner.get().map(|s| fields_of(s, Side::All).boxed());
                let fields = fields.unwrap_or_else(|| Just(Map::new()).boxed());
                prop::collection::btree_map(side.keys(), fields, 0..WIDTH)
                    .prop_map(keyed)
                    .prop_shuffle()
                    .prop_map(Value::Array)
                    .boxed()
            }
            _ => prop::collection::vec(scalar(item), 0..WIDTH)
                .prop_map(Value::Array)
                .boxed(),
        },
        shape => scalar(shape),
    }
}

fn keyed(items: BTreeMap<String, Map<String, Value>>) -> Vec<Value> {
    let with_key = |(key, mut item): (String, Map<String, Value>)| {
        item.insert(KEY.to_owned(), key.into());
        Value::Object(item)
    };
    items.into_iter().map(with_key).collect()
}

/// Whether two parties may both write below a field.
fn shared(field: &Field) -> bool {
    match &field.shape {
        Shape::Object(_) => !field.atomic,
        Shape::Map(_) => true,
        Shape::Array(_) => matches!(field.list_type, Some(ListType::Set | ListType::Map)),
        _ => false,
    }
}

fn fields_of(schema: &Schema, side: Side) -> BoxedStrategy<Map<String, Value>> {
    let mut all = Just(Map::new()).boxed();
    for (place, field) in schema.fields.iter().enumerate() {
        if &*field.name == KEY || !(shared(field) || side.may(place)) {
            continue;
        }
        let name = field.name.to_string();
        all = (all, prop::option::weighted(0.6, value(field, side)))
            .prop_map(move |(mut all, value)| {
                if let Some(value) = value {
                    all.insert(name.clone(), value);
                }
                all
            })
            .boxed();
    }
    all
}

/// A `spec` for a schema, as one party would write it.
pub fn spec(schema: &Schema, side: Side) -> BoxedStrategy<Value> {
    let found = schema.field("spec").map(|f| value(f, side));
    found.unwrap_or_else(|| Just(json!({})).boxed())
}

/// A value with the lists whose order says nothing brought into one order, and without what is empty.
pub fn settled(value: &Value, shape: &Shape, list_type: Option<ListType>) -> Value {
    match (value, shape) {
        (Value::Object(map), Shape::Object(inner)) => {
            let schema = inner.get();
            let each = map.iter().map(|(name, v)| {
                let field = schema.and_then(|s| s.field(name));
                let settled =
                    field.map_or_else(|| v.clone(), |f| settled(v, &f.shape, f.list_type));
                (name.clone(), settled)
            });
            let mut each: Vec<(String, Value)> = each.filter(|(_, v)| !empty(v)).collect();
            each.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(each.into_iter().collect())
        }
        (Value::Object(map), _) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            json!(sorted)
        }
        (Value::Array(items), Shape::Array(item)) => {
            let mut items: Vec<Value> = items.iter().map(|i| settled(i, item, None)).collect();
            if matches!(list_type, Some(ListType::Set | ListType::Map)) {
                items.sort_by_key(|i| i.get(KEY).unwrap_or(i).to_string());
            }
            Value::Array(items)
        }
        _ => value.clone(),
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        other => other.is_null(),
    }
}
