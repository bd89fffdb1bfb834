//! The proxy and the DNS as their users meet them.

mod api;
mod dns;
mod proxy;
mod world;
