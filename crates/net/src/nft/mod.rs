//! nftables over netlink: tables, chains, sets, maps and rules, changed in transactions.
//!
//! A [`Batch`] gathers changes to one table and is applied whole or not at all by [`Connection::commit`]; packets see
//! either the state before or the one after. Only what the service proxy and network policies need is here.
//!
//! Registers: sixteen of four bytes; a field of a concatenated key takes a whole number of registers, padded with zeros,
//! exactly as [`Key`] writes it.

mod batch;
mod dump;
mod expr;
mod key;
mod monitor;
mod set;
#[cfg(test)]
mod tests;

pub use batch::{Batch, BatchError, Chain, Connection, Hook, Policy};
pub use dump::{DumpedElement, DumpedRule, Dumper};
pub use expr::{
    CmpOp, DynsetOp, Expr, FibAddress, NatKind, NumgenKind, PayloadBase, Reg, RejectWith,
    addr_type, ct_key, ct_state, ct_status, meta_key,
};
pub use key::Key;
pub use monitor::{Event, Monitor};
pub use set::{Data, Element, KeyType, Set, SetData, Verdict};

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv6.
    Ip6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Family::Ip => libc::NFPROTO_IPV4 as u8,
            Family::Inet => libc::NFPROTO_INET as u8,
            Family::Ip6 => libc::NFPROTO_IPV6 as u8,
        }
    }
}

/// Type of a message of the nftables subsystem.
pub(crate) fn message_type(message: i32) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES << 8) | message) as u16
}

/// `struct nfgenmsg`.
pub(crate) fn generic_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, libc::NFNETLINK_V0 as u8, high, low]
}
