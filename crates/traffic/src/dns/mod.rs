//! The cluster DNS.
