//! Endpoints into EndpointSlices, as few of which change as possible. Pure.
//!
//! What is there stays in its slice. What is new goes first into slices that change anyway, then into one
//! that has room for all that is left, and else into new slices: each slice that changes is sent to every
//! node.

use std::collections::{BTreeMap, btree_map::Values};

use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::backends::Port;

/// What is to be done about one slice.
#[derive(Debug, PartialEq)]
pub enum Act {
    /// Make it.
    Create(EndpointSlice),
    /// Replace it.
    Update(EndpointSlice),
    /// Delete the one of this name.
    Delete(String),
}

/// Whom slices are about.
pub struct Whose {
    /// Where they are.
    pub namespace: Option<String>,
    /// What their names begin with.
    pub name: String,
    /// What they say of themselves.
    pub labels: BTreeMap<String, String>,
    /// All their annotations; `None`: whatever they have.
    pub annotations: Option<BTreeMap<String, String>>,
    /// What goes before they go.
    pub owner: OwnerReference,
    /// Endpoints of one slice.
    pub most: usize,
    /// Whether an empty slice says that nobody answers.
    pub says_nobody: bool,
}

/// Endpoints by the ports they serve.
pub type Wanted = BTreeMap<Vec<Port>, Vec<Endpoint>>;

/// What becomes of the slices of one address family.
#[derive(Default)]
struct Changes {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<EndpointSlice>,
}

/// Decides for one address family. `existing` are the slices of that family.
pub fn plan(whose: &Whose, family: &str, groups: &Wanted, existing: &[EndpointSlice]) -> Vec<Act> {
    let mut changes = Changes::default();
    let mut stale: Vec<&EndpointSlice> = existing.iter().collect();
    for (ports, endpoints) in groups {
        let ports: Vec<EndpointPort> = ports.iter().map(slice_port).collect();
        let mine: Vec<&EndpointSlice> = stale.extract_if(.., |s| same_ports(s, &ports)).collect();
        let new = || new_slice(whose, family, &ports);
        fill(whose, new, endpoints, &mine, &mut changes);
    }
    changes.delete.extend(stale.into_iter().cloned());
    if whose.says_nobody && changes.create.is_empty() && changes.delete.len() == existing.len() {
        match changes.delete.iter().position(|s| is_empty(whose, s)) {
            Some(kept) => drop(changes.delete.swap_remove(kept)),
            None => changes.create.push(new_slice(whose, family, &[])),
        }
    }
    changes.acts()
}

/// Puts the endpoints of one set of ports into its slices.
fn fill(
    whose: &Whose,
    new: impl Fn() -> EndpointSlice,
    endpoints: &[Endpoint],
    mine: &[&EndpointSlice],
    changes: &mut Changes,
) {
    let mut wanted: BTreeMap<_, &Endpoint> = endpoints.iter().map(|e| (key_of(e), e)).collect();
    let (mut update, mut same) = (Vec::new(), Vec::new());
    for slice in mine {
        let there = endpoints_of(slice).iter();
        let kept = there.filter_map(|e| wanted.remove(&key_of(e)).cloned());
        let kept: Vec<Endpoint> = kept.collect();
        if kept.is_empty() {
            changes.delete.push((*slice).clone());
        } else if kept == endpoints_of(slice) && is_told(whose, slice) {
            same.push(*slice);
        } else {
            update.push(with(whose, slice, kept));
        }
    }
    update.sort_by_key(|s| std::cmp::Reverse(endpoints_of(s).len()));
    let mut rest = wanted.values();
    for slice in &mut update {
        take(slice, &mut rest, whose.most);
    }
    if rest.len() > 0 {
        let room = |s: &&&EndpointSlice| endpoints_of(s).len() + rest.len() <= whose.most;
        let fullest = same
            .iter()
            .filter(room)
            .max_by_key(|s| endpoints_of(s).len());
        if let Some(slice) = fullest {
            let mut slice = with(whose, slice, endpoints_of(slice).to_vec());
            take(&mut slice, &mut rest, whose.most);
            update.push(slice);
        }
    }
    while rest.len() > 0 {
        let mut slice = new();
        take(&mut slice, &mut rest, whose.most);
        changes.create.push(slice);
    }
    changes.update.extend(update);
}

type Rest<'a, 'e> = Values<'a, (String, String), &'e Endpoint>;

/// Fills a slice up.
fn take(slice: &mut EndpointSlice, rest: &mut Rest<'_, '_>, most: usize) {
    let endpoints = slice.endpoints.get_or_insert_default();
    let room = most.saturating_sub(endpoints.len());
    endpoints.extend(rest.by_ref().take(room).map(|e| (*e).clone()));
}

impl Changes {
    /// What would be deleted is made what would be new, so that nobody misses either meanwhile.
    fn acts(mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        while let (Some(_), Some(_)) = (self.create.last(), self.delete.last()) {
            if let (Some(new), Some(old)) = (self.create.pop(), self.delete.pop()) {
                self.update.push(in_place_of(old, new));
            }
        }
        let name = |s: EndpointSlice| s.metadata.name.unwrap_or_default();
        acts.extend(self.create.into_iter().map(Act::Create));
        acts.extend(self.update.into_iter().map(Act::Update));
        acts.extend(self.delete.into_iter().map(|s| Act::Delete(name(s))));
        acts
    }
}

fn in_place_of(old: EndpointSlice, new: EndpointSlice) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            labels: new.metadata.labels,
            annotations: new.metadata.annotations,
            owner_references: new.metadata.owner_references,
            ..old.metadata
        },
        ..new
    }
}

/// What makes an endpoint the same one.
pub fn key_of(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone());
    (
        endpoint.addresses.first().cloned().unwrap_or_default(),
        uid.unwrap_or_default(),
    )
}

