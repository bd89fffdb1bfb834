//! What is known of devices, kept up to date by watches.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use client::{Caches, Change, Key, Scope};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice,
};

use super::{
    allocator::{self, Ground, Refusal, Supply},
    claims::{self, Claims},
    extended::CLASS_PREFIX,
    inventory::Inventory,
    model::Slice,
    request::Asked,
    selectors::Selectors,
};
use crate::{framework::ClaimChange, node::NodeSpec, storage::Mirror};

/// All that is known of devices.
pub struct Devices {
    /// Claims, and what is decided about them.
    pub claims: Arc<Claims>,
    inventory: Arc<RwLock<Inventory>>,
    classes: Mirror<DeviceClass>,
    rules: Mirror<DeviceTaintRule>,
    selectors: Selectors,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    /// Follows these caches.
    pub fn of(caches: &Caches) -> Self {
        let this = Self {
            claims: Arc::default(),
            inventory: Arc::default(),
            classes: Mirror::of(&caches.get(Scope::all()), |class| class),
            rules: Mirror::of(&caches.get(Scope::all()), |rule| rule),
            selectors: Selectors::default(),
        };
        let inventory = Arc::clone(&this.inventory);
        let slices = caches.get::<ResourceSlice>(Scope::all());
        slices.on_change(move |change| {
            let new = change.new.as_ref().and_then(|e| e.decode().ok());
            write(&inventory).set(&change.key.name, new.map(Slice::of));
        });
        let all = Arc::clone(&this.claims);
        let claims = caches.get::<ResourceClaim>(Scope::all());
        claims.on_change(move |change| match &change.new {
            Some(entry) => {
                if let Ok(claim) = entry.decode() {
                    all.set(&change.key, Arc::new(claim));
                }
            }
            None => all.remove(&change.key),
        });
        this
    }

    /// A slice is there.
    #[cfg(test)]
    pub(crate) fn publish(&self, slice: ResourceSlice) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        write(&self.inventory).set(&name, Some(Slice::of(slice)));
    }

    /// A class is there.
    #[cfg(test)]
    pub(crate) fn define(&self, class: DeviceClass) {
        let name = class.metadata.name.clone().unwrap_or_default();
        self.classes.set(Key::cluster(name.as_str()), class);
    }

    /// A class.
    pub fn class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.classes.get(&Key::cluster(name))
    }

    /// The class whose devices stand for an extended resource: the one named so, or else the newest
    /// one that says so.
    pub fn class_of_resource(&self, name: &str) -> Option<Arc<DeviceClass>> {
        if let Some(class) = name.strip_prefix(CLASS_PREFIX) {
            return self.class(class);
        }
        let says_so = |c: &DeviceClass| {
            let spec = c.spec.as_ref();
            spec.and_then(|s| s.extended_resource_name.as_deref()) == Some(name)
        };
        let all = self.classes.filter(says_so).into_iter();
        all.min_by_key(|c| {
            let created = c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(created), c.metadata.name.clone())
        })
    }

    /// What a claim asks for.
    ///
    /// # Errors
    /// What about it is not known here, or which class does not exist.
    pub fn asked<'a>(&self, claim: &'a ResourceClaim) -> Result<Asked<'a>, String> {
        Asked::of(claim, |name| self.class(name))
    }

    /// Devices on a node for each of these claims; `expired`: whether the search has to end.
    ///
    /// # Errors
    /// Why there are none.
    pub fn allocate(
        &self,
        node: &NodeSpec,
        asked: &[Asked<'_>],
        expired: &dyn Fn() -> bool,
    ) -> Result<Vec<AllocationResult>, Refusal> {
        self.on(node, expired, |ground| allocator::allocate(ground, asked))
    }

    /// What there is on a node for each request of these claims.
    ///
    /// # Errors
    /// When a claim or a class makes no sense.
    pub fn survey(&self, node: &NodeSpec, asked: &[Asked<'_>]) -> Result<Vec<Supply>, Refusal> {
        self.on(node, &|| false, |ground| allocator::survey(ground, asked))
    }

    fn on<T>(
        &self,
        node: &NodeSpec,
        expired: &dyn Fn() -> bool,
        look: impl FnOnce(&Ground<'_>) -> T,
    ) -> T {
        let pools = read(&self.inventory).pools_of(node);
        let rules = self.rules.filter(|_| true);
        self.claims.with_ledger(|ledger| {
            look(&Ground {
                node,
                pools: &pools,
                ledger,
                selectors: &self.selectors,
                rules: &rules,
                expired,
            })
        })
    }
}

/// What a change of a claim means to pods; `None`: nothing.
pub(crate) fn claim_change(change: &Change) -> Option<ClaimChange> {
    let old: Option<ResourceClaim> = change.old.as_ref().and_then(|e| e.decode().ok());
    let had = old
        .as_ref()
        .is_some_and(|c| claims::allocation(c).is_some());
    let Some(new) = &change.new else {
        return had.then(|| ClaimChange {
            key: change.key.clone(),
            uid: String::new(),
            freed: true,
            said_something: false,
        });
    };
    let new: ResourceClaim = new.decode().ok()?;
    Some(ClaimChange {
        uid: claims::uid(&new).to_owned(),
        freed: had && claims::allocation(&new).is_none(),
        said_something: old.is_none_or(|o| o.status != new.status),
        key: change.key.clone(),
    })
}
