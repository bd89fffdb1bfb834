use std::sync::{Arc, Mutex};

use serde_json::json;

use super::registry::{Access, Registry};
use super::{Fixture, Tar, gzip, oci_blobs, read, zstd_pack};
use crate::images::{Auth, Digest, Image, ImageError, ProgressEvent, PullOptions};

fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..300_000).map(step).collect()
}

fn layers() -> Vec<Vec<u8>> {
    let layer = |n: u32| Tar::new().file(&format!("file{n}"), &noise(n)).finish();
    (1..=4).map(layer).collect()
}

fn blobs() -> Vec<Vec<u8>> {
    oci_blobs(&layers(), gzip, "+gzip")
}

fn user() -> Auth {
    Auth::Basic {
        username: "user".into(),
        password: "secret".into(),
    }
}

async fn pull(
    fixture: &Fixture,
    image: &str,
    auth: &Auth,
    options: &PullOptions,
) -> Result<Image, ImageError> {
    fixture.store.pull(image, auth, options, Arc::new(())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_with_and_without_tls_and_authentication() {
    for tls in [false, true] {
        for access in [Access::Open, Access::Basic, Access::Token] {
            let registry = Registry::start(access, tls).await;
            registry.push("1.0", &blobs());
            let fixture = Fixture::new();
            let options = PullOptions {
                certificates: registry.ca.clone().into_iter().collect(),
                ..PullOptions::default()
            };
            let name = registry.image("team/app:1.0");
            if access != Access::Open {
                let refused = pull(&fixture, &name, &Auth::Anonymous, &options).await;
                assert!(
                    matches!(refused, Err(ImageError::Denied { .. })),
                    "{refused:?}"
                );
                let wrong = Auth::Basic {
                    username: "user".into(),
                    password: "wrong".into(),
                };
                let refused = pull(&fixture, &name, &wrong, &options).await;
                assert!(
                    matches!(refused, Err(ImageError::Denied { .. })),
                    "{refused:?}"
                );
            }
            let image = pull(&fixture, &name, &user(), &options).await.unwrap();
            assert_eq!(image.repo_tags, std::slice::from_ref(&name));
            let digest = format!("{}@{}", registry.image("team/app"), Digest::of(&blobs()[0]));
            assert_eq!(image.repo_digests, [digest]);
            let mount = fixture.store.snapshot(&name, "c").unwrap();
            assert_eq!(mount.lowerdirs.len(), 4);
            assert_eq!(
                std::fs::read(mount.lowerdirs[0].join("file4")).unwrap(),
                noise(4)
            );
            assert_eq!(fixture.rubbish(), [""; 0]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_is_refused_unless_the_registry_is_insecure() {
    let registry = Registry::start(Access::Open, true).await;
    registry.push("1", &blobs());
    let fixture = Fixture::new();
    let name = registry.image("app:1");
    let error = pull(&fixture, &name, &Auth::Anonymous, &PullOptions::default()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let options = PullOptions {
        insecure_registries: vec![registry.address.to_string()],
        ..PullOptions::default()
    };
    pull(&fixture, &name, &Auth::Anonymous, &options)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_here_are_not_fetched_again() {
    let registry = Registry::start(Access::Open, false).await;
    registry.push("1", &blobs());
    let mut more = layers();
    more.push(Tar::new().file("five", b"5").finish());
    // Packed differently, but the same content.
    registry.push("2", &oci_blobs(&more, zstd_pack, "+zstd"));
    let fixture = Fixture::new();
    let options = PullOptions::default();
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = events.clone();
    let listener = Arc::new(move |event| heard.lock().unwrap().push(event));
    let auth = Auth::Anonymous;
    let name = registry.image("app:1");
    fixture
        .store
        .pull(&name, &auth, &options, listener)
        .await
        .unwrap();
    assert_eq!(
        registry.requests("/blobs/"),
        5,
        "configuration and four layers"
    );
    let events = events.lock().unwrap().clone();
    let count = |f: fn(&ProgressEvent) -> bool| events.iter().filter(|e| f(e)).count();
    assert_eq!(count(|e| matches!(e, ProgressEvent::LayerDone { .. })), 4);
    assert!(
        count(|e| matches!(e, ProgressEvent::LayerBytes { done, total, .. } if done == total)) == 4
    );

    pull(&fixture, &registry.image("app:2"), &auth, &options)
        .await
        .unwrap();
    assert_eq!(
        registry.requests("/blobs/"),
        2,
        "configuration and the new layer"
    );
    assert_eq!(fixture.layer_count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_layer_is_fetched_once_by_many() {
    let registry = Registry::start(Access::Open, false).await;
    registry.push("1", &blobs());
    let fixture = Fixture::new();
    let (name, options) = (registry.image("app:1"), PullOptions::default());
    let pulls = (0..6).map(|_| pull(&fixture, &name, &Auth::Anonymous, &options));
    for image in futures::future::join_all(pulls).await {
        image.unwrap();
    }
    let layer = Digest::of(&blobs()[2]).to_string();
    assert_eq!(registry.requests(&layer), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_resumed() {
    for resumable in [true, false] {
        let registry = Registry::start_with(Access::Open, false, 3, resumable).await;
        registry.push("1", &blobs());
        let fixture = Fixture::new();
        let name = registry.image("app:1");
        let image = pull(&fixture, &name, &Auth::Anonymous, &PullOptions::default()).await;
        assert_eq!(image.unwrap().layers.len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_refused_and_leaves_nothing() {
    let registry = Registry::start(Access::Open, false).await;
    let blobs = blobs();
    registry.push("1", &blobs);
    let mut wrong = blobs[2].clone();
    wrong[1000] ^= 1;
    registry.push_as(Digest::of(&blobs[2]).as_str(), &wrong);
    let fixture = Fixture::new();
    let name = registry.image("app:1");
    match pull(&fixture, &name, &Auth::Anonymous, &PullOptions::default()).await {
        Err(ImageError::DigestMismatch { expected, .. }) => {
            assert_eq!(expected, Digest::of(&blobs[2]));
        }
        other => panic!("{other:?}"),
    }
    assert!(fixture.store.status(&name).unwrap().is_none());
    // Asked for by digest, the manifest itself is checked.
    let other = Digest::of(b"something else");
    registry.push_as(other.as_str(), &blobs[0]);
    let pinned = registry.image(&format!("app@{other}"));
    let error = pull(&fixture, &pinned, &Auth::Anonymous, &PullOptions::default()).await;
    assert!(
        matches!(error, Err(ImageError::DigestMismatch { .. })),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_machines_image() {
    let registry = Registry::start(Access::Open, false).await;
    let (os, architecture) = crate::images::manifest::host_platform();
    let mine = blobs();
    let other = oci_blobs(&[Tar::new().file("other", b"x").finish()], gzip, "+gzip");
    let entry = |blobs: &[Vec<u8>], os: &str, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(&blobs[0]), "size": blobs[0].len(),
            "platform": { "os": os, "architecture": architecture },
        })
    };
    let index = |entries: serde_json::Value| {
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        vec![index.to_string().into_bytes()]
    };
    registry.push("unused", &mine);
    registry.push("unused", &other);
    let both = index(json!([
        entry(&other, "linux", "s390x"),
        entry(&mine, os, architecture)
    ]));
    registry.push("1", &both);
    registry.push("2", &index(json!([entry(&other, "linux", "s390x")])));
    let fixture = Fixture::new();
    let options = PullOptions::default();
    let image = pull(
        &fixture,
        &registry.image("app:1"),
        &Auth::Anonymous,
        &options,
    )
    .await
    .unwrap();
    assert_eq!(image.layers.len(), 4);
    let pinned = registry.image(&format!("app@{}", Digest::of(&both[0])));
    assert_eq!(image.repo_digests, std::slice::from_ref(&pinned));
    let again = pull(&fixture, &pinned, &Auth::Anonymous, &options)
        .await
        .unwrap();
    assert_eq!(again.id, image.id);
    let error = pull(
        &fixture,
        &registry.image("app:2"),
        &Auth::Anonymous,
        &options,
    )
    .await;
    assert!(
        matches!(error, Err(ImageError::NoPlatform { .. })),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_plainly() {
    let registry = Registry::start(Access::Open, false).await;
    let fixture = Fixture::new();
    let name = registry.image("nothing:1");
    let options = PullOptions::default();
    let error = pull(&fixture, &name, &Auth::Anonymous, &options)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), format!("{name}: not found"));
    let error = pull(&fixture, "Upper", &Auth::Anonymous, &options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ImageError::InvalidReference { .. }),
        "{error:?}"
    );
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let error = pull(
        &fixture,
        &format!("{closed}/app"),
        &Auth::Anonymous,
        &options,
    )
    .await;
    let error = error.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(
        read("/proc/self/mounts")
            .lines()
            .all(|l| !l.contains(fixture.dir.path().to_str().unwrap()))
    );
}
