//! What schemas and fields mean, in words: taken from the types crate when this crate is built,
//! unpacked for as long as one document is being made.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::ZlibDecoder;

const PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.zlib"));
/// About how many bytes the words have, unpacked.
const UNPACKED_HINT: usize = 1 << 20;

/// Words of one schema: its own, and those of its fields.
type Entry = (String, HashMap<String, String>);

/// Words by definition name.
#[derive(Default)]
pub(super) struct Descriptions(HashMap<String, Entry>);

impl Descriptions {
    /// Unpacks the words: a few milliseconds and megabytes, given back when the document is done.
    pub(super) fn load() -> Self {
        let mut text = Vec::with_capacity(UNPACKED_HINT);
        // The file is made by our own build: if it cannot be read there are no words, which is no error.
        let _ = ZlibDecoder::new(PACKED).read_to_end(&mut text);
        Self(serde_json::from_slice(&text).unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn served_kinds_are_described() {
        let words = Descriptions::load();
        for kind in api::kinds() {
            let name = kind.schema.name();
            assert!(words.schema(name).is_some(), "{name}");
            let schema = kind.schema.get().unwrap();
            // Upstream says nothing of the metadata of a few kinds.
            let silent =
                |f: &&api::Field| &*f.name != "metadata" && words.field(name, &f.name).is_none();
            let fields = schema.fields.iter().filter(silent);
            assert_eq!(
                fields.map(|f| f.name.to_string()).collect::<Vec<_>>(),
                Vec::<String>::new(),
                "{name}"
            );
        }
    }
}
