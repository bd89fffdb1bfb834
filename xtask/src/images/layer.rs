//! One layer: the files of packages merged, and files of our own, as an uncompressed tar.
//!
//! The first of two entries with one path wins. Paths below `/bin`, `/sbin` and `/lib` go to `/usr`, as on every
//! current Debian, where those are links.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tar::{EntryType, Header};

use super::apt::checked;
use super::archive::{Blob, HashingWriter};

/// What nothing in a test image reads.
const DROPPED: &[&str] = &[
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/bash-completion/",
    "usr/share/menu/",
    "usr/share/pixmaps/",
    "usr/share/applications/",
    "usr/share/debconf/",
    "usr/share/perl",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/aarch64-linux-gnu/gconv/",
    "usr/lib/systemd/",
    "usr/lib/udev/",
    "usr/lib/init/",
    "etc/init.d/",
    "etc/logrotate.d/",
    "etc/cron",
    "etc/apparmor.d/",
    "etc/ufw/",
    "etc/default/",
    "etc/pam.d/",
];
/// Folders with one part that is kept: MariaDB's messages in English, its character sets.
const KEPT_OF: &[(&str, &[&str])] = &[("usr/share/mysql/", &["english", "charsets"])];

pub(super) struct LayerWriter {
    path: PathBuf,
    tar: tar::Builder<HashingWriter<BufWriter<File>>>,
    seen: HashSet<String>,
}

impl LayerWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let buffered = BufWriter::with_capacity(1 << 20, file);
        Ok(Self {
            path: path.to_owned(),
            tar: tar::Builder::new(HashingWriter::new(buffered)),
            seen: HashSet::new(),
        })
    }

    pub(super) fn finish(self) -> Result<Blob> {
        let writer = self.tar.into_inner()?;
        let (mut file, hex, size) = writer.finish();
        file.flush()?;
        Ok(Blob {
            path: self.path,
            hex,
            size,
        })
    }

    /// The folders and links every Debian has before its first package.
    pub(super) fn skeleton(&mut self) -> Result<()> {
        for path in [
            "usr",
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
            "etc",
            "var",
            "var/lib",
            "var/log",
            "var/cache",
            "run",
            "home",
            "dev",
            "proc",
            "sys",
            "opt",
            "srv",
            "mnt",
            "usr/local",
            "usr/local/bin",
        ] {
            self.directory(path, 0o755, 0)?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            self.link(link, &format!("usr/{link}"))?;
        }
        self.directory("root", 0o700, 0)?;
        self.directory("tmp", 0o1777, 0)?;
        self.directory("var/tmp", 0o1777, 0)?;
        self.link("var/run", "/run")
    }

    /// The folders of an image that is one binary.
    pub(super) fn skeleton_plain(&mut self) -> Result<()> {
        for path in [
            "bin",
            "etc",
            "dev",
            "proc",
            "sys",
            "home",
            "usr",
            "usr/bin",
            "usr/sbin",
            "var",
            "var/spool",
            "var/www",
            "run",
        ] {
            self.directory(path, 0o755, 0)?;
        }
        self.directory("root", 0o700, 0)?;
        self.directory("tmp", 0o1777, 0)
    }

    /// Adds a package's files; only `files` of them if given.
    pub(super) fn package(&mut self, deb: &Path, files: Option<&[&str]>) -> Result<()> {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("run dpkg-deb")?;
        let stream = child.stdout.take().context("dpkg-deb's output")?;
        let mut archive = tar::Archive::new(stream);
        for entry in archive.entries()? {
            let mut entry = entry?;
            self.package_entry(&mut entry, files)
                .with_context(|| format!("{}", deb.display()))?;
        }
        // To the end, or else dpkg-deb complains of a broken pipe.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        if !child.wait()?.success() {
            bail!("dpkg-deb cannot read {}", deb.display());
        }
        Ok(())
    }

    fn package_entry<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        files: Option<&[&str]>,
    ) -> Result<()> {
        let path = String::from_utf8(entry.path_bytes().into_owned())?;
        let path = merged(&path);
        if path.is_empty()
            || is_dropped(&path)
            || files.is_some_and(|f| !f.contains(&path.as_str()))
        {
            return Ok(());
        }
        if !self.seen.insert(path.clone()) {
            return Ok(());
        }
        let source = entry.header();
        let kind = source.entry_type();
        let mut header = new_header(kind, source.mode()?, 0);
        header.set_uid(source.uid()?);
        header.set_gid(source.gid()?);
        let link = entry.link_name_bytes().map(|l| l.into_owned());
        match (kind, link) {
            (EntryType::Symlink, Some(link)) => {
                let to = String::from_utf8(link)?;
                self.tar.append_link(&mut header, path, to)?;
            }
            (EntryType::Link, Some(link)) => {
                let to = merged(&String::from_utf8(link)?);
                self.tar.append_link(&mut header, path, to)?;
            }
            (EntryType::Directory, _) => {
                self.tar
                    .append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            (EntryType::Regular, _) => {
                header.set_size(entry.size());
                self.tar.append_data(&mut header, path, entry)?;
            }
            (other, _) => bail!("{path} is of a kind that images have no use for: {other:?}"),
        }
        Ok(())
    }

    /// Puts busybox under `/bin` with a link for each of its applets.
    pub(super) fn busybox(&mut self, debs: &[PathBuf], work: &Path) -> Result<()> {
        let deb = debs.first().context("busybox's package")?;
        let unpacked = work.join("busybox");
        checked(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&unpacked))?;
        let binary = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|p| unpacked.join(p))
            .find(|p| p.is_file())
            .context("busybox's package has no busybox")?;
        let content = std::fs::read(&binary)?;
        self.file("bin/busybox", &content, 0o755)?;
        let list = checked(Command::new(&binary).arg("--list"))?;
        for applet in String::from_utf8(list.stdout)?.lines() {
            // Debian's own package tools in busybox would only mislead.
            if !["busybox", "dpkg", "dpkg-deb", "rpm", "rpm2cpio"].contains(&applet) {
                self.link(&format!("bin/{applet}"), "/bin/busybox")?;
            }
        }
        self.link("usr/bin/env", "/bin/busybox")
    }

    /// Writes the lists of users and groups: root, nobody and `users` with groups of the same name and number.
    pub(super) fn users(&mut self, users: &[(&str, u32)]) -> Result<()> {
        let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
        let mut group = String::from("root:x:0:\ntty:x:5:\n");
        for (name, id) in users {
            passwd += &format!("{name}:x:{id}:{id}::/nonexistent:/bin/sh\n");
            group += &format!("{name}:x:{id}:\n");
        }
        passwd += "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
        group += "nogroup:x:65534:\n";
        self.file("etc/passwd", passwd.as_bytes(), 0o644)?;
        self.file("etc/group", group.as_bytes(), 0o644)?;
        self.file(
            "etc/nsswitch.conf",
            b"passwd: files\ngroup: files\nhosts: files dns\n",
            0o644,
        )
    }

    pub(super) fn directory(&mut self, path: &str, mode: u32, owner: u32) -> Result<()> {
        self.seen.insert(path.to_owned());
        let mut header = new_header(EntryType::Directory, mode, owner);
        self.tar
            .append_data(&mut header, format!("{path}/"), io::empty())?;
        Ok(())
    }

    pub(super) fn file(&mut self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        self.seen.insert(path.to_owned());
        let mut header = new_header(EntryType::Regular, mode, 0);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content)?;
        Ok(())
    }

    pub(super) fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.seen.insert(path.to_owned());
        let mut header = new_header(EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, to)?;
        Ok(())
    }
}

