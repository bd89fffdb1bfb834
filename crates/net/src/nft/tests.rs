//! Against the kernel, each test in a network namespace of its own.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::error::Result;
use crate::netns;

const TABLE: &str = "styr-test";

fn in_own_namespace(work: impl FnOnce() -> Result<()> + Send) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns");
    netns::create(&path).unwrap();
    let _removed = Removed(&path);
    netns::within(&path, work).unwrap();
}

/// Removes the namespace even when the test fails.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        let _ = netns::remove(self.0);
    }
}

fn addr(last: u16) -> Ipv4Addr {
    let [high, low] = last.to_be_bytes();
    Ipv4Addr::new(10, 43, high, low)
}

fn slot_key(service: u16, slot: u32) -> Key {
    Key::new()
        .ipv4(addr(service))
        .proto(6)
        .port(80)
        .number(slot)
}

fn slots() -> Set {
    use KeyType::{Ipv4, Number, Port, Proto};
    Set::map("slots", &[Ipv4, Proto, Port, Number], &[Ipv4, Port])
}

/// A table with one rule of every expression.
fn everything() -> Batch {
    use KeyType::{Ipv4, Port, Proto};
    let mut b = Batch::new(Family::Ip, TABLE);
    b.replace_table();
    b.add_chain("spread", Chain::Regular);
    b.add_chain("refuse", Chain::Regular);
    b.add_chain(
        "pre",
        Chain::Base {
            kind: "nat",
            hook: Hook::Prerouting,
            priority: -100,
            policy: Policy::Accept,
        },
    );
    b.add_chain(
        "post",
        Chain::Base {
            kind: "nat",
            hook: Hook::Postrouting,
            priority: 100,
            policy: Policy::Accept,
        },
    );
    b.add_chain(
        "in",
        Chain::Base {
            kind: "filter",
            hook: Hook::Input,
            priority: 0,
            policy: Policy::Accept,
        },
    );
    b.add_set(Set::verdict_map("services", &[Ipv4, Proto, Port]));
    b.add_set(slots());
    let affinity = Set::map("affinity", &[Ipv4, Ipv4, Proto, Port], &[Ipv4, Port]);
    b.add_set(Set {
        timeout: true,
        dynamic: true,
        size: Some(65536),
        ..affinity
    });
    b.add_set(Set {
        interval: true,
        ..Set::new("ranges", &[Ipv4, Port])
    });
    b.add_set(Set {
        interval: true,
        ..Set::new("networks", &[Ipv4])
    });
    let key = |base: u8| {
        vec![
            Expr::Payload {
                base: PayloadBase::Network,
                offset: 16,
                len: 4,
                dreg: Reg(base),
            },
            Expr::Meta {
                key: meta_key::L4PROTO,
                dreg: Reg(base + 1),
            },
            Expr::Payload {
                base: PayloadBase::Transport,
                offset: 2,
                len: 2,
                dreg: Reg(base + 2),
            },
        ]
    };
    let mut rule = key(0);
    rule.push(Expr::Counter);
    rule.push(Expr::LookupVerdict {
        set: "services".into(),
        sreg: Reg(0),
    });
    b.add_rule("pre", rule);
    let mut rule = key(0);
    rule.push(Expr::Numgen {
        kind: NumgenKind::Random,
        modulus: 3,
        offset: 0,
        dreg: Reg(3),
    });
    rule.push(Expr::LookupData {
        set: "slots".into(),
        sreg: Reg(0),
        dreg: Reg(8),
    });
    rule.push(Expr::Nat {
        kind: NatKind::Destination,
        addr: Reg(8),
        port: Some(Reg(9)),
    });
    b.add_rule("spread", rule);
    let mut rule = vec![Expr::Payload {
        base: PayloadBase::Network,
        offset: 12,
        len: 4,
        dreg: Reg(0),
    }];
    rule.extend(key(1));
    rule.push(Expr::CtOriginal {
        key: ct_key::DESTINATION_IP,
        dreg: Reg(8),
    });
    rule.push(Expr::CtOriginal {
        key: ct_key::DESTINATION_PORT,
        dreg: Reg(9),
    });
    rule.push(Expr::Dynset {
        set: "affinity".into(),
        op: DynsetOp::Update,
        key: Reg(0),
        data: Some(Reg(8)),
        timeout: Some(Duration::from_secs(60)),
    });
    b.add_rule("pre", rule);
    b.add_rule(
        "refuse",
        vec![
            Expr::Meta {
                key: meta_key::L4PROTO,
                dreg: Reg(0),
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Reg(0),
                data: vec![6],
            },
            Expr::Reject(RejectWith::TcpReset),
        ],
    );
    b.add_rule("refuse", vec![Expr::Reject(RejectWith::PortUnreachable)]);
    b.add_rule(
        "in",
        vec![
            Expr::Ct {
                key: ct_key::STATE,
                dreg: Reg(0),
            },
            Expr::Bitwise {
                sreg: Reg(0),
                dreg: Reg(0),
                mask: ct_state::NEW.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            },
            Expr::Cmp {
                op: CmpOp::Ne,
                sreg: Reg(0),
                data: vec![0; 4],
            },
            Expr::FibType {
                address: FibAddress::Destination,
                dreg: Reg(1),
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Reg(1),
                data: addr_type::LOCAL.to_ne_bytes().to_vec(),
            },
            Expr::Verdict(Verdict::Jump("refuse".into())),
        ],
    );
    let mut rule = key(0);
    rule.push(Expr::Jhash {
        sreg: Reg(0),
        len: 12,
        modulus: 4,
        seed: 7,
        offset: 1,
        dreg: Reg(3),
    });
    rule.push(Expr::Lookup {
        set: "networks".into(),
        sreg: Reg(0),
        invert: true,
    });
    rule.push(Expr::Masquerade);
    b.add_rule("post", rule);
    b
}

