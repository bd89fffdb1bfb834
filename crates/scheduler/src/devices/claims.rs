//! Claims of devices as watched, with what has been decided about them and is yet to be seen.
//!
//! A decision is pending from the moment a pod is given a node until the claim is written; until
//! then its devices are taken and no other pod can use the claim. What was written is shown at
//! once, before the watch does.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use client::{Key, write};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim};

use super::ledger::Ledger;

/// The uid of a claim.
pub fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

/// What a claim has been given, if it has.
pub fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

#[derive(Default)]
struct Inner {
    seen: HashMap<Key, Arc<ResourceClaim>>,
    pending: HashMap<Arc<str>, Key>,
    ledger: Ledger,
}

/// All claims.
#[derive(Default)]
pub struct Claims {
    inner: RwLock<Inner>,
}

impl Claims {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A claim.
    pub fn get(&self, key: &Key) -> Option<Arc<ResourceClaim>> {
        self.read().seen.get(key).cloned()
    }

    /// Claims of a namespace that `keep` keeps.
    pub fn find(
        &self,
        namespace: &str,
        keep: impl Fn(&ResourceClaim) -> bool,
    ) -> Option<Arc<ResourceClaim>> {
        let inner = self.read();
        let mut found = inner
            .seen
            .iter()
            .filter(|(key, _)| &*key.namespace == namespace);
        found.find(|(_, c)| keep(c)).map(|(_, c)| Arc::clone(c))
    }

    /// Whether an allocation of the claim is under way.
    pub fn is_pending(&self, uid: &str) -> bool {
        self.read().pending.contains_key(uid)
    }

    /// Looks at what is taken.
    pub fn with_ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.read().ledger)
    }

    /// A claim as the server has it: newer than what is known, or it is ignored.
    pub fn set(&self, key: &Key, claim: Arc<ResourceClaim>) {
        let mut inner = self.write();
        let known = inner.seen.get(key);
        if known.is_some_and(|k| write::revision_of(&**k) > write::revision_of(&*claim)) {
            return;
        }
        let replaced = known.filter(|k| uid(k) != uid(&claim)).cloned();
        if let Some(other) = replaced {
            inner.ledger.set(uid(&other), None);
        }
        if !inner.pending.contains_key(uid(&claim)) {
            inner.ledger.set(uid(&claim), allocation(&claim));
        }
        inner.seen.insert(key.clone(), claim);
    }

    /// A claim is no more.
    pub fn remove(&self, key: &Key) {
        let mut inner = self.write();
        let Some(known) = inner.seen.remove(key) else {
            return;
        };
        if !inner.pending.contains_key(uid(&known)) {
            inner.ledger.set(uid(&known), None);
        }
    }

    /// The claim is being allocated.
    pub fn pend(&self, key: &Key, uid: &str, allocation: &AllocationResult) {
        let mut inner = self.write();
        inner.ledger.set(uid, Some(allocation));
        inner.pending.insert(uid.into(), key.clone());
    }

    /// The claim is not being allocated any more: what it takes is what it has.
    pub fn settle(&self, uid: &str) {
        let mut inner = self.write();
        let Some(key) = inner.pending.remove(uid) else {
            return;
        };
        let known = inner
            .seen
            .get(&key)
            .filter(|c| self::uid(c) == uid)
            .cloned();
        let has = known.as_deref().and_then(allocation);
        inner.ledger.set(uid, has);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::devices::model::DeviceId;

    fn claim(revision: &str, status: Value) -> Arc<ResourceClaim> {
        let claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "resourceVersion": revision}, "status": status});
        Arc::new(serde_json::from_value(claim).unwrap())
    }

    #[test]
    fn a_pending_allocation_holds_its_devices_until_the_claim_shows_it() {
        let allocated = json!({"allocation": {"devices": {"results": [
            {"request": "r", "driver": "d", "pool": "p", "device": "x"}]}}});
        let done = claim("7", allocated);
        let claims = Claims::default();
        let key = Key::new("n", "c");
        let taken = || claims.with_ledger(|l| l.is_taken(&DeviceId::new("d", "p", "x")));
        claims.set(&key, claim("5", Value::Null));
        claims.pend(&key, "u", allocation(&done).unwrap());
        assert!(taken() && claims.is_pending("u"));
        claims.set(&key, claim("6", Value::Null));
        assert!(taken(), "the finalizer came first");
        claims.set(&key, Arc::clone(&done));
        claims.settle("u");
        assert!(taken() && !claims.is_pending("u"));
        claims.set(&key, claim("6", Value::Null));
        assert!(taken(), "old news");
        claims.set(&key, claim("8", Value::Null));
        assert!(!taken());
        claims.pend(&key, "u", allocation(&done).unwrap());
        claims.settle("u");
        assert!(!taken(), "it came to nothing");
        claims.set(&key, claim("9", json!({"allocation": allocation(&done)})));
        claims.remove(&key);
        assert!(!taken());
    }
}
