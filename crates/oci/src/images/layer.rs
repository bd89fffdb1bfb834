//! Unpacking one layer into a directory that an overlay mount can use as a lower one.
//!
//! The archive may be hostile. Invariants: every path is resolved by the kernel inside the layer's own directory
//! (`RESOLVE_IN_ROOT`), the last component is never followed, names with `..` that leave the root are refused, and
//! bytes, entries and headers are bounded. OCI whiteouts become what overlayfs understands: `.wh.NAME` a character
//! device 0/0, `.wh..wh..opq` the `trusted.overlay.opaque` attribute.

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec};
use tar::{Archive, Entry, EntryType};

use super::attributes::{Attributes, set_time};
use super::digest::HashingReader;
use super::error::Doing;
use super::{Digest, ImageError};

/// Bound on a layer's unpacked content in bytes.
pub(crate) const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Bound on a layer's entries.
const MAX_LAYER_ENTRIES: u64 = 4_000_000;
/// Bound on the header blocks of one entry (long names, extended attributes) in bytes.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// Bound on an entry's path in bytes: the kernel's own.
const MAX_PATH_BYTES: usize = 4096;
/// Bytes copied at once.
const COPY_BUFFER: usize = 128 << 10;
const DISK_BLOCK: u64 = 4096;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// What became of a layer.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Disk space in bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Unpacks the uncompressed tar stream `layer` into the existing, empty directory `into`, reading it to its end.
pub(crate) fn unpack(layer: impl Read, into: &Path) -> Result<Unpacked, ImageError> {
    let budget = Rc::new(Cell::new(Budget {
        total: MAX_LAYER_BYTES,
        header: None,
    }));
    let bounded = Bounded {
        inner: HashingReader::new(layer),
        budget: budget.clone(),
    };
    let mut archive = Archive::new(bounded);
    let mut tree = Tree::open(into)?;
    let mut entries = archive.entries().doing(|| "read the layer".into())?;
    loop {
        // Headers are read into memory by the iterator; contents only ever stream.
        budget.set(Budget {
            header: Some(MAX_HEADER_BYTES),
            ..budget.get()
        });
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.doing(|| "read the layer".into())?;
        budget.set(Budget {
            header: None,
            ..budget.get()
        });
        tree.add(&mut entry)?;
        io::copy(&mut entry, &mut io::sink()).doing(|| "read the layer".into())?;
    }
    budget.set(Budget {
        header: None,
        ..budget.get()
    });
    let mut bounded = archive.into_inner();
    io::copy(&mut bounded, &mut io::sink()).doing(|| "read the layer".into())?;
    tree.finish()?;
    let (diff_id, _) = bounded.inner.finish();
    Ok(Unpacked {
        diff_id,
        bytes: tree.bytes,
        inodes: tree.inodes,
    })
}

#[derive(Clone, Copy)]
struct Budget {
    total: u64,
    header: Option<u64>,
}

/// Fails once more was read than the budget allows.
struct Bounded<R> {
    inner: R,
    budget: Rc<Cell<Budget>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let mut budget = self.budget.get();
        let spend = |left: u64, what: &str, limit| {
            left.checked_sub(n as u64).ok_or_else(|| {
                io::Error::other(ImageError::TooLarge {
                    what: what.to_owned(),
                    limit,
                })
            })
        };
        budget.total = spend(budget.total, "the layer", MAX_LAYER_BYTES)?;
        if let Some(header) = budget.header {
            let left = spend(header, "an entry's header in the layer", MAX_HEADER_BYTES)?;
            budget.header = Some(left);
        }
        self.budget.set(budget);
        Ok(n)
    }
}

/// The directory being filled.
struct Tree {
    root: OwnedFd,
    /// The directory used last: archives list a directory's files one after the other.
    recent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Times are set last, since adding files changes them.
    directory_times: Vec<(PathBuf, Timespec)>,
    buffer: Vec<u8>,
    entries: u64,
    inodes: u64,
    bytes: u64,
}

