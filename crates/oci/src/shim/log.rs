//! Container output as log lines in the form kubelets and `kubectl logs` read:
//! `<time> <stream> <F|P> <text>`, where P marks a part of a line that continues.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of one log line; longer ones are split.
const MAX_LINE: usize = 16 << 10;

/// Which of the two outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// A container's log file, with the unfinished line of each output.
#[derive(Debug)]
pub struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    pending: [Vec<u8>; 2],
}

impl Log {
    /// Opens the file for appending, making its folder; without a path output goes nowhere.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_deref().map(open).transpose()?;
        Ok(Self {
            path,
            file,
            pending: [Vec::new(), Vec::new()],
        })
    }

    /// Opens the file anew: the old one was renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = self.path.as_deref().map(open).transpose()?;
        Ok(())
    }

    /// Takes output. Whole lines are written at once; a failing disk loses lines, never the
    /// container.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) {
        let now = timestamp(now_nanoseconds());
        let pending = &mut self.pending[stream as usize];
        let written = split(pending, bytes, &now, stream.name());
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&written);
        }
    }

    /// Writes the unfinished line of an output that ended.
    pub fn finish(&mut self, stream: Stream) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if pending.is_empty() {
            return;
        }
        let now = timestamp(now_nanoseconds());
        let mut line = Vec::new();
        push_line(&mut line, &now, stream.name(), 'F', &pending);
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&line);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

fn split(pending: &mut Vec<u8>, mut bytes: &[u8], now: &str, stream: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 64);
    while !bytes.is_empty() {
        let room = MAX_LINE - pending.len();
        let window = &bytes[..bytes.len().min(room)];
        if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
            pending.extend_from_slice(&bytes[..end]);
            push_line(&mut out, now, stream, 'F', pending);
            pending.clear();
            bytes = &bytes[end + 1..];
        } else {
            pending.extend_from_slice(window);
            bytes = &bytes[window.len()..];
            // A line of exactly the limit is whole if its end comes next.
            if pending.len() == MAX_LINE && bytes.first() != Some(&b'\n') {
                push_line(&mut out, now, stream, 'P', pending);
                pending.clear();
            } else if pending.len() == MAX_LINE {
                push_line(&mut out, now, stream, 'F', pending);
                pending.clear();
                bytes = &bytes[1..];
            }
        }
    }
    out
}

fn push_line(out: &mut Vec<u8>, now: &str, stream: &str, tag: char, text: &[u8]) {
    out.extend_from_slice(format!("{now} {stream} {tag} ").as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Nanoseconds since 1970.
pub fn now_nanoseconds() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|elapsed| i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX))
        .unwrap_or(0)
}

/// RFC 3339 in UTC with nine digits after the second.
pub fn timestamp(nanoseconds: i64) -> String {
    let (seconds, fraction) = (
        nanoseconds.div_euclid(1_000_000_000),
        nanoseconds.rem_euclid(1_000_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date, counting years from March so that leap days come last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (nanoseconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_795_252_599_123_456_789, "2026-11-21T09:16:39.123456789Z"),
        ] {
            assert_eq!(timestamp(nanoseconds), text);
        }
    }

    #[test]
    fn lines_are_cut_at_newlines_and_at_the_limit() {
        let mut pending = Vec::new();
        assert_eq!(
            split(&mut pending, b"one\ntw", "T", "stdout"),
            b"T stdout F one\n"
        );
        assert_eq!(
            split(&mut pending, b"o\n\n", "T", "stdout"),
            b"T stdout F two\nT stdout F \n"
        );
        let long = vec![b'x'; MAX_LINE + 3];
        let out = String::from_utf8(split(&mut pending, &long, "T", "stderr")).unwrap();
        assert_eq!(out.lines().count(), 1);
        assert!(out.starts_with("T stderr P xxx"));
        assert_eq!(pending, b"xxx");
        pending.clear();
        let mut exact = vec![b'y'; MAX_LINE];
        exact.push(b'\n');
        let out = String::from_utf8(split(&mut pending, &exact, "T", "stdout")).unwrap();
        assert_eq!(out.lines().count(), 1);
        assert!(out.starts_with("T stdout F y"));
    }

    #[test]
    fn rotation_starts_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pod/c/0.log");
        let mut log = Log::open(Some(path.clone())).unwrap();
        log.output(Stream::Stdout, b"old\n");
        std::fs::rename(&path, folder.path().join("rotated")).unwrap();
        log.output(Stream::Stdout, b"late\n");
        log.reopen().unwrap();
        log.output(Stream::Stderr, b"new");
        log.finish(Stream::Stderr);
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(new.ends_with(" stderr F new\n"), "{new}");
        let old = std::fs::read_to_string(folder.path().join("rotated")).unwrap();
        assert_eq!(old.lines().count(), 2);
    }
}
