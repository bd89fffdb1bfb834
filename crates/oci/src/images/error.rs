//! What can go wrong with images, as far as callers tell the cases apart.

use std::io;

use super::Digest;

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name does not follow the grammar of image references.
    #[error("couldn't parse image reference {reference:?}: {reason}")]
    InvalidReference {
        /// What was given.
        reference: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The file or folder is neither a Docker archive nor an OCI layout.
    #[error("not an image archive: {0}")]
    NotAnImage(String),
    /// Content does not have the digest under which it is referred to.
    #[error("digest mismatch for {what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Which blob or layer.
        what: String,
        /// The digest it is known by.
        expected: Digest,
        /// The digest of the bytes that were found.
        actual: Digest,
    },
    /// A manifest or layer has a form that is not understood.
    #[error("unsupported media type {media_type:?} of {what}")]
    UnsupportedMediaType {
        /// Which blob.
        what: String,
        /// Its declared or detected type.
        media_type: String,
    },
    /// A layer has an entry that cannot or must not be unpacked.
    #[error("layer entry {entry:?}: {reason}")]
    BadEntry {
        /// Its path in the layer.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A bound on sizes was exceeded.
    #[error("{what} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The bound in bytes (or entries).
        limit: u64,
    },
    /// Something the image refers to is missing or malformed.
    #[error("damaged image: {0}")]
    Damaged(String),
    /// An index has no image for this machine.
    #[error("no match for platform {platform} in {reference}")]
    NoPlatform {
        /// `os/architecture`.
        platform: String,
        /// The image or archive.
        reference: String,
    },
    /// No such image, here or in the registry.
    #[error("{0}: not found")]
    NotFound(String),
    /// The registry refuses, or hides that the repository does not exist.
    #[error(
        "pull access denied, repository {repository} does not exist or may require authorization: {detail}"
    )]
    Denied {
        /// Registry and repository.
        repository: String,
        /// The registry's words.
        detail: String,
    },
    /// The registry answered with an error.
    #[error("registry {host}: unexpected status {status}: {detail}")]
    Registry {
        /// Its host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's words.
        detail: String,
    },
    /// The registry could not be reached or broke off.
    #[error("registry {host}: {detail}")]
    Unreachable {
        /// Its host and port.
        host: String,
        /// What happened.
        detail: String,
    },
    /// The disk is full.
    #[error("no space left on device while {0}")]
    NoSpace(String),
    /// Any other failure of the file system.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// The cause.
        source: io::Error,
    },
}

impl ImageError {
    /// Wraps an I/O error with what was being done; a full disk or quota becomes [`ImageError::NoSpace`].
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        // A reader stacked on ours may hand back one of our own errors inside an io::Error.
        let source = match source.downcast::<ImageError>() {
            Ok(own) => return own,
            Err(source) => source,
        };
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(doing.into())
            }
            _ => Self::Io {
                doing: doing.into(),
                source,
            },
        }
    }
}

/// Adds what was being done to an I/O error.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, ImageError> {
        self.map_err(|e| ImageError::io(what(), e.into()))
    }
}
