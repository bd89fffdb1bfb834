//! The objects of a cache and the ways to find them. Pure data.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap, btree_map},
    hash::Hash,
    sync::Arc,
};

use super::Entry;
use crate::Key;

/// Objects by key.
type Entries = BTreeMap<Key, Arc<Entry>>;

/// All objects of a cache, by key, owner, node and, for labels that somebody asked for, label.
#[derive(Default)]
pub(super) struct Index {
    objects: Entries,
    owners: HashMap<Box<str>, Entries>,
    /// Those that nobody controls.
    orphans: Entries,
    nodes: HashMap<Arc<str>, Entries>,
    labels: HashMap<Box<str>, HashMap<Box<str>, Entries>>,
}

fn within<'a>(
    entries: &'a Entries,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
    let first = Key::new(namespace, "");
    let namespace = Arc::clone(&first.namespace);
    entries
        .range(first..)
        .take_while(move |(key, _)| key.namespace == namespace)
        .map(|(_, entry)| entry)
}

fn all(entries: Option<&Entries>) -> impl Iterator<Item = &Arc<Entry>> {
    entries.into_iter().flat_map(BTreeMap::values)
}

impl Index {
    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.objects.get(key)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.objects.values()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Entry>> {
        within(&self.objects, namespace)
    }

    pub(super) fn orphans_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Entry>> {
        within(&self.orphans, namespace)
    }

    pub(super) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Entry>> {
        all(self.owners.get(uid))
    }

    pub(super) fn owned_count(&self, uid: &str) -> usize {
        self.owners.get(uid).map_or(0, BTreeMap::len)
    }

    pub(super) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Entry>> {
        all(self.nodes.get(node))
    }

    /// The objects with this label; `None`: the label is not indexed yet.
    pub(super) fn labelled(
        &self,
        key: &str,
        value: &str,
    ) -> Option<impl Iterator<Item = &Arc<Entry>>> {
        let values = self.labels.get(key)?;
        Some(all(values.get(value)))
    }

    /// From now on objects are found by this label.
    pub(super) fn index_label(&mut self, key: &str) {
        if self.labels.contains_key(key) {
            return;
        }
        let mut values: HashMap<Box<str>, Entries> = HashMap::new();
        for (at, entry) in &self.objects {
            if let Some(value) = entry.label(key) {
                let entries = values.entry(value.into()).or_default();
                entries.insert(at.clone(), Arc::clone(entry));
            }
        }
        self.labels.insert(key.into(), values);
    }

    /// Puts an object in place of the one of the same key, which is returned.
    ///
    /// # Errors
    /// [`Known`] when that one is of the same revision: nothing changes.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Result<Option<Arc<Entry>>, Known> {
        let key = &entry.key;
        let old = match self.objects.entry(key.clone()) {
            btree_map::Entry::Vacant(place) => {
                place.insert(Arc::clone(&entry));
                None
            }
            btree_map::Entry::Occupied(place) if is_same(place.get(), &entry) => return Err(Known),
            btree_map::Entry::Occupied(mut place) => Some(place.insert(Arc::clone(&entry))),
        };
        if let Some(old) = &old {
            self.unlink(old, Some(&entry));
        }
        for owner in &entry.owners {
            link(&mut self.owners, owner.uid.as_str(), &entry);
        }
        if entry.controller().is_none() {
            self.orphans.insert(key.clone(), Arc::clone(&entry));
        }
        if let Some(node) = &entry.node {
            link(&mut self.nodes, node, &entry);
        }
        for (label, values) in &mut self.labels {
            if let Some(value) = entry.label(label) {
                link(values, value, &entry);
            }
        }
        Ok(old)
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.objects.remove(key)?;
        self.unlink(&old, None);
        Some(old)
    }

    /// Takes an object out of where its successor will not be found.
    fn unlink(&mut self, old: &Entry, new: Option<&Entry>) {
        let key = &old.key;
        for owner in &old.owners {
            if new.is_none_or(|n| n.owners.iter().all(|o| o.uid != owner.uid)) {
                unlink(&mut self.owners, owner.uid.as_str(), key);
            }
        }
        if new.is_none_or(|n| n.controller().is_some()) {
            self.orphans.remove(key);
        }
        if let Some(node) = old.node.as_deref().filter(|n| is_elsewhere(new, n)) {
            unlink(&mut self.nodes, node, key);
        }
        for (label, values) in &mut self.labels {
            let value = old.label(label);
            if let Some(value) = value.filter(|_| new.and_then(|n| n.label(label)) != value) {
                unlink(values, value, key);
            }
        }
    }

    /// The keys that are not in `seen`.
    pub(super) fn missing_from(&self, seen: &BTreeSet<Key>) -> Vec<Key> {
        self.objects
            .keys()
            .filter(|key| !seen.contains(key))
            .cloned()
            .collect()
    }
}

/// What is to be put into a cache is there.
#[derive(Debug)]
pub(super) struct Known;

fn is_same(old: &Entry, new: &Entry) -> bool {
    old.revision == new.revision && old.revision != 0 && old.uid == new.uid
}

