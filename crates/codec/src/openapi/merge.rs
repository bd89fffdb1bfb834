//! Documents of other API servers, made part of the v2 document of this one.
//!
//! What is said here already stays as it is: of another document come the paths that are not known yet, with the
//! definitions they use. A definition that says something else under a known name gets a name of its own; one that
//! says the same is shared, with the kinds of both.
//!
//! Other servers' documents are whatever they send: nothing here trusts their form.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

const DEFINITION: &str = "#/definitions/";
const PARAMETER: &str = "#/parameters/";
/// The kinds that a definition is about.
const KINDS: &str = "x-kubernetes-group-version-kind";

/// What another server says about one group and version.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
}

impl Foreign {
    /// The part of a v2 document that is below a path, which ends with a slash; `None` if it is no document.
    pub fn below(document: &Value, prefix: &str) -> Option<Self> {
        let part = |name: &str| document.get(name).and_then(Value::as_object);
        let all = part("paths")?;
        let definitions = part("definitions").cloned().unwrap_or_default();
        // What nothing used before is kept: it is not the paths that left which made it useless.
        let unused = unused(&definitions, all);
        let parameters = part("parameters").cloned().unwrap_or_default();
        let mut paths = all.clone();
        paths.retain(|path, _| path.starts_with(prefix));
        let inline = |reference: &str| parameters.get(reference.strip_prefix(PARAMETER)?).cloned();
        paths.values_mut().for_each(|item| replace(item, &inline));
        let mut out = Self { paths, definitions };
        out.sweep(&unused);
        Some(out)
    }

    /// Removes definitions that no path leads to.
    fn sweep(&mut self, kept: &BTreeSet<String>) {
        let unused = unused(&self.definitions, &self.paths);
        self.definitions
            .retain(|name, _| kept.contains(name) || !unused.contains(name));
    }
}

/// Names of definitions that neither paths nor other definitions refer to.
fn unused(definitions: &Map<String, Value>, paths: &Map<String, Value>) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut open: Vec<&Value> = paths.values().collect();
    let mut reached = Vec::new();
    while let Some(value) = open.pop() {
        references(value, &mut reached);
        for name in reached.drain(..) {
            if used.insert(name)
                && let Some(definition) = definitions.get(name)
            {
                open.push(definition);
            }
        }
    }
    let names = definitions.keys();
    names
        .filter(|n| !used.contains(n.as_str()))
        .cloned()
        .collect()
}

/// Names of the definitions that a value refers to.
fn references<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            let target = map.get("$ref").and_then(Value::as_str);
            out.extend(target.and_then(|t| t.strip_prefix(DEFINITION)));
            map.values().for_each(|v| references(v, out));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

/// Replaces references by what `by` gives for them.
fn replace(value: &mut Value, by: &dyn Fn(&str) -> Option<Value>) {
    let target = value.get("$ref").and_then(Value::as_str);
    if let Some(other) = target.and_then(by) {
        *value = other;
        return;
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|v| replace(v, by)),
        Value::Array(items) => items.iter_mut().for_each(|v| replace(v, by)),
        _ => {}
    }
}

/// Whether two definitions say the same but for the kinds they are about.
fn same(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let rest = |of: &Map<String, Value>| of.len() - usize::from(of.contains_key(KINDS));
    let told = |(key, value): (&String, &Value)| key == KINDS || b.get(key) == Some(value);
    rest(a) == rest(b) && a.iter().all(told)
}

/// What is added to the document of this server.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Paths that are not known here.
    pub paths: Vec<(String, Value)>,
    /// Definitions by names that are not known here.
    pub definitions: BTreeMap<String, Value>,
    /// Kinds that definitions known here are about as well.
    kinds: HashMap<String, Vec<Value>>,
}

impl Joined {
    /// Joins documents, the first ones first, with the paths and definitions of this server.
    pub fn new(
        foreign: &[&Foreign],
        paths: &BTreeSet<String>,
        local: &BTreeMap<String, Value>,
    ) -> Self {
        let mut out = Self::default();
        let mut paths = paths.clone();
        for document in foreign {
            let mut document = (*document).clone();
            let before = document.paths.len();
            document.paths.retain(|path, _| !paths.contains(path));
            if document.paths.is_empty() {
                continue;
            }
            if document.paths.len() < before {
                document.sweep(&BTreeSet::new());
            }
            paths.extend(document.paths.keys().cloned());
            out.add(document, local);
        }
        out
    }

    fn find<'a>(&'a self, name: &str, local: &'a BTreeMap<String, Value>) -> Option<&'a Value> {
        self.definitions.get(name).or_else(|| local.get(name))
    }

