//! The table's arithmetic: whatever the steps, changes lead to the state that would have been built at once.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use client::Key;
use proptest::prelude::*;

use super::*;

fn endpoints() -> impl Strategy<Value = Vec<SocketAddrV4>> {
    let one = (0u8..4, 1u8..6)
        .prop_map(|(net, host)| SocketAddrV4::new(Ipv4Addr::new(10, 42, net, host), 8080));
    prop::collection::btree_set(one, 0..5).prop_map(|set| set.into_iter().collect())
}

fn backend() -> impl Strategy<Value = Backend> {
    let sources = prop::collection::vec(Just("192.0.2.0/24".parse().unwrap()), 0..2);
    (
        endpoints(),
        any::<bool>(),
        prop::option::of(1u32..3),
        sources,
    )
        .prop_map(|(endpoints, drop, affinity, sources)| {
            let otherwise = if drop {
                Otherwise::Drop
            } else {
                Otherwise::Reject
            };
            Backend {
                endpoints,
                otherwise,
                affinity,
                sources,
            }
        })
}

fn frontend() -> impl Strategy<Value = Frontend> {
    (
        any::<bool>(),
        prop::option::of(1u8..4),
        any::<bool>(),
        80u16..82,
    )
        .prop_map(|(internal, host, udp, port)| Frontend {
            audience: if internal {
                Audience::Internal
            } else {
                Audience::All
            },
            address: host.map(|h| Ipv4Addr::new(10, 43, 0, h)),
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            port,
        })
}

/// Steps of an API: a few Services, whose frontends may collide, given new states.
fn steps() -> impl Strategy<Value = Vec<BTreeMap<Key, Frontends>>> {
    let name = (0u8..4).prop_map(|n| Key::new("default", format!("s{n}")));
    let frontends = prop::collection::btree_map(frontend(), backend(), 0..4);
    prop::collection::vec(prop::collection::btree_map(name, frontends, 1..3), 1..12)
}

fn table() -> Table {
    Table::new("10.42.0.0/24".parse().unwrap())
}

proptest! {
    #[test]
    fn changes_applied_to_the_old_state_are_the_new_state(steps in steps()) {
        let mut table = table();
        let mut kernel = Elements::new();
        let mut chains = std::collections::BTreeSet::new();
        let mut wanted = BTreeMap::new();
        for step in steps {
            wanted.extend(step.clone());
            let changes = table.update(step);
            for chain in &changes.add_chains {
                prop_assert!(chains.insert(*chain));
            }
            for id in &changes.remove {
                prop_assert!(kernel.remove(id).is_some(), "{id:?} is removed but was not there");
            }
            for (id, data) in changes.add {
                prop_assert!(kernel.insert(id, data).is_none());
            }
            for chain in &changes.remove_chains {
                prop_assert!(chains.remove(chain));
            }
            prop_assert_eq!(&kernel, &table.elements());
            prop_assert_eq!(chains.iter().copied().collect::<Vec<_>>(), table.chains().collect::<Vec<_>>());
        }
        let mut at_once = self::table();
        at_once.update(wanted.clone());
        prop_assert_eq!(at_once.elements(), table.elements());
        prop_assert!(table.update(wanted).is_empty());
        // Nothing is left when all are gone.
        let names: Vec<_> = (0..4).map(|n| (Key::new("default", format!("s{n}")), Frontends::new())).collect();
        table.update(names.into_iter().collect());
        prop_assert!(table.elements().is_empty() && table.chains().next().is_none());
    }
}

#[test]
fn udp_flows_to_endpoints_that_are_gone_are_stale() {
    let frontend = Frontend {
        audience: Audience::All,
        address: Some(Ipv4Addr::new(10, 43, 0, 9)),
        protocol: Protocol::Udp,
        port: 53,
    };
    let at = |hosts: &[u8]| {
        let endpoints = hosts
            .iter()
            .map(|h| SocketAddrV4::new(Ipv4Addr::new(10, 42, 0, *h), 5353))
            .collect();
        let backend = Backend {
            endpoints,
            otherwise: Otherwise::Reject,
            affinity: None,
            sources: Vec::new(),
        };
        BTreeMap::from([(
            Key::new("kube-system", "kube-dns"),
            Frontends::from([(frontend, backend)]),
        )])
    };
    let mut table = table();
    let stale = |changes: Changes| -> Vec<_> {
        changes
            .stale
            .into_iter()
            .map(|s| s.endpoint.map(|e| e.ip().octets()[3]))
            .collect()
    };
    assert_eq!(stale(table.update(at(&[2, 3]))), [None]);
    assert_eq!(stale(table.update(at(&[3, 4]))), [Some(2)]);
    assert_eq!(stale(table.update(at(&[]))), [Some(3), Some(4)]);
}
