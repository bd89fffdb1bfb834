//! How large values of a schema can be, and how small: what upstream's estimates of costs start from.
//!
//! Where a schema sets no limit, a request does: nothing in it can be larger than the whole.

use std::collections::BTreeMap;

use api::custom::Node;
use cel::Bounds;

use super::cel_types::{escaped, resource};

/// Largest request, in bytes, as estimates take it.
const REQUEST: i64 = 3 * 1024 * 1024;
/// Bytes of a character at most.
const CHARACTER: i64 = 4;
/// Longest duration or time as it is written, in bytes with quotes.
const TIME: i64 = 32;
/// Length of a date as it is written, in bytes with quotes.
const DATE: i64 = 12;

/// The bounds of values, and the bytes that the smallest of them takes.
pub(super) struct Sizes {
    /// Upwards.
    pub bounds: Bounds,
    /// Downwards.
    pub smallest: i64,
}

impl Sizes {
    fn leaf(max: i64, smallest: i64) -> Self {
        let bounds = Bounds {
            max: max.try_into().unwrap_or(0),
            ..Bounds::default()
        };
        Self { bounds, smallest }
    }

    /// How often such values fit into a request.
    pub fn most_of_them(&self) -> u64 {
        (REQUEST / (self.smallest + 1)).try_into().unwrap_or(0)
    }
}

/// The sizes of values that expressions can see; `None` if they cannot.
pub(super) fn of(node: &Node) -> Option<Sizes> {
    if node.int_or_string {
        return Some(Sizes::leaf(text(node), 1));
    }
    if node.embedded {
        let mut plain = resource(node);
        plain.embedded = false;
        return of(&plain);
    }
    Some(match node.kind.as_str() {
        "array" => {
            let items = of(node.items.as_deref()?)?;
            let fit = (REQUEST - 2) / (items.smallest + 1);
            let mut list = Sizes::leaf(node.checks.max_items.unwrap_or(fit), 2);
            list.bounds.items = Some(Box::new(items.bounds));
            list
        }
        "object" if node.others().is_some() => {
            let values = of(node.others()?)?;
            // A key takes two bytes at least, beside quotes, colon and comma.
            let fit = (REQUEST - 2) / (values.smallest + 6);
            let mut map = Sizes::leaf(node.checks.max_properties.unwrap_or(fit), 2);
            map.bounds.items = Some(Box::new(values.bounds));
            map.bounds.keys = Some(Box::default());
            map
        }
        "object" => object(node),
        "boolean" => Sizes::leaf(0, 4),
        "number" | "integer" => Sizes::leaf(0, 1),
        "string" => match node.format.as_str() {
            "byte" => Sizes::leaf(node.checks.max_length.unwrap_or(REQUEST - 2), 2),
            "duration" => Sizes::leaf(TIME, 3),
            "date" => Sizes::leaf(DATE, DATE),
            "date-time" => Sizes::leaf(TIME, 21),
            _ => Sizes::leaf(text(node), 2),
        },
        _ => return None,
    })
}

fn object(node: &Node) -> Sizes {
    let mut fields = BTreeMap::new();
    let mut smallest = 2;
    for (name, inner) in &node.properties {
        let Some(found) = of(inner) else { continue };
        // Defaults are filled in here, and need not be sent.
        if inner.default.is_none() && node.required.contains(name) {
            smallest += i64::try_from(name.len()).unwrap_or(0) + found.smallest + 4;
        }
        if let Some(name) = escaped(name) {
            fields.insert(name, found.bounds);
        }
    }
    let bounds = Bounds {
        fields,
        ..Bounds::default()
    };
    Sizes { bounds, smallest }
}

/// Longest text, in bytes.
fn text(node: &Node) -> i64 {
    if let Some(max) = node.checks.max_length {
        return max.saturating_mul(CHARACTER);
    }
    let allowed = node.checks.allowed.iter().filter_map(|v| v.as_str());
    let longest = allowed.map(str::len).max().filter(|_| !node.int_or_string);
    longest
        .and_then(|n| i64::try_from(n).ok())
        .unwrap_or(REQUEST - 2)
}
