//! The host's network, by system calls alone: links, addresses, routes, network namespaces, nftables, connection
//! tracking and address management for pods.
//!
//! Knows no Kubernetes objects. Everything is synchronous and returns within milliseconds, because the kernel handles
//! netlink inside the call; asynchronous callers use `spawn_blocking`. Only [`nft::Monitor`] waits, and does so asynchronously. A socket belongs to the network namespace of the
//! thread that opened it.

pub mod bridge;
pub mod conntrack;
mod error;
pub mod host;
pub mod ipam;
pub mod link;
mod netlink;
pub mod netns;
pub mod nft;
pub mod pod;
pub mod sysctl;

pub use bridge::Bridge;
pub use error::{Error, Result};
