//! The JSON documents of the OCI and Docker image formats: the fields that are needed, nothing more.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Digest, ImageError};

/// Bound on every JSON document of an image.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// Bound on layers of one image; overlay file systems take no more than 500.
pub(crate) const MAX_LAYERS: usize = 256;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Points to a blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// For which machines an image is.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub variant: Option<String>,
}

/// An image manifest or an index of them; which one is told by the fields present.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyManifest {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

pub(crate) enum Manifest {
    Index(Vec<Descriptor>),
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

impl Manifest {
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let any: AnyManifest = parse_json(what, bytes)?;
        let unsupported = |media_type: String| ImageError::UnsupportedMediaType {
            what: what.to_owned(),
            media_type,
        };
        if any.schema_version == Some(1) {
            return Err(unsupported(any.media_type.unwrap_or_else(|| {
                "application/vnd.docker.distribution.manifest.v1+json".into()
            })));
        }
        if let Some(media_type) = &any.media_type
            && ![OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST]
                .contains(&media_type.as_str())
        {
            return Err(unsupported(media_type.clone()));
        }
        match (any.manifests, any.config, any.layers) {
            (Some(manifests), None, None) => Ok(Self::Index(manifests)),
            (None, Some(config), layers) => {
                let layers = layers.unwrap_or_default();
                if layers.len() > MAX_LAYERS {
                    return Err(ImageError::TooLarge {
                        what: format!("the number of layers of {what}"),
                        limit: MAX_LAYERS as u64,
                    });
                }
                Ok(Self::Image { config, layers })
            }
            _ => Err(ImageError::Damaged(format!(
                "{what} is neither an image manifest nor an index"
            ))),
        }
    }
}

/// The entry of an index that suits this machine; one without platform suits if it is the only one.
pub(crate) fn choose<'a>(
    manifests: &'a [Descriptor],
    os: &str,
    architecture: &str,
) -> Option<&'a Descriptor> {
    let suits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_some_and(|p| p.os == os && p.architecture == architecture)
    };
    // Of several variants the plain one comes first (for arm64 that is v8).
    let plain = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_some_and(|p| matches!(p.variant.as_deref(), None | Some("" | "v8")))
    };
    manifests
        .iter()
        .filter(suits)
        .find(plain)
        .or_else(|| manifests.iter().find(suits))
        .or(match manifests {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
}

/// This machine's platform in the words of image indexes.
pub(crate) fn host_platform() -> (&'static str, &'static str) {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64gc" => "riscv64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    ("linux", architecture)
}

/// How layers are packed, by media type.
pub(crate) fn check_layer_type(layer: &Descriptor) -> Result<(), ImageError> {
    const KNOWN: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let base = [".gzip", "+gzip", "+zstd"]
        .iter()
        .find_map(|suffix| layer.media_type.strip_suffix(suffix))
        .unwrap_or(&layer.media_type);
    if KNOWN.contains(&base) {
        return Ok(());
    }
    Err(ImageError::UnsupportedMediaType {
        what: format!("layer {}", layer.digest),
        media_type: layer.media_type.clone(),
    })
}

/// One image in a Docker archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerManifest {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Vec<String>,
}

/// An image configuration document.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default)]
    pub config: Option<RunConfig>,
    pub rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub(crate) struct RootFs {
    pub diff_ids: Vec<Digest>,
}

/// The `config` object; absent lists may also be `null`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

/// What an image says about the process to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers; empty means root.
    pub user: String,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// First part of the command line.
    pub entrypoint: Vec<String>,
    /// Second part of the command line: default arguments.
    pub cmd: Vec<String>,
    /// Where the process starts; empty means `/`.
    pub working_dir: String,
    /// Signal that ends the process, e.g. `SIGQUIT`; SIGTERM if absent.
    pub stop_signal: Option<String>,
    /// Ports the image says it listens on, e.g. `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths that should be volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl From<RunConfig> for ImageConfig {
    fn from(c: RunConfig) -> Self {
        let keys = |map: Option<BTreeMap<String, serde_json::Value>>| {
            map.unwrap_or_default().into_keys().collect()
        };
        Self {
            user: c.user.unwrap_or_default(),
            env: c.env.unwrap_or_default(),
            entrypoint: c.entrypoint.unwrap_or_default(),
            cmd: c.cmd.unwrap_or_default(),
            working_dir: c.working_dir.unwrap_or_default(),
            stop_signal: c.stop_signal.filter(|s| !s.is_empty()),
            exposed_ports: keys(c.exposed_ports),
            volumes: keys(c.volumes),
            labels: c.labels.unwrap_or_default(),
        }
    }
}

/// Parses one document, naming it when it is malformed.
pub(crate) fn parse_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|e| ImageError::Damaged(format!("{what}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: Option<&str>) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: Digest::of(format!("{os}{architecture}{variant:?}").as_bytes()),
            size: 1,
            platform: Some(Platform {
                architecture: architecture.into(),
                os: os.into(),
                variant: variant.map(Into::into),
            }),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn chooses_the_platform() {
        let index = [
            descriptor("windows", "amd64", None),
            descriptor("linux", "arm64", Some("v9")),
            descriptor("linux", "arm64", Some("v8")),
            descriptor("linux", "amd64", None),
            descriptor("unknown", "unknown", None),
        ];
        let pick = |arch| choose(&index, "linux", arch).map(|d| d.digest.clone());
        assert_eq!(pick("amd64"), Some(index[3].digest.clone()));
        assert_eq!(pick("arm64"), Some(index[2].digest.clone()));
        assert_eq!(pick("s390x"), None);
    }

    #[test]
    fn knows_layer_types() {
        let mut layer = descriptor("", "", None);
        for (media_type, ok) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", false),
            ("", false),
        ] {
            layer.media_type = media_type.into();
            assert_eq!(check_layer_type(&layer).is_ok(), ok, "{media_type}");
        }
    }

    #[test]
    fn tells_manifests_from_indexes() {
        assert!(matches!(
            Manifest::parse("x", br#"{"schemaVersion":2,"manifests":[]}"#),
            Ok(Manifest::Index(_))
        ));
        assert!(matches!(
            Manifest::parse("x", br#"{"schemaVersion":1,"fsLayers":[]}"#),
            Err(ImageError::UnsupportedMediaType { .. })
        ));
        assert!(matches!(
            Manifest::parse("x", b"<html>"),
            Err(ImageError::Damaged(_))
        ));
    }
}
