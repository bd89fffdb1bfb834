//! The records that logs and snapshots are made of.
//!
//! ```text
//!   "Srec" | length u32 | checksum u64 | payload: revision u64, count u32, count × write
//!   write: key length u32, value length u32 (or DELETED), create, mod, version u64, key, value
//! ```
//!
//! Numbers are little-endian. The checksum is seeded with the number of the file, so that what an
//! older file left on the disk never passes for a record of this one.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::types::{KeyValue, Revision};

const MAGIC: [u8; 4] = *b"Srec";
/// Bytes in front of a payload.
const HEAD: usize = 16;
/// Value length of a write that deletes.
const DELETED: u32 = u32::MAX;
/// Largest payload, in bytes: a full group and the largest commit on top, with room for the
/// numbers of many small writes.
const MAX_PAYLOAD_BYTES: u32 = 64 << 20;

/// One write: the key and what it holds now; `None` deletes it.
pub(crate) type Write = (Bytes, Option<Arc<KeyValue>>);

/// Appends a record.
pub(crate) fn encode<'a>(
    to: &mut Vec<u8>,
    seed: u64,
    revision: Revision,
    writes: impl Iterator<Item = (&'a Bytes, Option<&'a KeyValue>)>,
) {
    let start = to.len();
    to.extend_from_slice(&[0; HEAD]);
    to.extend_from_slice(&revision.to_le_bytes());
    to.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for (key, kv) in writes {
        count += 1;
        let length = kv.map_or(DELETED, |kv| small(kv.value.len()));
        to.extend_from_slice(&small(key.len()).to_le_bytes());
        to.extend_from_slice(&length.to_le_bytes());
        if let Some(kv) = kv {
            for number in [kv.create_revision, kv.mod_revision, kv.version] {
                to.extend_from_slice(&number.to_le_bytes());
            }
        }
        to.extend_from_slice(key);
        to.extend_from_slice(kv.map_or(&[][..], |kv| &kv.value));
    }
    to[start + HEAD + 8..start + HEAD + 12].copy_from_slice(&count.to_le_bytes());
    let payload = &to[start + HEAD..];
    let (length, sum) = (small(payload.len()), xxh3_64_with_seed(payload, seed));
    to[start..start + 4].copy_from_slice(&MAGIC);
    to[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    to[start + 8..start + HEAD].copy_from_slice(&sum.to_le_bytes());
}

/// Lengths are bounded by the limits of keys, values and groups.
fn small(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(DELETED - 1)
}

/// A record that was read.
pub(crate) struct Record {
    pub(crate) revision: Revision,
    pub(crate) writes: Vec<Write>,
    /// Bytes it takes in its file.
    pub(crate) size: u64,
}

/// Reads the next record; `None` if there is none or what is there is no whole record.
pub(crate) fn read(from: &mut impl Read, seed: u64) -> std::io::Result<Option<Record>> {
    let mut head = [0; HEAD];
    if !read_whole(from, &mut head)? {
        return Ok(None);
    }
    let Some((length, sum)) = parse_head(&head) else {
        return Ok(None);
    };
    let mut payload = Vec::new();
    let read = from.take(u64::from(length)).read_to_end(&mut payload)?;
    if read < length as usize || xxh3_64_with_seed(&payload, seed) != sum {
        return Ok(None);
    }
    Ok(parse(&payload))
}

fn read_whole(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse_head(head: &[u8; HEAD]) -> Option<(u32, u64)> {
    let mut head = head.strip_prefix(&MAGIC)?;
    let length = u32::from_le_bytes(take(&mut head)?);
    let sum = u64::from_le_bytes(take(&mut head)?);
    (length <= MAX_PAYLOAD_BYTES).then_some((length, sum))
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*taken)
}

fn parse(payload: &[u8]) -> Option<Record> {
    let mut rest = payload;
    let revision = u64::from_le_bytes(take(&mut rest)?);
    let count = u32::from_le_bytes(take(&mut rest)?);
    let mut writes = Vec::new();
    for _ in 0..count {
        writes.push(parse_write(&mut rest)?);
    }
    let size = (HEAD + payload.len()) as u64;
    let record = Record {
        revision,
        writes,
        size,
    };
    rest.is_empty().then_some(record)
}

fn parse_write(rest: &mut &[u8]) -> Option<Write> {
    let key_length = u32::from_le_bytes(take(rest)?) as usize;
    let value_length = u32::from_le_bytes(take(rest)?);
    let mut numbers = [0; 3];
    if value_length != DELETED {
        for number in &mut numbers {
            *number = u64::from_le_bytes(take(rest)?);
        }
    }
    let (key, tail) = rest.split_at_checked(key_length)?;
    let key = Bytes::copy_from_slice(key);
    *rest = tail;
    if value_length == DELETED {
        return Some((key, None));
    }
    let (value, tail) = rest.split_at_checked(value_length as usize)?;
    *rest = tail;
    let [create_revision, mod_revision, version] = numbers;
    let kv = KeyValue {
        key: key.clone(),
        value: Bytes::copy_from_slice(value),
        create_revision,
        mod_revision,
        version,
    };
    Some((key, Some(Arc::new(kv))))
}

/// Whether a whole record begins anywhere in these bytes.
pub(crate) fn any_in(bytes: &[u8], seed: u64) -> bool {
    let starts = bytes.windows(MAGIC.len()).enumerate();
    let mut starts = starts.filter(|(_, window)| *window == MAGIC);
    starts.any(|(at, _)| matches!(read(&mut &bytes[at..], seed), Ok(Some(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Write> {
        let kv = KeyValue {
            key: "/a".into(),
            value: "value".into(),
            create_revision: 2,
            mod_revision: 7,
            version: 3,
        };
        vec![("/a".into(), Some(Arc::new(kv))), ("/b".into(), None)]
    }

    fn encoded(seed: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let writes = sample();
        let writes = writes.iter().map(|(key, kv)| (key, kv.as_deref()));
        encode(&mut bytes, seed, 9, writes);
        bytes
    }

    #[test]
    fn records_come_back() {
        let bytes = encoded(1);
        let record = read(&mut &bytes[..], 1).unwrap().unwrap();
        assert_eq!((record.revision, record.size), (9, bytes.len() as u64));
        assert_eq!(record.writes, sample());
    }

    #[test]
    fn what_is_torn_or_changed_or_foreign_is_no_record() {
        let bytes = encoded(1);
        for cut in 0..bytes.len() {
            assert!(read(&mut &bytes[..cut], 1).unwrap().is_none());
            let mut changed = bytes.clone();
            changed[cut] ^= 1;
            assert!(read(&mut &changed[..], 1).unwrap().is_none(), "{cut}");
        }
        assert!(read(&mut &bytes[..], 2).unwrap().is_none());
    }

    #[test]
    fn records_are_found_behind_garbage() {
        let bytes = [&b"SrecSrec"[..], &encoded(1)].concat();
        assert!(any_in(&bytes, 1));
        assert!(!any_in(&bytes, 2));
        assert!(!any_in(&bytes[..bytes.len() - 1], 1));
    }
}
