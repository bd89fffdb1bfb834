//! Which objects a list or a watch is about: label and field selectors, over bytes or over what was read of them before.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

use api::Status;
use api::fields::{self, Place};
use api::selector::{FieldSelector, LabelSelector};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{Fail, Resource, sparse};
use crate::http::request_info::Query;

/// Where labels are.
const LABELS: sparse::Path<'static> = &["metadata", "labels"];

/// Which objects are meant: both selectors must match.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
}

/// Labels of an object, read without building its tree.
#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow, default)]
    metadata: LabelledMetadata<'a>,
}

#[derive(Deserialize, Default)]
struct LabelledMetadata<'a> {
    #[serde(borrow, default)]
    labels: HashMap<Cow<'a, str>, Cow<'a, str>>,
}

/// All that selectors may ask about an object, looked for once for many of them.
#[derive(Debug)]
pub enum Selectable {
    /// Where it is in what is stored.
    Text(Text),
    /// What was read of text that somebody else wrote, or that lacks defaults.
    Tree(Value),
}

/// The places of selected fields in the text of an object, in the order of [`paths`].
#[derive(Debug)]
pub struct Text {
    bytes: Bytes,
    places: Vec<Place>,
    labels: OnceLock<HashMap<String, String>>,
}

impl Selectable {
    /// Of a stored object; `None` for bytes that are no object, which nothing matches.
    pub fn of(resource: &Resource, bytes: &Bytes) -> Option<Self> {
        let built_in = resource.stored().custom.is_none();
        let places = built_in.then(|| fields::places(bytes, &resource.selected_by));
        match places.flatten() {
            Some(places) => Some(Self::Text(Text {
                bytes: bytes.clone(),
                places,
                labels: OnceLock::new(),
            })),
            None => tree(resource, bytes).map(Self::Tree),
        }
    }
}

impl Text {
    fn at(&self, resource: &Resource, path: sparse::Path<'_>) -> Option<&[u8]> {
        let at = resource.selected_by.binary_search(&path).ok()?;
        let (start, end) = self.places[at]?;
        self.bytes.get(start..end)
    }

    /// As selectors compare it.
    fn field(&self, resource: &Resource, name: &str) -> Cow<'_, str> {
        let path = kinds::field_path(resource.stored(), name);
        match path.and_then(|path| self.at(resource, path)) {
            None | Some(b"null") => Cow::default(),
            Some(text) => fields::string(text).unwrap_or_else(|| String::from_utf8_lossy(text)),
        }
    }

    fn label(&self, resource: &Resource, key: &str) -> Option<&str> {
        let read = || {
            let text = self.at(resource, LABELS);
            let labels = text.and_then(|t| serde_json::from_slice(t).ok());
            labels.unwrap_or_default()
        };
        let labels = self.labels.get_or_init(read);
        labels.get(key).map(String::as_str)
    }
}

/// Where selectors look in objects of a built-in kind.
pub fn paths(kind: &api::Kind) -> Vec<sparse::Path<'static>> {
    let fields = kinds::field_names(kind).filter_map(|name| kinds::field_path(kind, &name));
    let mut paths: Vec<sparse::Path<'static>> = fields.chain([LABELS]).collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// A stored object as selectors see it: of a built-in kind only what they may ask for.
fn tree(resource: &Resource, bytes: &[u8]) -> Option<Value> {
    let kind = resource.stored();
    if kind.custom.is_none() {
        return sparse::read(bytes, &resource.selected_by).ok();
    }
    // Selectable fields may have defaults that the stored object lacks.
    let mut object = serde_json::from_slice::<Value>(bytes).ok()?;
    codec::default(kind, &mut object);
    Some(object)
}

