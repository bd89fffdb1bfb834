//! The invariants, one a file.
//!
//! Some hold at every commit, some once the cluster has come to rest; a check may have both.

mod binding;
mod budgets;
mod endpoints;
mod jobs;
mod life;
mod nodes;
mod ordinals;
mod owners;
mod quota;
mod replicas;
mod volumes;
mod wishes;

use http::Method;
pub use volumes::folders;

use crate::network::Party;
use crate::world::{Change, World};

/// Something that must be true of the cluster.
pub trait Invariant: Send {
    /// Looks at a commit; `world` has it already.
    ///
    /// # Errors
    /// What is broken, for good.
    fn see(&mut self, _world: &World, _change: &Change<'_>) -> Result<(), String> {
        Ok(())
    }

    /// A request has reached the server.
    fn sent(&mut self, _world: &World, _party: Party, _method: &Method, _path: &str) {}

    /// What keeps the cluster from being as it should be in the end.
    fn unsettled(&mut self, _world: &World) -> Vec<String> {
        Vec::new()
    }
}

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(binding::Binding),
        Box::new(budgets::Budgets),
        Box::new(endpoints::Endpoints),
        Box::new(jobs::Jobs::default()),
        Box::new(life::Life),
        Box::new(nodes::Nodes),
        Box::new(ordinals::Ordinals::default()),
        Box::new(owners::Owners),
        Box::new(quota::Quota),
        Box::new(replicas::Replicas),
        Box::new(volumes::Volumes::default()),
        Box::new(wishes::Wishes),
    ]
}
