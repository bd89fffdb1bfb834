//! The fixed part of the table, and the chains that frontends need: a handful of rules over the maps.
//!
//! ```text
//! prerouting, output (nat)   -> dispatch: services / node ports by map -> spread-… -> dnat to the slot's endpoint
//! input, forward, output     -> refuse what has no endpoints; keep 127.0.0.0/8 to this host
//! input, postrouting         -> remember-…: which client went to which endpoint, for session affinity
//! postrouting (nat)          -> masquerade what could not find its way back, and what leaves the cluster
//! ```
//!
//! Constants within keys are avoided (a number that is always 0 stands in for one), because `nft` before 1.0.7 cannot
//! list them.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use net::nft::{
    Batch, Chain, CmpOp, DynsetOp, Expr, FibAddress, Hook, KeyType, NatKind, NumgenKind,
    PayloadBase, Policy, Reg, RejectWith, Set, Verdict, addr_type, ct_key, ct_state, ct_status,
    meta_key,
};

use super::Config;
use super::model::{Audience, Protocol};
use super::table::{ChainId, REJECT, SetId, first_slot};

/// Which endpoint each client was sent to; filled by rules.
pub(crate) const AFFINITY: &str = "affinity";
/// Most clients that are remembered at a time.
const MAX_CLIENTS: u32 = 1 << 16;
/// Length of an interface name in the kernel, in bytes.
const IFNAME: usize = 16;

const DISPATCH: &str = "dispatch";
const INTERNAL: &str = "dispatch-internal";

const DNAT_PRIORITY: i32 = -100;
const FILTER_PRIORITY: i32 = 0;
const SNAT_PRIORITY: i32 = 100;

/// Registers: keys from 0 on, what maps give from 8 on.
const KEY: Reg = Reg(0);
const FOUND: Reg = Reg(8);

fn reg(index: u8) -> Reg {
    Reg(index)
}

/// Makes all sets and maps.
pub(crate) fn add_sets(batch: &mut Batch) {
    use KeyType::{Ipv4, Number, Port, Proto};
    for id in SetId::ALL {
        let name = id.name();
        batch.add_set(match id {
            SetId::Services | SetId::ServicesInternal | SetId::Refuse | SetId::Sticky => {
                Set::verdict_map(name, &[Ipv4, Proto, Port])
            }
            SetId::NodePorts
            | SetId::NodePortsInternal
            | SetId::RefuseNodePorts
            | SetId::StickyNodePorts => Set::verdict_map(name, &[Proto, Port]),
            SetId::Slots => Set::map(name, &[Ipv4, Proto, Port, Number], &[Ipv4, Port]),
            SetId::NodePortSlots => Set::map(name, &[Proto, Port, Number], &[Ipv4, Port]),
            SetId::Hairpin => Set::new(name, &[Ipv4, Ipv4]),
            SetId::Restricted => Set::new(name, &[Ipv4, Proto, Port]),
            SetId::Sources => Set {
                interval: true,
                ..Set::new(name, &[Ipv4, Proto, Port, Ipv4])
            },
        });
    }
    let affinity = Set::map(AFFINITY, &[Ipv4, Ipv4, Proto, Port], &[Ipv4, Port]);
    batch.add_set(Set {
        timeout: true,
        dynamic: true,
        size: Some(MAX_CLIENTS),
        ..affinity
    });
}

/// Makes the chains that are always there.
pub(crate) fn add_fixed_chains(batch: &mut Batch, config: &Config) {
    for name in [REJECT, DISPATCH, INTERNAL] {
        batch.add_chain(name, Chain::Regular);
    }
    batch.add_rule(
        REJECT,
        rule([
            is_protocol(Protocol::Tcp),
            vec![Expr::Reject(RejectWith::TcpReset)],
        ]),
    );
    batch.add_rule(REJECT, vec![Expr::Reject(RejectWith::PortUnreachable)]);
    add_dispatch(batch, config);
    add_filters(batch, config);
    add_remembering(batch);
    add_masquerading(batch, config);
}

