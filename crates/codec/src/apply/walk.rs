//! Which fields an object has, and which differ between two objects.

use std::cmp::Ordering;

use serde_json::Value;

use super::path::PathElement;
use super::set::Set;
use super::typed::{Atom, List, Ty, as_kept, declared_type, is_empty, item_element};

/// The fields an applied configuration speaks of: every leaf, every list item and every key of a map.
///
/// Items that cannot be told apart are left out; validation reports them before.
pub fn field_set(value: &Value, ty: Ty<'_>) -> Set {
    below(value, ty)
}

/// Whether a value is itself a leaf of the field set.
fn is_leaf(value: &Value, ty: Ty<'_>) -> bool {
    value.is_null()
        || value.as_object().is_some_and(serde_json::Map::is_empty)
        || ty.atom(value).is_leaf()
}

fn below(value: &Value, ty: Ty<'_>) -> Set {
    let mut set = Set::default();
    if value.is_null() {
        return set;
    }
    match (ty.atom(value), value) {
        (
            Atom::Struct {
                schema,
                atomic: false,
            },
            Value::Object(map),
        ) => {
            for (name, child) in map {
                let field = schema.field(name);
                let ty = field.map_or(Ty::Deduced, |field| declared_type(schema, field));
                let member = field.is_none() || is_leaf(child, ty);
                set.push(PathElement::field(name), member, below(child, ty));
            }
        }
        (
            Atom::Map {
                item,
                atomic: false,
            },
            Value::Object(map),
        ) => {
            for (name, child) in map {
                set.push(PathElement::field(name), true, below(child, item));
            }
        }
        (Atom::List { kind, item }, Value::Array(items)) if !matches!(kind, List::Atomic) => {
            for (element, same) in grouped(items, kind, item).unwrap_or_default() {
                let children = match same.as_slice() {
                    [one] => below(one, item),
                    // Items that occur twice are owned as wholes.
                    _ => Set::default(),
                };
                set.push(element, true, children);
            }
        }
        _ => {}
    }
    set
}

/// The items of a list by path element, sorted; items with the same one stay in their order.
pub fn grouped<'v>(
    items: &'v [Value],
    kind: List<'_>,
    ty: Ty<'_>,
) -> Result<Vec<(PathElement, Vec<&'v Value>)>, String> {
    let mut all = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let element = item_element(kind, ty, item).map_err(|e| format!("element {index}: {e}"))?;
        all.push((element, item));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out: Vec<(PathElement, Vec<&Value>)> = Vec::with_capacity(all.len());
    for (element, item) in all {
        match out.last_mut() {
            Some((last, same)) if *last == element => same.push(item),
            _ => out.push((element, vec![item])),
        }
    }
    Ok(out)
}

/// What differs between two objects. No path is in two of the sets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Fields only the old object has.
    pub removed: Set,
    /// Leaves both have, with other values.
    pub modified: Set,
    /// Fields only the new object has.
    pub added: Set,
}

impl Comparison {
    /// Whether nothing differs.
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// Fields the new object set.
    pub fn into_changed(self) -> Set {
        self.modified.joined(self.added)
    }

    /// Fields of `set` that the new object set.
    pub fn changed_of(&self, set: &Set) -> Set {
        set.intersection(&self.modified)
            .joined(set.intersection(&self.added))
    }

    /// All three sets through a filter.
    pub fn map(self, filter: impl Fn(Set) -> Set) -> Self {
        Self {
            removed: filter(self.removed),
            modified: filter(self.modified),
            added: filter(self.added),
        }
    }
}

/// Compares two objects of a type.
///
/// # Errors
/// When items of a list cannot be told apart.
pub fn compare(old: &Value, new: &Value, ty: Ty<'_>) -> Result<Comparison, String> {
    let mut out = Comparison::default();
    if old != new {
        walk(Some(old), Some(new), ty, &mut out)?;
    }
    Ok(out)
}

/// What became of a field itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Same,
    Removed,
    Modified,
    Added,
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Mark {
    match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        (Some(a), Some(b)) if same_value(a, b) => Mark::Same,
        _ => Mark::Modified,
    }
}

/// Numbers are the same if they are worth the same.
fn same_value(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && b.is_number() && super::path::compare_values(a, b).is_eq())
}

