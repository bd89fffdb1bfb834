//! The workloads of the conformance list, on nodes that pretend to run pods.

mod budgets;
mod controllers;
mod crons;
mod daemons;
mod deployments;
mod jobs;
mod replicasets;
mod revisions;
pub mod rig;
mod statefulsets;
