use std::fs;

use serde_json::json;

use super::{
    Fixture, Tar, docker_archive, gzip, oci_archive, oci_blobs, oci_index, read, zstd_pack,
};
use crate::images::{Digest, ImageError, ImageStore};

fn layers() -> Vec<Vec<u8>> {
    vec![
        Tar::new()
            .file("bin/app", b"lower")
            .file("etc/a", b"a")
            .finish(),
        Tar::new().file("bin/app", b"upper").finish(),
    ]
}

#[test]
fn docker_archives_plain_and_packed() {
    let archive = docker_archive(
        &["mysql:5.7", "registry.example:5000/x/mysql:5.7"],
        &layers(),
    );
    for (name, bytes) in [
        ("plain.tar", archive.clone()),
        ("gzip.tar", gzip(&archive)),
        ("zstd.tar", zstd_pack(&archive)),
    ] {
        let fixture = Fixture::new();
        let path = fixture.write(name, &bytes);
        let imported = fixture.store.import_path(&path, &()).unwrap();
        assert_eq!(imported.len(), 1, "{name}");
        let image = fixture.store.status("mysql:5.7").unwrap().unwrap();
        assert_eq!(image.id, imported[0].id);
        assert_eq!(
            image.repo_tags,
            [
                "docker.io/library/mysql:5.7",
                "registry.example:5000/x/mysql:5.7"
            ]
        );
        assert_eq!(image.layers.len(), 2);
        assert_eq!(image.config.entrypoint, ["/bin/app"]);
        assert_eq!(image.config.user, "12:34");
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(image.config.exposed_ports, ["80/tcp"]);
        assert_eq!(image.config.volumes, ["/data"]);
        assert!(image.config.cmd.is_empty());
        for name in [
            "docker.io/library/mysql:5.7",
            &image.id,
            &image.id[7..],
            &image.id[7..17],
        ] {
            let found = fixture.store.status(name).unwrap().unwrap();
            assert_eq!(found.id, image.id, "{name}");
        }
        for name in ["mysql", "mysql:8", "nginx", "sha256:00", "Not A Name"] {
            assert!(fixture.store.status(name).unwrap().is_none(), "{name}");
        }
        assert_eq!(fixture.rubbish(), [""; 0]);
    }
}

#[test]
fn oci_layouts_as_archive_stream_and_folder() {
    for (pack, suffix) in [
        (gzip as fn(&[u8]) -> Vec<u8>, "+gzip"),
        (zstd_pack, "+zstd"),
        (<[u8]>::to_vec, ""),
    ] {
        let fixture = Fixture::new();
        let blobs = oci_blobs(&layers(), pack, suffix);
        let archive = oci_archive("nginx:1.0", &blobs);
        let imported = fixture.store.import_reader(&archive[..], &()).unwrap();
        let digest_name = format!("docker.io/library/nginx@{}", Digest::of(&blobs[0]));
        assert_eq!(
            imported[0].references,
            [
                "docker.io/library/nginx:1.0".to_owned(),
                digest_name.clone()
            ]
        );
        let image = fixture.store.status(&digest_name).unwrap().unwrap();
        assert_eq!(image.repo_digests, [digest_name]);

        let folder = fixture.dir.path().join("layout");
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), "{}").unwrap();
        fs::write(
            folder.join("index.json"),
            oci_index(&blobs[0], "other:2").to_string(),
        )
        .unwrap();
        for blob in &blobs {
            fs::write(
                folder.join("blobs/sha256").join(Digest::of(blob).hex()),
                blob,
            )
            .unwrap();
        }
        fixture.store.import_path(&folder, &()).unwrap();
        let other = fixture.store.status("other:2").unwrap().unwrap();
        assert_eq!(other.id, image.id, "the same image under one more name");
        assert_eq!(fixture.store.list().unwrap().len(), 1);
    }
}

