//! Requests to an API server in this process; statuses, headers and bodies are compared with upstream's.

mod harness;

mod admission;
mod aggregation;
mod apply;
mod authorization;
mod backend;
mod conversion;
mod crud;
mod custom;
mod garbage;
mod limits;
mod lists;
mod protobuf;
mod services;
mod subresources;
mod tls;
mod watches;
