//! The entries of Kubernetes' conformance list that need no containers, one test each, named by
//! their `Conformance:` lines. Each asserts what the upstream test of that name asserts.

mod life;
mod world;

mod accounts;
mod admission;
mod coordination;
mod definitions;
mod machinery;
mod openapi;
mod pods;
mod services;
mod storage;
mod validation;
mod watching;
