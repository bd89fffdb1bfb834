//! Sets and maps, their elements, and verdicts.

use std::time::Duration;

use crate::netlink::Writer;
use crate::nft::key::Key;

const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const ELEMENT_INTERVAL_END: u32 = 1;

/// Flags of a set, as the kernel numbers them.
const INTERVAL: u32 = 0x4;
const MAP: u32 = 0x8;
const TIMEOUT: u32 = 0x10;
const EVAL: u32 = 0x20;
const CONCAT: u32 = 0x80;
/// The data type that says *verdict*.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// What a field of a key or of data is. Only its length matters to the kernel; the rest is for listings by `nft`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// An IPv4 address.
    Ipv4,
    /// A protocol number of one byte.
    Proto,
    /// A port of two bytes in network order.
    Port,
    /// A number of four bytes in host order.
    Number,
}

impl KeyType {
    /// The number `nft` knows the type by.
    fn number(self) -> u32 {
        match self {
            KeyType::Ipv4 => 7,
            KeyType::Proto => 12,
            KeyType::Port => 13,
            KeyType::Number => 19,
        }
    }

    fn length(self) -> u32 {
        match self {
            KeyType::Proto => 1,
            KeyType::Port => 2,
            KeyType::Ipv4 | KeyType::Number => 4,
        }
    }
}

/// `nft`'s number for a concatenation, and the bytes it takes in registers.
fn type_and_length(fields: &[KeyType]) -> (u32, u32) {
    if let [only] = fields {
        return (only.number(), only.length());
    }
    (
        fields.iter().fold(0, |t, f| (t << 6) | f.number()),
        4 * fields.len() as u32,
    )
}

/// What a set maps its keys to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a plain set.
    None,
    /// A value.
    Value(Vec<KeyType>),
    /// A verdict.
    Verdict,
}

/// A set or map to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique among the table's sets.
    pub name: String,
    /// The fields of its keys.
    pub key: Vec<KeyType>,
    /// What its keys map to.
    pub data: SetData,
    /// Whether keys are ranges.
    pub interval: bool,
    /// Whether elements may expire.
    pub timeout: bool,
    /// Whether rules may add elements; then `size` must bound them.
    pub dynamic: bool,
    /// Most elements it may hold; None leaves it unbounded.
    pub size: Option<u32>,
}

impl Set {
    /// A plain set with keys of these fields.
    pub fn new(name: &str, key: &[KeyType]) -> Self {
        Set {
            name: name.to_string(),
            key: key.to_vec(),
            data: SetData::None,
            interval: false,
            timeout: false,
            dynamic: false,
            size: None,
        }
    }

    /// A map to values of these fields.
    pub fn map(name: &str, key: &[KeyType], data: &[KeyType]) -> Self {
        Set {
            data: SetData::Value(data.to_vec()),
            ..Set::new(name, key)
        }
    }

    /// A map to verdicts.
    pub fn verdict_map(name: &str, key: &[KeyType]) -> Self {
        Set {
            data: SetData::Verdict,
            ..Set::new(name, key)
        }
    }

    pub(crate) fn write(&self, w: &mut Writer, table: &str, id: u32) {
        let (key_type, key_length) = type_and_length(&self.key);
        w.string(1, table);
        w.string(2, &self.name);
        w.be32(3, self.flags());
        w.be32(4, key_type);
        w.be32(
            5,
            if self.key.len() == 1 {
                key_length
            } else {
                4 * self.key.len() as u32
            },
        );
        match &self.data {
            SetData::None => {}
            SetData::Value(fields) => {
                let (data_type, length) = type_and_length(fields);
                w.be32(6, data_type);
                w.be32(7, length);
            }
            SetData::Verdict => w.be32(6, DATA_VERDICT),
        }
        let ranges_of_fields = self.interval && self.key.len() > 1;
        if self.size.is_some() || ranges_of_fields {
            w.nested(9, |w| {
                if let Some(size) = self.size {
                    w.be32(1, size);
                }
                if ranges_of_fields {
                    w.nested(2, |w| {
                        for field in &self.key {
                            w.nested(NFTA_LIST_ELEM, |w| w.be32(1, field.length()));
                        }
                    });
                }
            });
        }
        w.be32(10, id);
    }