fn new_header(kind: EntryType, mode: u32, owner: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & 0o7777);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// A path inside a package as a path of the image, without leading `./` or trailing slash.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    match first {
        "bin" | "sbin" | "lib" | "lib64" => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

fn is_dropped(path: &str) -> bool {
    let as_dir = format!("{path}/");
    if DROPPED.iter().any(|d| as_dir.starts_with(d)) || as_dir.contains("/__pycache__/") {
        return true;
    }
    KEPT_OF.iter().any(|(dir, kept)| {
        let Some(rest) = path.strip_prefix(dir) else {
            return false;
        };
        // Files directly in the folder stay, of its folders only those named.
        rest.split_once('/')
            .is_some_and(|(sub, _)| !kept.contains(&sub))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr() {
        for (given, want) in [
            ("./bin/sh", "usr/bin/sh"),
            ("./lib64/", "usr/lib64"),
            ("./library/x", "library/x"),
            ("./usr/bin/x", "usr/bin/x"),
            ("./", ""),
        ] {
            assert_eq!(merged(given), want);
        }
    }

    #[test]
    fn drops_what_is_not_read() {
        for (path, dropped) in [
            ("usr/share/doc", true),
            ("usr/share/doc/x/copyright", true),
            ("usr/share/mysql/polish/errmsg.sys", true),
            ("usr/share/mysql/english/errmsg.sys", false),
            ("usr/share/mysql/mysql_system_tables.sql", false),
            ("usr/lib/python3/dist-packages/pymysql/__init__.py", false),
        ] {
            assert_eq!(is_dropped(path), dropped, "{path}");
        }
    }
}
