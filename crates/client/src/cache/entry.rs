//! One cached object: the server's bytes and the fields that indexes and handlers need.

use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

use crate::Selector;
use api::fields;
use bytes::Bytes;
use memchr::memmem;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Error, Key};

/// One entry of an object's `metadata.ownerReferences`.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Group and version of the owner's kind.
    #[serde(default)]
    pub api_version: String,
    /// The owner's kind.
    #[serde(default)]
    pub kind: String,
    /// The owner's name, in the namespace of the owned or cluster-scoped.
    #[serde(default)]
    pub name: String,
    /// The owner's uid.
    #[serde(default)]
    pub uid: String,
    /// Whether it is the managing controller.
    #[serde(default, deserialize_with = "or_default")]
    pub controller: bool,
    /// Whether the owner's foreground deletion waits for this object.
    #[serde(default, deserialize_with = "or_default")]
    pub block_owner_deletion: bool,
}

/// A cached object.
#[derive(Debug)]
pub struct Entry {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.resourceVersion`; 0 where it is no number.
    pub revision: u64,
    /// `metadata.labels`, by key.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// `metadata.ownerReferences`.
    pub owners: Box<[Owner]>,
    /// `metadata.finalizers`.
    pub finalizers: Box<[Box<str>]>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `spec.nodeName`, where the kind has it.
    pub node: Option<Arc<str>>,
    bytes: Bytes,
    /// Whether the bytes are those of the store, which lack the revision.
    bare: bool,
    digest: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// A word to be looked for in many objects, prepared once.
pub struct Word {
    text: &'static str,
    finder: OnceLock<memmem::Finder<'static>>,
}

impl Word {
    /// This one.
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            finder: OnceLock::new(),
        }
    }
}

/// What somebody wants to know of many objects again and again, read from each once.
pub trait Digest: Any + Send + Sync + Sized {
    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Decode`] when the object is not as it should be.
    fn of(entry: &Entry) -> Result<Self, Error>;
}

impl Entry {
    /// Reads an object of the server. Fields other than the few above stay bytes; with
    /// `metadata_only` the bytes are dropped.
    pub(super) fn parse(bytes: &[u8], metadata_only: bool) -> Result<Self, serde_json::Error> {
        let mut entry = Self::head(bytes)?;
        if !metadata_only {
            entry.bytes = Bytes::copy_from_slice(bytes);
        }
        Ok(entry)
    }

    /// Reads an object as the store has it, and shares its bytes.
    pub(super) fn share(
        bytes: &Bytes,
        revision: u64,
        metadata_only: bool,
    ) -> Result<Self, serde_json::Error> {
        let mut entry = Self::head(bytes)?;
        entry.revision = revision;
        entry.bare = true;
        if !metadata_only {
            entry.bytes = bytes.clone();
        }
        Ok(entry)
    }

    fn head(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let head = match Head::found(bytes) {
            Some(head) => head,
            None => serde_json::from_slice(bytes)?,
        };
        let meta = head.metadata;
        let mut labels: Vec<_> = meta.labels.unwrap_or_default().0;
        labels.sort();
        Ok(Self {
            key: Key::new(meta.namespace.unwrap_or_default(), meta.name),
            uid: meta.uid.unwrap_or_default(),
            revision: meta
                .resource_version
                .and_then(|r| r.parse().ok())
                .unwrap_or(0),
            labels: labels.into(),
            owners: meta.owner_references.unwrap_or_default().into(),
            finalizers: meta.finalizers.unwrap_or_default().into(),
            deleting: meta.deletion_timestamp.is_some(),
            node: head
                .spec
                .and_then(|s| s.node_name)
                .filter(|n| !n.is_empty()),
            bytes: Bytes::new(),
            bare: false,
            digest: OnceLock::new(),
        })
    }

    /// The object as a `K`.
    ///
    /// # Errors
    /// [`Error::Decode`] when the bytes are not a `K`, or only the metadata is cached.
    pub fn decode<K: DeserializeOwned>(&self) -> Result<K, Error> {
        let decoded = if self.bare && !self.bytes.is_empty() {
            serde_json::from_slice(&api::splice::object(&self.bytes, self.revision))
        } else {
            serde_json::from_slice(&self.bytes)
        };
        decoded.map_err(|source| self.undecodable(source))
    }

