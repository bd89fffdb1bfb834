//! The Container Runtime Interface v1, the only language spoken between the node agent and a
//! runtime, embedded or foreign. Everything here is generated from `facts/cri-v1.json`.

/// Messages, clients and servers of the package `runtime.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