#[test]
fn every_expression_is_accepted_and_read_back() {
    in_own_namespace(|| {
        let mut c = Connection::open()?;
        let mut b = everything();
        let service = |n| Key::new().ipv4(addr(n)).proto(6).port(80);
        b.add_elements(
            "services",
            vec![
                Element::verdict(service(1), Verdict::Goto("spread".into())),
                Element::verdict(service(2), Verdict::Drop),
            ],
        );
        b.add_elements(
            "slots",
            vec![Element::value(
                slot_key(1, 0),
                Key::new().ipv4(addr(9)).port(8080),
            )],
        );
        b.add_elements(
            "affinity",
            vec![Element {
                timeout: Some(Duration::from_secs(100)),
                expiration: Some(Duration::from_secs(50)),
                ..Element::value(
                    Key::new().ipv4(addr(3)).ipv4(addr(1)).proto(6).port(80),
                    Key::new().ipv4(addr(9)).port(1),
                )
            }],
        );
        b.add_elements(
            "ranges",
            vec![Element {
                key_end: Some(Key::new().ipv4(addr(255)).port(90)),
                ..Element::key(Key::new().ipv4(addr(0)).port(80))
            }],
        );
        b.add_elements(
            "networks",
            vec![
                Element::key(Key::new().ipv4(addr(0))),
                Element {
                    interval_end: true,
                    ..Element::key(Key::new().ipv4(addr(256)))
                },
            ],
        );
        c.commit(&b).unwrap();
        // The same again replaces the table.
        c.commit(&b).unwrap();
        assert_eq!(c.tables(Family::Ip)?, [TABLE]);

        let services = c.elements(Family::Ip, TABLE, "services")?;
        let goto: Vec<_> = services
            .iter()
            .filter(|e| e.chain.as_deref() == Some("spread"))
            .collect();
        assert_eq!((services.len(), goto.len()), (2, 1));
        assert_eq!(goto[0].key, service(1));
        let slots = c.elements(Family::Ip, TABLE, "slots")?;
        assert_eq!(
            slots[0].value.as_ref().and_then(|v| v.ipv4_at(0)),
            Some(addr(9))
        );
        let affinity = c.elements(Family::Ip, TABLE, "affinity")?;
        assert_eq!(affinity[0].timeout, Some(Duration::from_secs(100)));
        assert!(affinity[0].expiration <= Some(Duration::from_secs(50)));
        show_listing();
        Ok(())
    });
}

