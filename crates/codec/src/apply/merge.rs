//! Putting an applied configuration into an object, and taking fields out of one.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::path::PathElement;
use super::set::Set;
use super::typed::{Atom, List, Ty, field_type, is_empty, item_element};

/// Puts everything that `config` says into `live`. Nothing is removed.
///
/// Items of lists come in the order of `config` where it changes the list, and as they were otherwise.
pub fn merge(live: &mut Value, config: &Value, ty: Ty<'_>) {
    let main = if config.is_null() { &*live } else { config };
    let atom = ty.atom(main);
    if atom.is_leaf() || (is_empty(live) && is_empty(config)) {
        live.clone_from(config);
        return;
    }
    match (atom, &mut *live, config) {
        (Atom::Struct { schema, .. }, Value::Object(live), Value::Object(config)) => {
            merge_maps(live, config, |name| {
                field_type(schema, name).unwrap_or(Ty::Deduced)
            });
        }
        (Atom::Map { item, .. }, Value::Object(live), Value::Object(config)) => {
            merge_maps(live, config, |_| item);
        }
        (Atom::List { kind, item }, Value::Array(items), Value::Array(config)) => {
            merge_lists(items, config, kind, item);
        }
        // A null map or list adds nothing to what is there.
        (Atom::Struct { .. } | Atom::Map { .. }, Value::Object(_), Value::Null)
        | (Atom::List { .. }, Value::Array(_), Value::Null) => {}
        _ => live.clone_from(config),
    }
}

fn merge_maps<'s>(
    live: &mut Map<String, Value>,
    config: &Map<String, Value>,
    ty: impl Fn(&str) -> Ty<'s>,
) {
    for (name, wanted) in config {
        match live.get_mut(name) {
            Some(value) => merge(value, wanted, ty(name)),
            None => {
                live.insert(name.clone(), wanted.clone());
            }
        }
    }
}

/// The path elements of a list, in order, and where each is.
struct Side {
    elements: Vec<PathElement>,
    /// Indexes, sorted by element.
    index: Vec<usize>,
}

impl Side {
    fn new(items: &[Value], kind: List<'_>, ty: Ty<'_>) -> Option<Self> {
        let elements: Vec<PathElement> = items
            .iter()
            .map(|item| item_element(kind, ty, item).ok())
            .collect::<Option<_>>()?;
        let mut index: Vec<usize> = (0..elements.len()).collect();
        index.sort_by(|a, b| elements[*a].cmp(&elements[*b]));
        Some(Self { elements, index })
    }

    /// Where the items with an element are.
    fn all(&self, element: &PathElement) -> &[usize] {
        let start = self.index.partition_point(|i| self.elements[*i] < *element);
        let end = self
            .index
            .partition_point(|i| self.elements[*i] <= *element);
        &self.index[start..end]
    }

    fn has(&self, element: &PathElement) -> bool {
        !self.all(element).is_empty()
    }

    /// Where the item with an element is; `None` if there is none or more than one.
    fn only(&self, element: &PathElement) -> Option<usize> {
        match self.all(element) {
            [one] => Some(*one),
            _ => None,
        }
    }
}

/// Merges lists whose items can be told apart: items both have appear in the order of `config`, each behind the
/// live items that came before it.
fn merge_lists(items: &mut Vec<Value>, wanted: &[Value], kind: List<'_>, ty: Ty<'_>) {
    let (Some(live), Some(config)) = (Side::new(items, kind, ty), Side::new(wanted, kind, ty))
    else {
        items.clear();
        items.extend_from_slice(wanted);
        return;
    };
    let mut was = std::mem::take(items);
    // Every live item is taken once at most: alone, or by the one of the configuration that it merges with.
    let both = |at: usize, was: &mut [Value]| match live.only(&config.elements[at]) {
        Some(live_at) => {
            let mut merged = std::mem::take(&mut was[live_at]);
            merge(&mut merged, &wanted[at], ty);
            merged
        }
        None => wanted[at].clone(),
    };
    let mut shared = config.elements.iter().filter(|e| live.has(e)).peekable();
    let mut done = vec![false; wanted.len()];
    let (mut l, mut c) = (0, 0);
    while l < was.len() || c < wanted.len() {
        if let (Some(mine), Some(next)) = (live.elements.get(l), config.elements.get(c)) {
            if mine == next {
                items.push(both(c, &mut was));
                done[c] = true;
                (l, c) = (l + 1, c + 1);
                shared.next();
                continue;
            }
            if config.has(mine) && shared.peek().is_some_and(|next| **next != *mine) {
                // It comes later, where the configuration has it.
                l += 1;
                continue;
            }
        }
        if let Some(mine) = live.elements.get(l) {
            let theirs = config.all(mine);
            if theirs.is_empty() {
                items.push(std::mem::take(&mut was[l]));
                l += 1;
                continue;
            }
            if theirs.iter().any(|i| done[*i]) {
                l += 1;
            }
        }
        if let Some(next) = config.elements.get(c) {
            items.push(both(c, &mut was));
            done[c] = true;
            c += 1;
            shared.next_if(|e| *e == next);
        }
    }
}