fn add_dispatch(batch: &mut Batch, config: &Config) {
    batch.add_rule(
        INTERNAL,
        rule([service_key(), verdict_by(SetId::ServicesInternal)]),
    );
    batch.add_rule(
        INTERNAL,
        rule([
            to_this_host(),
            port_key(),
            verdict_by(SetId::NodePortsInternal),
        ]),
    );

    let to_internal = || vec![Expr::Verdict(Verdict::Jump(INTERNAL.into()))];
    batch.add_rule(
        DISPATCH,
        rule([within(SOURCE, config.pod_cidr, CmpOp::Eq), to_internal()]),
    );
    batch.add_rule(
        DISPATCH,
        rule([fib(FibAddress::Source, CmpOp::Eq), to_internal()]),
    );
    // Who is not among a load balancer's allowed sources meets silence, as upstream has it.
    let restricted = vec![Expr::Lookup {
        set: SetId::Restricted.name().into(),
        sreg: KEY,
        invert: false,
    }];
    let not_allowed = vec![
        payload(SOURCE, reg(3)),
        Expr::Lookup {
            set: SetId::Sources.name().into(),
            sreg: KEY,
            invert: true,
        },
        Expr::Verdict(Verdict::Drop),
    ];
    let foreign = fib(FibAddress::Source, CmpOp::Ne);
    batch.add_rule(
        DISPATCH,
        rule([
            foreign,
            service_key(),
            restricted,
            service_key(),
            not_allowed,
        ]),
    );
    batch.add_rule(DISPATCH, rule([service_key(), verdict_by(SetId::Services)]));
    batch.add_rule(
        DISPATCH,
        rule([to_this_host(), port_key(), verdict_by(SetId::NodePorts)]),
    );

    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        base(batch, name, "nat", hook, DNAT_PRIORITY);
        batch.add_rule(name, vec![Expr::Verdict(Verdict::Jump(DISPATCH.into()))]);
    }
}

fn add_filters(batch: &mut Batch, config: &Config) {
    base(
        batch,
        "filter-input",
        "filter",
        Hook::Input,
        FILTER_PRIORITY,
    );
    base(
        batch,
        "filter-forward",
        "filter",
        Hook::Forward,
        FILTER_PRIORITY,
    );
    base(
        batch,
        "filter-output",
        "filter",
        Hook::Output,
        FILTER_PRIORITY,
    );

    // The bridge lets packets to 127.0.0.0/8 in for the sake of translated node ports; all others of them are forged.
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    batch.add_rule(
        "filter-input",
        rule([
            interface(meta_key::IIFNAME, &config.bridge, CmpOp::Eq),
            within(DESTINATION, loopback, CmpOp::Eq),
            has_bits(ct_key::STATUS, ct_status::DNAT, false),
            vec![Expr::Verdict(Verdict::Drop)],
        ]),
    );
    // What tracking does not know belongs to no translation any more, and would reach its sender as a stranger's.
    batch.add_rule(
        "filter-forward",
        rule([
            interface(meta_key::OIFNAME, &config.bridge, CmpOp::Eq),
            has_bits(ct_key::STATE, ct_state::INVALID, true),
            vec![Expr::Verdict(Verdict::Drop)],
        ]),
    );
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        let is_new = has_bits(ct_key::STATE, ct_state::NEW, true);
        batch.add_rule(
            chain,
            rule([is_new, service_key(), verdict_by(SetId::Refuse)]),
        );
    }
    let is_new = has_bits(ct_key::STATE, ct_state::NEW, true);
    batch.add_rule(
        "filter-input",
        rule([
            is_new,
            to_this_host(),
            port_key(),
            verdict_by(SetId::RefuseNodePorts),
        ]),
    );
    // Whatever is still on its way to a service address has no service.
    for chain in ["filter-forward", "filter-output"] {
        let goto = vec![Expr::Verdict(Verdict::Goto(REJECT.into()))];
        batch.add_rule(
            chain,
            rule([within(DESTINATION, config.service_cidr, CmpOp::Eq), goto]),
        );
    }
}

fn add_remembering(batch: &mut Batch) {
    for (name, hook) in [
        ("remember-input", Hook::Input),
        ("remember-postrouting", Hook::Postrouting),
    ] {
        base(batch, name, "filter", hook, FILTER_PRIORITY);
        let translated = || {
            rule([
                has_bits(ct_key::STATE, ct_state::NEW, true),
                has_bits(ct_key::STATUS, ct_status::DNAT, true),
            ])
        };
        let key = rule([
            vec![Expr::CtOriginal {
                key: ct_key::DESTINATION_IP,
                dreg: reg(0),
            }],
            vec![Expr::Meta {
                key: meta_key::L4PROTO,
                dreg: reg(1),
            }],
            vec![Expr::CtOriginal {
                key: ct_key::DESTINATION_PORT,
                dreg: reg(2),
            }],
        ]);
        batch.add_rule(name, rule([translated(), key, verdict_by(SetId::Sticky)]));
        let key = vec![
            Expr::Meta {
                key: meta_key::L4PROTO,
                dreg: reg(0),
            },
            Expr::CtOriginal {
                key: ct_key::DESTINATION_PORT,
                dreg: reg(1),
            },
        ];
        batch.add_rule(
            name,
            rule([translated(), key, verdict_by(SetId::StickyNodePorts)]),
        );
    }
}

