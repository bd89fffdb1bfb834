//! Server-side apply: who owns which field, and how configurations of several owners become one object.
//!
//! Every write leaves in `metadata.managedFields` which fields its client set. An *update* owns what it changed; an
//! *apply* owns all that its configuration says, takes away what it said last time and no more, and conflicts
//! with owners of what it would change. Pure functions over objects in one version:
//!
//! ```text
//! track:  live, new  -> compare -> taken from others, given to the writer
//! apply:  live + config -> merge -> prune what was applied before -> compare -> conflicts, or owners
//! ```

mod engine;
mod last_applied;
mod managers;
mod merge;
mod path;
mod scale;
mod set;
#[cfg(test)]
mod tests;
mod typed;
mod validate;
mod walk;

use api::Schema;
use api::time::Timestamp;
use serde_json::Value;

pub use managers::keep_times;
pub use scale::{from_scale, to_scale};
pub use set::Set;

/// Which changes of a resource do not count, because they are reset before the object is stored.
#[derive(Debug, Clone, Default)]
pub enum Reset {
    /// All count.
    #[default]
    Nothing,
    /// Those to these fields and all below do not.
    Fields(Set),
    /// Only those below these patterns count; `*` stands for any step.
    AllBut(&'static [&'static [&'static str]]),
}

impl Reset {
    /// Changes to these fields do not count.
    pub fn fields(paths: &[&[&str]]) -> Self {
        Self::Fields(Set::of_fields(paths))
    }

    fn filter(&self, mut set: Set) -> Set {
        match self {
            Self::Nothing => set,
            Self::Fields(fields) => {
                set.subtract_below(fields);
                set
            }
            Self::AllBut(patterns) => set.below(patterns),
        }
    }
}

/// An object in another version, with that version's schema; `None` if there is no such version.
pub type Convert<'a> = dyn Fn(&Value, &str) -> Option<(Value, &'a Schema)> + Send + Sync + 'a;

/// What a write is about.
pub struct Context<'a> {
    /// Version of the request's objects.
    pub api_version: &'a str,
    /// Their kind.
    pub kind: &'a str,
    /// Their schema.
    pub schema: &'a Schema,
    /// Subresource written through, or empty.
    pub subresource: &'a str,
    /// Changes that do not count.
    pub reset: &'a Reset,
    /// Conversion to other versions of the kind.
    pub versions: &'a Convert<'a>,
    /// Time of the write.
    pub now: Timestamp,
}

/// What an apply made.
struct Applied {
    /// The object, with the owners it had before.
    object: Value,
    /// Its owners now.
    managed: Option<Value>,
}
