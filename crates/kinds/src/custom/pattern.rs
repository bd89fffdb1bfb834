//! Regular expressions of schemas, compiled once.

use std::collections::HashMap;

use api::custom::{Additional, Node};
pub(crate) use cel::pattern::compile;
use regex::Regex;

/// The expressions of a schema by their text; those that cannot be compiled with the reason.
#[derive(Default)]
pub(crate) struct Patterns(HashMap<String, Result<Regex, String>>);

impl Patterns {
    /// Compiles every expression of a schema.
    pub fn of(schema: &Node) -> Self {
        let mut out = Self::default();
        out.collect(schema);
        out
    }

    fn collect(&mut self, node: &Node) {
        let pattern = &node.checks.pattern;
        if !pattern.is_empty() && !self.0.contains_key(pattern) {
            self.0.insert(pattern.clone(), compile(pattern));
        }
        let nested = node.properties.values().chain(node.items.as_deref());
        let alternatives = [&node.all_of, &node.any_of, &node.one_of];
        for inner in nested
            .chain(alternatives.into_iter().flatten())
            .chain(node.not.as_deref())
        {
            self.collect(inner);
        }
        if let Some(Additional::Schema(inner)) = &node.additional {
            self.collect(inner);
        }
    }

    /// The expression of that text.
    ///
    /// # Errors
    /// Why it cannot be compiled.
    pub fn get(&self, pattern: &str) -> Result<&Regex, &str> {
        match self.0.get(pattern) {
            Some(Ok(regex)) => Ok(regex),
            Some(Err(why)) => Err(why),
            None => Err("it was not compiled"),
        }
    }
}
