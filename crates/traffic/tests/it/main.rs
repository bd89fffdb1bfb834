//! The proxy and the DNS as their users meet them.

mod dns;
mod proxy;
mod world;
