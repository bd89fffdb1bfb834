//! What can go wrong when talking to the API server.

/// An error of a reconciliation: it is logged, and the key is tried again with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server answered with a failure, or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// A cached object could not be decoded as its kind.
    #[error("decoding {key}: {source}")]
    Decode {
        /// The object.
        key: crate::Key,
        /// What the decoder said.
        #[source]
        source: serde_json::Error,
    },
    /// A cache did not show this process's own writes in time.
    #[error("the cache of {resource} is behind revision {revision}")]
    Behind {
        /// The resource whose cache lags.
        resource: String,
        /// The revision that was waited for.
        revision: u64,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// What to tell people: the server's own words where there are some.
    pub fn words(&self) -> String {
        match self {
            Self::Api(kube::Error::Api(status)) => status.message.clone(),
            other => other.to_string(),
        }
    }
}

impl From<kube::core::request::Error> for Error {
    fn from(error: kube::core::request::Error) -> Self {
        Self::Api(kube::Error::BuildRequest(error))
    }
}

fn api_status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// Whether the server said that the object does not exist (404).
pub fn is_not_found(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 404)
}

/// Whether the server said that the object has changed since it was read (409 Conflict).
pub fn is_conflict(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 409 && s.reason == "Conflict")
}

/// Whether the server said that an object of this name exists already (409 AlreadyExists).
pub fn is_exists(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 409 && s.reason == "AlreadyExists")
}

/// Whether a create was refused because its namespace is being deleted: not worth a retry.
pub fn is_forbidden_by_termination(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| {
        s.code == 403
            && (s.message.contains("because it is being terminated")
                || s.details
                    .as_ref()
                    .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
    })
}
