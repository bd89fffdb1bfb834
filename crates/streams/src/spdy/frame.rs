//! SPDY/3.1 frames: an eight byte head, then what its type says.

use bytes::{BufMut, Bytes, BytesMut};

/// Largest control frame taken, in bytes.
pub(crate) const MAX_CONTROL_BYTES: usize = 64 << 10;
/// How much may be sent on a stream before the receiver grants more, unless agreed otherwise.
pub(crate) const INITIAL_WINDOW: u32 = 64 << 10;
/// Number of the setting that changes [`INITIAL_WINDOW`].
pub(crate) const SETTING_INITIAL_WINDOW: u32 = 7;

const VERSION: u16 = 3;
pub(crate) const FLAG_FIN: u8 = 1;
pub(crate) const FLAG_UNIDIRECTIONAL: u8 = 2;

pub(crate) const SYN_STREAM: u16 = 1;
pub(crate) const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const SETTINGS: u16 = 4;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const HEADERS: u16 = 8;
pub(crate) const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reset {
    ProtocolError = 1,
    RefusedStream = 3,
}

/// The head of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Data {
        stream: u32,
        flags: u8,
        length: usize,
    },
    Control {
        kind: u16,
        flags: u8,
        length: usize,
    },
}

impl Head {
    /// Reads a head; `None` if it is of another version of the protocol.
    pub(crate) fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [a, b, c, d, flags, x, y, z] = bytes;
        let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).ok()?;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Some(Self::Data {
                stream,
                flags,
                length,
            });
        }
        let kind = u16::from_be_bytes([c, d]);
        let known = u16::from_be_bytes([a & 0x7f, b]) == VERSION;
        known.then_some(Self::Control {
            kind,
            flags,
            length,
        })
    }
}

/// What we send.
#[derive(Debug)]
pub(crate) enum Out {
    Data { stream: u32, bytes: Bytes },
    Fin { stream: u32 },
    Reply { stream: u32 },
    Reset { stream: u32, status: Reset },
    Ping { id: u32 },
    Window { stream: u32, delta: u32 },
    GoAway { last: u32, status: u32 },
}

impl Out {
    /// Appends the frame. `no_headers` is the compressed header block of a reply.
    pub(crate) fn encode(
        &self,
        to: &mut BytesMut,
        no_headers: impl FnOnce() -> Result<Vec<u8>, flate2::CompressError>,
    ) -> Result<(), flate2::CompressError> {
        match self {
            Self::Data { stream, bytes } => {
                data_head(to, *stream, 0, bytes.len());
                to.extend_from_slice(bytes);
            }
            Self::Fin { stream } => data_head(to, *stream, FLAG_FIN, 0),
            Self::Reply { stream } => {
                let block = no_headers()?;
                control_head(to, SYN_REPLY, 4 + block.len());
                to.put_u32(*stream);
                to.extend_from_slice(&block);
            }
            Self::Reset { stream, status } => pair(to, RST_STREAM, *stream, *status as u32),
            Self::Ping { id } => {
                control_head(to, PING, 4);
                to.put_u32(*id);
            }
            Self::Window { stream, delta } => pair(to, WINDOW_UPDATE, *stream, *delta),
            Self::GoAway { last, status } => pair(to, GOAWAY, *last, *status),
        }
        Ok(())
    }
}

fn pair(to: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control_head(to, kind, 8);
    to.put_u32(first);
    to.put_u32(second);
}

fn data_head(to: &mut BytesMut, stream: u32, flags: u8, length: usize) {
    to.put_u32(stream);
    to.put_u8(flags);
    put_length(to, length);
}

fn control_head(to: &mut BytesMut, kind: u16, length: usize) {
    to.put_u16(VERSION | 0x8000);
    to.put_u16(kind);
    to.put_u8(0);
    put_length(to, length);
}

fn put_length(to: &mut BytesMut, length: usize) {
    // Our frames are bounded far below 16 MiB.
    to.put_uint(length as u64, 3);
}

/// The body of a control frame, read number by number.
pub(crate) struct Body<'a>(pub(crate) &'a [u8]);

impl Body<'_> {
    /// The next number, or 0 when the frame is cut: which no identifier is.
    pub(crate) fn number(&mut self) -> u32 {
        match self.0.split_first_chunk::<4>() {
            Some((number, rest)) => {
                self.0 = rest;
                u32::from_be_bytes(*number)
            }
            None => 0,
        }
    }

    /// The next number as the identifier of a stream.
    pub(crate) fn stream(&mut self) -> u32 {
        self.number() & 0x7fff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_standards_bytes() {
        let none = || Ok(vec![]);
        for (out, expected) in [
            (Out::Fin { stream: 1 }, &b"\0\0\0\x01\x01\0\0\0"[..]),
            (
                Out::Data {
                    stream: 3,
                    bytes: Bytes::from_static(b"hi"),
                },
                b"\0\0\0\x03\0\0\0\x02hi",
            ),
            (Out::Ping { id: 5 }, b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x05"),
            (
                Out::Window {
                    stream: 1,
                    delta: 256,
                },
                b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x01\0\0\x01\0",
            ),
        ] {
            let mut bytes = BytesMut::new();
            out.encode(&mut bytes, none).unwrap();
            assert_eq!(&bytes[..], expected);
        }
    }

    #[test]
    fn heads_are_told_apart() {
        let data = Head::parse([0, 0, 0, 7, 1, 0, 1, 2]);
        let (stream, flags, length) = (7, 1, 258);
        assert_eq!(
            data,
            Some(Head::Data {
                stream,
                flags,
                length
            })
        );
        let control = Head::parse([0x80, 3, 0, 6, 0, 0, 0, 4]);
        let (kind, flags, length) = (PING, 0, 4);
        assert_eq!(
            control,
            Some(Head::Control {
                kind,
                flags,
                length
            })
        );
        assert_eq!(Head::parse([0x80, 2, 0, 6, 0, 0, 0, 4]), None);
    }
}
