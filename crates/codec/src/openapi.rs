//! OpenAPI documents, made from kinds and schemas when asked for and kept nowhere.
//!
//! Documents are written piece by piece into one buffer, so that asking for one does not leave a
//! tree of the whole API behind. `v2` comes as JSON and in gnostic's protobuf form.

mod custom;
mod descriptions;
mod merge;
mod paths;
mod proto;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use api::Kind;
use bytes::Bytes;
use serde_json::{Value, json};

use descriptions::Descriptions;
pub use merge::Foreign;
use merge::Joined;
use schemas::Dialect;

/// Media type of the protobuf form of the v2 document.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

const TITLE: &str = "Kubernetes";

/// `/openapi/v3`: where the document of each group and version is. The hash in the address changes
/// with the document, so that clients may keep what they have.
pub fn v3_index<'a>(kinds: impl IntoIterator<Item = &'a Kind>) -> Value {
    let mut hashes: Vec<(String, DefaultHasher)> = Vec::new();
    for kind in kinds {
        let path = if kind.group.is_empty() {
            format!("api/{}", kind.version)
        } else {
            format!("apis/{}/{}", kind.group, kind.version)
        };
        let at = hashes
            .iter()
            .position(|(p, _)| *p == path)
            .unwrap_or_else(|| {
                hashes.push((path, DefaultHasher::new()));
                hashes.len() - 1
            });
        let hasher = &mut hashes[at].1;
        (
            env!("CARGO_PKG_VERSION"),
            &kind.kind,
            &kind.resource,
            &kind.verbs,
            kind.namespaced,
        )
            .hash(hasher);
        kind.schema.name().hash(hasher);
        if let Some(custom) = &kind.custom {
            custom.written.to_string().hash(hasher);
        } else if let Some(schema) = kind.schema.get() {
            format!("{schema:?}").hash(hasher);
        }
    }
    let mut paths = serde_json::Map::new();
    for (path, hasher) in hashes {
        let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/api/v1` or `/openapi/v3/apis/<group>/<version>`; `None` if no kind is in it.
pub fn v3<'a>(
    kinds: impl IntoIterator<Item = &'a Kind>,
    group: &str,
    version: &str,
) -> Option<Bytes> {
    let kinds: Vec<&Kind> = kinds
        .into_iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let words = Descriptions::load();
    let mut out = Writer::new(br#"{"components":{"schemas":{"#);
    schemas::each(&kinds, Dialect::V3, &words, &mut |name, schema| {
        out.entry(name, schema)
    });
    out.raw(br#"},"securitySchemes":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}}},"#);
    out.raw(
        format!(
            r#""info":{{"title":"{TITLE}","version":"unversioned"}},"openapi":"3.0.0","paths":{{"#
        )
        .as_bytes(),
    );
    paths::each(&kinds, Dialect::V3, &mut |path, item| out.entry(path, item));
    out.raw(b"}}");
    Some(out.finish())
}

/// `/openapi/v2` as JSON: every kind in one document, with what other servers say, the most important first.
pub fn v2<'a>(kinds: impl IntoIterator<Item = &'a Kind>, foreign: &[&Foreign]) -> Bytes {
    let document = V2::new(kinds, foreign);
    let head = format!(
        r#"{{"swagger":"2.0","info":{{"title":"{TITLE}","version":"{}"}},"paths":{{"#,
        env!("CARGO_PKG_VERSION")
    );
    let mut out = Writer::new(head.as_bytes());
    document.paths(&mut |path, item| out.entry(path, item));
    out.raw(br#"},"definitions":{"#);
    document.definitions(&mut |name, schema| out.entry(name, schema));
    out.raw(br#"},"securityDefinitions":{"BearerToken":{"description":"Bearer Token authentication","in":"header","name":"authorization","type":"apiKey"}},"security":[{"BearerToken":[]}]}"#);
    out.finish()
}

/// `/openapi/v2` in gnostic's protobuf form, see [`V2_PROTOBUF`].
pub fn v2_protobuf<'a>(kinds: impl IntoIterator<Item = &'a Kind>, foreign: &[&Foreign]) -> Bytes {
    let document = V2::new(kinds, foreign);
    let mut out = proto::Document::new(TITLE, env!("CARGO_PKG_VERSION"));
    document.paths(&mut |path, item| out.path(path, &item));
    document.definitions(&mut |name, schema| out.definition(name, &schema));
    out.finish()
}

/// What both forms of the v2 document say.
struct V2<'a> {
    kinds: Vec<&'a Kind>,
    words: Descriptions,
    joined: Joined,
}

impl<'a> V2<'a> {
    fn new(kinds: impl IntoIterator<Item = &'a Kind>, foreign: &[&Foreign]) -> Self {
        let kinds: Vec<&Kind> = kinds.into_iter().collect();
        let words = Descriptions::load();
        let mut joined = Joined::default();
        if !foreign.is_empty() {
            let (mut known, mut local) = (BTreeSet::new(), BTreeMap::new());
            paths::each(&kinds, Dialect::V2, &mut |path, _| {
                known.insert(path.to_owned());
            });
            schemas::each(&kinds, Dialect::V2, &words, &mut |name, schema| {
                local.insert(name.to_owned(), schema);
            });
            joined = Joined::new(foreign, &known, &local);
        }
        Self {
            kinds,
            words,
            joined,
        }
    }

    fn paths(&self, emit: &mut dyn FnMut(&str, Value)) {
        paths::each(&self.kinds, Dialect::V2, emit);
        for (path, item) in &self.joined.paths {
            emit(path, item.clone());
        }
    }

    fn definitions(&self, emit: &mut dyn FnMut(&str, Value)) {
        let each = &mut |name: &str, mut schema: Value| {
            self.joined.complete(name, &mut schema);
            emit(name, schema);
        };
        schemas::each(&self.kinds, Dialect::V2, &self.words, each);
        for (name, schema) in &self.joined.definitions {
            emit(name, schema.clone());
        }
    }
}

/// Writes the entries of a JSON object one after the other.
struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn new(head: &[u8]) -> Self {
        Self { out: head.to_vec() }
    }

    fn raw(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn entry(&mut self, key: &str, value: Value) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        // Writing JSON trees to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.out, key);
        self.out.push(b':');
        let _ = serde_json::to_writer(&mut self.out, &value);
    }

    fn finish(self) -> Bytes {
        self.out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v3_documents() {
        let kinds = api::kinds();
        let index = v3_index(kinds);
        assert!(
            index["paths"]["apis/apps/v1"]["serverRelativeURL"]
                .as_str()
                .unwrap()
                .starts_with("/openapi/v3/apis/apps/v1?hash=")
        );
        for path in index["paths"].as_object().unwrap().keys() {
            let (group, version) = path
                .strip_prefix("apis/")
                .map_or(("", "v1"), |p| p.split_once('/').unwrap());
            let doc: Value = serde_json::from_slice(&v3(kinds, group, version).unwrap()).unwrap();
            check_references(&doc, &doc["components"]["schemas"], "#/components/schemas/");
        }
        let apps: Value = serde_json::from_slice(&v3(kinds, "apps", "v1").unwrap()).unwrap();
        let strategy = &apps["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]
            ["strategy"];
        assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
        let patch =
            &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(
            patch["x-kubernetes-group-version-kind"]["kind"],
            "Deployment"
        );
        assert!(
            patch["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|p| p["name"] == "fieldValidation")
        );
        assert_eq!(
            apps["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"]
                [0]["kind"],
            "Deployment"
        );
        assert!(v3(kinds, "nope", "v1").is_none());
    }

    #[test]
    fn v2_documents() {
        let doc: Value = serde_json::from_slice(&v2(api::kinds(), &[])).unwrap();
        check_references(&doc, &doc["definitions"], "#/definitions/");
        assert!(doc["paths"].as_object().unwrap().len() > 200);
        let replicas =
            &doc["definitions"]["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"];
        assert!(replicas["description"].as_str().unwrap().contains("pods"));
        let proto = v2_protobuf(api::kinds(), &[]);
        assert!(proto.len() > 100_000);
        assert_eq!(&proto[..5], b"\x0a\x032.0");
    }

    fn check_references(at: &Value, defined: &Value, prefix: &str) {
        match at {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    let name = target.strip_prefix(prefix).unwrap();
                    assert!(defined.get(name).is_some(), "{name}");
                }
                map.values()
                    .for_each(|v| check_references(v, defined, prefix));
            }
            Value::Array(items) => items
                .iter()
                .for_each(|v| check_references(v, defined, prefix)),
            _ => {}
        }
    }
}