fn add_masquerading(batch: &mut Batch, config: &Config) {
    const POST: &str = "postrouting";
    base(batch, POST, "nat", Hook::Postrouting, SNAT_PRIORITY);
    let masquerade = || vec![Expr::Masquerade];
    let translated = || has_bits(ct_key::STATUS, ct_status::DNAT, true);
    // A pod that reached itself would answer itself, past the translation.
    let hairpin = vec![
        payload(SOURCE, reg(0)),
        payload(DESTINATION, reg(1)),
        Expr::Lookup {
            set: SetId::Hairpin.name().into(),
            sreg: KEY,
            invert: false,
        },
    ];
    batch.add_rule(POST, rule([translated(), hairpin, masquerade()]));
    let not_loopback = || interface(meta_key::OIFNAME, "lo", CmpOp::Ne);
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    batch.add_rule(
        POST,
        rule([
            translated(),
            within(SOURCE, loopback, CmpOp::Eq),
            not_loopback(),
            masquerade(),
        ]),
    );
    // From outside to a pod of another node: its answer must come back through this one.
    if config.node_pod_cidr != config.pod_cidr {
        batch.add_rule(
            POST,
            rule([
                translated(),
                within(SOURCE, config.pod_cidr, CmpOp::Ne),
                within(DESTINATION, config.pod_cidr, CmpOp::Eq),
                within(DESTINATION, config.node_pod_cidr, CmpOp::Ne),
                masquerade(),
            ]),
        );
    }
    batch.add_rule(
        POST,
        rule([
            within(SOURCE, config.node_pod_cidr, CmpOp::Eq),
            within(DESTINATION, config.pod_cidr, CmpOp::Ne),
            interface(meta_key::OIFNAME, &config.bridge, CmpOp::Ne),
            not_loopback(),
            masquerade(),
        ]),
    );
}

/// Makes a chain that frontends need.
pub(crate) fn add_chain(batch: &mut Batch, chain: ChainId) {
    let name = chain.name();
    batch.add_chain(&name, Chain::Regular);
    match chain {
        ChainId::Spread {
            node_port,
            audience,
            endpoints,
        } => add_spread(batch, &name, node_port, audience, endpoints),
        ChainId::Sticky {
            node_port,
            audience,
            endpoints,
        } => {
            let find = Expr::LookupData {
                set: AFFINITY.into(),
                sreg: KEY,
                dreg: FOUND,
            };
            batch.add_rule(
                &name,
                rule([
                    vec![payload(SOURCE, reg(0))],
                    service_key_at(1),
                    vec![find, to_found()],
                ]),
            );
            let spread = ChainId::Spread {
                node_port,
                audience,
                endpoints,
            };
            batch.add_rule(&name, vec![Expr::Verdict(Verdict::Goto(spread.name()))]);
        }
        ChainId::Remember(seconds) => {
            let mut exprs = vec![
                payload(SOURCE, reg(0)),
                Expr::CtOriginal {
                    key: ct_key::DESTINATION_IP,
                    dreg: reg(1),
                },
                Expr::Meta {
                    key: meta_key::L4PROTO,
                    dreg: reg(2),
                },
                Expr::CtOriginal {
                    key: ct_key::DESTINATION_PORT,
                    dreg: reg(3),
                },
                payload(DESTINATION, reg(8)),
            ];
            exprs.push(destination_port(reg(9)));
            exprs.push(Expr::Dynset {
                set: AFFINITY.into(),
                op: DynsetOp::Update,
                key: KEY,
                data: Some(FOUND),
                timeout: Some(Duration::from_secs(seconds.into())),
            });
            batch.add_rule(&name, exprs);
        }
    }
}

