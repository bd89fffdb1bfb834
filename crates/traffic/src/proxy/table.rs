//! The proxy's table as elements of sets and chains, and the changes from one state to another. Pure.
//!
//! Every element belongs to one frontend, except those of `hairpin`, which are counted. Where two Services claim one
//! frontend (only external addresses can be claimed twice), the Service whose key comes first has it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use client::Key as ServiceKey;
use ipnet::Ipv4Net;
use net::nft::{Data, Key, Verdict};

use super::model::{Audience, Backend, Frontend, Frontends, MAX_ENDPOINTS, Otherwise, Protocol};

/// The sets and maps of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Address, protocol, port: what to do.
    Services,
    /// The same for packets of pods and of this node.
    ServicesInternal,
    /// Protocol, port: what to do with packets to this node.
    NodePorts,
    /// The same for packets of pods and of this node.
    NodePortsInternal,
    /// Address, protocol, port, slot: an endpoint.
    Slots,
    /// Protocol, port, slot: an endpoint.
    NodePortSlots,
    /// Address, protocol, port without endpoints: how to refuse.
    Refuse,
    /// Protocol, port without endpoints: how to refuse.
    RefuseNodePorts,
    /// Address, protocol, port with affinity: how to remember.
    Sticky,
    /// Protocol, port with affinity: how to remember.
    StickyNodePorts,
    /// An endpoint's address twice: packets that come back to their sender.
    Hairpin,
    /// Address, protocol, port only some may use.
    Restricted,
    /// Address, protocol, port, source: who may.
    Sources,
}

impl SetId {
    /// All of them, in the order they are made.
    pub const ALL: &'static [SetId] = &[
        SetId::Services,
        SetId::ServicesInternal,
        SetId::NodePorts,
        SetId::NodePortsInternal,
        SetId::Slots,
        SetId::NodePortSlots,
        SetId::Refuse,
        SetId::RefuseNodePorts,
        SetId::Sticky,
        SetId::StickyNodePorts,
        SetId::Hairpin,
        SetId::Restricted,
        SetId::Sources,
    ];

    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            SetId::Services => "services",
            SetId::ServicesInternal => "services-internal",
            SetId::NodePorts => "nodeports",
            SetId::NodePortsInternal => "nodeports-internal",
            SetId::Slots => "slots",
            SetId::NodePortSlots => "nodeport-slots",
            SetId::Refuse => "refuse",
            SetId::RefuseNodePorts => "refuse-nodeports",
            SetId::Sticky => "sticky",
            SetId::StickyNodePorts => "sticky-nodeports",
            SetId::Hairpin => "hairpin",
            SetId::Restricted => "restricted",
            SetId::Sources => "sources",
        }
    }
}

/// Chains that exist because some frontend needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainId {
    /// Chooses one of `endpoints` slots.
    Spread {
        /// For node ports.
        node_port: bool,
        /// Whose packets.
        audience: Audience,
        /// How many slots.
        endpoints: u32,
    },
    /// Looks whether the client has an endpoint already, else spreads.
    Sticky {
        /// For node ports.
        node_port: bool,
        /// Whose packets.
        audience: Audience,
        /// How many slots.
        endpoints: u32,
    },
    /// Remembers a client's endpoint for so many seconds.
    Remember(u32),
}

impl ChainId {
    /// Its name in the kernel.
    pub fn name(self) -> String {
        let place = |node_port, audience| {
            let to = if node_port { "nodeport" } else { "service" };
            if audience == Audience::Internal {
                format!("{to}-internal")
            } else {
                to.to_string()
            }
        };
        match self {
            ChainId::Spread {
                node_port,
                audience,
                endpoints,
            } => {
                format!("spread-{}-{endpoints}", place(node_port, audience))
            }
            ChainId::Sticky {
                node_port,
                audience,
                endpoints,
            } => {
                format!("sticky-{}-{endpoints}", place(node_port, audience))
            }
            ChainId::Remember(seconds) => format!("remember-{seconds}"),
        }
    }
}

/// Chain that tells senders that nobody is there.
pub(crate) const REJECT: &str = "reject";

/// The first slot of an audience: both audiences' slots are in the same map.
pub(crate) fn first_slot(audience: Audience) -> u32 {
    match audience {
        Audience::All => 0,
        Audience::Internal => MAX_ENDPOINTS as u32,
    }
}