/// Compares two values of which at least one is there; fills in what differs below them.
fn walk(
    old: Option<&Value>,
    new: Option<&Value>,
    ty: Ty<'_>,
    out: &mut Comparison,
) -> Result<Mark, String> {
    let some = |v: Option<&Value>| v.filter(|v| !v.is_null()).map(kind_of);
    if let (Some(a), Some(b)) = (some(old), some(new))
        && a != b
        && !matches!(ty, Ty::Leaf)
    {
        // Where the schema leaves the kind of value open, it may change altogether.
        if a == Kind::Map {
            walk(old, None, ty, out)?;
        }
        if b == Kind::Map {
            walk(None, new, ty, out)?;
        }
        return Ok(Mark::Modified);
    }
    let main = new.filter(|v| !v.is_null()).or(old).or(new);
    let atom = ty.atom(main.unwrap_or(&Value::Null));
    if atom.is_leaf() || (old.is_none_or(is_empty) && new.is_none_or(is_empty)) {
        return Ok(leaf(old, new));
    }
    match atom {
        Atom::Struct { schema, .. } => {
            for (name, a, b) in pairs(old, new) {
                let field = schema.field(name);
                let ty = field.map_or(Ty::Deduced, |field| declared_type(schema, field));
                let kept = |parent: Option<&Value>, child| match field {
                    Some(field) if parent.is_some() => as_kept(schema, field, child),
                    _ => child,
                };
                step(
                    PathElement::field(name),
                    kept(old, a),
                    kept(new, b),
                    ty,
                    out,
                )?;
            }
        }
        Atom::Map { item, .. } => {
            for (name, a, b) in pairs(old, new) {
                step(PathElement::field(name), a, b, item, out)?;
            }
        }
        Atom::List { kind, item } => lists(old, new, kind, item, out)?,
        Atom::Scalar(_) => {}
    }
    Ok(match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        _ => Mark::Same,
    })
}

/// Compares the values at one step and files what differs.
fn step(
    element: PathElement,
    old: Option<&Value>,
    new: Option<&Value>,
    ty: Ty<'_>,
    out: &mut Comparison,
) -> Result<(), String> {
    if old == new {
        return Ok(());
    }
    let mut inner = Comparison::default();
    let mark = walk(old, new, ty, &mut inner)?;
    file(element, mark, inner, out);
    Ok(())
}

fn file(element: PathElement, mark: Mark, inner: Comparison, out: &mut Comparison) {
    let all = [
        (&mut out.removed, Mark::Removed, inner.removed),
        (&mut out.modified, Mark::Modified, inner.modified),
        (&mut out.added, Mark::Added, inner.added),
    ];
    let mut filed = all
        .into_iter()
        .map(|(set, why, children)| (set, mark == why, children))
        .filter(|(_, member, children)| *member || !children.is_empty());
    // Nearly always it is one of them, which needs no copy of the element.
    let Some((set, member, children)) = filed.next() else {
        return;
    };
    for (set, member, children) in filed {
        set.push(element.clone(), member, children);
    }
    set.push(element, member, children);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scalar,
    List,
    Map,
}

fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Object(_) => Kind::Map,
        Value::Array(_) => Kind::List,
        _ => Kind::Scalar,
    }
}

type Pair<'v> = (&'v str, Option<&'v Value>, Option<&'v Value>);

/// The keys of two objects, sorted as maps are, with their values in both.
fn pairs<'v>(old: Option<&'v Value>, new: Option<&'v Value>) -> impl Iterator<Item = Pair<'v>> {
    let fields = |value: Option<&'v Value>| value.and_then(Value::as_object).into_iter().flatten();
    let (mut old, mut new) = (fields(old).peekable(), fields(new).peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some((a, _)), Some((b, _))) => a.cmp(b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let a = old.next_if(|_| order.is_le());
        let b = new.next_if(|_| order.is_ge());
        let (name, _) = a.or(b)?;
        Some((
            name.as_str(),
            a.map(|(_, value)| value),
            b.map(|(_, value)| value),
        ))
    })
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn lists(
    old: Option<&Value>,
    new: Option<&Value>,
    kind: List<'_>,
    ty: Ty<'_>,
    out: &mut Comparison,
) -> Result<(), String> {
    let old = grouped(items(old), kind, ty)?;
    let new = grouped(items(new), kind, ty)?;
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        let order = match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) => a.0.cmp(&b.0),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let a = if order.is_le() { old.get(i) } else { None };
        let b = if order.is_ge() { new.get(j) } else { None };
        i += usize::from(a.is_some());
        j += usize::from(b.is_some());
        let Some((element, _)) = a.or(b) else { break };
        let (a, b) = (
            a.map_or(&[][..], |(_, same)| same),
            b.map_or(&[][..], |(_, same)| same),
        );
        same_items(element, a, b, ty, out)?;
    }
    Ok(())
}

/// Compares the items of one path element; more than one on a side count as one leaf there.
fn same_items(
    element: &PathElement,
    old: &[&Value],
    new: &[&Value],
    ty: Ty<'_>,
    out: &mut Comparison,
) -> Result<(), String> {
    let mut inner = Comparison::default();
    let mark = match (old, new) {
        ([] | [_], [] | [_]) => {
            let (a, b) = (old.first().copied(), new.first().copied());
            return step(element.clone(), a, b, ty, out);
        }
        ([_, _, ..], [_, _, ..]) if old == new => Mark::Same,
        ([_, _, ..], [_, _, ..]) => Mark::Modified,
        (_, [_, _, ..]) => {
            if let Some(one) = old.first() {
                walk(Some(one), None, ty, &mut inner)?;
            }
            Mark::Added
        }
        _ => {
            if let Some(one) = new.first() {
                walk(None, Some(one), ty, &mut inner)?;
            }
            Mark::Removed
        }
    };
    file(element.clone(), mark, inner, out);
    Ok(())
}