fn add_spread(batch: &mut Batch, name: &str, node_port: bool, audience: Audience, endpoints: u32) {
    let (set, slot) = if node_port {
        (SetId::NodePortSlots, reg(2))
    } else {
        (SetId::Slots, reg(3))
    };
    let offset = first_slot(audience);
    let mut to_slot = |kind, modulus| {
        let key = if node_port { port_key() } else { service_key() };
        let number = Expr::Numgen {
            kind,
            modulus,
            offset,
            dreg: slot,
        };
        let find = Expr::LookupData {
            set: set.name().into(),
            sreg: KEY,
            dreg: FOUND,
        };
        batch.add_rule(name, rule([key, vec![number, find, to_found()]]));
    };
    to_slot(NumgenKind::Random, endpoints);
    // A packet may be between two states of the table: it saw the old number of endpoints, and the new ones are fewer.
    // There is always a first one; and if there is none any more, the sender tries again.
    to_slot(NumgenKind::Incremental, 1);
    batch.add_rule(name, vec![Expr::Verdict(Verdict::Drop)]);
}

fn base(batch: &mut Batch, name: &str, kind: &'static str, hook: Hook, priority: i32) {
    batch.add_chain(
        name,
        Chain::Base {
            kind,
            hook,
            priority,
            policy: Policy::Accept,
        },
    );
}

fn rule<const N: usize>(parts: [Vec<Expr>; N]) -> Vec<Expr> {
    parts.into_iter().flatten().collect()
}

/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

fn payload(offset: u32, dreg: Reg) -> Expr {
    Expr::Payload {
        base: PayloadBase::Network,
        offset,
        len: 4,
        dreg,
    }
}

fn destination_port(dreg: Reg) -> Expr {
    Expr::Payload {
        base: PayloadBase::Transport,
        offset: 2,
        len: 2,
        dreg,
    }
}

/// Loads destination address, protocol and port.
fn service_key() -> Vec<Expr> {
    service_key_at(0)
}

fn service_key_at(first: u8) -> Vec<Expr> {
    vec![
        payload(DESTINATION, reg(first)),
        Expr::Meta {
            key: meta_key::L4PROTO,
            dreg: reg(first + 1),
        },
        destination_port(reg(first + 2)),
    ]
}

/// Loads protocol and destination port.
fn port_key() -> Vec<Expr> {
    vec![
        Expr::Meta {
            key: meta_key::L4PROTO,
            dreg: reg(0),
        },
        destination_port(reg(1)),
    ]
}

fn verdict_by(set: SetId) -> Vec<Expr> {
    vec![Expr::LookupVerdict {
        set: set.name().into(),
        sreg: KEY,
    }]
}

fn to_found() -> Expr {
    Expr::Nat {
        kind: NatKind::Destination,
        addr: FOUND,
        port: Some(Reg(FOUND.0 + 1)),
    }
}

fn to_this_host() -> Vec<Expr> {
    fib(FibAddress::Destination, CmpOp::Eq)
}

/// Whether an address is (or is not) one of this host's.
fn fib(address: FibAddress, op: CmpOp) -> Vec<Expr> {
    let data = addr_type::LOCAL.to_ne_bytes().to_vec();
    vec![
        Expr::FibType { address, dreg: KEY },
        Expr::Cmp {
            op,
            sreg: KEY,
            data,
        },
    ]
}

fn is_protocol(protocol: Protocol) -> Vec<Expr> {
    vec![
        Expr::Meta {
            key: meta_key::L4PROTO,
            dreg: KEY,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: KEY,
            data: vec![protocol.number()],
        },
    ]
}

/// Whether the address at `offset` is (or is not) in `range`.
fn within(offset: u32, range: Ipv4Net, op: CmpOp) -> Vec<Expr> {
    let mask = range.netmask().octets().to_vec();
    vec![
        payload(offset, KEY),
        Expr::Bitwise {
            sreg: KEY,
            dreg: KEY,
            mask,
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op,
            sreg: KEY,
            data: range.network().octets().to_vec(),
        },
    ]
}

fn interface(key: u32, name: &str, op: CmpOp) -> Vec<Expr> {
    let mut data = name.as_bytes().to_vec();
    data.resize(IFNAME, 0);
    vec![
        Expr::Meta { key, dreg: KEY },
        Expr::Cmp {
            op,
            sreg: KEY,
            data,
        },
    ]
}

/// Whether one of the bits of something about the connection is set (or none is).
fn has_bits(key: u32, bits: u32, set: bool) -> Vec<Expr> {
    let op = if set { CmpOp::Ne } else { CmpOp::Eq };
    vec![
        Expr::Ct { key, dreg: KEY },
        Expr::Bitwise {
            sreg: KEY,
            dreg: KEY,
            mask: bits.to_ne_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op,
            sreg: KEY,
            data: vec![0; 4],
        },
    ]
}