impl Tree {
    fn open(into: &Path) -> Result<Self, ImageError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(into, flags, Mode::empty())
            .doing(|| format!("open {}", into.display()))?;
        Ok(Self {
            root,
            recent: None,
            directory_times: Vec::new(),
            buffer: vec![0; COPY_BUFFER],
            entries: 0,
            inodes: 1,
            bytes: DISK_BLOCK,
        })
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ImageError> {
        self.entries += 1;
        if self.entries > MAX_LAYER_ENTRIES {
            return Err(ImageError::TooLarge {
                what: "the number of entries of the layer".into(),
                limit: MAX_LAYER_ENTRIES,
            });
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let raw = entry.path_bytes().into_owned();
        let path = clean(&raw)?;
        let attributes = Attributes::of(entry, &path)?;
        let Some(name) = path.file_name() else {
            // The root itself.
            let root = self.root.as_fd().try_clone_to_owned();
            let root = root.doing(|| "open the layer".into())?;
            self.directory_times.push((path, attributes.mtime));
            return attributes.apply(root.as_fd(), Path::new("/"));
        };
        let parent = self.parent(path.parent().unwrap_or(Path::new("")))?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.white_out(parent.as_fd(), name, &path);
        }
        self.inodes += 1;
        // Very old archives mark directories by a slash alone.
        if kind.is_dir() || (kind.is_file() && raw.ends_with(b"/")) {
            return self.add_directory(parent.as_fd(), name, path.clone(), &attributes);
        }
        self.clear(parent.as_fd(), name, &path)?;
        self.add_other(entry, parent.as_fd(), name, &path, &attributes)
    }

    fn add_other<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        attributes: &Attributes,
    ) -> Result<(), ImageError> {
        let doing = || format!("unpack {}", path.display());
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, name, flags, Mode::RWXU).doing(doing)?;
                let mut file = std::fs::File::from(file);
                let size = copy(entry, &mut file, &mut self.buffer).doing(doing)?;
                self.bytes += size.next_multiple_of(DISK_BLOCK);
                attributes.apply(file.as_fd(), path)?;
                set_time(file.as_fd(), attributes.mtime).doing(doing)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&target, parent, name, path)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                rustix::fs::symlinkat(OsStr::from_bytes(&target), parent, name).doing(doing)?;
                // A later entry may go through this link: forget directories opened before it was there.
                self.recent = None;
                attributes.apply_at(parent, name, path, false)
            }
            EntryType::Char => self.device(entry, FileType::CharacterDevice, parent, name, path),
            EntryType::Block => self.device(entry, FileType::BlockDevice, parent, name, path),
            EntryType::Fifo => self.device(entry, FileType::Fifo, parent, name, path),
            other => Err(bad(
                path,
                format!("unsupported type {:?}", char::from(other.as_byte())),
            )),
        }?;
        if is_special(entry.header().entry_type()) {
            attributes.apply_at(parent, name, path, true)?;
        }
        Ok(())
    }

    fn add_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: PathBuf,
        attributes: &Attributes,
    ) -> Result<(), ImageError> {
        let doing = || format!("unpack {}", path.display());
        let mut opaque = false;
        match kind_of(parent, name).doing(doing)? {
            Some(Existing::Directory) => {}
            other => {
                // A directory in the place of something hidden must not show what a lower layer has there.
                opaque = matches!(other, Some(Existing::Whiteout));
                self.clear(parent, name, &path)?;
                rustix::fs::mkdirat(parent, name, Mode::RWXU).doing(doing)?;
                self.bytes += DISK_BLOCK;
            }
        }
        let dir = open_dir(parent, name).doing(doing)?;
        if opaque {
            set_opaque(dir.as_fd()).doing(doing)?;
        }
        attributes.apply(dir.as_fd(), &path)?;
        self.directory_times.push((path, attributes.mtime));
        Ok(())
    }

    fn white_out(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), ImageError> {
        let doing = || format!("unpack {}", path.display());
        if name.as_bytes() == OPAQUE {
            return set_opaque(parent).doing(doing);
        }
        if name.as_bytes().starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(bad(path, "whiteout of no file".into()));
        }
        // A whiteout speaks of lower layers only: what this layer itself has under that name stays.
        match kind_of(parent, hidden).doing(doing)? {
            Some(Existing::Directory) => {
                let dir = open_dir(parent, hidden).doing(doing)?;
                set_opaque(dir.as_fd()).doing(doing)
            }
            Some(_) => Ok(()),
            None => {
                self.inodes += 1;
                rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .doing(doing)
            }
        }
    }

    fn hard_link(
        &mut self,
        target: &[u8],
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), ImageError> {
        let target = clean(target)?;
        let Some(target_name) = target.file_name() else {
            return Err(bad(path, "hard link to no file".into()));
        };
        let target_parent = target.parent().unwrap_or(Path::new(""));
        let target_dir = resolve(self.root.as_fd(), target_parent)
            .map_err(|e| bad(path, format!("hard link to {}: {e}", target.display())))?;
        self.inodes -= 1;
        rustix::fs::linkat(target_dir, target_name, parent, name, AtFlags::empty())
            .map_err(|e| bad(path, format!("hard link to {}: {e}", target.display())))
    }

    fn device<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        kind: FileType,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), ImageError> {
        let header = entry.header();
        let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(header.device_major()), number(header.device_minor())),
        };
        if kind == FileType::CharacterDevice && device == 0 {
            return Err(bad(path, "a device that is an overlay whiteout".into()));
        }
        rustix::fs::mknodat(parent, name, kind, Mode::empty(), device)
            .doing(|| format!("unpack {}", path.display()))
    }

    /// Opens the directory `path`, making those that the archive left out.
    fn parent(&mut self, path: &Path) -> Result<Rc<OwnedFd>, ImageError> {
        if let Some((recent, dir)) = &self.recent
            && recent == path
        {
            return Ok(dir.clone());
        }
        let dir = match resolve(self.root.as_fd(), path) {
            Ok(dir) => dir,
            Err(rustix::io::Errno::NOENT) => {
                let name = path.file_name().unwrap_or_default();
                let above = self.parent(path.parent().unwrap_or(Path::new("")))?;
                rustix::fs::mkdirat(above.as_fd(), name, Mode::from_raw_mode(0o755))
                    .map_err(|e| bad(path, format!("not a directory in the layer: {e}")))?;
                self.inodes += 1;
                self.bytes += DISK_BLOCK;
                open_dir(above.as_fd(), name).doing(|| format!("open {}", path.display()))?
            }
            Err(e) => return Err(bad(path, format!("not a directory in the layer: {e}"))),
        };
        let dir = Rc::new(dir);
        self.recent = Some((path.to_owned(), dir.clone()));
        Ok(dir)
    }

    /// Removes what an earlier entry put under the same name.
    fn clear(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), ImageError> {
        let doing = || format!("replace {}", path.display());
        match kind_of(parent, name).doing(doing)? {
            None => Ok(()),
            Some(Existing::Directory) => {
                self.recent = None;
                // Through the descriptor, so that no link on the way is followed.
                let base = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
                std::fs::remove_dir_all(base.join(name)).doing(doing)
            }
            Some(_) => {
                self.recent = None;
                rustix::fs::unlinkat(parent, name, AtFlags::empty()).doing(doing)
            }
        }
    }

    fn finish(&mut self) -> Result<(), ImageError> {
        while let Some((path, mtime)) = self.directory_times.pop() {
            // A later entry may have replaced it.
            if let Ok(dir) = resolve(self.root.as_fd(), &path) {
                set_time(dir.as_fd(), mtime).doing(|| format!("unpack {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn is_special(kind: EntryType) -> bool {
    matches!(kind, EntryType::Char | EntryType::Block | EntryType::Fifo)
}

enum Existing {
    Directory,
    Whiteout,
    Other,
}

fn kind_of(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<Existing>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
        Ok(stat) => Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
            _ => Existing::Other,
        })),
    }
}

