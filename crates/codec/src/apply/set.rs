//! Sets of fields, as trees of path elements.
//!
//! Each node says whether the path to it is in the set (`member`) and which paths below it are. Being in the
//! set says nothing about parents or children. Nodes are sorted, and none is neither member nor parent of one.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::path::{PathElement, PathElementError};

/// A set of fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    nodes: Vec<Node>,
}

/// A path element, whether the path ending in it is in the set, and what is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The step from the parent.
    pub element: PathElement,
    /// Whether the path up to here is in the set.
    pub member: bool,
    /// Paths below.
    pub children: Set,
}

impl Set {
    /// The set of one path per item; fields only.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let path: Vec<PathElement> = path.iter().map(|f| PathElement::field(f)).collect();
            set.insert(&path);
        }
        set
    }

    /// Adds a path; the empty path stands for the whole object, which nobody owns.
    pub fn insert(&mut self, path: &[PathElement]) {
        let [first, rest @ ..] = path else { return };
        let at = match self.nodes.binary_search_by(|n| n.element.cmp(first)) {
            Ok(at) => at,
            Err(at) => {
                let node = Node {
                    element: first.clone(),
                    member: false,
                    children: Self::default(),
                };
                self.nodes.insert(at, node);
                at
            }
        };
        if rest.is_empty() {
            self.nodes[at].member = true;
        } else {
            self.nodes[at].children.insert(rest);
        }
    }

    /// Adds a node behind all others, unless it holds nothing.
    pub(super) fn push(&mut self, element: PathElement, member: bool, children: Self) {
        if !member && children.is_empty() {
            return;
        }
        match self.nodes.last().map(|n| n.element.cmp(&element)) {
            None | Some(Ordering::Less) => self.nodes.push(Node {
                element,
                member,
                children,
            }),
            // Out of order: only for sets that someone else wrote.
            _ => match self.nodes.binary_search_by(|n| n.element.cmp(&element)) {
                Ok(at) => {
                    let node = &mut self.nodes[at];
                    node.member |= member;
                    node.children = node.children.union(&children);
                }
                Err(at) => self.nodes.insert(
                    at,
                    Node {
                        element,
                        member,
                        children,
                    },
                ),
            },
        }
    }

    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The nodes of the first steps, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of a first step.
    pub fn node(&self, element: &PathElement) -> Option<&Node> {
        self.nodes
            .binary_search_by(|n| n.element.cmp(element))
            .ok()
            .map(|at| &self.nodes[at])
    }

    /// Whether a path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.node(last).is_some_and(|n| n.member),
            [first, rest @ ..] => self.node(first).is_some_and(|n| n.children.has(rest)),
        }
    }

    /// Paths in either set.
    pub fn union(&self, other: &Self) -> Self {
        let mut out = Self::default();
        zip(&self.nodes, &other.nodes, |a, b| match (a, b) {
            (Some(a), Some(b)) => out.nodes.push(Node {
                element: a.element.clone(),
                member: a.member || b.member,
                children: a.children.union(&b.children),
            }),
            (Some(one), None) | (None, Some(one)) => out.nodes.push(one.clone()),
            (None, None) => {}
        });
        out
    }

    /// The same of sets that are not needed any more.
    pub fn joined(self, other: Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (_, true) => self,
            (true, _) => other,
            _ => self.union(&other),
        }
    }

    /// Paths in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::default();
        zip(&self.nodes, &other.nodes, |a, b| {
            if let (Some(a), Some(b)) = (a, b) {
                out.push_shared(
                    a,
                    a.member && b.member,
                    a.children.intersection(&b.children),
                );
            }
        });
        out
    }

    /// Paths in this set but not in the other; those below a removed path stay.
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self::default();
        zip(&self.nodes, &other.nodes, |a, b| match (a, b) {
            (Some(a), Some(b)) => {
                out.push_shared(a, a.member && !b.member, a.children.difference(&b.children));
            }
            (Some(a), None) => out.nodes.push(a.clone()),
            (None, _) => {}
        });
        out
    }

    /// Takes paths out; says whether there were any.
    pub fn subtract(&mut self, other: &Self) -> bool {
        let mut found = false;
        for gone in &other.nodes {
            let Ok(at) = self
                .nodes
                .binary_search_by(|n| n.element.cmp(&gone.element))
            else {
                continue;
            };
            let node = &mut self.nodes[at];
            found |= node.member && gone.member;
            node.member &= !gone.member;
            found |= node.children.subtract(&gone.children);
            if !node.member && node.children.is_empty() {
                self.nodes.remove(at);
            }
        }
        found
    }

    /// Takes paths out with all that is below them.
    pub fn subtract_below(&mut self, other: &Self) {
        for gone in &other.nodes {
            let Ok(at) = self
                .nodes
                .binary_search_by(|n| n.element.cmp(&gone.element))
            else {
                continue;
            };
            let node = &mut self.nodes[at];
            node.children.subtract_below(&gone.children);
            if gone.member || (!node.member && node.children.is_empty()) {
                self.nodes.remove(at);
            }
        }
    }

    /// Paths that begin with one of these patterns, in which `*` stands for any step; whole parents of a
    /// pattern do not match.
    pub fn below(&self, patterns: &[&[&str]]) -> Self {
        if patterns.iter().any(|p| p.is_empty()) {
            return self.clone();
        }
        let mut out = Self::default();
        for node in &self.nodes {
            let fits = |step: &str| {
                step == "*" || matches!(&node.element, PathElement::Field(f) if **f == *step)
            };
            let rest: Vec<&[&str]> = patterns
                .iter()
                .filter_map(|p| p.split_first())
                .filter(|(step, _)| fits(step))
                .map(|(_, rest)| rest)
                .collect();
            if !rest.is_empty() {
                // As upstream's matcher: a matched step counts even where the pattern goes on below it.
                out.push_shared(node, node.member, node.children.below(&rest));
            }
        }
        out
    }

    fn push_shared(&mut self, from: &Node, member: bool, children: Self) {
        if member || !children.is_empty() {
            self.nodes.push(Node {
                element: from.element.clone(),
                member,
                children,
            });
        }
    }

    /// Number of paths in the set.
    pub fn len(&self) -> usize {
        self.nodes
            .iter()
            .map(|n| usize::from(n.member) + n.children.len())
            .sum()
    }

    /// All paths as messages write them, in upstream's order: what is in a node before what is below it.
    pub fn texts(&self) -> Vec<String> {
        fn walk(set: &Set, prefix: &str, out: &mut Vec<String>) {
            for node in set.nodes.iter().filter(|n| n.member) {
                out.push(format!("{prefix}{}", node.element));
            }
            for node in &set.nodes {
                if !node.children.is_empty() {
                    walk(&node.children, &format!("{prefix}{}", node.element), out);
                }
            }
        }
        let mut out = Vec::with_capacity(self.len());
        walk(self, "", &mut out);
        out
    }

    /// The stored form: `FieldsV1`.
    pub fn to_fields(&self) -> Value {
        Value::Object(self.to_map(false))
    }

    fn to_map(&self, itself: bool) -> Map<String, Value> {
        let mut map = Map::with_capacity(self.nodes.len() + usize::from(itself));
        if itself && !self.nodes.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for node in &self.nodes {
            let below = node.children.to_map(node.member);
            map.insert(node.element.stored(), Value::Object(below));
        }
        map
    }

    /// Reads the stored form. Steps of unknown kinds are left out.
    ///
    /// # Errors
    /// When something is no step.
    pub fn from_fields(fields: &Value) -> Result<Self, PathElementError> {
        read(fields).map(|(set, _)| set)
    }
}

