//! Requests to an API server in this process; statuses, headers and bodies are compared with upstream's.

mod harness;

mod admission;
mod aggregation;
mod answers;
mod apply;
mod auth;
mod authorization;
mod backend;
mod conversion;
mod crud;
mod custom;
mod garbage;
mod limits;
mod lists;
mod protobuf;
mod reads;
mod services;
mod subresources;
mod tls;
mod watches;
mod writes;