fn is_elsewhere(entry: Option<&Entry>, node: &str) -> bool {
    entry.is_none_or(|e| e.node.as_deref() != Some(node))
}

fn link<K>(map: &mut HashMap<K, Entries>, at: &str, entry: &Arc<Entry>)
where
    K: Borrow<str> + for<'a> From<&'a str> + Hash + Eq,
{
    // The name is copied only where it is new.
    if let Some(entries) = map.get_mut(at) {
        entries.insert(entry.key.clone(), Arc::clone(entry));
        return;
    }
    let entries = map.entry(at.into()).or_default();
    entries.insert(entry.key.clone(), Arc::clone(entry));
}

fn unlink<K>(map: &mut HashMap<K, Entries>, at: &str, key: &Key)
where
    K: Borrow<str> + Hash + Eq,
{
    if let Some(entries) = map.get_mut(at) {
        entries.remove(key);
        if entries.is_empty() {
            map.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(namespace: &str, name: &str, node: &str, owner: &str, app: &str) -> Arc<Entry> {
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","labels":{{"app":"{app}"}},
            "ownerReferences":[{{"uid":"{owner}"}}]}},"spec":{{"nodeName":"{node}"}}}}"#
        );
        Arc::new(Entry::parse(json.as_bytes(), true).unwrap())
    }

    fn names<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Vec<String> {
        entries.map(|e| e.key.to_string()).collect()
    }

    fn labelled(index: &Index, key: &str, value: &str) -> Vec<String> {
        names(index.labelled(key, value).into_iter().flatten())
    }

    #[test]
    fn every_index_follows_inserts_replacements_and_removals() {
        let mut index = Index::default();
        index.insert(entry("a", "x", "n1", "o1", "web")).unwrap();
        index.insert(entry("a", "y", "n2", "o1", "web")).unwrap();
        assert!(index.labelled("app", "web").is_none());
        index.index_label("app");
        index.insert(entry("ab", "x", "n1", "o2", "db")).unwrap();
        assert_eq!(names(index.in_namespace("a")), ["a/x", "a/y"]);
        assert_eq!(names(index.orphans_in("a")), ["a/x", "a/y"]);
        assert_eq!(names(index.on_node("n1")), ["a/x", "ab/x"]);
        assert_eq!(names(index.owned_by("o1")), ["a/x", "a/y"]);
        assert_eq!(labelled(&index, "app", "web"), ["a/x", "a/y"]);
        assert_eq!(labelled(&index, "app", "db"), ["ab/x"]);

        let old = index.insert(entry("a", "x", "n2", "o2", "db"));
        assert!(old.is_ok_and(|old| old.is_some()));
        assert_eq!(names(index.on_node("n1")), ["ab/x"]);
        assert_eq!(names(index.owned_by("o1")), ["a/y"]);
        assert_eq!(labelled(&index, "app", "db"), ["a/x", "ab/x"]);

        index.remove(&Key::new("a", "y"));
        assert_eq!(names(index.owned_by("o1")), [""; 0]);
        assert!(index.owners.len() == 1 && index.nodes.len() == 2);
        assert!(index.labels.len() == 1 && index.labels["app"].len() == 1);
    }

    /// Whatever is done, each way to find objects finds what a look at all of them would.
    #[test]
    fn indexes_equal_a_look_at_all_objects() {
        let pick = |of: &'static [&'static str], n: usize| of[n % of.len()];
        let mut state = 7_usize;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        };
        let mut index = Index::default();
        index.index_label("app");
        for _ in 0..2000 {
            let (namespace, name) = (pick(&["a", "b"], next()), pick(&["x", "y", "z"], next()));
            if next() % 3 == 0 {
                index.remove(&Key::new(namespace, name));
            } else {
                let json = format!(
                    r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","labels":{{"app":"{}"}},
                    "ownerReferences":[{{"uid":"{}","controller":{}}},{{"uid":"o3"}}]}},"spec":{{"nodeName":"{}"}}}}"#,
                    pick(&["w", "d"], next()),
                    pick(&["o1", "o2", "o3"], next()),
                    next() % 2 == 0,
                    pick(&["", "n1", "n2"], next()),
                );
                let entry = Entry::parse(json.as_bytes(), true).unwrap();
                index.insert(Arc::new(entry)).unwrap();
            }
            let look =
                |test: &dyn Fn(&Entry) -> bool| names(index.objects.values().filter(|e| test(e)));
            for uid in ["o1", "o2", "o3"] {
                let owned = look(&|e| e.owners.iter().any(|o| o.uid == uid));
                assert_eq!(index.owned_count(uid), owned.len());
                assert_eq!(names(index.owned_by(uid)), owned);
            }
            for node in ["n1", "n2"] {
                let there = look(&|e| e.node.as_deref() == Some(node));
                assert_eq!(names(index.on_node(node)), there);
            }
            for namespace in ["a", "b"] {
                let free = |e: &Entry| &*e.key.namespace == namespace && e.controller().is_none();
                assert_eq!(names(index.orphans_in(namespace)), look(&free));
            }
            let web = look(&|e| e.label("app") == Some("w"));
            assert_eq!(labelled(&index, "app", "w"), web);
        }
    }
}