/// The paths below, and whether the node itself is a member: when it says so, or when nothing is below it.
fn read(fields: &Value) -> Result<(Set, bool), PathElementError> {
    let Some(map) = fields.as_object() else {
        if fields.is_null() {
            return Ok((Set::default(), true));
        }
        let why = "ReadMapCB: expect { or n".to_owned();
        return Err(PathElementError::Malformed(why));
    };
    let mut set = Set::default();
    let mut member = false;
    for (key, value) in map {
        if key == "." {
            member = true;
            continue;
        }
        let element = match PathElement::parse(key) {
            Ok(element) => element,
            Err(PathElementError::Unknown) => continue,
            Err(error) => return Err(error),
        };
        let (children, is_member) = read(value)?;
        set.push(element, is_member, children);
    }
    let leaf = set.is_empty();
    Ok((set, member || leaf))
}

/// Walks two sorted lists in step.
fn zip<'a>(a: &'a [Node], b: &'a [Node], mut f: impl FnMut(Option<&'a Node>, Option<&'a Node>)) {
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let order = match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) => x.element.cmp(&y.element),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        let left = (order != Ordering::Greater).then(|| &a[i]);
        let right = (order != Ordering::Less).then(|| &b[j]);
        i += usize::from(left.is_some());
        j += usize::from(right.is_some());
        f(left, right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(fields: Value) -> Set {
        Set::from_fields(&fields).unwrap()
    }

    #[test]
    fn stored_form() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {
            "k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}, "f:finalizers": {"v:\"x\"": {}}}});
        let parsed = set(fields.clone());
        assert_eq!(parsed.to_fields(), fields);
        assert_eq!(
            parsed.texts(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.containers[name=\"c\"]",
                ".spec.containers[name=\"c\"].image",
                ".spec.finalizers[=\"x\"]"
            ]
        );
        assert_eq!(
            set(json!({"z:1": {}, "f:a": {}})).to_fields(),
            json!({"f:a": {}})
        );
        assert!(Set::from_fields(&json!({"f": {}})).is_err());
        assert!(Set::from_fields(&json!({"f:a": 1})).is_err());
        // Unsorted input is sorted.
        let unsorted = set(json!({"f:b": {}, "f:a": {"f:x": {}}, "v:1": {}, "f:c": {}}));
        assert_eq!(unsorted.texts(), [".b", ".c", "[=1]", ".a.x"]);
    }

    #[test]
    fn operations() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {}, "f:d": {}}));
        assert_eq!(a.union(&b).texts(), [".a", ".c", ".d", ".a.b"]);
        assert_eq!(a.intersection(&b).texts(), [".a"]);
        assert_eq!(a.difference(&b).texts(), [".c", ".a.b"]);
        let mut left = a.clone();
        left.subtract_below(&b);
        assert_eq!(left.texts(), [".c"]);
        let pod = set(
            json!({"f:spec": {"f:x": {}, "f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:resources": {"f:limits": {}}}}}}),
        );
        assert_eq!(
            pod.below(&[&["spec", "containers", "*", "resources"]])
                .texts(),
            [
                ".spec.containers[name=\"c\"]",
                ".spec.containers[name=\"c\"].resources.limits"
            ]
        );
    }

    fn any_set() -> impl Strategy<Value = Set> {
        let path = prop::collection::vec("[ab]", 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                let path: Vec<PathElement> = path.iter().map(|p| PathElement::field(p)).collect();
                set.insert(&path);
            }
            set
        })
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets(a in any_set(), b in any_set()) {
            let union = a.union(&b);
            prop_assert_eq!(&union, &b.union(&a));
            prop_assert_eq!(&a.intersection(&b), &b.intersection(&a));
            prop_assert_eq!(&a.difference(&b).union(&a.intersection(&b)), &a);
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
            let mut left = a.clone();
            prop_assert_eq!(left.subtract(&b), !a.intersection(&b).is_empty());
            prop_assert_eq!(&left, &a.difference(&b));
            let mut left = a.clone();
            left.subtract_below(&b);
            prop_assert!(left.difference(&a.difference(&b)).is_empty());
            prop_assert_eq!(union.len(), a.len() + b.difference(&a).len());
            prop_assert_eq!(&Set::from_fields(&a.to_fields()).unwrap(), &a);
            prop_assert_eq!(a.texts().len(), a.len());
        }
    }
}