    /// The part of the object that `V` borrows, which must not be its `resourceVersion`: that is
    /// [`Entry::revision`].
    ///
    /// # Errors
    /// As [`Entry::decode`].
    pub fn view<'a, V: Deserialize<'a>>(&'a self) -> Result<V, Error> {
        serde_json::from_slice(&self.bytes).map_err(|source| self.undecodable(source))
    }

    fn undecodable(&self, source: serde_json::Error) -> Error {
        Error::Decode {
            key: self.key.clone(),
            source,
        }
    }

    /// What `D` reads from the object. It is read once: an entry keeps the first kind of digest that
    /// it is asked for.
    ///
    /// # Errors
    /// As [`Digest::of`].
    pub fn digest<D: Digest>(&self) -> Result<Arc<D>, Error> {
        if let Some(known) = self.digest.get()
            && let Ok(known) = Arc::clone(known).downcast::<D>()
        {
            return Ok(known);
        }
        let made = Arc::new(D::of(self)?);
        // Whoever came first has the place.
        let _ = self.digest.set(made.clone());
        Ok(made)
    }

    /// The object as JSON, with or without its `resourceVersion`; empty when only the metadata is
    /// cached.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the JSON has these bytes somewhere: where few objects do, looking for them is much cheaper than
    /// decoding all.
    pub fn mentions(&self, word: &str) -> bool {
        memmem::find(&self.bytes, word.as_bytes()).is_some()
    }

    /// The same of a word that many objects are asked for.
    pub fn has(&self, word: &Word) -> bool {
        let prepare = || memmem::Finder::new(word.text);
        let finder = word.finder.get_or_init(prepare);
        finder.find(&self.bytes).is_some()
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.labels[at].1)
    }

    /// Whether the labels match.
    pub fn matches(&self, selector: &Selector) -> bool {
        selector.matches_with(|key| self.label(key))
    }

    /// The owner that manages this object.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|o| o.controller)
    }
}

#[derive(Deserialize)]
struct Head {
    metadata: Meta,
    #[serde(default)]
    spec: Option<Spec>,
}

impl Head {
    /// Reads nothing but these fields, of text as the server stores it; `None`: it is to be read as any other.
    fn found(bytes: &[u8]) -> Option<Self> {
        const PATHS: [fields::Path<'static>; 9] = [
            &["metadata", "name"],
            &["metadata", "namespace"],
            &["metadata", "uid"],
            &["metadata", "resourceVersion"],
            &["metadata", "labels"],
            &["metadata", "ownerReferences"],
            &["metadata", "finalizers"],
            &["metadata", "deletionTimestamp"],
            &["spec", "nodeName"],
        ];
        let [
            name,
            namespace,
            uid,
            revision,
            labels,
            owners,
            finalizers,
            deleted,
            node,
        ] = fields::find(bytes, &PATHS)?;
        Some(Self {
            metadata: Meta {
                name: text(name?)??,
                namespace: some(namespace, text)?,
                uid: some(uid, text)?,
                resource_version: some(revision, text)?,
                labels: some(labels, json)?,
                owner_references: some(owners, json)?,
                finalizers: some(finalizers, json)?,
                deletion_timestamp: some(deleted, json)?,
            },
            spec: Some(Spec {
                node_name: node.and_then(fields::string).map(Arc::from),
            }),
        })
    }
}

/// What `read` makes of a field that may be absent or null; `None`: it could not be read.
fn some<T>(
    text: Option<&[u8]>,
    read: impl FnOnce(&[u8]) -> Option<Option<T>>,
) -> Option<Option<T>> {
    text.map_or(Some(None), read)
}

fn json<T: DeserializeOwned>(text: &[u8]) -> Option<Option<T>> {
    serde_json::from_slice(text).ok()
}

