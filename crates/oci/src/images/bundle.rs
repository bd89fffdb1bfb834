//! An image archive seen as named files: a tar on disk that is read in place, or a directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::error::Doing;
use super::manifest::MAX_DOCUMENT_BYTES;

/// Bound on the files of an archive.
const MAX_FILES: usize = 100_000;
/// Bound on links that lead to links.
const MAX_LINKS: usize = 8;

pub(crate) enum Bundle {
    Tar {
        file: File,
        files: HashMap<String, Member>,
    },
    Directory(PathBuf),
}

pub(crate) enum Member {
    Section { offset: u64, size: u64 },
    Link(String),
}

/// A member's content and its size in bytes.
type Opened<'a> = (Box<dyn Read + 'a>, u64);

/// A part of a file, readable independently of all others.
pub(crate) struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..want], self.offset)?;
        if n == 0 && want > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is truncated",
            ));
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

impl Bundle {
    /// Lists a plain tar without reading its contents.
    pub(crate) fn index(mut file: File) -> Result<Self, ImageError> {
        let not_tar = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                ImageError::NotAnImage("the archive is truncated".into())
            }
            _ => ImageError::NotAnImage(format!("not a tar archive: {e}")),
        };
        let mut files = HashMap::new();
        file.rewind().doing(|| "read the archive".into())?;
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(not_tar)? {
            let entry = entry.map_err(not_tar)?;
            let name = normalise(&String::from_utf8_lossy(&entry.path_bytes()));
            let member = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => Member::Section {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                },
                tar::EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let base = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                    Member::Link(normalise(&format!("{base}/{target}")))
                }
                tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    Member::Link(normalise(&String::from_utf8_lossy(&target)))
                }
                _ => continue,
            };
            files.insert(name, member);
            if files.len() > MAX_FILES {
                return Err(ImageError::TooLarge {
                    what: "the number of files of the archive".into(),
                    limit: MAX_FILES as u64,
                });
            }
        }
        Ok(Self::Tar { file, files })
    }

    /// Opens a member; `None` if there is none of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Opened<'_>>, ImageError> {
        let mut name = normalise(name);
        match self {
            Self::Tar { file, files } => {
                for _ in 0..MAX_LINKS {
                    match files.get(&name) {
                        None => return Ok(None),
                        Some(Member::Link(target)) => name = target.clone(),
                        Some(Member::Section { offset, size }) => {
                            let section = Section {
                                file,
                                offset: *offset,
                                left: *size,
                            };
                            return Ok(Some((Box::new(section), *size)));
                        }
                    }
                }
                Err(ImageError::Damaged(format!("{name}: too many links")))
            }
            Self::Directory(dir) => {
                let path = dir.join(&name);
                let open = || {
                    let file = File::open(&path)?;
                    let size = file.metadata()?.len();
                    Ok::<_, io::Error>((file, size))
                };
                match open() {
                    Ok::<_, io::Error>((file, size)) => Ok(Some((Box::new(file), size))),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(ImageError::io(format!("open {}", path.display()), e)),
                }
            }
        }
    }

    /// Reads a JSON document whole; `None` if there is none of that name.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((reader, size)) = self.open(name)? else {
            return Ok(None);
        };
        if size > MAX_DOCUMENT_BYTES {
            return Err(ImageError::TooLarge {
                what: name.to_owned(),
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        let mut bytes = Vec::new();
        reader
            .take(MAX_DOCUMENT_BYTES)
            .read_to_end(&mut bytes)
            .doing(|| format!("read {name} of the archive"))?;
        Ok(Some(bytes))
    }

    /// Whether this looks like a root file system instead of an image (as `docker export` writes).
    pub(crate) fn looks_like_root_fs(&self) -> bool {
        match self {
            Self::Tar { files, .. } => files
                .keys()
                .any(|name| name.starts_with("etc/") || name.starts_with("usr/")),
            Self::Directory(dir) => dir.join("etc").is_dir(),
        }
    }
}

/// `./a//b/../c` as `a/c`. What would lead out of the archive stays inside.
fn normalise(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether the first bytes of a path's file tell that it is compressed.
pub(crate) fn starts_compressed(file: &File, path: &Path) -> Result<bool, ImageError> {
    let mut start = [0; 8];
    let n = file
        .read_at(&mut start, 0)
        .doing(|| format!("read {}", path.as_os_str().as_bytes().escape_ascii()))?;
    Ok(super::compression::is_compressed(&start[..n]))
}

#[cfg(test)]
mod tests {
    use super::normalise;

    #[test]
    fn names_stay_inside() {
        for (given, want) in [
            ("./a/b", "a/b"),
            ("/a/../../b", "b"),
            ("a//b/./c/", "a/b/c"),
            ("", ""),
        ] {
            assert_eq!(normalise(given), want);
        }
    }
}
