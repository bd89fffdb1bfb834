//! Which resources the definitions make, and since when each counts.
//!
//! A resource is replaced only when what its definition says of it changes: watches of the old one end, and
//! objects written before are brought up to the new schema when they are read.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Kind;
use api::custom::{condition_is_true, kinds_of};
use api::meta;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Definitions;
use crate::registry::Resource;

/// Bytes of a published hash.
const HASH_BYTES: usize = 8;

/// The resources made of one definition.
struct Made {
    stamp: u64,
    /// What they were made from.
    from: Value,
    resources: Vec<Arc<Resource>>,
}

/// The resources made of all definitions.
#[derive(Default)]
pub(super) struct Served {
    made: BTreeMap<String, Made>,
    replaced: Vec<Arc<Resource>>,
}

impl Served {
    /// Makes the resources of the definitions as they are; `None` if nothing changed. Objects written up to
    /// `since` are older than what changed; without it, than the definition.
    pub fn update(
        &mut self,
        definitions: &Definitions,
        since: Option<u64>,
    ) -> Option<Vec<Arc<Resource>>> {
        let mut changed = false;
        let gone: Vec<String> = self
            .made
            .keys()
            .filter(|name| !definitions.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            changed = true;
            self.replaced.extend(
                self.made
                    .remove(&name)
                    .into_iter()
                    .flat_map(|m| m.resources),
            );
        }
        for (name, definition) in definitions {
            if self
                .made
                .get(name)
                .is_some_and(|m| m.stamp == definition.stamp)
            {
                continue;
            }
            let from = essence(&definition.value);
            if let Some(made) = self.made.get_mut(name).filter(|m| m.from == from) {
                made.stamp = definition.stamp;
                continue;
            }
            changed = true;
            let since = since.unwrap_or(definition.revision);
            let resources = if is_served(&definition.value) {
                resources_of(&definition.value, since)
            } else {
                Vec::new()
            };
            let stamp = definition.stamp;
            let made = Made {
                stamp,
                from,
                resources,
            };
            let old = self.made.insert(name.clone(), made);
            self.replaced
                .extend(old.into_iter().flat_map(|m| m.resources));
        }
        changed.then(|| self.all())
    }

    /// Ends what still uses resources that were replaced. To be called when the new ones are served.
    pub fn retire(&mut self) {
        self.replaced.drain(..).for_each(|r| r.retire());
    }

    /// Every resource: groups by name, the best version of each group first.
    fn all(&self) -> Vec<Arc<Resource>> {
        let mut all: Vec<Arc<Resource>> = self
            .made
            .values()
            .flat_map(|m| m.resources.clone())
            .collect();
        all.sort_by(|a, b| {
            let (a, b) = (&a.kind, &b.kind);
            let versions = || api::custom::compare_versions(&b.version, &a.version);
            a.group
                .cmp(&b.group)
                .then_with(versions)
                .then_with(|| a.resource.cmp(&b.resource))
        });
        all
    }
}

/// What of a definition decides about its resources.
fn essence(definition: &Value) -> Value {
    json!([
        meta::uid(definition),
        definition.get("spec"),
        meta::get(definition, &["status", "acceptedNames"]),
        is_served(definition),
        meta::get(definition, &["metadata", "deletionTimestamp"]),
        condition_is_true(definition, "Terminating"),
    ])
}

fn is_served(definition: &Value) -> bool {
    condition_is_true(definition, "NamesAccepted") || condition_is_true(definition, "Established")
}

fn kinds(definition: &Value) -> Vec<(Kind, bool)> {
    kinds_of(definition, &|text| {
        STANDARD.encode(&Sha256::digest(text)[..HASH_BYTES])
    })
}

fn resources_of(definition: &Value, since: u64) -> Vec<Arc<Resource>> {
    kinds(definition)
        .into_iter()
        .filter(|(_, served)| *served)
        .map(|(kind, _)| Arc::new(Resource::custom(kind, since)))
        .collect()
}

/// The resource of the version that a definition's objects are stored in, served or not.
pub(super) fn storage_resource(definition: &Value) -> Option<Arc<Resource>> {
    let storage = kinds(definition)
        .into_iter()
        .find(|(kind, _)| kind.is_storage_version());
    storage.map(|(kind, _)| Arc::new(Resource::custom(kind, u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::custom::Definition;

    fn definitions(revision: u64, versions: Value) -> Definitions {
        let value = json!({"metadata": {"name": "as.example.com", "uid": "u"},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": "as", "kind": "A"}, "versions": versions},
            "status": {"conditions": [{"type": "Established", "status": "True"}]}});
        Definitions::from([(
            "as.example.com".to_owned(),
            Definition {
                value,
                revision,
                stamp: revision,
                settled: true,
            },
        )])
    }

    #[test]
    fn resources_are_replaced_when_their_definition_changes() {
        let version = |name: &str, served: bool, storage: bool| json!({"name": name, "served": served, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let mut served = Served::default();
        let one = definitions(5, json!([version("v1", true, true)]));
        let first = served.update(&one, None).unwrap();
        assert_eq!(first.len(), 1);
        assert!(served.update(&one, Some(9)).is_none());
        let two = definitions(
            10,
            json!([
                version("v1", true, false),
                version("v2", true, true),
                version("v3", false, false)
            ]),
        );
        let second = served.update(&two, Some(11)).unwrap();
        let names: Vec<&str> = second.iter().map(|r| r.kind.version.as_str()).collect();
        assert_eq!(names, ["v2", "v1"]);
        assert_eq!(served.replaced.len(), 1);
        served.retire();
        assert!(
            served
                .update(&Definitions::new(), Some(12))
                .unwrap()
                .is_empty()
        );
        let hash = &second[0].kind.storage_version_hash;
        assert_eq!(hash.len(), 12);
    }
}