/// What an element is found by: its set, its key, and the key's upper end in sets of ranges.
pub type ElementId = (SetId, Key, Option<Key>);
/// Elements with what they map to.
pub type Elements = BTreeMap<ElementId, Option<Data>>;

/// The address's protocol and port, after the address if it has one.
fn key(frontend: &Frontend) -> Key {
    let start = frontend
        .address
        .map_or_else(Key::new, |a| Key::new().ipv4(a));
    start.proto(frontend.protocol.number()).port(frontend.port)
}

fn endpoint(address: SocketAddrV4) -> Key {
    Key::new().ipv4(*address.ip()).port(address.port())
}

fn chains(frontend: &Frontend, backend: &Backend) -> Vec<ChainId> {
    let (node_port, audience) = (frontend.address.is_none(), frontend.audience);
    let endpoints = backend.endpoints.len() as u32;
    if endpoints == 0 {
        return Vec::new();
    }
    // The last one is the entrance.
    let mut chains = vec![ChainId::Spread {
        node_port,
        audience,
        endpoints,
    }];
    if let Some(seconds) = backend.affinity {
        chains.insert(0, ChainId::Remember(seconds));
        chains.push(ChainId::Sticky {
            node_port,
            audience,
            endpoints,
        });
    }
    chains
}

/// The elements of one frontend.
fn elements(frontend: &Frontend, backend: &Backend) -> Elements {
    let mut all = Elements::new();
    let key = key(frontend);
    let node_port = frontend.address.is_none();
    let pick = |service, port| if node_port { port } else { service };
    let mut put = |set, key, data| all.insert((set, key, None), data);
    match chains(frontend, backend).last() {
        None => {
            // An audience of its own is let through to `All`, which refuses it.
            if frontend.audience == Audience::All {
                let verdict = match backend.otherwise {
                    Otherwise::Reject => Verdict::Goto(REJECT.into()),
                    Otherwise::Drop => Verdict::Drop,
                };
                put(
                    pick(SetId::Refuse, SetId::RefuseNodePorts),
                    key.clone(),
                    Some(Data::Verdict(verdict)),
                );
            }
        }
        Some(entrance) => {
            let set = match frontend.audience {
                Audience::All => pick(SetId::Services, SetId::NodePorts),
                Audience::Internal => pick(SetId::ServicesInternal, SetId::NodePortsInternal),
            };
            put(
                set,
                key.clone(),
                Some(Data::Verdict(Verdict::Goto(entrance.name()))),
            );
            let slots = pick(SetId::Slots, SetId::NodePortSlots);
            for (slot, address) in (first_slot(frontend.audience)..).zip(&backend.endpoints) {
                put(
                    slots,
                    key.clone().number(slot),
                    Some(Data::Value(endpoint(*address))),
                );
            }
            if let (Some(seconds), Audience::All) = (backend.affinity, frontend.audience) {
                let verdict = Verdict::Goto(ChainId::Remember(seconds).name());
                put(
                    pick(SetId::Sticky, SetId::StickyNodePorts),
                    key.clone(),
                    Some(Data::Verdict(verdict)),
                );
            }
        }
    }
    if !node_port && frontend.audience == Audience::All && !backend.sources.is_empty() {
        put(SetId::Restricted, key.clone(), None);
        for source in &backend.sources {
            let (low, high) = (
                key.clone().ipv4(source.network()),
                key.clone().ipv4(source.broadcast()),
            );
            all.insert((SetId::Sources, low, Some(high)), None);
        }
    }
    all
}

/// A flow that was translated to an endpoint that is no more, or not translated because there was none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StaleFlow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where it was sent; None is any address of this node.
    pub address: Option<Ipv4Addr>,
    /// The port it was sent to.
    pub port: u16,
    /// Who answers; None: whom it was sent to.
    pub endpoint: Option<SocketAddrV4>,
}

