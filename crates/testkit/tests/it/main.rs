//! Controllers and scheduler against the real API server, in one process.

mod volumes;
mod workloads;
