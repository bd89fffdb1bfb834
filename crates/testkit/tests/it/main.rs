//! Controllers and scheduler against the real API server, in one process.

mod addresses;
mod allocation;
mod apps;
mod attachments;
mod auth;
mod autoscaling;
mod conformance;
mod daemons;
mod deletion;
mod devices;
mod endpoints;
mod extenders;
mod garbage;
mod jobs;
mod nodes;
mod quota;
mod scheduling;
mod scheduling_preemption;
mod simulated;
mod statefulsets;
mod storage_migration;
mod upkeep;
mod volumes;
mod workloads;
