//! The one error of this crate: what was being done, and what the kernel or the file system answered.

use std::io;

/// Why an operation on the host's network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, e.g. `open /proc/sys/net/ipv4/ip_forward`.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{action}: {source}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Kernel {
        /// What was asked of the kernel.
        action: String,
        /// The errno it answered.
        source: io::Error,
        /// The kernel's own explanation, where it gave one.
        detail: Option<String>,
    },
    /// The kernel's answer could not be understood.
    #[error("{action}: malformed netlink answer")]
    Malformed {
        /// What was asked of the kernel.
        action: String,
    },
    /// No such network interface.
    #[error("network interface {0} not found")]
    NoLink(String),
    /// Every address of the range is taken.
    #[error("no free address left in {0}")]
    Exhausted(ipnet::Ipv4Net),
    /// A state file cannot be read.
    #[error("{path}: {reason}")]
    State {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value given by the caller makes no sense to the kernel.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::Io {
            action: action.into(),
            source: source.into(),
        }
    }

    /// The errno behind the error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } | Error::Kernel { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
