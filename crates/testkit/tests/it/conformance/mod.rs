//! The entries of Kubernetes' conformance list that need no containers, one test each, named by
//! their `Conformance:` lines. Each asserts what the upstream test of that name asserts.

mod life;
mod world;

mod admission;
mod coordination;
mod definitions;
mod machinery;
mod storage;
mod validation;
mod watching;
