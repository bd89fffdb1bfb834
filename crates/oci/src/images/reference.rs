//! Image references: `[registry/]repository[:tag][@digest]`, completed as Docker does
//! (`nginx` is `docker.io/library/nginx:latest`).

use std::fmt;
use std::str::FromStr;

use super::{Digest, ImageError};

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME_LEN: usize = 255;
const MAX_TAG_LEN: usize = 128;

/// A complete, checked image reference. Its text form is canonical: equal references have equal texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and optional port of the registry, `docker.io` by default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository in its registry, e.g. `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag; `latest` if neither tag nor digest were given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the image is pinned by one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name under which the image is kept here: the digest wins over the tag.
    pub(crate) fn local_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.name()),
            (None, tag) => format!("{}:{}", self.name(), tag.as_deref().unwrap_or(DEFAULT_TAG)),
        }
    }

    /// The same repository with `digest` instead of a tag.
    pub(crate) fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::InvalidReference {
            reference: text.to_owned(),
            reason,
        })
    }
}

const BAD_FORMAT: &str = "invalid reference format";

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest).ok_or(BAD_FORMAT)?)),
        None => (text, None),
    };
    // A colon before the last slash is the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !valid_tag(tag)) {
        return Err(BAD_FORMAT);
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        LEGACY_DEFAULT_REGISTRY => DEFAULT_REGISTRY,
        other => other,
    };
    if !valid_registry(registry) {
        return Err(BAD_FORMAT);
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}{path}")
    } else {
        path.to_owned()
    };
    if !path.is_empty() && path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    if !path.split('/').all(valid_component) {
        return Err(BAD_FORMAT);
    }
    if registry.len() + 1 + repository.len() > MAX_NAME_LEN {
        return Err("repository name must not be more than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// The first component is a registry, not part of the path, if it could not be a path of the default registry.
fn is_registry(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        // In an IPv6 address the colon may belong to the address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    host_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// Lower-case words joined by one dot, one or two underscores, or dashes.
fn valid_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(*first)
        && is_word(*last)
        && bytes
            .split(|b| is_word(*b))
            .filter(|separator| !separator.is_empty())
            .all(|separator| {
                matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
            })
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_LEN
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn completes_names() {
        let pinned = format!("nginx:1.0@sha256:{HEX}");
        for (given, want) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("mysql:5.7", "docker.io/library/mysql:5.7"),
            ("docker.io/redis:6.0.5", "docker.io/library/redis:6.0.5"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            (
                "hashicorp/http-echo:0.2.3",
                "docker.io/hashicorp/http-echo:0.2.3",
            ),
            ("registry.k8s.io/redis:e2e", "registry.k8s.io/redis:e2e"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y:1", "localhost:5000/x/y:1"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            (
                "us-docker.pkg.dev/google-samples/containers/gke/gb-frontend:v5",
                "us-docker.pkg.dev/google-samples/containers/gke/gb-frontend:v5",
            ),
            (
                "gcr.io/google_samples/a__b--c.d:v2",
                "gcr.io/google_samples/a__b--c.d:v2",
            ),
            (&pinned, &format!("docker.io/library/{pinned}")),
        ] {
            let reference: Reference = given.parse().unwrap_or_else(|e| panic!("{given}: {e}"));
            assert_eq!(reference.to_string(), want);
            assert_eq!(want.parse::<Reference>().unwrap(), reference);
        }
        let reference: Reference = pinned.parse().unwrap();
        assert_eq!(
            reference.local_name(),
            format!("docker.io/library/nginx@sha256:{HEX}")
        );
    }

    #[test]
    fn refuses_what_is_no_reference() {
        for bad in [
            "",
            ":tag",
            "Nginx",
            "nginx:",
            "nginx:a b",
            "nginx@sha256:12",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a..b",
            "a___b",
            "https://nginx",
            "<your-private-image>",
            "a.b:port/x",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
        assert!(
            format!("a/{}", "x".repeat(300))
                .parse::<Reference>()
                .is_err()
        );
    }
}
