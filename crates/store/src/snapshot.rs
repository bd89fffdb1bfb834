//! Snapshots: the whole tree in one file, written in the background.
//!
//! The file is a row of records; the last one has no writes and marks the end.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::durable::Loaded;
use crate::log::{remove_before, sync_dir};
use crate::record;
use crate::types::KeyValue;

/// First bytes of a snapshot; the last ones tell its format.
const HEADER: [u8; 8] = *b"StyrSnp1";
/// Bytes of keys and values in a record.
const RECORD_BYTES: usize = 1 << 20;
/// Synced after so many bytes, so that the syncs of commits never wait behind much of it.
const SYNC_BYTES: usize = 16 << 20;

pub(crate) fn name(number: u64) -> String {
    format!("{number:016x}.snap")
}

/// A snapshot on its way. Dropped, it is given up.
pub(crate) struct Writing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<u64>>>,
}

impl Writing {
    /// Starts to write what the store held before log `number`.
    pub(crate) fn start(dir: &Path, number: u64, loaded: Loaded) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (dir, theirs) = (dir.to_owned(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("store-snapshot".into())
            .spawn(move || {
                let temporary = dir.join(format!("{number:016x}.tmp"));
                let result = write(&dir, &temporary, number, &loaded, &theirs);
                if result.is_err() {
                    // If this fails too, the next opening removes it.
                    let _ = fs::remove_file(&temporary);
                }
                result
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// The snapshot's size in bytes; waits for it.
    pub(crate) fn finish(mut self) -> std::io::Result<u64> {
        let panicked = || Err(std::io::Error::other("the snapshot's thread panicked"));
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| panicked()),
            None => panicked(),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says no longer matters.
            let _ = thread.join();
        }
    }
}

fn write(
    dir: &Path,
    temporary: &PathBuf,
    number: u64,
    loaded: &Loaded,
    stop: &AtomicBool,
) -> std::io::Result<u64> {
    let mut file = File::create(temporary)?;
    let mut bytes = HEADER.to_vec();
    let mut unsynced = 0;
    let mut total = 0;
    let mut part: Vec<&KeyValue> = Vec::new();
    let mut part_bytes = 0;
    let mut entries = loaded.tree.iter();
    loop {
        let next = entries.next();
        if let Some(kv) = next {
            part_bytes += kv.key.len() + kv.value.len();
            part.push(kv);
            if part_bytes < RECORD_BYTES {
                continue;
            }
        }
        if !part.is_empty() {
            let writes = part.iter().map(|kv| (&kv.key, Some(*kv)));
            record::encode(&mut bytes, number, loaded.revision, writes);
            part.clear();
            part_bytes = 0;
        }
        if next.is_none() {
            record::encode(&mut bytes, number, loaded.revision, std::iter::empty());
        }
        file.write_all(&bytes)?;
        unsynced += bytes.len();
        total += bytes.len() as u64;
        bytes.clear();
        if unsynced > SYNC_BYTES || next.is_none() {
            file.sync_data()?;
            unsynced = 0;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        if next.is_none() {
            break;
        }
    }
    file.sync_all()?;
    fs::rename(temporary, dir.join(name(number)))?;
    sync_dir(dir)?;
    // Here and not by the committer: to free much disk takes long.
    remove_before(dir, number)?;
    Ok(total)
}

/// Reads a snapshot; `None` if it is damaged.
pub(crate) fn read(path: &Path, number: u64) -> std::io::Result<Option<Loaded>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut header = [0; HEADER.len()];
    match file.read_exact(&mut header) {
        Ok(()) if header == HEADER => {}
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error),
        _ => return Ok(None),
    }
    let mut entries = Vec::new();
    while let Some(record) = record::read(&mut file, number)? {
        let revision = record.revision;
        if record.writes.is_empty() {
            let tree = entries.into_iter().collect();
            return Ok(Some(Loaded { revision, tree }));
        }
        entries.extend(record.writes.into_iter().filter_map(|(_, kv)| kv));
    }
    Ok(None)
}
