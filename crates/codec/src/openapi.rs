//! OpenAPI documents made from kinds and schemas.

use api::Kind;
use serde_json::{Value, json};

/// `/openapi/v3`: where the document of each group and version is.
pub fn v3_index<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Value {
    let mut paths = serde_json::Map::new();
    for kind in kinds {
        let path = if kind.group.is_empty() {
            format!("api/{}", kind.version)
        } else {
            format!("apis/{}/{}", kind.group, kind.version)
        };
        let url = format!("/openapi/v3/{path}");
        paths
            .entry(path)
            .or_insert_with(|| json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}
