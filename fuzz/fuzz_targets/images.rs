//! What registries and archives hold: references, digests, credentials, and an archive whose index, manifest,
//! configuration and layer are the fuzzer's.
//!
//! Layers are unpacked: run it as a user who may do nothing.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use oci::images::{Auth, Digest, ImageStore, Reference};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Text(&'a str),
    Archive(&'a [u8]),
    Layout { manifest: &'a [u8] },
    Image { config: &'a str, layer: &'a [u8] },
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Text(text) => {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().expect("own text");
                assert_eq!(again.to_string(), reference.to_string());
            }
            let _ = (Digest::parse(text), Auth::from_encoded(text));
        }
        Input::Archive(bytes) => import(bytes),
        Input::Layout { manifest } => import(&layout(manifest, &[])),
        Input::Image { config, layer } => {
            let diff = Digest::of(layer);
            let config = format!(r#"{{"config":{{{config}}},"rootfs":{{"diff_ids":["{diff}"]}}}}"#);
            let descriptor = |kind: &str, bytes: &[u8]| {
                let (digest, size) = (Digest::of(bytes), bytes.len());
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
                )
            };
            let manifest = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
                descriptor("config.v1+json", config.as_bytes()),
                descriptor("layer.v1.tar", layer)
            );
            import(&layout(manifest.as_bytes(), &[config.as_bytes(), layer]));
        }
    }
});

fn import(archive: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(folder.path()).unwrap();
    let _ = store.import_reader(archive, &());
}

/// An OCI layout with one manifest, whatever that is.
fn layout(manifest: &[u8], blobs: &[&[u8]]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let (digest, size) = (Digest::of(manifest), manifest.len());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}}}]}}"#
    );
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json", index.as_bytes());
    add(&format!("blobs/sha256/{}", digest.hex()), manifest);
    for blob in blobs {
        add(&format!("blobs/sha256/{}", Digest::of(blob).hex()), blob);
    }
    tar.into_inner().unwrap()
}
