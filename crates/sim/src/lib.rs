//! Simulated nodes: they register, renew their leases and move the pods they get through their
//! life, but run nothing. Thousands of them fit into one process, for tests of schedulers,
//! controllers and whatever else only shows its limits in a large cluster.
//!
//! What is simulated is an object of the cluster, the ConfigMap [`NAME`] in `kube-system`: who
//! changes it changes the simulation, and after a restart it goes on. Real nodes are not touched.
//!
//! ```text
//! ConfigMap ──> settings ──┬─> nodes:  made, kept Ready, removed
//!                          ├─> leases: renewed, spread over the period
//!                          └─> pods:   plan(pod, rule, now) ─> status, deletion, or wait
//! ```
//!
//! Invariants:
//! - everything that is known is in the API: a pod's next step follows from its own object, the
//!   profile and the time, so a restart forgets nothing;
//! - chance comes from a pod's uid, so that looking twice gives the same answer;
//! - one watch of pods and one queue of timers serve all nodes; a pod that runs costs neither.

mod addresses;
mod delay;
mod leases;
mod nodes;
mod pods;
mod profile;
mod settings;
mod shell;

pub use addresses::RANGE;
pub use delay::{Delay, DelayError};
pub use nodes::{LABEL, is_simulated};
pub use profile::{NodeProfile, Outcome, PodMatch, PodRule, Profile, ProfileError};
pub use settings::{MAX_NODES, NAME, NAMESPACE, Settings, SettingsError};
pub use shell::{Config, run};
