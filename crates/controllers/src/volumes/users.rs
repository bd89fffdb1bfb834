//! Which pods name which claims, so that nobody has to look through all pods for it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use client::{Cache, Entry, Key};
use k8s_openapi::api::core::v1::Pod;

use super::plan::Consumers;
use crate::pods;

/// Pods by the claims that they name, kept up to date by a watch.
#[derive(Clone)]
pub struct Users {
    pods: Cache<Pod>,
    by_claim: Arc<Mutex<HashMap<Key, BTreeSet<Key>>>>,
}

impl Users {
    /// Follows a cache; `changed` hears of each claim one of whose pods has changed.
    pub fn follow(pods: Cache<Pod>, changed: impl Fn(Key) + Send + Sync + 'static) -> Self {
        let by_claim = Arc::<Mutex<HashMap<Key, BTreeSet<Key>>>>::default();
        let all = by_claim.clone();
        pods.on_change(move |change| {
            let named =
                |entry: &Option<Arc<Entry>>| entry.as_deref().map(named).unwrap_or_default();
            let (before, now) = (named(&change.old), named(&change.new));
            {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                for claim in before.difference(&now) {
                    if let Some(users) = all.get_mut(claim) {
                        users.remove(&change.key);
                    }
                    if all.get(claim).is_some_and(BTreeSet::is_empty) {
                        all.remove(claim);
                    }
                }
                for claim in &now {
                    let users = all.entry(claim.clone()).or_default();
                    users.insert(change.key.clone());
                }
            }
            before.union(&now).cloned().for_each(&changed);
        });
        Self { pods, by_claim }
    }

    /// The pods that name a claim, as the cache has them.
    pub fn of(&self, claim: &Key) -> Vec<Pod> {
        let keys = {
            let all = self.by_claim.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(claim).cloned().unwrap_or_default()
        };
        let known = keys.iter().filter_map(|key| self.pods.entry(key));
        known.filter_map(|entry| entry.decode().ok()).collect()
    }

    /// What the pods of a claim say about where it is needed.
    pub fn consumers(&self, claim: &Key) -> Consumers {
        let mut all = self.of(claim);
        all.retain(pods::is_active);
        let name = |p: &Pod| p.metadata.name.clone().unwrap_or_default();
        let waiting = all.iter().filter(|p| pods::node(p).is_empty());
        let placed = all.iter().find(|p| !pods::node(p).is_empty());
        Consumers {
            waiting: waiting.map(name).collect(),
            node: placed.map(|p| pods::node(p).to_owned()),
        }
    }
}

/// The claims that a pod names, or would have made for it.
fn named(pod: &Entry) -> BTreeSet<Key> {
    if !pods::names_claims(pod) {
        return BTreeSet::new();
    }
    let spec = pod.decode::<Pod>().ok().and_then(|p| p.spec);
    let volumes = spec.and_then(|s| s.volumes).unwrap_or_default();
    let names = volumes.into_iter().filter_map(|volume| {
        let made = volume
            .ephemeral
            .map(|_| format!("{}-{}", pod.key.name, volume.name));
        volume
            .persistent_volume_claim
            .map(|c| c.claim_name)
            .or(made)
    });
    names
        .map(|name| Key::new(pod.key.namespace.clone(), name))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_name_claims_and_have_others_made() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [], "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "b", "ephemeral": {}},
                {"name": "d", "emptyDir": {}}]}});
        let entry = client::cache::parse_entry(pod.to_string().as_bytes()).unwrap();
        let keys = [Key::new("n", "c"), Key::new("n", "p-b")];
        assert_eq!(named(&entry), BTreeSet::from(keys));
    }
}