#[test]
fn a_name_moves_and_the_old_image_stays_until_removed() {
    let fixture = Fixture::new();
    let (one, two) = (layers(), vec![layers().remove(1)]);
    let first = fixture
        .store
        .import_reader(&docker_archive(&["app:1"], &one)[..], &())
        .unwrap();
    fixture
        .store
        .import_reader(&docker_archive(&["app:1"], &two)[..], &())
        .unwrap();
    let old = fixture.store.status(&first[0].id).unwrap().unwrap();
    assert!(old.repo_tags.is_empty());
    assert_eq!(fixture.layer_count(), 2);

    assert!(fixture.store.remove("app:1").unwrap());
    assert!(fixture.store.status("app:1").unwrap().is_none());
    assert_eq!(fixture.layer_count(), 2, "the old image uses both layers");
    assert!(fixture.store.remove(&first[0].id).unwrap());
    assert_eq!(fixture.layer_count(), 0);
    assert_eq!(fixture.store.fs_usage().unwrap().bytes, 0);
    assert!(!fixture.store.remove("app:1").unwrap());
    assert_eq!(fixture.rubbish(), [""; 0]);
}

#[test]
fn tags_can_be_given_and_taken() {
    let fixture = Fixture::new();
    fixture
        .store
        .import_reader(&docker_archive(&["app:1"], &layers())[..], &())
        .unwrap();
    fixture
        .store
        .tag("app:1", "registry.k8s.io/app:e2e")
        .unwrap();
    assert!(fixture.store.untag("app:1").unwrap());
    assert!(!fixture.store.untag("app:1").unwrap());
    let image = fixture
        .store
        .status("registry.k8s.io/app:e2e")
        .unwrap()
        .unwrap();
    assert_eq!(image.repo_tags, ["registry.k8s.io/app:e2e"]);
    assert!(matches!(
        fixture.store.tag("nothing:1", "x"),
        Err(ImageError::NotFound(_))
    ));
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let fixture = Fixture::new();
    let root_fs = Tar::new()
        .file("etc/passwd", b"")
        .file("usr/bin/x", b"")
        .finish();
    for (bytes, says) in [
        (b"hello, world".to_vec(), "not an image archive"),
        (
            Tar::new().file("readme", b"hi").finish(),
            "neither manifest.json",
        ),
        (root_fs, "docker save"),
        (
            Tar::new().file("manifest.json", b"[]").finish(),
            "holds no image",
        ),
        (
            Tar::new().file("manifest.json", b"{").finish(),
            "manifest.json",
        ),
        (b"\xfd7zXZ\0 and more".to_vec(), "application/x-xz"),
    ] {
        let error = fixture
            .store
            .import_reader(&bytes[..], &())
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_eq!(fixture.rubbish(), [""; 0]);
    assert!(
        fixture
            .store
            .import_path("/nonexistent".as_ref(), &())
            .is_err()
    );
}

#[test]
fn wrong_content_is_refused_and_named() {
    let fixture = Fixture::new();
    let mut blobs = oci_blobs(&layers(), gzip, "+gzip");
    let archive = oci_archive("bad:1", &blobs);
    let replaced = |from: &[u8], to: &[u8]| {
        let at = archive.windows(from.len()).position(|w| w == from).unwrap();
        let mut bad = archive.clone();
        bad[at..at + to.len()].copy_from_slice(to);
        bad
    };
    // Other bytes under a layer's name, another configuration, another manifest.
    let other_layer = gzip(&Tar::new().file("bin/app", b"other").finish());
    let mut broken_layer = blobs[3].clone();
    let middle = broken_layer.len() / 2;
    broken_layer[middle] ^= 0xff;
    let cases = [
        (replaced(&blobs[3], &broken_layer), Digest::of(&blobs[3])),
        (
            replaced(&blobs[1], &blobs[1].to_ascii_uppercase()),
            Digest::of(&blobs[1]),
        ),
        (
            replaced(&blobs[0], &blobs[0].to_ascii_uppercase()),
            Digest::of(&blobs[0]),
        ),
    ];
    for (bad, digest) in cases {
        match fixture.store.import_reader(&bad[..], &()) {
            Err(ImageError::DigestMismatch { what, expected, .. }) => {
                assert_eq!(expected, digest);
                assert!(what.contains(digest.hex()), "{what}");
            }
            other => panic!("{other:?}"),
        }
    }
    // The layer is what its manifest says, but not what the configuration says.
    blobs[0] = String::from_utf8(blobs[0].clone())
        .unwrap()
        .replace(
            Digest::of(&blobs[3]).as_str(),
            Digest::of(&other_layer).as_str(),
        )
        .into_bytes();
    blobs[3] = other_layer;
    let error = fixture
        .store
        .import_reader(&oci_archive("bad:1", &blobs)[..], &());
    assert!(
        matches!(error, Err(ImageError::DigestMismatch { .. })),
        "{error:?}"
    );

    assert!(fixture.store.status("bad:1").unwrap().is_none());
    assert_eq!(fixture.rubbish(), [""; 0]);
    // The good layer may have come in before the bad one was found; nothing keeps it.
    fixture.store.collect().unwrap();
    assert_eq!(fixture.layer_count(), 0);
}

#[test]
fn truncated_archives_are_refused_everywhere() {
    let fixture = Fixture::new();
    let docker = docker_archive(&["cut:1"], &layers());
    for end in (0..docker.len() - 1024).step_by(512) {
        let result = fixture.store.import_reader(&docker[..end], &());
        assert!(
            result.is_err(),
            "docker archive cut at {end} of {}",
            docker.len()
        );
    }
    let packed = gzip(&docker);
    for end in [packed.len() / 3, packed.len() - 9] {
        assert!(fixture.store.import_reader(&packed[..end], &()).is_err());
    }
    assert!(fixture.store.status("cut:1").unwrap().is_none());
}

#[test]
fn foreign_types_and_platforms_are_refused() {
    let fixture = Fixture::new();
    let blobs = oci_blobs(&layers(), gzip, "+encrypted");
    let error = fixture
        .store
        .import_reader(&oci_archive("x:1", &blobs)[..], &());
    assert!(
        matches!(error, Err(ImageError::UnsupportedMediaType { .. })),
        "{error:?}"
    );

    let blobs = oci_blobs(&layers(), gzip, "+gzip");
    let inner = json!({ "schemaVersion": 2, "manifests": [{
        "digest": Digest::of(&blobs[0]), "size": blobs[0].len(),
        "platform": { "os": "plan9", "architecture": "amd64" },
    }]});
    let mut with_index = vec![inner.to_string().into_bytes()];
    with_index.extend(blobs);
    let error = fixture
        .store
        .import_reader(&oci_archive("x:1", &with_index)[..], &());
    assert!(
        matches!(error, Err(ImageError::NoPlatform { .. })),
        "{error:?}"
    );
}

#[test]
fn several_processes_share_a_store() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("oci");
    let mut threads = Vec::new();
    for n in 0..8 {
        let root = root.clone();
        threads.push(std::thread::spawn(move || {
            // A store of its own: nothing is shared but the disk.
            let store = ImageStore::open(root).unwrap();
            let own = Tar::new().file("own", format!("{n}").as_bytes()).finish();
            let mut layers = layers();
            layers.push(own);
            let archive = docker_archive(&[&format!("app:{n}")], &layers);
            store.import_reader(&archive[..], &()).unwrap();
            store
                .snapshot(&format!("app:{n}"), &format!("c{n}"))
                .unwrap();
            if n % 2 == 0 {
                store.remove(&format!("app:{n}")).unwrap();
            }
            store.collect().unwrap();
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(fixture.store.list().unwrap().len(), 4);
    assert_eq!(
        fixture.layer_count(),
        10,
        "snapshots keep layers of removed images"
    );
    for n in 0..8 {
        fixture.store.remove_snapshot(&format!("c{n}")).unwrap();
    }
    fixture.store.collect().unwrap();
    assert_eq!(fixture.layer_count(), 6);
    let mount = fixture.store.snapshot("app:1", "again").unwrap();
    assert_eq!(read(mount.lowerdirs[0].join("own")), "1");
}