    fn flags(&self) -> u32 {
        let mut flags = 0;
        for (on, flag) in [
            (self.data != SetData::None, MAP),
            (self.interval, INTERVAL),
            (self.interval && self.key.len() > 1, CONCAT),
            (self.timeout, TIMEOUT),
            (self.dynamic, EVAL),
        ] {
            if on {
                flags |= flag;
            }
        }
        flags
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The hook is passed.
    Accept,
    /// The packet vanishes.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On in that chain, and back here after it.
    Jump(String),
    /// On in that chain for good.
    Goto(String),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Verdict::Drop => 0,
            Verdict::Accept => 1,
            Verdict::Jump(_) => libc::NFT_JUMP,
            Verdict::Goto(_) => libc::NFT_GOTO,
            Verdict::Return => libc::NFT_RETURN,
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.nested(NFTA_DATA_VERDICT, |w| {
            w.be32(NFTA_VERDICT_CODE, self.code() as u32);
            if let Verdict::Jump(chain) | Verdict::Goto(chain) = self {
                w.string(NFTA_VERDICT_CHAIN, chain);
            }
        });
    }
}

/// What a map's key leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// A value.
    Value(Key),
    /// A verdict.
    Verdict(Verdict),
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key; the lower end in an interval set.
    pub key: Key,
    /// The upper end, inclusive, in an interval set of several fields.
    pub key_end: Option<Key>,
    /// Marks the first key after a range in an interval set of one field.
    pub interval_end: bool,
    /// What it maps to.
    pub data: Option<Data>,
    /// How long it lives from each use on.
    pub timeout: Option<Duration>,
    /// How long it lives from now on, when that is less than `timeout`.
    pub expiration: Option<Duration>,
}

impl Element {
    /// An element of a plain set; also names an element to delete.
    pub fn key(key: Key) -> Self {
        Element {
            key,
            key_end: None,
            interval_end: false,
            data: None,
            timeout: None,
            expiration: None,
        }
    }

    /// An element of a map.
    pub fn value(key: Key, value: Key) -> Self {
        Element {
            data: Some(Data::Value(value)),
            ..Element::key(key)
        }
    }

    /// An element of a verdict map.
    pub fn verdict(key: Key, verdict: Verdict) -> Self {
        Element {
            data: Some(Data::Verdict(verdict)),
            ..Element::key(key)
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.nested(NFTA_LIST_ELEM, |w| {
            w.nested(NFTA_SET_ELEM_KEY, |w| {
                w.attr(NFTA_DATA_VALUE, self.key.bytes())
            });
            if let Some(end) = &self.key_end {
                w.nested(NFTA_SET_ELEM_KEY_END, |w| {
                    w.attr(NFTA_DATA_VALUE, end.bytes())
                });
            }
            if self.interval_end {
                w.be32(NFTA_SET_ELEM_FLAGS, ELEMENT_INTERVAL_END);
            }
            match &self.data {
                None => {}
                Some(Data::Value(value)) => {
                    w.nested(NFTA_SET_ELEM_DATA, |w| {
                        w.attr(NFTA_DATA_VALUE, value.bytes())
                    });
                }
                Some(Data::Verdict(verdict)) => w.nested(NFTA_SET_ELEM_DATA, |w| verdict.write(w)),
            }
            for (kind, time) in [
                (NFTA_SET_ELEM_TIMEOUT, self.timeout),
                (NFTA_SET_ELEM_EXPIRATION, self.expiration),
            ] {
                if let Some(time) = time {
                    w.attr(kind, &(time.as_millis() as u64).to_be_bytes());
                }
            }
        });
    }
}