fn text<T: for<'t> From<&'t str>>(text: &[u8]) -> Option<Option<T>> {
    match text {
        b"null" => Some(None),
        text => Some(Some(T::from(&*fields::string(text)?))),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    name: Box<str>,
    namespace: Option<Box<str>>,
    uid: Option<Box<str>>,
    resource_version: Option<String>,
    labels: Option<Labels>,
    owner_references: Option<Vec<Owner>>,
    finalizers: Option<Vec<Box<str>>>,
    deletion_timestamp: Option<serde::de::IgnoredAny>,
}

/// Other kinds may have a `spec` or `spec.nodeName` of any shape: only a string counts.
struct Spec {
    node_name: Option<Arc<str>>,
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Spec;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Spec, A::Error> {
                let mut node_name = None;
                while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                    if key == "nodeName" {
                        node_name = map.next_value::<StringOrOther>()?.0;
                    } else {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    }
                }
                Ok(Spec { node_name })
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Spec, A::Error> {
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Spec { node_name: None })
            }
            fn visit_str<E>(self, _: &str) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
            fn visit_bool<E>(self, _: bool) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
            fn visit_i64<E>(self, _: i64) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
            fn visit_u64<E>(self, _: u64) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
            fn visit_f64<E>(self, _: f64) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
            fn visit_unit<E>(self) -> Result<Spec, E> {
                Ok(Spec { node_name: None })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

struct StringOrOther(Option<Arc<str>>);

impl<'de> Deserialize<'de> for StringOrOther {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?;
        Ok(Self(
            serde_json::from_str::<String>(raw.get())
                .ok()
                .map(Arc::from),
        ))
    }
}

#[derive(Default)]
struct Labels(Vec<(Box<str>, Box<str>)>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Labels;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of strings")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    labels.push(pair);
                }
                Ok(Labels(labels))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn or_default<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<bool>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_few_fields_and_keeps_the_bytes() {
        let json = br#"{"kind":"Pod","metadata":{"name":"a","namespace":"n","uid":"u",
            "resourceVersion":"7","labels":{"z":"1","app":"x"},"deletionTimestamp":"2026-01-01T00:00:00Z",
            "ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","uid":"o","controller":true}]},
            "spec":{"containers":[],"nodeName":"m"}}"#;
        let entry = Entry::parse(json, false).unwrap();
        let value: serde_json::Value = serde_json::from_slice(json).unwrap();
        let compact = Entry::parse(value.to_string().as_bytes(), true).unwrap();
        let pretty = Entry::parse(json, true).unwrap();
        assert_eq!(format!("{compact:?}"), format!("{pretty:?}"));
        assert_eq!(entry.key, Key::new("n", "a"));
        assert_eq!((entry.revision, entry.deleting), (7, true));
        assert_eq!(
            (entry.label("app"), entry.label("z"), entry.label("q")),
            (Some("x"), Some("1"), None)
        );
        assert_eq!(entry.controller().map(|o| o.uid.as_str()), Some("o"));
        assert_eq!(entry.node.as_deref(), Some("m"));
        assert_eq!(entry.bytes().as_ref(), json);
    }

    #[test]
    fn shared_bytes_are_decoded_with_their_revision_and_digested_once() {
        struct Phase(String);
        impl Digest for Phase {
            fn of(entry: &Entry) -> Result<Self, Error> {
                #[derive(Deserialize)]
                struct Status {
                    phase: String,
                }
                #[derive(Deserialize)]
                struct View {
                    status: Status,
                }
                Ok(Self(entry.view::<View>()?.status.phase))
            }
        }
        let stored = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"status":{"phase":"Running"}}"#;
        let bytes = Bytes::from_static(stored);
        let entry = Entry::share(&bytes, 9, false).unwrap();
        assert_eq!(entry.bytes().as_ptr(), bytes.as_ptr());
        let pod: serde_json::Value = entry.decode().unwrap();
        assert_eq!(pod["metadata"]["resourceVersion"], "9");
        let phase = entry.digest::<Phase>().unwrap();
        assert_eq!(phase.0, "Running");
        assert!(Arc::ptr_eq(&phase, &entry.digest::<Phase>().unwrap()));
        let only = Entry::share(&bytes, 9, true).unwrap();
        assert!(only.bytes().is_empty() && only.revision == 9);
    }

    #[test]
    fn tolerates_kinds_without_a_usual_spec() {
        for spec in [
            "null",
            "3",
            "\"x\"",
            "[1,{}]",
            "{\"nodeName\":{\"a\":[1]}}",
            "{\"nodeName\":\"\"}",
        ] {
            let json = format!(r#"{{"metadata":{{"name":"a"}},"spec":{spec}}}"#);
            let entry = Entry::parse(json.as_bytes(), true).unwrap();
            assert_eq!(entry.node, None, "{spec}");
            assert!(entry.bytes().is_empty());
        }
    }
}
