//! Objects as rows of a table, and as metadata alone.

use api::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::list::Page;
use super::{Fail, Resource, Stored, metadata};
use crate::http::negotiate::Form;

/// What each row carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The object's metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// From the `includeObject` parameter; `None` if it is none.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// `columnDefinitions` of a kind.
fn columns(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect()
}

fn row(
    resource: &Resource,
    stored: &Stored,
    include: IncludeObject,
    form: Form,
    now: Timestamp,
) -> Result<Value, Fail> {
    let mut object = resource.load(stored)?;
    if stored.revision > 0 {
        let revision = stored.revision.to_string();
        metadata::of(&mut object).insert("resourceVersion".into(), revision.into());
    }
    let cells = kinds::row(resource.stored(), &object, now);
    let mut row = json!({"cells": cells});
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => row["object"] = partial(&object, form),
        IncludeObject::Object => row["object"] = resource.to_served(object),
    }
    Ok(row)
}

/// A Table of some objects. `head` tells whether the columns are named.
pub fn table(
    resource: &Resource,
    page: &Page,
    include: IncludeObject,
    form: Form,
    now: Timestamp,
    head: bool,
) -> Result<Value, Fail> {
    let rows: Result<Vec<Value>, Fail> = page
        .items
        .iter()
        .map(|item| row(resource, item, include, form, now))
        .collect();
    Ok(json!({
        "kind": "Table",
        "apiVersion": form.meta_version(),
        "metadata": page.metadata(),
        "columnDefinitions": if head { columns(&resource.kind) } else { Value::Null },
        "rows": rows?,
    }))
}

/// An object's metadata as PartialObjectMetadata.
pub fn partial(object: &Value, form: Form) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": form.meta_version(),
        "metadata": object.get("metadata").cloned().unwrap_or_default(),
    })
}

/// One stored object as PartialObjectMetadata.
pub fn partial_of(stored: &Stored, form: Form) -> Result<Value, Fail> {
    Ok(partial(&stored.with_revision()?, form))
}

/// A page as PartialObjectMetadataList.
pub fn partial_list(page: &Page, form: Form) -> Result<Value, Fail> {
    let items: Result<Vec<Value>, Fail> = page
        .items
        .iter()
        .map(|item| partial_of(item, form))
        .collect();
    Ok(json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": form.meta_version(),
        "metadata": page.metadata(),
        "items": items?,
    }))
}
