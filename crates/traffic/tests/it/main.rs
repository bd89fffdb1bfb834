//! The proxy and the DNS as their users meet them.

mod proxy;
mod world;
