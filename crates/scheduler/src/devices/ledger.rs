//! Which devices are taken, and how much of those that are shared, by allocated claims.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::AllocationResult;

use super::model::{Amounts, DeviceId, quantity};

/// What a claim takes of a device.
#[derive(Clone, Debug)]
struct Use {
    device: DeviceId,
    /// How much, where it is shared; `None`: all of it.
    share: Option<Amounts>,
}

/// What an allocation takes; devices for administration are not taken.
fn uses(allocation: &AllocationResult) -> Vec<Use> {
    let devices = allocation.devices.as_ref();
    let results = devices.and_then(|d| d.results.as_ref());
    let taken = results
        .into_iter()
        .flatten()
        .filter(|r| r.admin_access != Some(true));
    taken
        .map(|r| Use {
            device: DeviceId::new(&r.driver, &r.pool, &r.device),
            share: r.share_id.as_ref().map(|_| {
                let consumed = r.consumed_capacity.iter().flatten();
                consumed.map(|(n, q)| (n.clone(), quantity(q))).collect()
            }),
        })
        .collect()
}

/// How much of a device is shared.
#[derive(Debug, Default)]
struct Shared {
    claims: usize,
    taken: Amounts,
}

/// What is taken.
#[derive(Debug, Default)]
pub struct Ledger {
    claims: HashMap<Arc<str>, Vec<Use>>,
    whole: HashMap<DeviceId, usize>,
    shared: BTreeMap<DeviceId, Shared>,
}

impl Ledger {
    /// What a claim takes from now on.
    pub fn set(&mut self, claim: &str, allocation: Option<&AllocationResult>) {
        for one in self.claims.remove(claim).unwrap_or_default() {
            self.give_back(&one);
        }
        let new = allocation.map(uses).unwrap_or_default();
        for one in &new {
            self.take(one);
        }
        if !new.is_empty() {
            self.claims.insert(claim.into(), new);
        }
    }

    fn take(&mut self, one: &Use) {
        let Some(share) = &one.share else {
            *self.whole.entry(one.device.clone()).or_default() += 1;
            return;
        };
        let shared = self.shared.entry(one.device.clone()).or_default();
        shared.claims += 1;
        for (name, amount) in share {
            *shared.taken.entry(name.clone()).or_default() += *amount;
        }
    }

    fn give_back(&mut self, one: &Use) {
        let Some(share) = &one.share else {
            if let Some(count) = self.whole.get_mut(&one.device) {
                *count -= 1;
                if *count == 0 {
                    self.whole.remove(&one.device);
                }
            }
            return;
        };
        let Some(shared) = self.shared.get_mut(&one.device) else {
            return;
        };
        shared.claims -= 1;
        for (name, amount) in share {
            let left: Option<&mut Quantity> = shared.taken.get_mut(name);
            if let Some(left) = left {
                *left = *left - *amount;
            }
        }
        if shared.claims == 0 {
            self.shared.remove(&one.device);
        }
    }

    /// Whether a claim has all of a device.
    pub fn is_taken(&self, device: &DeviceId) -> bool {
        self.whole.contains_key(device)
    }

    /// What claims have of a shared device, if any have.
    pub fn shared(&self, device: &DeviceId) -> Option<&Amounts> {
        self.shared.get(device).map(|s| &s.taken)
    }

    /// Whether any claim has the device or a share of it.
    pub fn is_used(&self, device: &DeviceId) -> bool {
        self.is_taken(device) || self.shared.contains_key(device)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn allocation(results: Value) -> AllocationResult {
        serde_json::from_value(json!({"devices": {"results": results}})).unwrap()
    }

    #[test]
    fn sums_follow_the_claims() {
        let mut ledger = Ledger::default();
        let x = DeviceId::new("d", "p", "x");
        let of = |extra: Value| {
            let mut one = json!({"request": "r", "driver": "d", "pool": "p", "device": "x"});
            let fields = extra.as_object().unwrap().clone();
            one.as_object_mut().unwrap().extend(fields);
            allocation(json!([one]))
        };
        let share =
            |memory: &str| of(json!({"shareID": "s", "consumedCapacity": {"memory": memory}}));
        ledger.set("a", Some(&of(json!({}))));
        assert!(ledger.is_taken(&x) && ledger.is_used(&x));
        ledger.set("b", Some(&of(json!({"adminAccess": true}))));
        ledger.set("a", None);
        assert!(!ledger.is_used(&x), "administration takes nothing");
        ledger.set("a", Some(&share("1Gi")));
        ledger.set("b", Some(&share("2Gi")));
        assert!(!ledger.is_taken(&x) && ledger.is_used(&x));
        assert_eq!(ledger.shared(&x).unwrap()["memory"].to_string(), "3Gi");
        ledger.set("a", Some(&share("4Gi")));
        assert_eq!(ledger.shared(&x).unwrap()["memory"].to_string(), "6Gi");
        ledger.set("a", None);
        ledger.set("b", None);
        assert!(!ledger.is_used(&x));
        assert!(ledger.claims.is_empty() && ledger.shared.is_empty());
    }
}
