//! The expressions rules are made of.

use std::time::Duration;

use crate::netlink::Writer;
use crate::nft::key::Key;
use crate::nft::set::Verdict;

const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
/// The register that a verdict is put in.
const VERDICT_REGISTER: u32 = 0;
/// Number of the first register of four bytes.
const FIRST_REGISTER: u32 = 8;

/// A register of four bytes, 0 to 15. Longer values take the following ones too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

impl Reg {
    fn number(self) -> u32 {
        FIRST_REGISTER + u32::from(self.0)
    }
}

/// Which header bytes are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// The network header.
    Network,
    /// The transport header.
    Transport,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// How numbers are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumgenKind {
    /// One after another.
    Incremental,
    /// At random.
    Random,
}

/// Which address is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// Which address a route look-up is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibAddress {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectWith {
    /// By ICMP port unreachable.
    PortUnreachable,
    /// By a TCP reset; only valid after the protocol was found to be TCP.
    TcpReset,
}

/// What a rule does to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the element unless it is there.
    Add,
    /// Adds the element, or begins its time anew.
    Update,
    /// Removes the element.
    Delete,
}

/// Things known about a packet (`NFT_META_*`).
pub mod meta_key {
    /// The transport protocol, one byte.
    pub const L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;
    /// Name of the interface it came in by, 16 bytes.
    pub const IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
    /// Name of the interface it leaves by, 16 bytes.
    pub const OIFNAME: u32 = libc::NFT_META_OIFNAME as u32;
    /// The packet's mark.
    pub const MARK: u32 = libc::NFT_META_MARK as u32;
}

/// Things known about a connection (`NFT_CT_*`).
pub mod ct_key {
    /// Its state, see [`super::ct_state`].
    pub const STATE: u32 = libc::NFT_CT_STATE as u32;
    /// Its status, see [`super::ct_status`].
    pub const STATUS: u32 = libc::NFT_CT_STATUS as u32;
    /// Where it was going before translation; only for [`super::Expr::CtOriginal`], as is the port.
    pub const DESTINATION_IP: u32 = 20;
    /// The port it was going to before translation.
    pub const DESTINATION_PORT: u32 = 12;
}

/// Bits of [`ct_key::STATE`].
pub mod ct_state {
    /// Belongs to no connection that could be.
    pub const INVALID: u32 = 1;
    /// An answered connection.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection.
    pub const RELATED: u32 = 4;
    /// The connection's first packets.
    pub const NEW: u32 = 8;
}

/// Bits of [`ct_key::STATUS`].
pub mod ct_status {
    /// The source is translated.
    pub const SNAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DNAT: u32 = 1 << 5;
}

/// Results of [`Expr::FibType`] (`RTN_*`).
pub mod addr_type {
    /// An address of this host.
    pub const LOCAL: u32 = libc::RTN_LOCAL as u32;
}

