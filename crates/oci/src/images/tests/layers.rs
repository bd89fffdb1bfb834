use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use tar::EntryType;

use super::Tar;
use crate::images::ImageError;
use crate::images::layer::unpack;

fn unpacked(layer: &[u8]) -> Result<tempfile::TempDir, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    unpack(layer, &dir.path().join("fs"))?;
    Ok(dir)
}

fn opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|n| &value[..n] == b"y")
}

#[test]
fn keeps_what_a_layer_says() {
    let layer = Tar::new()
        .dir("./", 0o711)
        .dir("./etc/", 0o750)
        .file("./etc/hosts", b"hosts")
        .pax("SCHILY.xattr.user.note", b"hello")
        .entry(EntryType::Regular, "suid", "", 0o4755, b"x")
        .hard_link("again", "etc/hosts")
        .symlink("link", "/etc/hosts")
        .entry(EntryType::Char, "null", "", 0o666, b"")
        .entry(EntryType::Fifo, "fifo", "", 0o600, b"")
        .file("deep/below/file", b"deep")
        .finish();
    let dir = unpacked(&layer).unwrap();
    let root = dir.path().join("fs");
    let meta = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();

    assert_eq!(meta("").mode() & 0o7777, 0o711);
    assert_eq!(meta("etc").mode() & 0o7777, 0o750);
    assert_eq!(meta("etc").mtime(), 1_000_000);
    assert_eq!(meta("suid").mode() & 0o7777, 0o4755);
    assert_eq!((meta("suid").uid(), meta("suid").gid()), (12, 34));
    assert_eq!(meta("again").ino(), meta("etc/hosts").ino());
    assert_eq!(
        fs::read_link(root.join("link")).unwrap(),
        Path::new("/etc/hosts")
    );
    assert_eq!((meta("link").uid(), meta("link").mtime()), (12, 1_000_000));
    assert!(meta("null").file_type().is_char_device());
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta("null").mode() & 0o7777, 0o666);
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!(super::read(root.join("deep/below/file")), "deep");
    let mut value = [0; 16];
    let n = rustix::fs::getxattr(root.join("suid"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..n], b"hello");
}

#[test]
fn whiteouts_become_overlayfs_own() {
    let layer = Tar::new()
        .file("gone/.wh.file", b"")
        .file("emptied/.wh..wh..opq", b"")
        .file("emptied/new", b"new")
        // A folder in the place of one that is hidden must hide its content too, whatever comes first.
        .file(".wh.replaced", b"")
        .dir("replaced", 0o755)
        .dir("kept", 0o755)
        .file(".wh.kept", b"")
        .file(".wh..wh.plnk", b"")
        .finish();
    let dir = unpacked(&layer).unwrap();
    let root = dir.path().join("fs");

    let whiteout = fs::symlink_metadata(root.join("gone/file")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    assert!(opaque(&root.join("emptied")) && !opaque(&root.join("gone")));
    assert!(opaque(&root.join("replaced")) && opaque(&root.join("kept")));
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn later_entries_replace_earlier_ones() {
    let layer = Tar::new()
        .file("a", b"file")
        .file("d/inside", b"x")
        .dir("a", 0o755)
        .file("d", b"now a file")
        .symlink("l", "a")
        .file("l", b"not through the link")
        .finish();
    let dir = unpacked(&layer).unwrap();
    let root = dir.path().join("fs");
    assert!(root.join("a").is_dir());
    assert_eq!(super::read(root.join("d")), "now a file");
    assert_eq!(super::read(root.join("l")), "not through the link");
}

#[test]
fn links_are_resolved_inside_the_layer() {
    let layer = Tar::new()
        .dir("usr/lib", 0o755)
        .symlink("lib", "/usr/lib")
        .file("lib/x", b"x")
        .symlink("up", "../../../usr")
        .file("up/y", b"y")
        .finish();
    let dir = unpacked(&layer).unwrap();
    assert_eq!(super::read(dir.path().join("fs/usr/lib/x")), "x");
    assert_eq!(super::read(dir.path().join("fs/usr/y")), "y");
}

#[test]
fn nothing_leaves_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("secret");
    fs::write(&target, "untouched").unwrap();
    let (outside_path, target_path) = (outside.path().to_str().unwrap(), target.to_str().unwrap());
    let hostile = [
        ("dots", Tar::new().file("../escaped", b"x")),
        ("inner dots", Tar::new().file("a/../../escaped", b"x")),
        ("dots in a link", Tar::new().hard_link("h", "../../secret")),
        (
            "through a link",
            Tar::new().symlink("l", outside_path).file("l/secret", b"x"),
        ),
        (
            "hard link to an outer file",
            Tar::new().hard_link("h", target_path),
        ),
        (
            "hard link through a link",
            Tar::new()
                .symlink("l", outside_path)
                .hard_link("h", "l/secret"),
        ),
        ("whiteout of the parent", Tar::new().file("a/.wh...", b"")),
        ("a whiteout as a device", {
            let mut tar = Tar::new();
            let mut header = tar::Header::new_gnu();
            header.set_path("w").unwrap();
            header.set_entry_type(EntryType::Char);
            header.set_size(0);
            header.set_cksum();
            tar.0.append(&header, &b""[..]).unwrap();
            tar
        }),
        (
            "an unknown type",
            Tar::new().entry(EntryType::new(b'Z'), "z", "", 0o644, b""),
        ),
        (
            "a link in a file's place",
            Tar::new().file("f", b"x").file("f/g", b"x"),
        ),
    ];
    for (name, tar) in hostile {
        match unpacked(&tar.finish()) {
            Err(ImageError::BadEntry { .. }) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(super::read(&target), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn overlay_attributes_of_others_are_not_taken() {
    let layer = Tar::new()
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .dir("d", 0o755)
        .finish();
    let dir = unpacked(&layer).unwrap();
    let mut value = [0; 16];
    let attribute = rustix::fs::getxattr(
        dir.path().join("fs/d"),
        "trusted.overlay.redirect",
        &mut value,
    );
    assert_eq!(attribute, Err(rustix::io::Errno::NODATA));
}

#[test]
fn broken_streams_are_errors() {
    let layer = Tar::new().file("a", &[7; 5000]).finish();
    for end in [100, 600, 3000] {
        assert!(unpacked(&layer[..end]).is_err(), "cut at {end}");
    }
    assert!(unpacked(&[b'x'; 2048]).is_err());
    // A name of gigabytes must not be read into memory.
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(6 << 30);
    header.set_cksum();
    let endless = std::io::Read::chain(header.as_bytes().as_slice(), std::io::repeat(b'a'));
    let dir = tempfile::tempdir().unwrap();
    match unpack(endless, dir.path()) {
        Err(ImageError::TooLarge { .. }) => {}
        other => panic!("{other:?}"),
    }
}
