//! Containers: images, snapshots, sandboxes, processes, and the CRI v1 service over them.
//!
//! The crate knows no Kubernetes objects: it speaks the Container Runtime Interface and nothing
//! else.

pub mod cri;
pub mod images;
