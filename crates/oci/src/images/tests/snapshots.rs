use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{Fixture, Tar, docker_archive, read};
use crate::images::{ImageError, ImageStore, SnapshotMount};

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let layers = [
        Tar::new()
            .dir("./", 0o755)
            .file("app", b"lower")
            .file("gone", b"x")
            .file("dir/old", b"x")
            .finish(),
        Tar::new()
            .dir("./", 0o751)
            .file("app", b"upper")
            .file(".wh.gone", b"")
            .file("dir/.wh..wh..opq", b"")
            .file("dir/new", b"new")
            .finish(),
    ];
    fixture
        .store
        .import_reader(&docker_archive(&["app:1"], &layers)[..], &())
        .unwrap();
    fixture
}

/// Mounts a snapshot for as long as `look` looks at it.
fn mounted(mount: &SnapshotMount, at: &Path, look: impl FnOnce(&Path)) {
    use rustix::mount::{MountFlags, UnmountFlags};
    fs::create_dir_all(at).unwrap();
    let lower: Vec<_> = mount
        .lowerdirs
        .iter()
        .map(|p| p.to_str().unwrap())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}\0",
        lower.join(":"),
        mount.upperdir.display(),
        mount.workdir.display()
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
    rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), options).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(at)));
    rustix::mount::unmount(at, UnmountFlags::DETACH).unwrap();
    result.unwrap();
}

#[test]
fn the_kernel_sees_the_image() {
    let fixture = fixture();
    let mount = fixture.store.snapshot("app:1", "c1").unwrap();
    let at = fixture.dir.path().join("mnt");
    mounted(&mount, &at, |root| {
        assert_eq!(read(root.join("app")), "upper");
        assert!(!root.join("gone").exists());
        assert!(!root.join("dir/old").exists());
        assert_eq!(read(root.join("dir/new")), "new");
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o751);
        fs::write(root.join("written"), "by the container").unwrap();
    });
    // The same snapshot is found again, with what was written.
    assert_eq!(fixture.store.snapshot("app:1", "c1").unwrap(), mount);
    mounted(&mount, &at, |root| {
        assert_eq!(read(root.join("written")), "by the container")
    });
    assert!(fixture.store.snapshot_usage("c1").unwrap().inodes >= 1);

    fixture.store.remove_snapshot("c1").unwrap();
    fixture.store.remove_snapshot("c1").unwrap();
    assert_eq!(fixture.store.snapshot_ids().unwrap(), [""; 0]);
    assert_eq!(fixture.rubbish(), [""; 0]);
}

#[test]
fn snapshots_keep_their_layers() {
    let fixture = fixture();
    let mount = fixture.store.snapshot("app:1", "c1").unwrap();
    assert!(fixture.store.remove("app:1").unwrap());
    assert_eq!(fixture.layer_count(), 2);
    assert!(mount.lowerdirs.iter().all(|dir| dir.is_dir()));
    // And are found again although their image is gone.
    assert_eq!(fixture.store.snapshot("app:1", "c1").unwrap(), mount);
    fixture.store.remove_snapshot("c1").unwrap();
    assert_eq!(fixture.store.collect().unwrap().layers, 2);
}

#[test]
fn an_image_without_layers_can_be_mounted() {
    let fixture = Fixture::new();
    fixture
        .store
        .import_reader(&docker_archive(&["scratch:1"], &[])[..], &())
        .unwrap();
    let mount = fixture.store.snapshot("scratch:1", "c").unwrap();
    mounted(&mount, &fixture.dir.path().join("mnt"), |root| {
        assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    });
}

#[test]
fn ids_and_images_are_checked() {
    let fixture = fixture();
    for id in ["", "../x", "a/b", ".hidden", &"x".repeat(300)] {
        assert!(fixture.store.snapshot("app:1", id).is_err(), "{id:?}");
        assert!(fixture.store.remove_snapshot(id).is_err(), "{id:?}");
    }
    assert!(matches!(
        fixture.store.snapshot("nothing:1", "c"),
        Err(ImageError::NotFound(_))
    ));
}

#[test]
fn what_a_crash_leaves_is_cleared() {
    let fixture = fixture();
    let root = fixture.dir.path().join("oci");
    // A half-made layer, a half-removed snapshot, a half-written record.
    fs::create_dir_all(root.join("images/tmp/work-dead/fs/a")).unwrap();
    fs::create_dir_all(root.join("snapshots/c9/fs")).unwrap();
    fs::write(root.join("images/images/.new-dead"), "{").unwrap();
    fs::write(root.join("images/images/broken.json"), "{").unwrap();
    let store = ImageStore::open(&root).unwrap();
    assert_eq!(fixture.rubbish(), [""; 0]);
    assert_eq!(store.list().unwrap().len(), 1);
    let mount = store.snapshot("app:1", "c9").unwrap();
    assert!(mount.workdir.is_dir() && mount.upperdir.is_dir());
    let mode = fs::metadata(root.join("images"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7, 0o1, "others may pass, not look");
}
