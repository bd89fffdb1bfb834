//! Owner, mode, times and extended attributes of an entry of a layer.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use tar::Entry;

use super::ImageError;
use super::error::Doing;
use super::layer::bad;

/// Extended headers with this prefix are extended attributes.
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// What overlayfs itself reads must not come from an archive.
const RESERVED_ATTRIBUTES: &str = "trusted.overlay.";

/// What an entry says about its file, apart from the type.
pub(crate) struct Attributes {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    pub(crate) mtime: Timespec,
    extended: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    pub(crate) fn of<R: Read>(entry: &mut Entry<'_, R>, path: &Path) -> Result<Self, ImageError> {
        let mut extended = Vec::new();
        let mut precise_mtime = None;
        if let Some(pax) = entry.pax_extensions().doing(|| "read the layer".into())? {
            for item in pax.flatten() {
                let Ok(key) = item.key() else { continue };
                if let Some(name) = key.strip_prefix(PAX_ATTRIBUTE) {
                    extended.push((name.to_owned(), item.value_bytes().to_owned()));
                } else if key == "mtime" {
                    precise_mtime = item.value().ok().and_then(parse_time);
                }
            }
        }
        extended.retain(|(name, _)| !name.starts_with(RESERVED_ATTRIBUTES));
        let header = entry.header();
        let id = |id: io::Result<u64>, what: &str| {
            id.ok()
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| bad(path, format!("invalid {what}")))
        };
        let mode = header
            .mode()
            .map_err(|e| bad(path, format!("invalid mode: {e}")))?;
        let seconds = header.mtime().unwrap_or(0);
        Ok(Self {
            mode: Mode::from_raw_mode(mode & 0o7777),
            uid: Uid::from_raw(id(header.uid(), "uid")?),
            gid: Gid::from_raw(id(header.gid(), "gid")?),
            mtime: precise_mtime.unwrap_or(Timespec {
                tv_sec: i64::try_from(seconds).unwrap_or(0),
                tv_nsec: 0,
            }),
            extended,
        })
    }

    /// Owner before mode and attributes: changing the owner clears set-user-id bits and capabilities.
    pub(crate) fn apply(&self, file: BorrowedFd<'_>, path: &Path) -> Result<(), ImageError> {
        let doing = || format!("unpack {}", path.display());
        rustix::fs::fchown(file, Some(self.uid), Some(self.gid)).doing(doing)?;
        rustix::fs::fchmod(file, self.mode).doing(doing)?;
        for (name, value) in &self.extended {
            let set =
                rustix::fs::fsetxattr(file, name.as_str(), value, rustix::fs::XattrFlags::empty());
            match set {
                // Attributes of security modules that this kernel does not have are of no use here.
                Err(rustix::io::Errno::OPNOTSUPP) => {}
                other => other.doing(doing)?,
            }
        }
        Ok(())
    }

    /// The same for links and devices, which must not be opened.
    pub(crate) fn apply_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        has_mode: bool,
    ) -> Result<(), ImageError> {
        let doing = || format!("unpack {}", path.display());
        let at = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(parent, name, Some(self.uid), Some(self.gid), at).doing(doing)?;
        if has_mode {
            // The name was made a moment ago in a directory nobody else sees: it is no link.
            rustix::fs::chmodat(parent, name, self.mode, AtFlags::empty()).doing(doing)?;
        }
        rustix::fs::utimensat(parent, name, &times(self.mtime), at).doing(doing)
    }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

pub(crate) fn set_time(file: BorrowedFd<'_>, mtime: Timespec) -> rustix::io::Result<()> {
    rustix::fs::futimens(file, &times(mtime))
}

/// Seconds with an optional fraction, as extended headers have them.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().take(9).collect();
    let nanos = match digits.len() {
        0 => 0,
        n => digits.parse::<i64>().ok()? * 10_i64.pow(9 - n as u32),
    };
    let tv_sec = seconds.parse::<i64>().ok()?;
    // A fraction counts away from zero in the text, but always upwards in a Timespec.
    Some(if text.starts_with('-') && nanos > 0 {
        Timespec {
            tv_sec: tv_sec - 1,
            tv_nsec: 1_000_000_000 - nanos,
        }
    } else {
        Timespec {
            tv_sec,
            tv_nsec: nanos,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::parse_time;

    #[test]
    fn reads_times() {
        for (text, want) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("x", None),
        ] {
            let time = parse_time(text).map(|t| (t.tv_sec, t.tv_nsec));
            assert_eq!(time, want, "{text}");
        }
    }
}
