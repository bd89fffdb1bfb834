//! Keys and data of sets, in the kernel's register layout.

use std::net::Ipv4Addr;

/// A key (or a map's data) built field by field; each field is padded to whole registers of four bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key without fields.
    pub fn new() -> Self {
        Key(Vec::with_capacity(20))
    }

    /// The bytes of a key as the kernel gave them.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Key(bytes.to_vec())
    }

    /// An IPv4 address.
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.0.extend_from_slice(&address.octets());
        self
    }

    /// A protocol number.
    pub fn proto(mut self, protocol: u8) -> Self {
        self.0.extend_from_slice(&[protocol, 0, 0, 0]);
        self
    }

    /// A port.
    pub fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend_from_slice(&[high, low, 0, 0]);
        self
    }

    /// A number in host order, as `numgen`, `jhash` and marks leave it in a register.
    pub fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }

    /// The key's bytes, a multiple of four.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The IPv4 address in register `index` (counted from 0).
    pub fn ipv4_at(&self, index: usize) -> Option<Ipv4Addr> {
        self.register(index).map(Ipv4Addr::from)
    }

    /// The port in register `index`.
    pub fn port_at(&self, index: usize) -> Option<u16> {
        self.register(index)
            .map(|[high, low, ..]| u16::from_be_bytes([high, low]))
    }

    /// The protocol number in register `index`.
    pub fn proto_at(&self, index: usize) -> Option<u8> {
        self.register(index).map(|r| r[0])
    }

    fn register(&self, index: usize) -> Option<[u8; 4]> {
        self.0.get(index * 4..index * 4 + 4)?.try_into().ok()
    }
}
