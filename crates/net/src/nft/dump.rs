//! Reading tables and elements back, to verify and to carry timed elements over a restart.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::netlink::{Writer, attribute, attributes, text};
use crate::nft::batch::Connection;
use crate::nft::key::Key;
use crate::nft::{Family, generic_header, message_type};

/// How often a dump is begun anew because the table changed meanwhile.
const MAX_ATTEMPTS: usize = 10;

/// An element as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedElement {
    /// Its key.
    pub key: Key,
    /// What it maps to, if that is a value.
    pub value: Option<Key>,
    /// The chain that its verdict leads to, if it is such a verdict.
    pub chain: Option<String>,
    /// How long it lives from each use on.
    pub timeout: Option<Duration>,
    /// How long it lives from now on.
    pub expiration: Option<Duration>,
}

/// A rule as the kernel holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedRule {
    /// The kernel's number for it within its chain.
    pub handle: u64,
    /// Its comment; empty for none.
    pub comment: String,
}

/// Reading from the kernel's tables.
pub trait Dumper {
    /// The names of all tables of that family.
    fn tables(&mut self, family: Family) -> Result<Vec<String>>;
    /// The rules of a chain, first to last; empty when there is no such chain.
    fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<DumpedRule>>;
    /// The names of a table's chains; empty when there is no such table.
    fn chains(&mut self, family: Family, table: &str) -> Result<Vec<String>>;
    /// The elements of a set or map, in no order.
    fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<DumpedElement>>;
}

impl Dumper for Connection {
    fn tables(&mut self, family: Family) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let kind = message_type(libc::NFT_MSG_GETTABLE);
        self.socket.dump(
            "list nftables tables",
            kind,
            |w| w.raw(&generic_header(family.number(), 0)),
            |_, payload| found.extend(payload.get(4..).and_then(|p| attribute(p, 1)).map(text)),
        )?;
        Ok(found)
    }

    fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<DumpedRule>> {
        let mut found = Vec::new();
        let action = format!("list rules of {chain} in the nftables table {table}");
        let body = |w: &mut Writer| {
            w.raw(&generic_header(family.number(), 0));
            w.string(1, table);
            w.string(2, chain);
        };
        let kind = message_type(libc::NFT_MSG_GETRULE);
        let listed = self.socket.dump(&action, kind, body, |_, payload| {
            found.extend(payload.get(4..).and_then(|p| parse_rule(p, table, chain)));
        });
        none_if_absent(listed.map(|_| found))
    }

    fn chains(&mut self, family: Family, table: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let action = format!("list chains of the nftables table {table}");
        let body = |w: &mut Writer| w.raw(&generic_header(family.number(), 0));
        let kind = message_type(libc::NFT_MSG_GETCHAIN);
        let listed = self.socket.dump(&action, kind, body, |_, payload| {
            let rest = payload.get(4..).unwrap_or_default();
            if attribute(rest, 1).map(text).as_deref() == Some(table) {
                found.extend(attribute(rest, 3).map(text));
            }
        });
        none_if_absent(listed.map(|_| found))
    }

    fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<DumpedElement>> {
        let action = format!("list elements of {set} in the nftables table {table}");
        let kind = message_type(libc::NFT_MSG_GETSETELEM);
        for _ in 0..MAX_ATTEMPTS {
            let mut found = Vec::new();
            let complete = self.socket.dump(
                &action,
                kind,
                |w| {
                    w.raw(&generic_header(family.number(), 0));
                    w.string(1, table);
                    w.string(2, set);
                },
                |_, payload| {
                    let list = payload
                        .get(4..)
                        .and_then(|p| attribute(p, 3))
                        .unwrap_or_default();
                    found
                        .extend(attributes(list).filter_map(|(_, element)| parse_element(element)));
                },
            )?;
            if complete {
                return Ok(found);
            }
        }
        Err(Error::Malformed { action })
    }
}

fn none_if_absent<T>(listed: Result<Vec<T>>) -> Result<Vec<T>> {
    match listed {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

/// Older kernels list more rules than were asked for.
fn parse_rule(rule: &[u8], table: &str, chain: &str) -> Option<DumpedRule> {
    if attribute(rule, 1).map(text)? != table || attribute(rule, 2).map(text)? != chain {
        return None;
    }
    let mut comment = String::new();
    let mut data = attribute(rule, 7).unwrap_or_default();
    while let [kind, length, rest @ ..] = data {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == 0 {
            comment = text(value);
        }
        data = after;
    }
    Some(DumpedRule {
        handle: u64::from_be_bytes(attribute(rule, 3)?.try_into().ok()?),
        comment,
    })
}

fn parse_element(element: &[u8]) -> Option<DumpedElement> {
    let data = attribute(element, 2).unwrap_or_default();
    let time = |kind| {
        let millis = u64::from_be_bytes(attribute(element, kind)?.try_into().ok()?);
        Some(Duration::from_millis(millis))
    };
    Some(DumpedElement {
        key: Key::from_bytes(attribute(attribute(element, 1)?, 1)?),
        value: attribute(data, 1).map(Key::from_bytes),
        chain: attribute(data, 2).and_then(|v| attribute(v, 2)).map(text),
        timeout: time(4),
        expiration: time(5),
    })
}