/// Opens a directory below `root`; links on the way are resolved as if `root` were the root.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    rustix::fs::openat2(
        root,
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn set_opaque(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(dir, OPAQUE_ATTRIBUTE, b"y", flags)
}

fn copy(from: &mut impl Read, to: &mut impl Write, buffer: &mut [u8]) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let n = from.read(buffer)?;
        if n == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..n])?;
        total += n as u64;
    }
}

/// The entry's path relative to the root, `.` and inner `..` resolved; one that leaves the root is refused.
fn clean(raw: &[u8]) -> Result<PathBuf, ImageError> {
    if raw.len() > MAX_PATH_BYTES {
        let start = String::from_utf8_lossy(&raw[..80]).into_owned();
        return Err(bad(Path::new(&start), "path is too long".into()));
    }
    let mut path = PathBuf::new();
    for part in raw.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if !path.pop() {
                    let raw = String::from_utf8_lossy(raw).into_owned();
                    return Err(bad(Path::new(&raw), "path leaves the layer".into()));
                }
            }
            part if part.contains(&0) => {
                let raw = String::from_utf8_lossy(raw).into_owned();
                return Err(bad(Path::new(&raw), "path has a NUL byte".into()));
            }
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

pub(crate) fn bad(path: &Path, reason: String) -> ImageError {
    ImageError::BadEntry {
        entry: path.display().to_string(),
        reason,
    }
}
