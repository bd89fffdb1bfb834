//! Objects that `kubectl apply` managed by its annotation before it managed them on the server.

use api::meta;
use serde_json::{Map, Value};

use super::Context;
use super::set::Set;
use super::typed::Ty;
use super::walk::{compare, field_set};

/// The only manager for which the annotation counts.
pub const MANAGER: &str = "kubectl";
/// What kubectl applied last.
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Most bytes of all annotations of an object; the annotation goes when it would break that.
const MAX_ANNOTATIONS: usize = 256 * 1024;

/// What the annotation says that still is so: fields kubectl may take over from whoever else is written down as
/// their owner. `None` without a usable annotation.
pub fn owned(context: &Context<'_>, live: &Value) -> Option<Set> {
    let text = meta::annotation(live, ANNOTATION).filter(|t| !t.is_empty())?;
    let last: Value = serde_json::from_str(text).ok()?;
    if last.get("apiVersion")?.as_str()? != context.api_version {
        return None;
    }
    let root = Ty::Object(context.schema);
    if super::validate::validate(&last, root).is_some() {
        return None;
    }
    let differs = compare(&last, live, root).ok()?;
    Some(
        field_set(&last, root)
            .difference(&differs.modified)
            .difference(&differs.added)
            .difference(&differs.removed),
    )
}

/// Writes the applied configuration into the annotation, if the object has one.
pub fn refresh(object: &mut Value, config: &Value) {
    if meta::annotation(object, ANNOTATION).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    meta::remove(&mut config, &["metadata", "annotations", ANNOTATION]);
    let text = format!("{config}\n");
    let annotations: &mut Map<String, Value> =
        meta::object_at(object, &["metadata", "annotations"]);
    annotations.insert(ANNOTATION.to_owned(), text.into());
    let size: usize = annotations
        .iter()
        .map(|(k, v)| k.len() + v.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        annotations.remove(ANNOTATION);
    }
}
