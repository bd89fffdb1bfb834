//! The durable back end on fjall. Two keyspaces: `kv` holds each key with its revisions in front
//! of the value, `meta` holds the store's revision. A group is one batch over both, synced once.
//!
//! The database is read once, when opened; its caches are therefore tiny.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode};

use crate::durable::{Durable, DurableError, Group, Loaded};
use crate::types::{KeyValue, OpenError, Revision};

/// Block cache, in bytes: nothing is read twice.
const CACHE_BYTES: u64 = 1 << 20;
/// Writes kept in memory before they are sorted into a table, in bytes.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Journals kept before the memtables they cover are flushed, in bytes.
const JOURNAL_BYTES: u64 = 128 << 20;
/// A file system with fewer bytes free than this is full.
const FULL_BYTES: u64 = 1 << 20;
/// Layout of the keyspaces; a store with another one is not touched.
const FORMAT: &[u8] = b"1";
/// Bytes in front of a value: revision of creation, of modification, version.
const HEADER: usize = 24;

pub(crate) struct FjallEngine {
    dir: PathBuf,
    open: Option<Open>,
}

struct Open {
    database: Database,
    kv: Keyspace,
    meta: Keyspace,
}

impl FjallEngine {
    /// Opens or creates the database in `dir`.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Loaded), OpenError> {
        let failed = |error: Failure| error.into_open(dir);
        let open = Open::new(dir).map_err(failed)?;
        let loaded = open.load().map_err(failed)?;
        let engine = Self {
            dir: dir.to_owned(),
            open: Some(open),
        };
        Ok((engine, loaded))
    }
}

impl Durable for FjallEngine {
    fn append(&mut self, group: &Group) -> Result<(), DurableError> {
        let Some(open) = &self.open else {
            return Err(DurableError::Io("the database is not open".into()));
        };
        open.append(group)
            .map_err(|error| Failure::from(error).into_durable(&self.dir))
    }

    fn reload(&mut self) -> Result<Loaded, DurableError> {
        // Closed first: the database locks its folder.
        self.open = None;
        let result = Open::new(&self.dir).and_then(|open| open.load().map(|l| (open, l)));
        let (open, loaded) = result.map_err(|error| error.into_durable(&self.dir))?;
        self.open = Some(open);
        Ok(loaded)
    }
}

impl Open {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let database = Database::builder(dir)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let kv = database.keyspace("kv", options)?;
        let meta = database.keyspace("meta", options)?;
        match meta.get("format")? {
            None => {
                let mut batch = database.batch().durability(Some(PersistMode::SyncData));
                batch.insert(&meta, "format", FORMAT);
                batch.insert(&meta, "revision", 1_u64.to_be_bytes());
                batch.commit()?;
            }
            Some(format) if &format[..] == FORMAT => {}
            Some(_) => return Err(Failure::Damaged("written by another version".into())),
        }
        Ok(Self { database, kv, meta })
    }

    fn load(&self) -> Result<Loaded, Failure> {
        let revision = self.meta.get("revision")?;
        let revision = revision.and_then(|bytes| <[u8; 8]>::try_from(&bytes[..]).ok());
        let Some(revision) = revision.map(Revision::from_be_bytes) else {
            return Err(Failure::Damaged("the revision is missing".into()));
        };
        let mut entries = Vec::new();
        for item in self.kv.iter() {
            let (key, value) = item.into_inner()?;
            let kv = decode(&key, &value)
                .ok_or_else(|| Failure::Damaged(format!("key {} is cut", key.escape_ascii())))?;
            entries.push(Arc::new(kv));
        }
        Ok(Loaded { revision, entries })
    }

    fn append(&self, group: &Group) -> Result<(), fjall::Error> {
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (key, kv) in &group.writes {
            match kv {
                Some(kv) => batch.insert(&self.kv, &key[..], encode(kv)),
                None => batch.remove(&self.kv, &key[..]),
            }
        }
        batch.insert(&self.meta, "revision", group.revision.to_be_bytes());
        batch.commit()
    }
}

fn encode(kv: &KeyValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + kv.value.len());
    for number in [kv.create_revision, kv.mod_revision, kv.version] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&kv.value);
    bytes
}

fn decode(key: &[u8], bytes: &[u8]) -> Option<KeyValue> {
    let (create, rest) = bytes.split_first_chunk::<8>()?;
    let (modified, rest) = rest.split_first_chunk::<8>()?;
    let (version, value) = rest.split_first_chunk::<8>()?;
    Some(KeyValue {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: u64::from_be_bytes(*create),
        mod_revision: u64::from_be_bytes(*modified),
        version: u64::from_be_bytes(*version),
    })
}

enum Failure {
    Fjall(fjall::Error),
    Damaged(String),
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        Self::Fjall(error)
    }
}

impl Failure {
    /// Whether the disk is full: as the error says, or, since a failed background thread of the
    /// database only leaves it *poisoned*, as the file system says.
    fn is_no_space(&self, dir: &Path) -> bool {
        let kind = match self {
            Self::Fjall(fjall::Error::Io(io) | fjall::Error::Storage(LsmError::Io(io))) => {
                io.kind()
            }
            Self::Fjall(fjall::Error::Poisoned) => return is_full(dir),
            _ => return false,
        };
        kind == std::io::ErrorKind::StorageFull
    }

    fn into_durable(self, dir: &Path) -> DurableError {
        let no_space = self.is_no_space(dir);
        match no_space {
            true => DurableError::NoSpace(self.to_string()),
            false => DurableError::Io(self.to_string()),
        }
    }

    fn into_open(self, dir: &Path) -> OpenError {
        let path = dir.to_owned();
        let reason = self.to_string();
        match self {
            _ if self.is_no_space(dir) => OpenError::NoSpace { path, reason },
            Self::Fjall(fjall::Error::Locked) => OpenError::Locked { path },
            Self::Fjall(fjall::Error::Io(_)) => OpenError::Io { path, reason },
            _ => OpenError::Damaged { path, reason },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fjall(fjall::Error::Io(error)) => error.fmt(f),
            Self::Fjall(error) => error.fmt(f),
            Self::Damaged(reason) => f.write_str(reason),
        }
    }
}

fn is_full(dir: &Path) -> bool {
    rustix::fs::statvfs(dir).is_ok_and(|fs| fs.f_bavail * fs.f_frsize < FULL_BYTES)
}
