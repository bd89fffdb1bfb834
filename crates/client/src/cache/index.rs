//! The objects of a cache and the ways to find them. Pure data.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::Entry;
use crate::Key;

type Keys = BTreeSet<Key>;

/// All objects of a cache, by key, owner, node and label.
#[derive(Default)]
pub(super) struct Index {
    objects: BTreeMap<Key, Arc<Entry>>,
    owners: HashMap<Box<str>, Keys>,
    nodes: HashMap<Arc<str>, Keys>,
    labels: HashMap<(Box<str>, Box<str>), Keys>,
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
        self.objects
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| &*key.namespace == namespace)
            .map(|(_, entry)| entry)
    }

    pub(super) fn owned_by(&self, uid: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.named(self.owners.get(uid))
    }

    pub(super) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.named(self.nodes.get(node))
    }

    pub(super) fn labelled(&self, key: &str, value: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.named(self.labels.get(&(key.into(), value.into())))
    }

    fn named<'a>(&'a self, keys: Option<&'a Keys>) -> impl Iterator<Item = &'a Arc<Entry>> {
        keys.into_iter()
            .flatten()
            .filter_map(|key| self.objects.get(key))
    }

    /// Puts an object in place of the one of the same key, which is returned.
    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let old = self.remove(&entry.key);
        for owner in &entry.owners {
            self.owners
                .entry(owner.uid.as_str().into())
                .or_default()
                .insert(entry.key.clone());
        }
        if let Some(node) = &entry.node {
            self.nodes
                .entry(Arc::clone(node))
                .or_default()
                .insert(entry.key.clone());
        }
        for label in &entry.labels {
            self.labels
                .entry(label.clone())
                .or_default()
                .insert(entry.key.clone());
        }
        self.objects.insert(entry.key.clone(), entry);
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.objects.remove(key)?;
        for owner in &old.owners {
            unlink(&mut self.owners, owner.uid.as_str(), key);
        }
        if let Some(node) = &old.node {
            unlink(&mut self.nodes, &**node, key);
        }
        for label in &old.labels {
            unlink(&mut self.labels, label, key);
        }
        Some(old)
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

fn unlink<K, Q>(map: &mut HashMap<K, Keys>, at: &Q, key: &Key)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(keys) = map.get_mut(at) {
        keys.remove(key);
        if keys.is_empty() {
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

    #[test]
    fn every_index_follows_inserts_replacements_and_removals() {
        let mut index = Index::default();
        index.insert(entry("a", "x", "n1", "o1", "web"));
        index.insert(entry("a", "y", "n2", "o1", "web"));
        index.insert(entry("ab", "x", "n1", "o2", "db"));
        assert_eq!(names(index.in_namespace("a")), ["a/x", "a/y"]);
        assert_eq!(names(index.on_node("n1")), ["a/x", "ab/x"]);
        assert_eq!(names(index.owned_by("o1")), ["a/x", "a/y"]);
        assert_eq!(names(index.labelled("app", "db")), ["ab/x"]);

        assert!(index.insert(entry("a", "x", "n2", "o2", "db")).is_some());
        assert_eq!(names(index.on_node("n1")), ["ab/x"]);
        assert_eq!(names(index.owned_by("o1")), ["a/y"]);
        assert_eq!(names(index.labelled("app", "db")), ["a/x", "ab/x"]);

        index.remove(&Key::new("a", "y"));
        assert_eq!(names(index.owned_by("o1")), [""; 0]);
        assert!(index.owners.len() == 1 && index.nodes.len() == 2 && index.labels.len() == 1);
    }
}
