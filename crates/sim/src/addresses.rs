//! Addresses of simulated pods: each node has a part of a range that no real network uses.

use std::{collections::HashMap, net::Ipv4Addr, sync::Arc};

/// The range: shared address space, which the internet does not route.
pub const RANGE: &str = "100.64.0.0/10";
const FIRST: u32 = u32::from_be_bytes([100, 64, 0, 0]);
const BITS: u32 = 22;
/// Addresses of a part that no pod gets: the network's, the node's own, and the broadcast one.
const RESERVED: u32 = 3;

/// Bits of an address within a node's part.
fn part_bits(pods: u32) -> u32 {
    (pods + RESERVED).next_power_of_two().trailing_zeros()
}

/// Whether the range has room for so many nodes of so many pods.
pub fn suffice(nodes: u32, pods: u32) -> bool {
    let bits = part_bits(pods);
    bits < BITS && u64::from(nodes) << bits <= 1 << BITS
}

/// Who has which address.
pub struct Addresses {
    part_bits: u32,
    used: Vec<u64>,
    by_pod: HashMap<Arc<str>, u32>,
}

impl Addresses {
    /// All are free.
    pub fn new(nodes: u32, pods: u32) -> Self {
        let part_bits = part_bits(pods);
        let count = (nodes as usize) << part_bits;
        Self {
            part_bits,
            used: vec![0; count.div_ceil(64)],
            by_pod: HashMap::new(),
        }
    }

    /// The address of the node itself.
    pub fn of_node(&self, node: u32) -> Ipv4Addr {
        Ipv4Addr::from(FIRST + (node << self.part_bits) + 1)
    }

    /// The part of a node, as CIDR.
    pub fn part(&self, node: u32) -> String {
        let first = Ipv4Addr::from(FIRST + (node << self.part_bits));
        format!("{first}/{}", 32 - self.part_bits)
    }

    /// The address of a pod on a node: the one it has, or a free one.
    pub fn take(&mut self, pod: &Arc<str>, node: u32) -> Option<Ipv4Addr> {
        if let Some(offset) = self.by_pod.get(pod) {
            return Some(Ipv4Addr::from(FIRST + offset));
        }
        let start = node << self.part_bits;
        let end = start + (1 << self.part_bits) - 1;
        let offset = (start + 2..end).find(|offset| !self.is_used(*offset))?;
        self.set(offset, true);
        self.by_pod.insert(Arc::clone(pod), offset);
        Some(Ipv4Addr::from(FIRST + offset))
    }

    /// A pod was found with this address.
    pub fn keep(&mut self, pod: &str, address: &str) {
        let offset = address
            .parse::<Ipv4Addr>()
            .ok()
            .and_then(|a| u32::from(a).checked_sub(FIRST));
        if let Some(offset) = offset.filter(|o| (*o as usize) < self.used.len() * 64)
            && !self.by_pod.contains_key(pod)
        {
            self.set(offset, true);
            self.by_pod.insert(pod.into(), offset);
        }
    }

    /// A pod needs its address no more.
    pub fn release(&mut self, pod: &str) {
        if let Some(offset) = self.by_pod.remove(pod) {
            self.set(offset, false);
        }
    }

    fn is_used(&self, offset: u32) -> bool {
        let word = self.used.get(offset as usize / 64).copied();
        word.is_none_or(|w| w & (1 << (offset % 64)) != 0)
    }

    fn set(&mut self, offset: u32, used: bool) {
        if let Some(word) = self.used.get_mut(offset as usize / 64) {
            let bit = 1 << (offset % 64);
            *word = if used { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pod_has_an_address_of_its_own_in_the_part_of_its_node() {
        let mut all = Addresses::new(3, 110);
        assert_eq!(all.part(1), "100.64.0.128/25");
        assert_eq!(all.of_node(2).to_string(), "100.64.1.1");
        let mut seen = HashSet::new();
        for i in 0..125 {
            let pod: Arc<str> = format!("p{i}").into();
            let address = all.take(&pod, 1).unwrap();
            assert!(seen.insert(address));
            assert_eq!(all.take(&pod, 1), Some(address));
        }
        assert_eq!(all.take(&"more".into(), 1), None);
        all.release("p7");
        assert!(all.take(&"more".into(), 1).is_some());
    }

    #[test]
    fn addresses_found_after_a_restart_are_not_given_again() {
        let mut all = Addresses::new(1, 5);
        all.keep("a", "100.64.0.2");
        all.keep("b", "10.0.0.1");
        all.keep("c", "nothing");
        assert_eq!(all.take(&"d".into(), 0).unwrap().to_string(), "100.64.0.3");
    }
}