/// `value` without the fields and items in `gone`.
///
/// A map or list that loses everything becomes null: there is nothing left to say about it.
pub fn remove(value: &Value, gone: &Set, ty: Ty<'_>) -> Value {
    match (ty.atom(value), value) {
        (atom, Value::Object(_) | Value::Array(_)) if atom.is_leaf() => Value::Null,
        (Atom::Struct { schema, .. }, Value::Object(map)) => remove_keys(map, gone, |name| {
            field_type(schema, name).unwrap_or(Ty::Deduced)
        }),
        (Atom::Map { item, .. }, Value::Object(map)) => remove_keys(map, gone, |_| item),
        (Atom::List { kind, item }, Value::Array(items)) => {
            let mut out = Vec::with_capacity(items.len());
            for child in items {
                let node = item_element(kind, item, child)
                    .ok()
                    .and_then(|element| gone.node(&element));
                match node {
                    Some(node) if node.member => {}
                    Some(node) => match remove(child, &node.children, item) {
                        Value::Null => {}
                        rest => out.push(rest),
                    },
                    None => out.push(child.clone()),
                }
            }
            if out.is_empty() {
                Value::Null
            } else {
                Value::Array(out)
            }
        }
        (_, scalar) => scalar.clone(),
    }
}

fn remove_keys<'s>(map: &Map<String, Value>, gone: &Set, ty: impl Fn(&str) -> Ty<'s>) -> Value {
    let mut out = Map::with_capacity(map.len());
    for (name, child) in map {
        match gone.node(&PathElement::field(name)) {
            Some(node) if node.member => {}
            Some(node) => {
                out.insert(name.clone(), remove(child, &node.children, ty(name)));
            }
            None => {
                out.insert(name.clone(), child.clone());
            }
        }
    }
    if out.is_empty() {
        Value::Null
    } else {
        Value::Object(out)
    }
}

/// `set` with the declared fields on the way to its members as members too: `.spec` when `.spec.replicas` is.
pub fn with_declared_parents(set: &Set, ty: Ty<'_>) -> Set {
    let mut out = Set::default();
    let empty = Value::Null;
    let atom = ty.atom(&empty);
    for node in set.nodes() {
        let (named, child) = match (&node.element, atom) {
            (PathElement::Field(name), Atom::Struct { schema, .. }) => (
                schema.field(name).is_some() && !node.children.is_empty(),
                field_type(schema, name).unwrap_or(Ty::Deduced),
            ),
            (PathElement::Field(_), Atom::Map { item, .. })
            | (PathElement::Key(_), Atom::List { item, .. }) => (false, item),
            _ => (false, Ty::Deduced),
        };
        out.push(
            node.element.clone(),
            node.member || named,
            with_declared_parents(&node.children, child),
        );
    }
    out
}

/// `set` for the schema as it is now: what became one leaf is owned as a whole by whoever owned parts of it.
pub fn reconcile<'a>(set: &'a Set, ty: Ty<'_>) -> Cow<'a, Set> {
    if !is_outdated(set, ty) {
        return Cow::Borrowed(set);
    }
    let atom = ty.atom(&Value::Null);
    let mut out = Set::default();
    for node in set.nodes() {
        let (whole, children) = match child_type(atom, &node.element) {
            Some(ty) if is_whole(ty, &node.children) => (true, Set::default()),
            Some(ty) => (false, reconcile(&node.children, ty).into_owned()),
            None => (false, node.children.clone()),
        };
        out.push(node.element.clone(), node.member || whole, children);
    }
    Cow::Owned(out)
}

