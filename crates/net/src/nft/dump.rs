//! Reading tables and elements back, to verify and to carry timed elements over a restart.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::netlink::{attribute, attributes, text};
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

/// Reading from the kernel's tables.
pub trait Dumper {
    /// The names of all tables of that family.
    fn tables(&mut self, family: Family) -> Result<Vec<String>>;
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