/// One expression of a rule. A rule ends at the first one that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Where counting begins.
        base: PayloadBase,
        /// First byte.
        offset: u32,
        /// Number of bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads something known about the packet ([`meta_key`]).
    Meta {
        /// What.
        key: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads something known about the connection ([`ct_key`]).
    Ct {
        /// What.
        key: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads something known about the connection's original direction ([`ct_key`]).
    CtOriginal {
        /// What.
        key: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Holds if the register compares so with the bytes.
    Cmp {
        /// How.
        op: CmpOp,
        /// The register.
        sreg: Reg,
        /// The bytes, as long as what was loaded.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// The bits kept.
        mask: Vec<u8>,
        /// The bits turned; as long as `mask`.
        xor: Vec<u8>,
    },
    /// Holds if the key is in the set.
    Lookup {
        /// Name of the set.
        set: String,
        /// First register of the key.
        sreg: Reg,
        /// Holds if the key is not in the set instead.
        invert: bool,
    },
    /// Holds if the key is in the map, and loads its data.
    LookupData {
        /// Name of the map.
        set: String,
        /// First register of the key.
        sreg: Reg,
        /// First register of the data.
        dreg: Reg,
    },
    /// Follows the key's verdict, if it is in the verdict map.
    LookupVerdict {
        /// Name of the map.
        set: String,
        /// First register of the key.
        sreg: Reg,
    },
    /// Loads a number from `offset` to `offset + modulus - 1`.
    Numgen {
        /// How numbers follow one another.
        kind: NumgenKind,
        /// How many numbers.
        modulus: u32,
        /// The first.
        offset: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads a hash of registers, from `offset` to `offset + modulus - 1`.
    Jhash {
        /// First register.
        sreg: Reg,
        /// Bytes to hash.
        len: u32,
        /// How many results.
        modulus: u32,
        /// Seed; the same seed gives the same hash.
        seed: u32,
        /// The first result.
        offset: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// The constant.
        data: Key,
    },
    /// Decides.
    Verdict(Verdict),
    /// Translates an address and a port.
    Nat {
        /// Which.
        kind: NatKind,
        /// Register of the new IPv4 address.
        addr: Reg,
        /// Register of the new port.
        port: Option<Reg>,
    },
    /// Translates the source to the address of the interface the packet leaves by.
    Masquerade,
    /// Loads the type of an address ([`addr_type`]).
    FibType {
        /// Which address.
        address: FibAddress,
        /// Where to.
        dreg: Reg,
    },
    /// Counts packets and bytes.
    Counter,
    /// Refuses the packet.
    Reject(RejectWith),
    /// Changes a set from the packet path.
    Dynset {
        /// Name of the set.
        set: String,
        /// What to do.
        op: DynsetOp,
        /// First register of the key.
        key: Reg,
        /// First register of the data, for maps.
        data: Option<Reg>,
        /// How long the element lives.
        timeout: Option<Duration>,
    },
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Expr::Payload { .. } => "payload",
            Expr::Meta { .. } => "meta",
            Expr::Ct { .. } | Expr::CtOriginal { .. } => "ct",
            Expr::Cmp { .. } => "cmp",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Lookup { .. } | Expr::LookupData { .. } | Expr::LookupVerdict { .. } => "lookup",
            Expr::Numgen { .. } => "numgen",
            Expr::Jhash { .. } => "hash",
            Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
            Expr::Nat { .. } => "nat",
            Expr::Masquerade => "masq",
            Expr::FibType { .. } => "fib",
            Expr::Counter => "counter",
            Expr::Reject(_) => "reject",
            Expr::Dynset { .. } => "dynset",
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.nested(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, self.name());
            w.nested(NFTA_EXPR_DATA, |w| self.write_data(w));
        });
    }

    fn write_data(&self, w: &mut Writer) {
        match self {
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                w.be32(1, dreg.number());
                w.be32(
                    2,
                    match base {
                        PayloadBase::Network => libc::NFT_PAYLOAD_NETWORK_HEADER as u32,
                        PayloadBase::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32,
                    },
                );
                w.be32(3, *offset);
                w.be32(4, *len);
            }
            Expr::Meta { key, dreg } => {
                w.be32(1, dreg.number());
                w.be32(2, *key);
            }
            Expr::Ct { key, dreg } => {
                w.be32(1, dreg.number());
                w.be32(2, *key);
            }
            Expr::CtOriginal { key, dreg } => {
                const ORIGINAL: u8 = 0;
                w.be32(1, dreg.number());
                w.be32(2, *key);
                w.attr(3, &[ORIGINAL]);
            }
            Expr::Cmp { op, sreg, data } => {
                w.be32(1, sreg.number());
                w.be32(2, cmp_number(*op));
                w.nested(3, |w| w.attr(NFTA_DATA_VALUE, data));
            }
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                w.be32(1, sreg.number());
                w.be32(2, dreg.number());
                w.be32(3, mask.len() as u32);
                w.nested(4, |w| w.attr(NFTA_DATA_VALUE, mask));
                w.nested(5, |w| w.attr(NFTA_DATA_VALUE, xor));
            }
            Expr::Lookup { set, sreg, invert } => {
                write_lookup(w, set, *sreg, None);
                w.be32(5, u32::from(*invert));
            }
            Expr::LookupData { set, sreg, dreg } => {
                write_lookup(w, set, *sreg, Some(dreg.number()))
            }
            Expr::LookupVerdict { set, sreg } => {
                write_lookup(w, set, *sreg, Some(VERDICT_REGISTER))
            }
            Expr::Immediate { dreg, data } => {
                w.be32(1, dreg.number());
                w.nested(2, |w| w.attr(NFTA_DATA_VALUE, data.bytes()));
            }
            Expr::Verdict(verdict) => {
                w.be32(1, VERDICT_REGISTER);
                w.nested(2, |w| verdict.write(w));
            }
            Expr::Masquerade | Expr::Counter => {}
            other => other.write_more(w),
        }
    }

    fn write_more(&self, w: &mut Writer) {
        match self {
            Expr::Numgen {
                kind,
                modulus,
                offset,
                dreg,
            } => {
                w.be32(1, dreg.number());
                w.be32(2, *modulus);
                w.be32(3, u32::from(*kind == NumgenKind::Random));
                w.be32(4, *offset);
            }
            Expr::Jhash {
                sreg,
                len,
                modulus,
                seed,
                offset,
                dreg,
            } => {
                for (kind, value) in [
                    (1, sreg.number()),
                    (2, dreg.number()),
                    (3, *len),
                    (4, *modulus),
                    (5, *seed),
                    (6, *offset),
                    (7, 0),
                ] {
                    w.be32(kind, value);
                }
            }
            Expr::Nat { kind, addr, port } => {
                w.be32(1, u32::from(*kind == NatKind::Destination));
                w.be32(2, libc::NFPROTO_IPV4 as u32);
                w.be32(3, addr.number());
                if let Some(port) = port {
                    w.be32(5, port.number());
                }
            }
            Expr::FibType { address, dreg } => {
                const RESULT_ADDRTYPE: u32 = 3;
                w.be32(1, dreg.number());
                w.be32(2, RESULT_ADDRTYPE);
                w.be32(
                    3,
                    match address {
                        FibAddress::Source => 1,
                        FibAddress::Destination => 2,
                    },
                );
            }
            Expr::Reject(with) => {
                const ICMP_PORT_UNREACHABLE: u8 = 3;
                w.be32(1, u32::from(*with == RejectWith::TcpReset));
                w.attr(
                    2,
                    &[if *with == RejectWith::TcpReset {
                        0
                    } else {
                        ICMP_PORT_UNREACHABLE
                    }],
                );
            }
            Expr::Dynset {
                set,
                op,
                key,
                data,
                timeout,
            } => {
                w.string(1, set);
                w.be32(
                    3,
                    match op {
                        DynsetOp::Add => 0,
                        DynsetOp::Update => 1,
                        DynsetOp::Delete => 2,
                    },
                );
                w.be32(4, key.number());
                if let Some(data) = data {
                    w.be32(5, data.number());
                }
                if let Some(timeout) = timeout {
                    w.attr(6, &(timeout.as_millis() as u64).to_be_bytes());
                }
            }
            _ => {}
        }
    }
}

fn cmp_number(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => 0,
        CmpOp::Ne => 1,
        CmpOp::Lt => 2,
        CmpOp::Le => 3,
        CmpOp::Gt => 4,
        CmpOp::Ge => 5,
    }
}

fn write_lookup(w: &mut Writer, set: &str, sreg: Reg, dreg: Option<u32>) {
    w.string(1, set);
    w.be32(2, sreg.number());
    if let Some(dreg) = dreg {
        w.be32(3, dreg);
    }
}