    fn add(&mut self, document: Foreign, local: &BTreeMap<String, Value>) {
        let Foreign {
            mut paths,
            definitions,
        } = document;
        let mut renamed: HashMap<String, String> = HashMap::new();
        let mut taken: BTreeSet<String> = BTreeSet::new();
        for (name, definition) in &definitions {
            let unlike = |known: Option<&Value>| known.is_some_and(|k| !same(k, definition));
            if !unlike(self.find(name, local)) {
                continue;
            }
            let mut number = 2;
            let free = loop {
                let next = format!("{name}_v{number}");
                let known = self.find(&next, local);
                let theirs = known.is_none() && definitions.contains_key(&next);
                if !unlike(known) && !theirs && !taken.contains(&next) {
                    break next;
                }
                number += 1;
            };
            taken.insert(free.clone());
            renamed.insert(format!("{DEFINITION}{name}"), free);
        }
        let rename = |reference: &str| {
            let name = renamed.get(reference)?;
            Some(serde_json::json!({"$ref": format!("{DEFINITION}{name}")}))
        };
        for (name, mut definition) in definitions {
            replace(&mut definition, &rename);
            let new = renamed.get(&format!("{DEFINITION}{name}"));
            let name = new.cloned().unwrap_or(name);
            if let Some(known) = self.definitions.get_mut(&name) {
                let more = kinds_of(&definition).to_vec();
                add_kinds(known, &more);
            } else if local.contains_key(&name) {
                let more = kinds_of(&definition).iter().cloned();
                self.kinds.entry(name).or_default().extend(more);
            } else {
                self.definitions.insert(name, definition);
            }
        }
        paths.values_mut().for_each(|item| replace(item, &rename));
        self.paths.extend(paths);
    }

    /// Adds to a definition of this server what others say it is about.
    pub fn complete(&self, name: &str, definition: &mut Value) {
        if let Some(more) = self.kinds.get(name) {
            add_kinds(definition, more);
        }
    }
}

fn kinds_of(definition: &Value) -> &[Value] {
    let kinds = definition.get(KINDS).and_then(Value::as_array);
    kinds.map_or(&[], Vec::as_slice)
}

fn add_kinds(definition: &mut Value, more: &[Value]) {
    let Some(map) = definition.as_object_mut() else {
        return;
    };
    let mut all = map.get(KINDS).and_then(Value::as_array).cloned();
    for kind in more {
        let all = all.get_or_insert_default();
        if !all.contains(kind) {
            all.push(kind.clone());
        }
    }
    if let Some(all) = all {
        map.insert(KINDS.to_owned(), all.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        json!({"swagger": "2.0", "paths": {
            "/apis/a.io/v1/things": {"get": {"parameters": [{"$ref": "#/parameters/pretty"}],
                "responses": {"200": {"schema": {"$ref": "#/definitions/Thing"}}}}},
            "/apis/b.io/v1/others": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Other"}}}}},
        }, "definitions": {
            "Thing": {"type": "object", "properties": {"meta": {"$ref": "#/definitions/Meta"}, "options": {"$ref": "#/definitions/Options"}}},
            "Other": {"type": "object"},
            "Loose": {"type": "string"},
            "Meta": {"type": "object", "description": "theirs", "properties": {"again": {"$ref": "#/definitions/Meta"}}},
            "Options": {"type": "object", KINDS: [{"kind": "Options", "version": "v1", "group": "a.io"}]},
        }, "parameters": {"pretty": {"name": "pretty", "in": "query", "type": "string"}}})
    }

    #[test]
    fn one_group_and_version_is_taken() {
        let found = Foreign::below(&document(), "/apis/a.io/v1/").unwrap();
        let paths: Vec<&String> = found.paths.keys().collect();
        assert_eq!(paths, ["/apis/a.io/v1/things"]);
        assert_eq!(
            found.paths["/apis/a.io/v1/things"]["get"]["parameters"][0]["name"],
            "pretty"
        );
        let mut names: Vec<&String> = found.definitions.keys().collect();
        names.sort();
        assert_eq!(names, ["Loose", "Meta", "Options", "Thing"]);
        for other in [json!(null), json!([]), json!({"paths": 1}), json!("x")] {
            assert_eq!(Foreign::below(&other, "/"), None);
        }
        let odd = json!({"paths": {"/a": {"get": [1, {"$ref": 7}]}}, "definitions": {"A": null}});
        assert!(Foreign::below(&odd, "/").is_some());
    }

    #[test]
    fn what_differs_is_renamed_and_what_does_not_is_shared() {
        let found = Foreign::below(&document(), "/apis/a.io/v1/").unwrap();
        let local: BTreeMap<String, Value> = [
            ("Meta", json!({"type": "object", "description": "ours"})),
            ("Meta_v2", json!({"type": "object", "description": "another"})),
            (
                "Options",
                json!({"type": "object", KINDS: [{"kind": "Options", "version": "v1", "group": ""}]}),
            ),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into();
        let joined = Joined::new(&[&found, &found], &BTreeSet::new(), &local);
        assert_eq!(joined.paths.len(), 1, "the same path again is left out");
        let names: Vec<&String> = joined.definitions.keys().collect();
        assert_eq!(names, ["Loose", "Meta_v3", "Thing"]);
        let properties = &joined.definitions["Thing"]["properties"];
        assert_eq!(properties["meta"]["$ref"], "#/definitions/Meta_v3");
        assert_eq!(properties["options"]["$ref"], "#/definitions/Options");
        assert_eq!(
            joined.definitions["Meta_v3"]["properties"]["again"]["$ref"],
            "#/definitions/Meta_v3"
        );
        let mut options = local["Options"].clone();
        joined.complete("Options", &mut options);
        assert_eq!(kinds_of(&options).len(), 2);
    }

    #[test]
    fn paths_of_this_server_stay() {
        let found = Foreign::below(&document(), "/apis/a.io/v1/").unwrap();
        let known = BTreeSet::from(["/apis/a.io/v1/things".to_owned()]);
        let joined = Joined::new(&[&found], &known, &BTreeMap::new());
        assert!(joined.paths.is_empty() && joined.definitions.is_empty());
    }
}
