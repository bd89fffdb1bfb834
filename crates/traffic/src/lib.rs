//! How packets and names find Services: the proxy (addresses to endpoints) and the cluster's DNS (names to addresses).
//!
//! Both watch the API through shared caches, compute purely what should be, and apply it.

pub mod dns;
pub mod proxy;
mod watch;
