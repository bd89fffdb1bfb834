//! Brings the kernel's table to the wanted state: whole at the start, by changes after that.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use client::Key as ServiceKey;
use net::conntrack::{Conntrack, Flow};
use net::nft::{Batch, BatchError, Connection, DumpedElement, Dumper, Element, Event, Family, Key};

use super::Config;
use super::forwarding;
use super::model::Frontends;
use super::rules::{self, AFFINITY};
use super::table::{Changes, ElementId, Elements, SetId, StaleFlow, Table};

/// How often removing remembered clients is tried: an element may expire between being seen and being removed.
const FORGET_ATTEMPTS: usize = 3;

/// The kernel's side of the proxy, in the network namespace of the thread that opened it.
pub struct Applier {
    config: Config,
    nft: Connection,
    conntrack: Conntrack,
    table: Table,
    /// Whether the kernel is known to have `table`.
    in_step: bool,
}

impl Applier {
    /// Opens the connections to the kernel; nothing changes there yet.
    pub fn open(config: Config) -> Result<Self, net::Error> {
        let table = Table::new(config.node_pod_cidr);
        Ok(Applier {
            nft: Connection::open()?,
            conntrack: Conntrack::open()?,
            table,
            config,
            in_step: false,
        })
    }

    /// Gives these Services their new frontends. The first time, and whenever the kernel's table turned out to be
    /// another than was thought, it is replaced whole, which no established connection notices.
    pub fn update(&mut self, services: BTreeMap<ServiceKey, Frontends>) -> Result<(), BatchError> {
        let changes = self.table.update(services);
        if self.in_step {
            match self.commit(&changes) {
                Ok(()) => return self.clean_up(&changes),
                Err(error) => {
                    tracing::warn!(%error, "the kernel's service table is not as expected; replacing it")
                }
            }
        }
        self.replace()?;
        self.clean_up(&changes)
    }

    fn commit(&mut self, changes: &Changes) -> Result<(), BatchError> {
        // A transaction of their own: a packet that is between two states of the table sees the new elements but not yet
        // the rules of new chains, and would fall through to being refused.
        self.nft.commit(&chains_batch(&self.config, changes))?;
        self.nft.commit(&elements_batch(&self.config, changes))
    }

    /// Replaces the kernel's table whole.
    pub fn replace(&mut self) -> Result<(), BatchError> {
        self.in_step = false;
        let clients = self.remembered_clients()?;
        let mut batch = Batch::new(Family::Ip, &self.config.table);
        batch.replace_table();
        rules::add_sets(&mut batch);
        rules::add_fixed_chains(&mut batch, &self.config);
        for chain in self.table.chains() {
            rules::add_chain(&mut batch, chain);
        }
        add_elements(&mut batch, &self.table.elements());
        if !clients.is_empty() {
            batch.add_elements(AFFINITY, clients);
        }
        self.nft.commit(&batch)?;
        self.in_step = true;
        forwarding::allow(&mut self.nft, &self.config.table, &self.config.bridge)
    }

    /// Puts right what others did to the tables: `events` of a monitor.
    pub fn heard(&mut self, events: &[Event]) -> Result<(), BatchError> {
        let own = self.nft.port()?;
        let ours = self.config.table.as_str();
        let mut replace = false;
        let mut allow = false;
        for event in events {
            match event {
                Event::Removed { port, .. } | Event::Chain { port, .. } if *port == own => {}
                Event::Removed { table, .. } => {
                    replace |= table == ours;
                    allow |= table == forwarding::TABLE;
                }
                Event::Chain { table, chain, .. } => {
                    allow |= table == forwarding::TABLE && chain == forwarding::CHAIN;
                }
                Event::Lost => {
                    allow = true;
                    replace |= !self.nft.tables(Family::Ip)?.iter().any(|t| t == ours);
                }
            }
        }
        if replace {
            tracing::warn!(
                table = ours,
                "the service table was changed by others; replacing it"
            );
            self.replace()
        } else if allow {
            forwarding::allow(&mut self.nft, ours, &self.config.bridge)
        } else {
            Ok(())
        }
    }

    fn clean_up(&mut self, changes: &Changes) -> Result<(), BatchError> {
        if changes.forget_clients {
            self.forget_clients()?;
        }
        if !changes.stale.is_empty() {
            let forgotten = self
                .conntrack
                .forget_where(|flow| changes.stale.iter().any(|s| s.is(flow)))?;
            tracing::debug!(forgotten, "forgot flows to endpoints that are gone");
        }
        Ok(())
    }

