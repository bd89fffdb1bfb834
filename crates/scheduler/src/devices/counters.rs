//! What devices of a pool share: a device can be had while there is enough of what it consumes.

use std::collections::{BTreeMap, HashMap};

use super::{
    inventory::Pool,
    ledger::Ledger,
    model::{Amounts, Device},
};

/// What is left of the counters of each pool.
pub struct Counters<'a> {
    pools: &'a [Pool],
    ledger: &'a Ledger,
    /// By pool, once somebody has asked.
    left: HashMap<usize, BTreeMap<String, Amounts>>,
}

impl<'a> Counters<'a> {
    /// What is left while these devices are in use.
    pub fn new(pools: &'a [Pool], ledger: &'a Ledger) -> Self {
        Self {
            pools,
            ledger,
            left: HashMap::new(),
        }
    }

    fn left(&mut self, pool: usize) -> &mut BTreeMap<String, Amounts> {
        let (pools, ledger) = (self.pools, self.ledger);
        self.left.entry(pool).or_insert_with(|| {
            let Some(contents) = pools[pool].contents() else {
                return BTreeMap::new();
            };
            let mut left = contents.counters.clone();
            let slices = contents.here.iter().chain(&contents.elsewhere);
            let devices = slices.flat_map(|s| &s.devices);
            for device in devices.filter(|d| ledger.is_used(&d.id)) {
                consume(&mut left, device);
            }
            left
        })
    }

    /// Takes what a device consumes, if there is enough.
    pub fn take(&mut self, pool: usize, device: &Device) -> bool {
        let left = self.left(pool);
        consume(left, device);
        let enough = device.consumes.iter().all(|(set, amounts)| {
            let set = left.get(set);
            set.is_some_and(|set| {
                let mut rest = amounts.keys().map(|name| set.get(name));
                rest.all(|amount| amount.is_some_and(|a| !a.is_negative()))
            })
        });
        if !enough {
            self.give_back(pool, device);
        }
        enough
    }

    /// Gives back what a device consumes.
    pub fn give_back(&mut self, pool: usize, device: &Device) {
        let left = self.left(pool);
        for (set, amounts) in &device.consumes {
            for (name, amount) in amounts {
                if let Some(counter) = left.get_mut(set).and_then(|s| s.get_mut(name)) {
                    *counter += *amount;
                }
            }
        }
    }
}

fn consume(left: &mut BTreeMap<String, Amounts>, device: &Device) {
    for (set, amounts) in &device.consumes {
        for (name, amount) in amounts {
            if let Some(counter) = left.get_mut(set).and_then(|s| s.get_mut(name)) {
                *counter = *counter - *amount;
            }
        }
    }
}
