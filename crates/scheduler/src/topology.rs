//! How many pods of a kind are in each place, kept up to date pod by pod.
//!
//! A *place* is a value of a node label, such as a zone or a host. Two families of counts serve
//! inter-pod affinity and spreading without ever looking at all pods for one pod:
//!
//! - *matched*: pods that match a [`Query`] which some waiting pod asks about. A query is counted
//!   from all pods once, when it is first asked, and follows each placement after that.
//! - *carried*: pods that themselves bear an affinity term, by term, because their terms bind pods
//!   that come later.
//!
//! Invariant: for each count, `places[p]` is the sum of `nodes[n]` over the nodes of place `p`.
//! A placement touches only counts whose selector names one of the pod's labels, and the few that
//! name none.

use std::{collections::HashMap, sync::Arc};

use crate::{
    node::NodeId,
    pod::Footprint,
    terms::{AffinityTerm, Labels, PodRule},
};

/// No place: the node lacks the label.
pub const NOWHERE: u32 = u32::MAX;
/// Queries whose counts are kept; the one that was asked longest ago makes room.
const QUERIES_MAX: usize = 1024;

/// The places that a node label makes.
#[derive(Clone, Debug, Default)]
pub struct Places {
    ids: HashMap<String, u32>,
    /// How many nodes each place has.
    pub sizes: Vec<u32>,
    /// The place of each node, by its id.
    of_node: Vec<u32>,
    /// How many nodes are in any place.
    pub nodes: usize,
}

impl Places {
    /// The place of a node.
    pub fn of(&self, node: NodeId) -> u32 {
        self.of_node.get(node as usize).copied().unwrap_or(NOWHERE)
    }

    fn id(&mut self, value: &str) -> u32 {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = self.sizes.len() as u32;
        self.ids.insert(value.to_owned(), id);
        self.sizes.push(0);
        id
    }

    fn set(&mut self, node: NodeId, value: Option<&String>) -> (u32, u32) {
        let new = value.map_or(NOWHERE, |v| self.id(v));
        let at = node as usize;
        if self.of_node.len() <= at {
            self.of_node.resize(at + 1, NOWHERE);
        }
        let old = std::mem::replace(&mut self.of_node[at], new);
        if old != NOWHERE {
            self.sizes[old as usize] -= 1;
            self.nodes -= 1;
        }
        if new != NOWHERE {
            self.sizes[new as usize] += 1;
            self.nodes += 1;
        }
        (old, new)
    }
}

/// Which pods are counted, and by which label of nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    /// A pod counts when it matches all of these.
    pub rules: Vec<PodRule>,
    /// The label.
    pub topology_key: Arc<str>,
    /// Whether pods that are being deleted count.
    pub with_deleted: bool,
}

impl Query {
    /// Whether a pod counts.
    pub fn matches(&self, pod: &Footprint, namespaces: &Namespaces) -> bool {
        let labels = namespaces.get(&pod.key.namespace);
        (self.with_deleted || !pod.deleting) && self.rules.iter().all(|r| r.matches(pod, labels))
    }

    fn depends_on_namespaces(&self) -> bool {
        self.rules.iter().any(|r| {
            r.namespace_selector
                .as_ref()
                .is_some_and(|s| !s.is_everything())
        })
    }
}

/// What a pod that bears a term makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bond {
    /// It keeps matching pods away.
    Repels,
    /// It went where matching pods are.
    Attracts,
    /// It prefers (or, negative, avoids) matching pods.
    Prefers(i32),
}

/// Labels of namespaces, by name.
pub type Namespaces = HashMap<Arc<str>, Labels>;

/// Numbers of pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Counts {
    /// The places counted in.
    pub places: Arc<Places>,
    /// By place.
    pub by_place: Arc<Vec<u32>>,
    /// By node.
    pub by_node: Arc<Vec<u32>>,
    /// In all places together.
    pub total: u32,
}

impl Counts {
    /// How many pods are where the node is; `None`: it is nowhere.
    pub fn near(&self, node: NodeId) -> Option<u32> {
        match self.places.of(node) {
            NOWHERE => None,
            place => Some(self.at(place)),
        }
    }

    /// How many pods are in a place.
    pub fn at(&self, place: u32) -> u32 {
        self.by_place.get(place as usize).copied().unwrap_or(0)
    }
}

/// Pods that bear a term which matches the pod at hand.
#[derive(Clone, Debug)]
pub struct Bearers {
    /// The term.
    pub term: Arc<AffinityTerm>,
    /// What they make of it.
    pub bond: Bond,
    /// How many there are, and where.
    pub counts: Counts,
}

#[derive(Debug, Default)]
struct Count {
    table: usize,
    by_place: Arc<Vec<u32>>,
    by_node: Arc<Vec<u32>>,
    total: u32,
    /// Pods on nodes that are nowhere included.
    everywhere: u32,
    asked: u64,
}