    /// The clients whose endpoint is still one, as the kernel's present table remembers them.
    fn remembered_clients(&mut self) -> Result<Vec<Element>, BatchError> {
        if !self.nft.tables(Family::Ip)?.contains(&self.config.table) {
            return Ok(Vec::new());
        }
        let kept = match self.nft.elements(Family::Ip, &self.config.table, AFFINITY) {
            Ok(elements) => elements,
            // Another version's table may lack the map, or have it in another shape.
            Err(error) => {
                tracing::debug!(%error, "no remembered clients");
                Vec::new()
            }
        };
        let still_valid = kept.into_iter().filter(|e| self.is_valid(e));
        Ok(still_valid
            .filter_map(|e| {
                let DumpedElement {
                    key,
                    value,
                    timeout,
                    expiration,
                    ..
                } = e;
                // Nothing can be said to live for no time.
                let expiration = expiration.filter(|e| !e.is_zero());
                Some(Element {
                    timeout,
                    expiration,
                    ..Element::value(key, value?)
                })
            })
            .collect())
    }

    fn is_valid(&self, element: &DumpedElement) -> bool {
        let DumpedElement { key, value, .. } = element;
        let endpoint = value
            .as_ref()
            .and_then(|v| Some(SocketAddrV4::new(v.ipv4_at(0)?, v.port_at(1)?)));
        let place = key.ipv4_at(1).zip(key.proto_at(2)).zip(key.port_at(3));
        place
            .zip(endpoint)
            .is_some_and(|(((a, proto), port), e)| self.table.leads_to(a, proto, port, e))
    }

    fn forget_clients(&mut self) -> Result<(), BatchError> {
        let mut last = Ok(());
        for _ in 0..FORGET_ATTEMPTS {
            let all = self
                .nft
                .elements(Family::Ip, &self.config.table, AFFINITY)?;
            let invalid: Vec<Key> = all
                .into_iter()
                .filter(|e| !self.is_valid(e))
                .map(|e| e.key)
                .collect();
            if invalid.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new(Family::Ip, &self.config.table);
            batch.delete_elements(AFFINITY, invalid);
            last = self.nft.commit(&batch);
            if last.is_ok() {
                return Ok(());
            }
        }
        last
    }
}

impl StaleFlow {
    fn is(&self, flow: &Flow) -> bool {
        let (address, port) = flow.destination;
        let (responder, responder_port) = flow.responder;
        flow.protocol == self.protocol.number()
            && port == self.port
            && self.address.is_none_or(|a| a == address)
            && match self.endpoint {
                Some(endpoint) => (*endpoint.ip(), endpoint.port()) == (responder, responder_port),
                None => (address, port) == (responder, responder_port),
            }
    }
}

fn chains_batch(config: &Config, changes: &Changes) -> Batch {
    let mut batch = Batch::new(Family::Ip, &config.table);
    for chain in &changes.add_chains {
        rules::add_chain(&mut batch, *chain);
    }
    batch
}

fn elements_batch(config: &Config, changes: &Changes) -> Batch {
    let mut batch = Batch::new(Family::Ip, &config.table);
    for (set, ids) in by_set(changes.remove.iter()) {
        batch.remove_elements(
            set.name(),
            ids.into_iter().map(|id| element(id, None)).collect(),
        );
    }
    add_elements(&mut batch, &changes.add);
    for chain in &changes.remove_chains {
        batch.delete_chain(&chain.name());
    }
    batch
}

fn add_elements(batch: &mut Batch, elements: &Elements) {
    for (set, ids) in by_set(elements.keys()) {
        let of_set = ids
            .into_iter()
            .map(|id| element(id, elements.get(id).cloned().flatten()));
        batch.add_elements(set.name(), of_set.collect());
    }
}

fn element(id: &ElementId, data: Option<net::nft::Data>) -> Element {
    Element {
        key_end: id.2.clone(),
        data,
        ..Element::key(id.1.clone())
    }
}

fn by_set<'a>(ids: impl Iterator<Item = &'a ElementId>) -> BTreeMap<SetId, Vec<&'a ElementId>> {
    let mut sets: BTreeMap<SetId, Vec<&ElementId>> = BTreeMap::new();
    for id in ids {
        sets.entry(id.0).or_default().push(id);
    }
    sets
}
