//! What the user was told is done, is done: what was made is there, what was deleted is not.

use super::Invariant;
use crate::world::{World, is_going};

/// The check.
pub struct Wishes;

impl Invariant for Wishes {
    fn unsettled(&mut self, world: &World) -> Vec<String> {
        let mut all = Vec::new();
        for (place, there) in &world.wishes {
            let found = world.get(&place.kind, &place.namespace, &place.name);
            match (found, there) {
                (None, true) => all.push(format!("{place} is lost")),
                (Some(object), false) if !is_going(object) => {
                    all.push(format!("{place} was deleted and is there"));
                }
                _ => {}
            }
        }
        all
    }
}
