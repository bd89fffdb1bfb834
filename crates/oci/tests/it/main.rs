//! The runtime on real containers. Needs root; every test has folders, cgroups and sandboxes of
//! its own and leaves nothing behind, which [`world::World::close`] checks.

mod adopt;
mod basics;
mod image;
mod security;
mod streaming;
mod world;
