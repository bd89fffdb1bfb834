//! Whole clusters, as a user has them: the real binary, real containers, stock kubectl as judge.
//!
//! Each test has its own cluster in its own folder and leaves the host as it found it; the harness
//! proves it. Tests that need stock kubectl say so and pass where there is none.

mod batch;
mod configuration;
mod deployments;
mod garbage;
mod guestbook;
mod harness;
mod kubectl_versions;
mod leaks;
mod lifecycle;
mod logs;
mod mysql;
mod probes;
mod registry;
mod replicas;
mod rollout;
mod scaling;
mod scheduling;
mod static_pods;
mod survival;
mod terminal;