fn is_outdated(set: &Set, ty: Ty<'_>) -> bool {
    let atom = ty.atom(&Value::Null);
    set.nodes()
        .iter()
        .filter(|node| !node.children.is_empty())
        .any(|node| {
            child_type(atom, &node.element)
                .is_some_and(|ty| is_whole(ty, &node.children) || is_outdated(&node.children, ty))
        })
}

/// Whether the schema has one leaf where a set has paths below.
fn is_whole(ty: Ty<'_>, below: &Set) -> bool {
    let atom = ty.atom(&Value::Null);
    !matches!(atom, Atom::Scalar(_)) && atom.is_leaf() && !below.is_empty()
}

fn child_type<'s>(atom: Atom<'s>, element: &PathElement) -> Option<Ty<'s>> {
    match (element, atom) {
        (PathElement::Field(name), Atom::Struct { schema, .. }) => field_type(schema, name),
        (PathElement::Field(_), Atom::Map { item, .. })
        | (PathElement::Key(_) | PathElement::Value(_), Atom::List { item, .. }) => Some(item),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod_spec() -> Ty<'static> {
        Ty::Object(api::schema("io.k8s.api.core.v1.PodSpec").unwrap())
    }

    fn names(list: &[&str]) -> Value {
        list.iter()
            .map(|n| json!({"name": n, "image": "i"}))
            .collect()
    }

    fn merged_names(live: &[&str], config: &[&str]) -> Vec<String> {
        let mut out = json!({"containers": names(live)});
        merge(&mut out, &json!({"containers": names(config)}), pod_spec());
        let items = out["containers"].as_array().unwrap();
        items
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn order_of_merged_lists() {
        for (live, config, out) in [
            (&["a", "b"][..], &["a", "b"][..], "ab"),
            (&["a", "b", "c"], &["c", "a"], "bca"),
            (&["a", "b"], &["c"], "abc"),
            (&["a", "b", "c"], &["x", "b"], "axbc"),
            (&["1", "2", "3"], &["2", "1"], "231"),
            (&["1", "2", "3", "4", "5"], &["5", "3", "1"], "24531"),
            (&[], &["b", "a"], "ba"),
        ] {
            assert_eq!(
                merged_names(live, config).concat(),
                out,
                "{live:?} {config:?}"
            );
        }
    }

    #[test]
    fn leaves_and_nulls() {
        let mut live = json!({"nodeSelector": {"a": "1"}, "hostname": "h", "containers": [{"name": "c", "command": ["x"], "env": [{"name": "E", "value": "1"}]}]});
        let config = json!({"nodeSelector": {"b": "2"}, "hostname": null, "containers": [{"name": "c", "command": ["y"], "env": null, "image": "i"}]});
        merge(&mut live, &config, pod_spec());
        assert_eq!(
            live,
            json!({"nodeSelector": {"b": "2"}, "hostname": null, "containers": [{"name": "c", "command": ["y"], "env": [{"name": "E", "value": "1"}], "image": "i"}]})
        );
    }

    #[test]
    fn removal() {
        let live = json!({"hostname": "h", "containers": [{"name": "c", "image": "i"}, {"name": "d", "ports": [{"containerPort": 1}]}]});
        let gone = Set::from_fields(&json!({"f:hostname": {}, "f:containers": {"k:{\"name\":\"c\"}": {}, "k:{\"name\":\"d\"}": {"f:ports": {"k:{\"containerPort\":1,\"protocol\":\"TCP\"}": {}}}}})).unwrap();
        assert_eq!(
            remove(&live, &gone, pod_spec()),
            json!({"containers": [{"name": "d", "ports": null}]})
        );
    }

    #[test]
    fn parents_and_reconciliation() {
        let set = Set::from_fields(&json!({"f:containers": {"k:{\"name\":\"c\"}": {"f:resources": {"f:limits": {"f:cpu": {}}}}}, "f:nodeSelector": {".": {}, "f:a": {}}})).unwrap();
        assert_eq!(
            with_declared_parents(&set, pod_spec()).texts(),
            [
                ".containers",
                ".nodeSelector",
                ".containers[name=\"c\"].resources",
                ".containers[name=\"c\"].resources.limits",
                ".containers[name=\"c\"].resources.limits.cpu",
                ".nodeSelector.a"
            ]
        );
        // nodeSelector is atomic: parts of it count for the whole.
        assert_eq!(
            reconcile(&set, pod_spec()).texts(),
            [
                ".nodeSelector",
                ".containers[name=\"c\"].resources.limits.cpu"
            ]
        );
    }
}