impl Selection {
    /// Reads `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 when one cannot be parsed or names a field the kind does not select by.
    pub fn parse(resource: &Resource, query: &Query) -> Result<Self, Fail> {
        let bad = |e: api::selector::SelectorError| Box::new(Status::bad_request(e.to_string()));
        let labels =
            LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let fields =
            FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).map_err(bad)?;
        for requirement in fields.requirements() {
            if kinds::field_value(resource.stored(), &Value::Null, &requirement.field).is_none() {
                let field = &requirement.field;
                let why = if kinds::field_labels(resource.stored()).is_empty()
                    && resource.kind.custom.is_none()
                {
                    format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    )
                } else {
                    format!("field label not supported: {field}")
                };
                return Err(Box::new(Status::bad_request(why)));
            }
        }
        Ok(Self { labels, fields })
    }

    /// The object of that name.
    ///
    /// # Errors
    /// 400 when it can be no name.
    pub fn of_name(name: &str) -> Result<Self, Fail> {
        let fields = FieldSelector::parse(&format!("metadata.name={name}"))
            .map_err(|e| Box::new(Status::bad_request(e.to_string())))?;
        Ok(Self {
            fields,
            ..Self::default()
        })
    }

    /// Whether everything matches.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether at most one object of a namespace matches, which needs no walk.
    pub fn names_one(&self) -> bool {
        self.fields.exact("metadata.name").is_some()
    }

    /// Whether a stored object matches. Bytes that are no object match nothing.
    pub fn matches(&self, resource: &Resource, bytes: &[u8]) -> bool {
        self.labels_match(bytes) && self.fields_match(resource, bytes)
    }

    /// The same of an object that was read before.
    pub fn matches_read(&self, resource: &Resource, object: &Selectable) -> bool {
        match object {
            Selectable::Tree(tree) => {
                self.labels.matches_object(tree) && self.fields_of(resource, tree)
            }
            Selectable::Text(text) => {
                self.labels.matches_with(|key| text.label(resource, key))
                    && self.fields.matches_with(|name| text.field(resource, name))
            }
        }
    }

    fn fields_of(&self, resource: &Resource, object: &Value) -> bool {
        let kind = resource.stored();
        self.fields
            .matches_with(|field| kinds::field_value(kind, object, field).unwrap_or_default())
    }

    fn labels_match(&self, bytes: &[u8]) -> bool {
        if self.labels.is_everything() {
            return true;
        }
        let Ok(object) = serde_json::from_slice::<Labelled<'_>>(bytes) else {
            return false;
        };
        let labels = &object.metadata.labels;
        self.labels
            .matches_with(|key| labels.get(key).map(AsRef::as_ref))
    }

    fn fields_match(&self, resource: &Resource, bytes: &[u8]) -> bool {
        if self.fields.is_everything() {
            return true;
        }
        tree(resource, bytes).is_some_and(|object| self.fields_of(resource, &object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_read_once_matches_as_its_bytes_do() {
        let pods = Resource::new(api::kind("", "v1", "pods").unwrap());
        let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "n", "labels": {"app": "x"}},
            "spec": {"nodeName": "n1", "hostNetwork": true}, "status": {"phase": "Running"}});
        let compact = codec::canonical(&pod);
        let pretty = Bytes::from(format!("{pod:#}"));
        for (query, matches) in [
            ("", true),
            ("labelSelector=app%3Dx", true),
            ("labelSelector=app%3Dy", false),
            ("labelSelector=!other", true),
            ("fieldSelector=spec.nodeName%3Dn1", true),
            ("fieldSelector=spec.nodeName%3Dn2", false),
            (
                "fieldSelector=spec.nodeName!%3Dn2,metadata.name%3Da,metadata.namespace%3Dn",
                true,
            ),
            (
                "fieldSelector=status.phase%3DRunning&labelSelector=app%3Dx",
                true,
            ),
            (
                "fieldSelector=status.phase%3DRunning&labelSelector=app%3Dy",
                false,
            ),
            ("fieldSelector=spec.schedulerName%3D", true),
            ("fieldSelector=spec.hostNetwork%3Dtrue", true),
            ("fieldSelector=spec.hostNetwork%3D", false),
        ] {
            let selection = Selection::parse(&pods, &Query::parse(query)).unwrap();
            for bytes in [&compact, &pretty] {
                assert_eq!(selection.matches(&pods, bytes), matches, "{query}");
                let read = Selectable::of(&pods, bytes).unwrap();
                assert_eq!(selection.matches_read(&pods, &read), matches, "{query}");
            }
        }
        assert!(Selectable::of(&pods, &Bytes::from_static(b"no object")).is_none());
    }
}
