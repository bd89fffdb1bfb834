//! Devices by claim: what drivers publish in resource slices, what claims ask for, and who gets
//! what.
//!
//! ```text
//!  ResourceSlice ──> inventory ─┐
//!  DeviceClass ─────────────────┼──> allocator ──> result ──> the claim's status
//!  ResourceClaim ──> claims ────┘        ^
//!                      └──> ledger ──────┘
//! ```
//!
//! All but [`Devices`] is pure. Pods without claims never come here.

pub mod allocator;
mod capacity;
pub mod claims;
mod constraint;
mod counters;
pub mod extended;
pub mod inventory;
pub mod ledger;
pub mod model;
pub mod request;
mod result;
pub mod selectors;
mod store;
#[cfg(test)]
mod tests;

pub use store::Devices;
pub(crate) use store::claim_change;
