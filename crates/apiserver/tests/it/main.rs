//! Requests to an API server in this process; statuses, headers and bodies are compared with upstream's.

mod harness;

mod admission;
mod apply;
mod crud;
mod custom;
mod lists;
mod services;
mod subresources;
mod tls;
mod watches;
