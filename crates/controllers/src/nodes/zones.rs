//! How fast nodes that are unwell lose their pods: one after another in each zone, slower or not
//! at all where much of the zone is unwell, for then it is rather the network that is.
//!
//! ```text
//!  normal ── three or more, and 55 % unwell ──> partly disrupted ── none is well ──> fully disrupted
//! ```
//! While every zone is fully disrupted nothing is evicted: nobody can be heard from here.

use std::collections::HashMap;

use client::Key;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

/// Time between two nodes of a zone.
const PERIOD: SignedDuration = SignedDuration::from_secs(10);
/// The same in a large zone that is partly disrupted; a small one waits.
const SLOW_PERIOD: SignedDuration = SignedDuration::from_secs(100);
/// A zone is large that has more nodes.
const LARGE: usize = 50;
/// A zone with fewer unwell nodes is normal.
const DISRUPTED_LEAST: usize = 3;
/// Percent of unwell nodes that make a zone disrupted.
const DISRUPTED_PERCENT: usize = 55;

const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-disruption";

/// A region and a zone in it.
pub type Zone = (String, String);

/// The zone of a node.
pub fn zone_of(node: &Node) -> Zone {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key)).cloned().unwrap_or_default();
    (label(REGION_LABEL), label(ZONE_LABEL))
}

/// How a node fares; `None`: it is no sign of how its zone fares.
pub fn fares(node: &Node, well: bool) -> Option<(Zone, bool)> {
    let labels = node.metadata.labels.as_ref();
    let excluded = labels.is_some_and(|l| l.contains_key(EXCLUDED_LABEL));
    (!excluded).then(|| (zone_of(node), well))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

fn state(well: usize, unwell: usize) -> State {
    if well == 0 && unwell > 0 {
        State::Full
    } else if unwell >= DISRUPTED_LEAST && unwell * 100 >= DISRUPTED_PERCENT * (well + unwell) {
        State::Partial
    } else {
        State::Normal
    }
}

/// What may be done to a node that is unwell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Its pods may be told to leave.
    Now,
    /// Not before this time.
    At(Timestamp),
    /// Not before other nodes change.
    Wait,
    /// Nobody is told to leave, and who was told may stay.
    Never,
}

/// What is known of all nodes.
#[derive(Debug, Default)]
pub struct Zones {
    nodes: HashMap<Key, (Zone, bool)>,
    /// When the next node of a zone may have its turn.
    next: HashMap<Zone, Timestamp>,
}

impl Zones {
    /// Notes how a node fares; `None`: it is gone. Answers whether that changed whether everything
    /// is disrupted.
    pub fn note(&mut self, key: &Key, fares: Option<(Zone, bool)>) -> bool {
        let before = self.all_disrupted();
        match fares {
            Some(fares) => {
                self.nodes.insert(key.clone(), fares);
            }
            None => {
                self.nodes.remove(key);
            }
        }
        self.next
            .retain(|zone, _| self.nodes.values().any(|(z, _)| z == zone));
        before != self.all_disrupted()
    }

    /// Whether no node is well.
    pub fn all_disrupted(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.values().all(|(_, well)| !well)
    }

    /// Whether a node of this zone may have its turn.
    pub fn turn(&mut self, zone: &Zone, now: Timestamp) -> Turn {
        if self.all_disrupted() {
            return Turn::Never;
        }
        let mine = self.nodes.values().filter(|(z, _)| z == zone);
        let (well, unwell): (Vec<_>, Vec<_>) = mine.partition(|(_, well)| *well);
        let size = well.len() + unwell.len();
        let period = match state(well.len(), unwell.len()) {
            State::Normal | State::Full => PERIOD,
            State::Partial if size > LARGE => SLOW_PERIOD,
            State::Partial => return Turn::Wait,
        };
        match self.next.get(zone).filter(|next| **next > now) {
            Some(next) => Turn::At(*next),
            None => {
                let next = now.saturating_add(period).unwrap_or(now);
                self.next.insert(zone.clone(), next);
                Turn::Now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn zones(all: &[(&str, usize, usize)]) -> Zones {
        let mut zones = Zones::default();
        for (zone, well, unwell) in all {
            for i in 0..well + unwell {
                let key = Key::cluster(format!("{zone}-{i}"));
                zones.note(&key, Some(((String::new(), (*zone).into()), i < *well)));
            }
        }
        zones
    }

    fn turn(zones: &mut Zones, zone: &str, now: i64) -> Turn {
        zones.turn(&(String::new(), zone.into()), at(now))
    }

    #[test]
    fn a_zone_is_what_its_nodes_are() {
        for (well, unwell, expected) in [
            (1, 0, State::Normal),
            (0, 1, State::Full),
            (1, 2, State::Normal),
            (2, 3, State::Partial),
            (3, 3, State::Normal),
            (0, 0, State::Normal),
        ] {
            assert_eq!(state(well, unwell), expected, "{well} {unwell}");
        }
    }

    #[test]
    fn nodes_have_their_turn_one_after_another() {
        let mut all = zones(&[("a", 5, 2), ("b", 5, 1)]);
        assert_eq!(turn(&mut all, "a", 100), Turn::Now);
        assert_eq!(turn(&mut all, "b", 100), Turn::Now);
        assert_eq!(turn(&mut all, "a", 101), Turn::At(at(110)));
        assert_eq!(turn(&mut all, "a", 110), Turn::Now);
    }

    #[test]
    fn disruption_slows_down_or_stops() {
        let mut small = zones(&[("a", 2, 8)]);
        assert_eq!(turn(&mut small, "a", 100), Turn::Wait);
        let mut large = zones(&[("a", 20, 40)]);
        assert_eq!(turn(&mut large, "a", 100), Turn::Now);
        assert_eq!(turn(&mut large, "a", 110), Turn::At(at(200)));
        // A zone that is lost as a whole is evacuated as long as others are well.
        let mut one = zones(&[("a", 0, 4), ("b", 3, 0)]);
        assert_eq!(turn(&mut one, "a", 100), Turn::Now);
        let mut none = zones(&[("a", 0, 4), ("b", 0, 3)]);
        assert_eq!(turn(&mut none, "a", 100), Turn::Never);
        let back = Key::cluster("b-0");
        assert!(none.note(&back, Some(((String::new(), "b".into()), true))));
        assert_eq!(turn(&mut none, "a", 100), Turn::Now);
        assert!(!none.note(&back, Some(((String::new(), "b".into()), true))));
        assert!(none.note(&back, None));
    }
}
