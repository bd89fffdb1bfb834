//! Decoding a body into an object of an expected kind, with upstream's messages.

use std::collections::HashMap;

use api::{Kind, Status};
use serde_json::Value;

pub use crate::tree::{Duplicate, MAX_DEPTH, repeated};
use crate::{tree, walk};

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// application/json
    Json,
    /// application/yaml
    Yaml,
}

/// What happens to fields that the schema does not know and to keys that occur twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a warning: what the API does unless asked otherwise.
    #[default]
    Warn,
    /// An error.
    Strict,
}

impl FieldValidation {
    /// The value of the query parameter; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// An object and the warnings its body deserves.
pub type Decoded = (Value, Vec<String>);

/// Parses a body without looking at any schema; the second part lists duplicate keys.
pub fn parse(bytes: &[u8], content_type: ContentType) -> Result<(Value, Vec<Duplicate>), Status> {
    match content_type {
        ContentType::Json => tree::from_json(bytes).map_err(|e| {
            Status::bad_request(format!("couldn't get version/kind; json parse error: {e}"))
        }),
        ContentType::Yaml => {
            let text = std::str::from_utf8(bytes)
                .map_err(|e| Status::bad_request(format!("yaml: {e}")))?;
            tree::from_yaml(text)
                .map_err(|e| Status::bad_request(format!("error converting YAML to JSON: {e}")))
        }
    }
}

/// Decodes a body into an object of `kind`. Type and version may be absent from the body; other ones
/// are refused. Nulls are dropped, unknown fields as well (see [`FieldValidation`]).
pub fn decode(
    bytes: &[u8],
    content_type: ContentType,
    kind: &Kind,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let (mut obj, duplicates) = parse(bytes, content_type)?;
    check_type(&mut obj, kind)?;
    // YAML becomes sorted JSON before anybody looks for what is wrong with it.
    let order = (content_type == ContentType::Json).then_some(bytes);
    checked(&mut obj, kind, duplicates, order, validation).map(|warnings| (obj, warnings))
}

/// Checks a parsed object against the kind's schema, in place; returns warnings.
///
/// `duplicates` are those that [`parse`] found; a patched object has none.
pub fn check(
    obj: &mut Value,
    kind: &Kind,
    duplicates: Vec<Duplicate>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    checked(obj, kind, duplicates, None, validation)
}

/// The same, telling of fields in the order of the JSON `body`, if there is one.
fn checked(
    obj: &mut Value,
    kind: &Kind,
    duplicates: Vec<Duplicate>,
    body: Option<&[u8]>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    let refuse = |why: String| {
        let message = format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        );
        Status::bad_request(message)
    };
    let unknown = match (&kind.custom, kind.schema.get()) {
        (Some(custom), _) => crate::custom::check(obj, custom).map_err(refuse)?,
        (None, Some(schema)) => walk::check(obj, schema).map_err(refuse)?,
        (None, None) => return Ok(Vec::new()),
    };
    if validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    let order = match body {
        Some(body) if unknown.len() + duplicates.len() > 1 => tree::places(body),
        _ => HashMap::new(),
    };
    let place = |path: &str| order.get(path).copied().unwrap_or(usize::MAX);
    // YAML tells of all duplicates at once, before anything else.
    let mut found: Vec<(usize, String)> = duplicates
        .iter()
        .map(|d| d.line.as_ref().map_or_else(|| place(&d.path), |_| 0))
        .zip(repeated(&duplicates))
        .chain(
            unknown
                .iter()
                .map(|path| (place(path), format!("unknown field {path:?}"))),
        )
        .collect();
    found.sort_by_key(|(place, _)| *place);
    let found: Vec<String> = found.into_iter().map(|(_, what)| what).collect();
    if validation == FieldValidation::Strict && !found.is_empty() {
        return Err(refuse(format!(
            "strict decoding error: {}",
            found.join(", ")
        )));
    }
    Ok(found)
}

/// Fills in `kind` and `apiVersion`, or refuses those of another kind.
fn check_type(obj: &mut Value, kind: &Kind) -> Result<(), Status> {
    let Some(map) = obj.as_object_mut() else {
        let what = walk::type_name(obj);
        let message = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string; Kind string }}"
        );
        return Err(Status::bad_request(message));
    };
    let given_version = map
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let given_kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(Status::bad_request(format!(
            "{given_kind} in version {:?} cannot be handled as a {}: converting ({given_version}.{given_kind}) to ({}.{}): unknown conversion",
            api::meta::split_api_version(given_version).1,
            kind.kind,
            kind.group,
            kind.kind
        )));
    }
    if !given_version.is_empty() && given_version != kind.api_version() {
        let message = format!(
            "the API version in the data ({given_version}) does not match the expected API version ({})",
            kind.api_version()
        );
        return Err(Status::bad_request(message));
    }
    let mut typed = serde_json::Map::with_capacity(map.len() + 2);
    typed.insert("kind".to_owned(), kind.kind.clone().into());
    typed.insert("apiVersion".to_owned(), kind.api_version().into());
    typed.extend(
        std::mem::take(map)
            .into_iter()
            .filter(|(k, _)| k != "kind" && k != "apiVersion"),
    );
    *map = typed;
    Ok(())
}