fn grow(list: &mut Arc<Vec<u32>>, at: u32) -> &mut u32 {
    let list = Arc::make_mut(list);
    if list.len() <= at as usize {
        list.resize(at as usize + 1, 0);
    }
    &mut list[at as usize]
}

impl Count {
    fn add(&mut self, places: &Places, node: NodeId) {
        self.everywhere += 1;
        *grow(&mut self.by_node, node) += 1;
        let place = places.of(node);
        if place != NOWHERE {
            *grow(&mut self.by_place, place) += 1;
            self.total += 1;
        }
    }

    fn remove(&mut self, places: &Places, node: NodeId) {
        let on_node = grow(&mut self.by_node, node);
        if *on_node == 0 {
            return;
        }
        *on_node -= 1;
        self.everywhere -= 1;
        let place = places.of(node);
        if place != NOWHERE {
            *grow(&mut self.by_place, place) -= 1;
            self.total -= 1;
        }
    }

    /// The pods of a node have moved with it.
    fn moved(&mut self, node: NodeId, from: u32, to: u32) {
        let pods = self.by_node.get(node as usize).copied().unwrap_or(0);
        if pods == 0 {
            return;
        }
        if from != NOWHERE {
            *grow(&mut self.by_place, from) -= pods;
            self.total -= pods;
        }
        if to != NOWHERE {
            *grow(&mut self.by_place, to) += pods;
            self.total += pods;
        }
    }
}

/// Finds what may match a pod by one of its labels.
#[derive(Debug)]
struct Buckets<K> {
    by_label: HashMap<String, HashMap<String, Vec<K>>>,
    rest: Vec<K>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self {
            by_label: HashMap::new(),
            rest: Vec::new(),
        }
    }
}

impl<K: PartialEq> Buckets<K> {
    fn of(&mut self, rule: Option<&PodRule>) -> &mut Vec<K> {
        match rule.and_then(|r| r.selector.needs()) {
            Some((key, value)) => self
                .by_label
                .entry(key.to_owned())
                .or_default()
                .entry(value.to_owned())
                .or_default(),
            None => &mut self.rest,
        }
    }

    fn remove(&mut self, rule: Option<&PodRule>, item: &K) {
        let bucket = self.of(rule);
        if let Some(at) = bucket.iter().position(|k| k == item) {
            bucket.swap_remove(at);
        }
    }

    fn candidates<'a>(&'a self, pod: &'a Footprint) -> impl Iterator<Item = &'a K> {
        let named = pod
            .labels
            .iter()
            .filter(|_| !self.by_label.is_empty())
            .filter_map(|(k, v)| self.by_label.get(k)?.get(v))
            .flatten();
        named.chain(&self.rest)
    }
}

type Carrier = (Arc<AffinityTerm>, Bond);

/// All counts.
#[derive(Debug, Default)]
pub struct Index {
    tables: Vec<Arc<Places>>,
    keys: HashMap<Arc<str>, usize>,
    matched: HashMap<Arc<Query>, Count>,
    matched_by: Buckets<Arc<Query>>,
    carried: HashMap<Carrier, Count>,
    carried_by: Buckets<Carrier>,
    /// Labels of namespaces.
    pub namespaces: Namespaces,
    clock: u64,
}

impl Index {
    /// The places of a label, if anything has asked for them.
    fn table(&mut self, key: &Arc<str>, nodes: &dyn Nodes) -> usize {
        if let Some(at) = self.keys.get(key) {
            return *at;
        }
        let mut places = Places::default();
        nodes.each(&mut |id, labels| {
            places.set(id, labels.get(&**key));
        });
        self.tables.push(Arc::new(places));
        self.keys.insert(Arc::clone(key), self.tables.len() - 1);
        self.tables.len() - 1
    }

    /// A node has these labels now; `None`: there is no such node.
    pub fn node_labels(
        &mut self,
        node: NodeId,
        labels: Option<&std::collections::BTreeMap<String, String>>,
    ) {
        let mut moves = vec![None; self.tables.len()];
        for (key, at) in &self.keys {
            let table = &mut self.tables[*at];
            let value = labels.and_then(|l| l.get(&**key));
            let same = match value {
                Some(v) => table.ids.get(v).copied() == Some(table.of(node)),
                None => table.of(node) == NOWHERE,
            };
            if !same {
                moves[*at] = Some(Arc::make_mut(table).set(node, value));
            }
        }
        if moves.iter().all(Option::is_none) {
            return;
        }
        for count in self.matched.values_mut().chain(self.carried.values_mut()) {
            if let Some((from, to)) = moves[count.table] {
                count.moved(node, from, to);
            }
        }
    }