/// What to do, in the order: make chains, remove elements, add elements, remove chains, then the rest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Chains to be made; what another jumps to comes first.
    pub add_chains: Vec<ChainId>,
    /// Elements to be removed.
    pub remove: BTreeSet<ElementId>,
    /// Elements to be added.
    pub add: Elements,
    /// Chains to be removed; what jumps to another comes first.
    pub remove_chains: Vec<ChainId>,
    /// Flows to be forgotten.
    pub stale: BTreeSet<StaleFlow>,
    /// Whether clients may be remembered at endpoints that are no more.
    pub forget_clients: bool,
}

impl Changes {
    /// Whether the kernel's table stays as it is.
    pub fn is_empty(&self) -> bool {
        self.add_chains.is_empty()
            && self.remove.is_empty()
            && self.add.is_empty()
            && self.remove_chains.is_empty()
    }
}

/// The whole table, as the kernel should have it.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Range of this node's pods: only they can reach themselves through a Service.
    pods: Ipv4Net,
    services: BTreeMap<ServiceKey, BTreeSet<Frontend>>,
    claims: BTreeMap<Frontend, BTreeMap<ServiceKey, Backend>>,
    chains: BTreeMap<ChainId, usize>,
    hairpins: BTreeMap<Ipv4Addr, usize>,
}

impl Table {
    /// An empty table of a node whose pods have addresses in `pods`.
    pub fn new(pods: Ipv4Net) -> Self {
        Table {
            pods,
            ..Table::default()
        }
    }

    /// Gives each of these Services its new frontends (none: the Service is gone) and returns what changes.
    pub fn update(&mut self, services: BTreeMap<ServiceKey, Frontends>) -> Changes {
        let mut touched = BTreeSet::new();
        let mut before = BTreeMap::new();
        for (service, frontends) in &services {
            let old = self.services.get(service).cloned().unwrap_or_default();
            touched.extend(old);
            touched.extend(frontends.keys().copied());
        }
        for frontend in &touched {
            before.extend(self.backend(frontend).cloned().map(|b| (*frontend, b)));
        }
        for (service, frontends) in services {
            self.claim(service, frontends);
        }
        let mut changes = Changes::default();
        let chains_before = self.chains.clone();
        let mut hairpins_before = BTreeMap::new();
        for frontend in touched {
            let after = self.backend(&frontend).cloned();
            let before = before.remove(&frontend);
            if before != after {
                self.change(&frontend, before.as_ref(), after.as_ref(), &mut changes);
                self.count(
                    &frontend,
                    before.as_ref(),
                    after.as_ref(),
                    &mut hairpins_before,
                );
            }
        }
        self.compare_chains(&chains_before, &mut changes);
        self.compare_hairpins(&hairpins_before, &mut changes);
        changes
    }

    /// The backend of a frontend as it is in effect.
    pub fn backend(&self, frontend: &Frontend) -> Option<&Backend> {
        self.claims.get(frontend)?.values().next()
    }

    /// Every frontend in effect.
    pub fn frontends(&self) -> impl Iterator<Item = (&Frontend, &Backend)> {
        self.claims
            .iter()
            .filter_map(|(f, claims)| claims.values().next().map(|b| (f, b)))
    }

    /// Chains the table consists of; what another jumps to comes first.
    pub fn chains(&self) -> impl Iterator<Item = ChainId> {
        self.chains.keys().copied()
    }

    /// All elements.
    pub fn elements(&self) -> Elements {
        let mut all: Elements = self.frontends().flat_map(|(f, b)| elements(f, b)).collect();
        all.extend(
            self.hairpins
                .keys()
                .map(|address| (hairpin(*address), None)),
        );
        all
    }

