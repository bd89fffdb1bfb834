//! The cluster as its store has it, commit by commit: what invariants are checked against.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::work::Place;

/// Namespace (empty for the cluster's own) and name.
pub type Name = (String, String);

/// Everything in the store, as of one commit.
#[derive(Default)]
pub struct World {
    kinds: BTreeMap<String, BTreeMap<Name, Value>>,
    /// What the user was told is done: whether there is to be an object.
    pub wishes: BTreeMap<Place, bool>,
}

/// What one commit did to one object.
pub struct Change<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a Name,
    /// Before; `None` for a new object.
    pub old: Option<&'a Value>,
    /// After; `None` for one that is gone.
    pub new: Option<&'a Value>,
}

impl World {
    /// All objects of a kind.
    pub fn all<'a>(&'a self, kind: &str) -> impl Iterator<Item = (&'a Name, &'a Value)> + use<'a> {
        self.kinds.get(kind).into_iter().flatten()
    }

    /// One object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        let name = (namespace.to_owned(), name.to_owned());
        self.kinds.get(kind)?.get(&name)
    }

    /// The object of this uid among a kind's.
    pub fn by_uid(&self, kind: &str, uid: &str) -> Option<&Value> {
        let mut all = self.all(kind).map(|(_, object)| object);
        all.find(|object| text(object, "/metadata/uid") == uid)
    }

    /// Sets an object; answers what was there.
    pub fn put(&mut self, kind: &str, name: Name, object: Value) -> Option<Value> {
        let all = self.kinds.entry(kind.to_owned()).or_default();
        all.insert(name, object)
    }

    /// Removes an object; answers what was there.
    pub fn remove(&mut self, kind: &str, name: &Name) -> Option<Value> {
        self.kinds.get_mut(kind)?.remove(name)
    }
}

/// The text at a pointer; empty where there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let found = object.pointer(pointer);
    found.and_then(Value::as_str).unwrap_or_default()
}

/// The number at a pointer.
pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// The entries of the list at a pointer.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    let found = object.pointer(pointer).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

/// Whether somebody asked for its deletion.
pub fn is_going(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// The reference to its controller.
pub fn controller(object: &Value) -> Option<&Value> {
    let mut owners = list(object, "/metadata/ownerReferences").iter();
    owners.find(|o| o["controller"] == true)
}

/// Whether it is controlled by the object of this uid.
pub fn is_controlled_by(object: &Value, uid: &str) -> bool {
    controller(object).is_some_and(|owner| owner["uid"] == uid)
}

/// Whether a pod has ended.
pub fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// Whether a condition is true.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    let mut all = list(object, "/status/conditions").iter();
    all.any(|c| c["type"] == kind && c["status"] == "True")
}