    /// A pod is on a node.
    pub fn add(&mut self, pod: &Footprint, node: NodeId, nodes: &dyn Nodes) {
        for query in self.matched_by.candidates(pod) {
            if query.matches(pod, &self.namespaces)
                && let Some(count) = self.matched.get_mut(query)
            {
                count.add(&self.tables[count.table], node);
            }
        }
        for (term, bond) in bonds(pod) {
            let carrier = (Arc::clone(term), bond);
            let table = self.table(&term.topology_key, nodes);
            let count = self.carried.entry(carrier).or_insert_with_key(|carrier| {
                self.carried_by
                    .of(Some(&carrier.0.rule))
                    .push(carrier.clone());
                Count {
                    table,
                    ..Count::default()
                }
            });
            count.add(&self.tables[table], node);
        }
    }

    /// A pod is not on a node any more.
    pub fn remove(&mut self, pod: &Footprint, node: NodeId) {
        for query in self.matched_by.candidates(pod) {
            if query.matches(pod, &self.namespaces)
                && let Some(count) = self.matched.get_mut(query)
            {
                count.remove(&self.tables[count.table], node);
            }
        }
        for (term, bond) in bonds(pod) {
            let carrier = (Arc::clone(term), bond);
            let Some(count) = self.carried.get_mut(&carrier) else {
                continue;
            };
            count.remove(&self.tables[count.table], node);
            if count.everywhere == 0 {
                self.carried.remove(&carrier);
                self.carried_by.remove(Some(&term.rule), &carrier);
            }
        }
    }

    /// The labels of a namespace are these now. What depends on them is counted afresh when it is
    /// asked for next.
    pub fn namespace_labels(&mut self, name: &str, labels: Option<Labels>) {
        let same = self.namespaces.get(name) == labels.as_ref();
        match labels {
            Some(labels) => self.namespaces.insert(name.into(), labels),
            None => self.namespaces.remove(name),
        };
        if same {
            return;
        }
        let stale: Vec<_> = self
            .matched
            .keys()
            .filter(|q| q.depends_on_namespaces())
            .cloned()
            .collect();
        for query in stale {
            self.forget(&query);
        }
    }

    fn forget(&mut self, query: &Arc<Query>) {
        self.matched.remove(query);
        self.matched_by.remove(query.rules.first(), query);
    }

    /// How many pods match, and where.
    pub fn matched(&mut self, query: &Arc<Query>, nodes: &dyn Nodes) -> Counts {
        self.clock += 1;
        if !self.matched.contains_key(query) {
            self.count(query, nodes);
        }
        let clock = self.clock;
        let Some(count) = self.matched.get_mut(query) else {
            unreachable!("it was counted just now");
        };
        count.asked = clock;
        counts(&self.tables, count)
    }

    fn count(&mut self, query: &Arc<Query>, nodes: &dyn Nodes) {
        if self.matched.len() >= QUERIES_MAX {
            let oldest = self.matched.iter().min_by_key(|(_, c)| c.asked);
            if let Some(oldest) = oldest.map(|(q, _)| Arc::clone(q)) {
                self.forget(&oldest);
            }
        }
        let table = self.table(&query.topology_key, nodes);
        let mut count = Count {
            table,
            ..Count::default()
        };
        let places = &self.tables[table];
        nodes.each_pod(&mut |node, pod| {
            if query.matches(pod, &self.namespaces) {
                count.add(places, node);
            }
        });
        self.matched.insert(Arc::clone(query), count);
        self.matched_by
            .of(query.rules.first())
            .push(Arc::clone(query));
    }

    /// The pods whose own terms are about `pod`.
    pub fn bearers(&self, pod: &Footprint) -> Vec<Bearers> {
        let labels = self.namespaces.get(&pod.key.namespace);
        self.carried_by
            .candidates(pod)
            .filter(|(term, _)| term.rule.matches(pod, labels))
            .filter_map(|carrier| {
                let count = self.carried.get(carrier)?;
                Some(Bearers {
                    term: Arc::clone(&carrier.0),
                    bond: carrier.1,
                    counts: counts(&self.tables, count),
                })
            })
            .collect()
    }
}

fn counts(tables: &[Arc<Places>], count: &Count) -> Counts {
    Counts {
        places: Arc::clone(&tables[count.table]),
        by_place: Arc::clone(&count.by_place),
        by_node: Arc::clone(&count.by_node),
        total: count.total,
    }
}

fn bonds(pod: &Footprint) -> impl Iterator<Item = (&Arc<AffinityTerm>, Bond)> {
    pod.terms.iter().flat_map(|terms| {
        let repels = terms.anti_affinity.iter().map(|t| (t, Bond::Repels));
        let attracts = terms.affinity.iter().map(|t| (t, Bond::Attracts));
        let prefers = terms
            .preferred
            .iter()
            .map(|w| (&w.term, Bond::Prefers(w.weight)));
        repels.chain(attracts).chain(prefers)
    })
}

/// What the index counts.
pub trait Nodes {
    /// Calls `see` for every node that exists.
    fn each(&self, see: &mut dyn FnMut(NodeId, &std::collections::BTreeMap<String, String>));
    /// Calls `see` for every pod that is on a node.
    fn each_pod(&self, see: &mut dyn FnMut(NodeId, &Footprint));
}