/// What the `nft` tool makes of it, where there is one.
fn show_listing() {
    let tool = std::env::var("NFT").unwrap_or_else(|_| "nft".into());
    let Ok(output) = std::process::Command::new(tool)
        .args(["list", "ruleset"])
        .output()
    else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "ip daddr . meta l4proto . th dport vmap @services",
        "numgen random mod 3 map @slots",
        "reject with tcp reset",
        "timeout 1m : ct original ip daddr . ct original proto-dst",
        "ct state new fib daddr type local jump refuse",
        "10.43.0.1 . tcp . 80 : goto spread",
        "10.43.0.0/24 . 80-90",
        "ip daddr != @networks",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_refused_change_is_named_and_nothing_is_applied() {
    in_own_namespace(|| {
        let mut c = Connection::open()?;
        c.commit(&everything()).unwrap();
        let mut b = Batch::new(Family::Ip, TABLE);
        b.add_elements(
            "slots",
            (0..5000)
                .map(|i| Element::value(slot_key(1, i), Key::new().ipv4(addr(9)).port(1)))
                .collect(),
        );
        let bad = b.delete_elements("slots", vec![slot_key(2, 0)]);
        b.add_chain("more", Chain::Regular);
        match c.commit(&b).unwrap_err() {
            BatchError::Refused { index, source, .. } => {
                assert_eq!((index, source.raw_os_error()), (bad, Some(libc::ENOENT)));
            }
            other => panic!("{other}"),
        }
        assert!(c.elements(Family::Ip, TABLE, "slots")?.is_empty());
        // The connection is still good.
        let mut b = Batch::new(Family::Ip, TABLE);
        b.delete_table();
        c.commit(&b).unwrap();
        assert!(c.tables(Family::Ip)?.is_empty());
        Ok(())
    });
}

#[test]
fn twenty_thousand_elements_load_in_one_transaction_and_one_more_is_quick() {
    in_own_namespace(|| {
        let mut c = Connection::open()?;
        let mut b = everything();
        let element = |i: u32| {
            Element::value(
                slot_key((i / 4) as u16, i % 4),
                Key::new().ipv4(addr(9)).port(1),
            )
        };
        b.add_elements("slots", (0..20_000).map(element).collect());
        let begun = std::time::Instant::now();
        c.commit(&b).unwrap();
        println!("20,000 elements: {:?}", begun.elapsed());
        assert_eq!(c.elements(Family::Ip, TABLE, "slots")?.len(), 20_000);
        let begun = std::time::Instant::now();
        for i in 20_000..20_100 {
            let mut b = Batch::new(Family::Ip, TABLE);
            b.add_elements("slots", vec![element(i)]);
            c.commit(&b).unwrap();
        }
        println!("one more: {:?}", begun.elapsed() / 100);
        // A key may be given new data in one transaction.
        let mut b = Batch::new(Family::Ip, TABLE);
        b.delete_elements("slots", vec![slot_key(0, 0)]);
        b.add_elements(
            "slots",
            vec![Element::value(
                slot_key(0, 0),
                Key::new().ipv4(addr(8)).port(1),
            )],
        );
        c.commit(&b).unwrap();
        let changed = c
            .elements(Family::Ip, TABLE, "slots")?
            .into_iter()
            .find(|e| e.key == slot_key(0, 0));
        assert_eq!(
            changed.and_then(|e| e.value).and_then(|v| v.ipv4_at(0)),
            Some(addr(8))
        );
        Ok(())
    });
}

#[test]
fn rules_are_inserted_found_by_comment_and_others_changes_are_heard() {
    in_own_namespace(|| {
        let mut c = Connection::open()?;
        c.commit(&everything()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let mut monitor = Monitor::open()?;
        let mut b = Batch::new(Family::Ip, TABLE);
        b.insert_rule(
            "refuse",
            vec![Expr::Verdict(Verdict::Accept)],
            "from the test",
        );
        c.commit(&b).unwrap();
        assert!(c.chains(Family::Ip, TABLE)?.contains(&"refuse".to_string()));
        assert!(
            c.chains(Family::Ip, "other")?.is_empty()
                && c.rules(Family::Ip, "other", "x")?.is_empty()
        );
        let rules = c.rules(Family::Ip, TABLE, "refuse")?;
        assert_eq!(
            (rules.len(), rules[0].comment.as_str()),
            (3, "from the test")
        );
        let mut b = Batch::new(Family::Ip, TABLE);
        b.delete_rule("refuse", rules[0].handle);
        c.commit(&b).unwrap();
        assert_eq!(c.rules(Family::Ip, TABLE, "refuse")?.len(), 2);
        let removed = Event::Removed {
            table: TABLE.into(),
            port: c.port()?,
        };
        assert_eq!(runtime.block_on(monitor.next())?, [removed]);

        let mut other = Connection::open()?;
        assert_ne!(other.port()?, c.port()?);
        let mut b = Batch::new(Family::Ip, TABLE);
        b.add_chain("new", Chain::Regular);
        b.delete_table();
        other.commit(&b).unwrap();
        let events = runtime.block_on(monitor.next())?;
        let made = Event::Chain {
            table: TABLE.into(),
            chain: "new".into(),
            port: other.port()?,
        };
        let gone = Event::Removed {
            table: TABLE.into(),
            port: other.port()?,
        };
        assert!(
            events.contains(&made) && events.contains(&gone),
            "{events:?}"
        );
        Ok(())
    });
}
