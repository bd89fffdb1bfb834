//! Table rows of custom kinds: the name, and what the columns' paths find.

use api::custom::Custom;
use api::jsonpath;
use api::time::{self, Timestamp};
use api::{Kind, meta};
use serde_json::Value;

/// Cells of an object's row, in the order of the kind's columns.
pub(crate) fn row(kind: &Kind, custom: &Custom, obj: &Value, now: Timestamp) -> Vec<Value> {
    let found = custom.cells.iter().zip(kind.columns.iter().skip(1));
    let cells = found.map(|(path, column)| {
        let value = path.as_ref().and_then(|p| p.find(obj).into_iter().next());
        value.map_or(Value::Null, |v| cell(&column.kind, v, now))
    });
    std::iter::once(Value::from(meta::name(obj)))
        .chain(cells)
        .collect()
}

fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match kind {
        _ if value.is_null() => Value::Null,
        "string" => jsonpath::text(value).into(),
        "integer" => {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "as upstream shortens floats"
            )]
            let whole = value.as_i64().or_else(|| value.as_f64().map(|f| f as i64));
            whole.map_or(Value::Null, Value::from)
        }
        "number" if value.is_number() => value.clone(),
        "boolean" if value.is_boolean() => value.clone(),
        "date" => match value.as_str() {
            Some(text) if time::parse(text).is_some() => time::age(text, now).into(),
            Some(_) => "<invalid>".into(),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}