fn endpoints_of(slice: &EndpointSlice) -> &[Endpoint] {
    slice.endpoints.as_deref().unwrap_or_default()
}

fn slice_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.port),
        app_protocol: port.app_protocol.clone(),
    }
}

fn same_ports(slice: &EndpointSlice, ports: &[EndpointPort]) -> bool {
    let sorted = |ports: &[EndpointPort]| {
        let mut ports = ports.to_vec();
        ports.sort_by(|a, b| a.name.cmp(&b.name));
        ports
    };
    sorted(slice.ports.as_deref().unwrap_or_default()) == sorted(ports)
}

/// Whether a slice says of itself what it is to say.
fn is_told(whose: &Whose, slice: &EndpointSlice) -> bool {
    let meta = &slice.metadata;
    let none = BTreeMap::new();
    let annotations = meta.annotations.as_ref().unwrap_or(&none);
    meta.labels.as_ref() == Some(&whose.labels)
        && whose.annotations.as_ref().is_none_or(|a| a == annotations)
}

/// Whether a slice says that nobody answers, and nothing else.
fn is_empty(whose: &Whose, slice: &EndpointSlice) -> bool {
    endpoints_of(slice).is_empty() && same_ports(slice, &[]) && is_told(whose, slice)
}

fn with(whose: &Whose, old: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut new = old.clone();
    new.endpoints = Some(endpoints);
    new.metadata.labels = Some(whose.labels.clone());
    if let Some(annotations) = &whose.annotations {
        new.metadata.annotations = Some(annotations.clone());
    }
    new
}

fn new_slice(whose: &Whose, family: &str, ports: &[EndpointPort]) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", whose.name)),
            namespace: whose.namespace.clone(),
            labels: Some(whose.labels.clone()),
            annotations: whose.annotations.clone().filter(|a| !a.is_empty()),
            owner_references: Some(vec![whose.owner.clone()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(ports.to_vec()),
        endpoints: Some(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(label: &str) -> Whose {
        Whose {
            namespace: Some("n".into()),
            name: "s".into(),
            labels: BTreeMap::from([("l".to_owned(), label.to_owned())]),
            annotations: None,
            owner: OwnerReference::default(),
            most: 100,
            says_nobody: true,
        }
    }

    fn wanted(numbers: impl IntoIterator<Item = usize>) -> Wanted {
        let port = Port {
            name: "".into(),
            protocol: "TCP".into(),
            port: 80,
            app_protocol: None,
        };
        let endpoint = |i: usize| Endpoint {
            addresses: vec![format!("10.0.{}.{}", i / 250, i % 250)],
            ..Endpoint::default()
        };
        Wanted::from([(vec![port], numbers.into_iter().map(endpoint).collect())])
    }

    /// Carries a plan out; answers how many slices it creates, updates and deletes.
    fn apply(existing: &mut Vec<EndpointSlice>, whose: &Whose, wanted: &Wanted) -> [usize; 3] {
        let mut counts = [0; 3];
        for act in plan(whose, "IPv4", wanted, existing) {
            match act {
                Act::Create(mut s) => {
                    counts[0] += 1;
                    s.metadata.name = Some(format!("s-{}", existing.len()));
                    existing.push(s);
                }
                Act::Update(s) => {
                    counts[1] += 1;
                    let named = |e: &EndpointSlice| e.metadata.name == s.metadata.name;
                    let at = existing.iter().position(named).unwrap();
                    existing[at] = s;
                }
                Act::Delete(name) => {
                    counts[2] += 1;
                    existing.retain(|e| e.metadata.name.as_ref() != Some(&name));
                }
            }
        }
        counts
    }

    fn sizes(existing: &[EndpointSlice]) -> Vec<usize> {
        existing.iter().map(|s| endpoints_of(s).len()).collect()
    }

    #[test]
    fn slices_fill_up_and_change_only_where_needed() {
        let (mut slices, whose) = (Vec::new(), whose("m"));
        let mut go = |wanted: Wanted| (apply(&mut slices, &whose, &wanted), sizes(&slices));
        assert_eq!(go(wanted(0..250)), ([3, 0, 0], vec![100, 100, 50]));
        assert_eq!(go(wanted(0..250)), ([0, 0, 0], vec![100, 100, 50]));
        assert_eq!(go(wanted(0..251)), ([0, 1, 0], vec![100, 100, 51]));
        // More than one slice that does not change has room for: a new one costs as much.
        assert_eq!(go(wanted(0..311)), ([1, 0, 0], vec![100, 100, 51, 60]));
        // The one that loses some is filled up first.
        let fewer = (0..311).filter(|i| !(220..230).contains(i)).chain(400..405);
        let (counts, after) = go(wanted(fewer));
        assert_eq!(counts, [0, 1, 0], "{after:?}");
        assert_eq!(after.iter().sum::<usize>(), 306);
        let (_, after) = go(wanted(0..0));
        assert_eq!(after, [0], "an empty one says that nobody answers");
        assert_eq!(go(wanted(0..1)), ([0, 1, 0], vec![1]));
    }

    #[test]
    fn what_slices_say_of_themselves_follows() {
        let mut slices = Vec::new();
        apply(&mut slices, &whose("m"), &wanted(0..150));
        let counts = apply(&mut slices, &whose("o"), &wanted(0..150));
        assert_eq!(counts, [0, 2, 0]);
        let mut told = whose("o");
        told.annotations = Some(BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(apply(&mut slices, &told, &wanted(0..150)), [0, 2, 0]);
        assert_eq!(apply(&mut slices, &told, &wanted(0..150)), [0, 0, 0]);
        told.says_nobody = false;
        assert_eq!(apply(&mut slices, &told, &Wanted::new()), [0, 0, 2]);
    }
}
