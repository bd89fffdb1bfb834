//! Container logs in the CRI format: `<time> <stream> <tags> <content>`, one file per start of a
//! container, kept small by rotation.

pub mod read;
pub mod rotate;

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Block size of searches from the end of a file, in bytes.
const BLOCK: u64 = 8 * 1024;

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Time as written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// The container did not end the line here.
    pub partial: bool,
    /// What the container wrote, without the line's end.
    pub content: &'a [u8],
}

/// Parses one line without its newline; `None` if it is no log line.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let content = parts.next().unwrap_or_default();
    if !matches!(stream, "stdout" | "stderr") || time.len() < 20 {
        return None;
    }
    Some(Line {
        time,
        stream,
        partial: tags.split(|b| *b == b':').next() == Some(b"P"),
        content,
    })
}

/// Offset at which the last `lines` lines begin.
///
/// # Errors
/// When the file cannot be read.
pub fn tail_offset(file: &mut (impl Read + Seek), lines: usize) -> std::io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut newlines = 0;
    let mut block = vec![0; usize::try_from(BLOCK).unwrap_or(0)];
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let size = usize::try_from(end - start).unwrap_or(0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for (at, _) in block[..size]
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, b)| **b == b'\n')
        {
            let offset = start + at as u64;
            // The newline that ends the last line starts no other one.
            if offset + 1 == length {
                continue;
            }
            newlines += 1;
            if newlines == lines {
                return Ok(offset + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

/// The end of a log as text without times: at most `lines` lines and `bytes` bytes.
pub fn tail_text(path: &Path, lines: usize, bytes: u64) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let start = tail_offset(&mut file, lines).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(bytes * 4))))
        .ok()?;
    let mut raw = Vec::new();
    file.take(bytes * 4).read_to_end(&mut raw).ok()?;
    let mut text = Vec::new();
    for line in raw.split(|b| *b == b'\n').filter_map(parse) {
        text.extend_from_slice(line.content);
        if !line.partial {
            text.push(b'\n');
        }
    }
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    let cut = text.len().saturating_sub(limit);
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text[cut..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    #[test]
    fn parses_lines() {
        let line = parse(b"2016-10-06T00:17:09.669794202Z stdout F a b").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.content),
            ("stdout", false, &b"a b"[..])
        );
        let line = parse(b"2016-10-06T00:17:09.669794202Z stderr P:x ").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.content),
            ("stderr", true, &b""[..])
        );
        assert!(parse(b"nonsense").is_none());
        assert!(parse(b"2016-10-06T00:17:09.669794202Z other F x").is_none());
    }

    proptest! {
        #[test]
        fn tail_agrees_with_counting_lines(lengths in prop::collection::vec(0_usize..3000, 0..30), open in any::<bool>(), want in 0_usize..35) {
            let mut text: Vec<u8> = Vec::new();
            let mut starts = Vec::new();
            for (n, length) in lengths.iter().enumerate() {
                starts.push(text.len());
                text.extend(std::iter::repeat_n(b'x', *length));
                if !(open && n + 1 == lengths.len()) {
                    text.push(b'\n');
                }
            }
            if open && lengths.last() == Some(&0) {
                starts.pop();
            }
            let expected = if want == 0 { text.len() } else { starts.iter().rev().nth(want - 1).copied().unwrap_or(0) };
            let got = tail_offset(&mut Cursor::new(&text), want).unwrap();
            prop_assert_eq!(got, expected as u64);
        }
    }
}
