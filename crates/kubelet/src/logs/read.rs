//! Reads a container's log for the API: since, tail, limits, times, one stream or both, following
//! the file over rotations until the container ends.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Line, parse, tail_offset};
use crate::fsnotify::{FOLDER, FsNotify};

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// Longest line kept in memory while its end is awaited, in bytes; runtimes split at 16 KiB.
const MAX_LINE: usize = 1024 * 1024;

/// What to read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Go on after the end while the container runs.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<usize>,
    /// Only from this time on.
    pub since: Option<Timestamp>,
    /// Put the time before each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<usize>,
    /// Only `stdout` or `stderr`.
    pub stream: Option<String>,
}

/// Turns lines of a file into what the client sees.
struct Filter<'a> {
    options: &'a Options,
    left: usize,
    line_open: bool,
}

impl<'a> Filter<'a> {
    fn new(options: &'a Options) -> Self {
        Filter {
            options,
            left: options.limit_bytes.unwrap_or(usize::MAX),
            line_open: false,
        }
    }

    fn push(&mut self, line: &Line<'_>, out: &mut BytesMut) {
        let options = self.options;
        if options.stream.as_deref().is_some_and(|s| s != line.stream) {
            return;
        }
        let too_old = |since: Timestamp| line.time.parse::<Timestamp>().is_ok_and(|t| t < since);
        if options.since.is_some_and(too_old) {
            return;
        }
        if options.timestamps && !self.line_open {
            self.write(line.time.as_bytes(), out);
            self.write(b" ", out);
        }
        self.write(line.content, out);
        if !line.partial {
            self.write(b"\n", out);
        }
        self.line_open = line.partial;
    }

    fn write(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let size = bytes.len().min(self.left);
        out.extend_from_slice(&bytes[..size]);
        self.left -= size;
    }
}

/// Sends the log at `path` to `out` until its end, or with `follow` until `ended` is cancelled (the
/// container ended) and everything was sent. Stops silently when the receiver is gone.
///
/// # Errors
/// When the log cannot be read.
pub async fn read(
    path: PathBuf,
    options: Options,
    notify: &FsNotify,
    ended: CancellationToken,
    out: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    // Watch before the first read, so that nothing written in between is missed.
    let changes = if options.follow {
        Some(notify.watch(folder, FOLDER)?)
    } else {
        None
    };
    let mut file = open_at(&path, options.tail_lines).await?;
    let mut filter = Filter::new(&options);
    let mut pending = BytesMut::new();
    loop {
        // Read once more after the end is known: the last lines may have come just before.
        let last_round = ended.is_cancelled();
        let rotated = replaced(&file, &path).await;
        if !drain(&mut file, &mut pending, &mut filter, &out).await? {
            return Ok(());
        }
        if rotated {
            file = File::open(&path).await?;
            pending.clear();
            continue;
        }
        let Some(changes) = changes.as_ref().filter(|_| !last_round) else {
            return Ok(());
        };
        tokio::select! {
            () = changes.changed() => {}
            () = ended.cancelled() => {}
            () = out.closed() => return Ok(()),
        }
    }
}

async fn open_at(path: &Path, tail_lines: Option<usize>) -> std::io::Result<File> {
    let mut file = File::open(path).await?;
    let Some(lines) = tail_lines else {
        return Ok(file);
    };
    let mut plain = file.try_clone().await?.into_std().await;
    let start = tokio::task::spawn_blocking(move || tail_offset(&mut plain, lines)).await??;
    file.seek(SeekFrom::Start(start)).await?;
    Ok(file)
}

/// Whether `path` is another file by now.
async fn replaced(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(open), Ok(named)) = (file.metadata().await, tokio::fs::metadata(path).await) else {
        return false;
    };
    open.ino() != named.ino()
}

/// Sends everything up to the end of the file. False when nobody wants more.
async fn drain(
    file: &mut File,
    pending: &mut BytesMut,
    filter: &mut Filter<'_>,
    out: &mpsc::Sender<Bytes>,
) -> std::io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let size = file.read(&mut chunk).await?;
        if size == 0 {
            return Ok(true);
        }
        pending.extend_from_slice(&chunk[..size]);
        let mut text = BytesMut::new();
        while let Some(end) = pending.iter().position(|b| *b == b'\n') {
            let line = pending.split_to(end + 1);
            if let Some(line) = parse(&line[..end]) {
                filter.push(&line, &mut text);
            }
        }
        if pending.len() > MAX_LINE {
            pending.clear();
        }
        if !text.is_empty() && out.send(text.freeze()).await.is_err() {
            return Ok(false);
        }
        if filter.left == 0 {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn stamp(n: usize) -> String {
        format!("2026-01-01T00:00:{n:02}.000000000Z")
    }

    fn sample() -> String {
        format!(
            "{} stdout F one\n{} stderr F two\n{} stdout P thr\n{} stdout F ee\nbroken\n{} stdout F four\n",
            stamp(1),
            stamp(2),
            stamp(3),
            stamp(3),
            stamp(4)
        )
    }

    async fn collect(text: &str, options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, text).unwrap();
        let (sender, mut receiver) = mpsc::channel(4);
        let notify = FsNotify::new().unwrap();
        let task = tokio::spawn(async move {
            read(path, options, &notify, CancellationToken::new(), sender).await
        });
        let mut out = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            out.extend_from_slice(&bytes);
        }
        task.await.unwrap().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options_select() {
        let plain = Options::default;
        let cases = [
            (plain(), "one\ntwo\nthree\nfour\n".to_owned()),
            (
                Options {
                    tail_lines: Some(1),
                    ..plain()
                },
                "four\n".to_owned(),
            ),
            (
                Options {
                    tail_lines: Some(0),
                    ..plain()
                },
                String::new(),
            ),
            (
                Options {
                    stream: Some("stderr".into()),
                    ..plain()
                },
                "two\n".to_owned(),
            ),
            (
                Options {
                    limit_bytes: Some(6),
                    ..plain()
                },
                "one\ntw".to_owned(),
            ),
            (
                Options {
                    since: Some(stamp(3).parse().unwrap()),
                    ..plain()
                },
                "three\nfour\n".to_owned(),
            ),
            (
                Options {
                    since: Some(stamp(3).parse().unwrap()),
                    timestamps: true,
                    ..plain()
                },
                format!("{} three\n{} four\n", stamp(3), stamp(4)),
            ),
        ];
        for (options, want) in cases {
            assert_eq!(
                collect(&sample(), options.clone()).await,
                want,
                "{options:?}"
            );
        }
    }

    #[tokio::test]
    async fn follows_over_a_rotation_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, format!("{} stdout F one\n", stamp(1))).unwrap();
        let (sender, mut receiver) = mpsc::channel(4);
        let ended = CancellationToken::new();
        let notify = FsNotify::new().unwrap();
        let options = Options {
            follow: true,
            ..Options::default()
        };
        let task = tokio::spawn({
            let (path, ended) = (path.clone(), ended.clone());
            async move { read(path, options, &notify, ended, sender).await }
        });
        assert_eq!(receiver.recv().await.unwrap(), "one\n");
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
        writeln!(file, "{} stdout F two", stamp(2)).unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "two\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, format!("{} stdout F three\n", stamp(3))).unwrap();
        assert_eq!(receiver.recv().await.unwrap(), "three\n");
        ended.cancel();
        assert!(receiver.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