    /// Whether a client of that frontend may be at that endpoint.
    pub fn leads_to(
        &self,
        address: Ipv4Addr,
        protocol: u8,
        port: u16,
        endpoint: SocketAddrV4,
    ) -> bool {
        let Some(protocol) = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|p| p.number() == protocol)
        else {
            return false;
        };
        let candidates = [Some(address), None].into_iter().flat_map(|address| {
            [Audience::All, Audience::Internal].map(|audience| Frontend {
                audience,
                address,
                protocol,
                port,
            })
        });
        let mut known = candidates.filter_map(|f| self.backend(&f));
        known.any(|b| b.affinity.is_some() && b.endpoints.binary_search(&endpoint).is_ok())
    }

    fn claim(&mut self, service: ServiceKey, frontends: Frontends) {
        for frontend in self.services.remove(&service).unwrap_or_default() {
            if let Some(claims) = self.claims.get_mut(&frontend) {
                claims.remove(&service);
                if claims.is_empty() {
                    self.claims.remove(&frontend);
                }
            }
        }
        if frontends.is_empty() {
            return;
        }
        self.services
            .insert(service.clone(), frontends.keys().copied().collect());
        for (frontend, backend) in frontends {
            self.claims
                .entry(frontend)
                .or_default()
                .insert(service.clone(), backend);
        }
    }

    fn change(
        &self,
        f: &Frontend,
        before: Option<&Backend>,
        after: Option<&Backend>,
        changes: &mut Changes,
    ) {
        let old = before.map(|b| elements(f, b)).unwrap_or_default();
        let new = after.map(|b| elements(f, b)).unwrap_or_default();
        for (id, data) in &old {
            if new.get(id) != Some(data) {
                changes.remove.insert(id.clone());
            }
        }
        changes.add.extend(
            new.into_iter()
                .filter(|(id, data)| old.get(id) != Some(data)),
        );

        self.find_stale(f, before, after, changes);
    }

    fn find_stale(
        &self,
        f: &Frontend,
        before: Option<&Backend>,
        after: Option<&Backend>,
        changes: &mut Changes,
    ) {
        let none = Vec::new();
        let old = before.map_or(&none, |b| &b.endpoints);
        let new = after.map_or(&none, |b| &b.endpoints);
        let gone: Vec<_> = old
            .iter()
            .filter(|e| new.binary_search(e).is_err())
            .collect();
        changes.forget_clients |= before.is_some_and(|b| b.affinity.is_some())
            && (!gone.is_empty() || after.is_none_or(|b| b.affinity.is_none()));
        if f.protocol != Protocol::Udp {
            return;
        }
        let stale = |endpoint| StaleFlow {
            protocol: f.protocol,
            address: f.address,
            port: f.port,
            endpoint,
        };
        changes
            .stale
            .extend(gone.into_iter().map(|e| stale(Some(*e))));
        if old.is_empty() && !new.is_empty() {
            changes.stale.insert(stale(None));
        }
    }

    /// Counts what frontends share; `hairpins` notes which of the touched addresses were there before.
    fn count(
        &mut self,
        f: &Frontend,
        before: Option<&Backend>,
        after: Option<&Backend>,
        hairpins: &mut BTreeMap<Ipv4Addr, bool>,
    ) {
        for (backend, step) in [(after, 1), (before, -1)] {
            let Some(backend) = backend else { continue };
            for chain in chains(f, backend) {
                bump(&mut self.chains, chain, step);
            }
            for address in backend
                .endpoints
                .iter()
                .map(|e| *e.ip())
                .filter(|a| self.pods.contains(a))
            {
                let there = self.hairpins.contains_key(&address);
                hairpins.entry(address).or_insert(there);
                bump(&mut self.hairpins, address, step);
            }
        }
    }

    fn compare_chains(&self, before: &BTreeMap<ChainId, usize>, changes: &mut Changes) {
        changes.add_chains = self
            .chains
            .keys()
            .filter(|c| !before.contains_key(c))
            .copied()
            .collect();
        changes.remove_chains = before
            .keys()
            .rev()
            .filter(|c| !self.chains.contains_key(c))
            .copied()
            .collect();
    }

    fn compare_hairpins(&self, before: &BTreeMap<Ipv4Addr, bool>, changes: &mut Changes) {
        for (address, there) in before {
            match (there, self.hairpins.contains_key(address)) {
                (false, true) => drop(changes.add.insert(hairpin(*address), None)),
                (true, false) => drop(changes.remove.insert(hairpin(*address))),
                _ => {}
            }
        }
    }
}

fn hairpin(address: Ipv4Addr) -> ElementId {
    (SetId::Hairpin, Key::new().ipv4(address).ipv4(address), None)
}

fn bump<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K, step: isize) {
    use std::collections::btree_map::Entry;
    match counts.entry(key) {
        Entry::Occupied(mut at) => match at.get().saturating_add_signed(step) {
            0 => drop(at.remove()),
            count => *at.get_mut() = count,
        },
        Entry::Vacant(at) => {
            if step > 0 {
                at.insert(step.unsigned_abs());
            }
        }
    }
}
