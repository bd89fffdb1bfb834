//! Paths and operations of kinds.
//!
//! Clients read three things here: which kind an operation is about, which query parameters it takes
//! (`dryRun`, `fieldValidation`), and which bodies it takes and gives.

use api::{Kind, Subresource};
use serde_json::{Map, Value, json};

use super::schemas::{DELETE_OPTIONS, Dialect, PATCH, STATUS, list_name, subresource_name};

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCHING: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const DELETING: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "orphanDependents",
    "propagationPolicy",
];
const LISTING: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Custom kinds have no merge keys for a strategic merge.
const CUSTOM_PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
const MEDIA_TYPES: &[&str] = &["application/json", "application/yaml"];

/// One operation to write.
struct Op<'a> {
    /// HTTP method, in lower case.
    method: &'static str,
    action: &'static str,
    id: String,
    gvk: (&'a str, &'a str, &'a str),
    query: &'static [&'static str],
    body: Option<String>,
    answer: Option<String>,
    tag: String,
    custom: bool,
}

/// Calls `emit` with every path of the kinds and its operations.
pub(super) fn each(kinds: &[&Kind], dialect: Dialect, emit: &mut dyn FnMut(&str, Value)) {
    for kind in kinds {
        let base = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let collection = if kind.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", kind.resource)
        } else {
            format!("{base}/{}", kind.resource)
        };
        emit_item(&collection, collection_ops(kind), dialect, emit);
        if kind.namespaced && kind.has_verb("list") {
            emit_item(
                &format!("{base}/{}", kind.resource),
                vec![list_op(kind, "ForAllNamespaces")],
                dialect,
                emit,
            );
        }
        let object = format!("{collection}/{{name}}");
        emit_item(&object, object_ops(kind), dialect, emit);
        for sub in &kind.subresources {
            emit_item(
                &format!("{object}/{}", sub.name),
                subresource_ops(kind, sub),
                dialect,
                emit,
            );
        }
    }
}

/// `AppsV1NamespacedDeployment` between the verb and the suffix of an operation's name.
fn subject(kind: &Kind) -> String {
    let group = kind
        .group
        .split('.')
        .next()
        .filter(|g| !g.is_empty())
        .unwrap_or("core");
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    format!(
        "{}{}{scope}{}",
        capital(group),
        capital(&kind.version),
        kind.kind
    )
}

fn tag(kind: &Kind) -> String {
    let group = kind
        .group
        .split('.')
        .next()
        .filter(|g| !g.is_empty())
        .unwrap_or("core");
    format!("{group}_{}", kind.version)
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn op<'a>(kind: &'a Kind, method: &'static str, action: &'static str, id: String) -> Op<'a> {
    let gvk = (
        kind.group.as_str(),
        kind.version.as_str(),
        kind.kind.as_str(),
    );
    Op {
        method,
        action,
        id,
        gvk,
        query: &[],
        body: None,
        answer: Some(kind.schema.name().to_owned()),
        tag: tag(kind),
        custom: kind.custom.is_some(),
    }
}

fn list_op<'a>(kind: &'a Kind, suffix: &str) -> Op<'a> {
    let name = if suffix.is_empty() {
        subject(kind)
    } else {
        subject(kind).replace("Namespaced", "")
    };
    Op {
        query: LISTING,
        answer: Some(list_name(kind)),
        ..op(kind, "get", "list", format!("list{name}{suffix}"))
    }
}

fn collection_ops(kind: &Kind) -> Vec<Op<'_>> {
    let mut out = Vec::new();
    if kind.has_verb("list") {
        out.push(list_op(kind, ""));
    }
    if kind.has_verb("create") {
        let body = Some(kind.schema.name().to_owned());
        out.push(Op {
            query: WRITE,
            body,
            ..op(kind, "post", "post", format!("create{}", subject(kind)))
        });
    }
    if kind.has_verb("deletecollection") {
        let id = format!(
            "delete{}",
            subject(kind).replacen("Namespaced", "CollectionNamespaced", 1)
        );
        let (body, answer) = (Some(DELETE_OPTIONS.to_owned()), Some(STATUS.to_owned()));
        out.push(Op {
            query: DELETING,
            body,
            answer,
            ..op(kind, "delete", "deletecollection", id)
        });
    }
    out
}

fn object_ops(kind: &Kind) -> Vec<Op<'_>> {
    let mut out = Vec::new();
    let name = subject(kind);
    if kind.has_verb("get") {
        out.push(op(kind, "get", "get", format!("read{name}")));
    }
    if kind.has_verb("update") {
        let body = Some(kind.schema.name().to_owned());
        out.push(Op {
            query: WRITE,
            body,
            ..op(kind, "put", "put", format!("replace{name}"))
        });
    }
    if kind.has_verb("patch") {
        out.push(Op {
            query: PATCHING,
            body: Some(PATCH.to_owned()),
            ..op(kind, "patch", "patch", format!("patch{name}"))
        });
    }
    if kind.has_verb("delete") {
        let (body, answer) = (Some(DELETE_OPTIONS.to_owned()), Some(STATUS.to_owned()));
        out.push(Op {
            query: DELETING,
            body,
            answer,
            ..op(kind, "delete", "delete", format!("delete{name}"))
        });
    }
    out
}

fn subresource_ops<'a>(kind: &'a Kind, sub: &'a Subresource) -> Vec<Op<'a>> {
    let own = (sub.group == kind.group && sub.kind == kind.kind).then(|| kind.schema.name());
    let schema = own.map(str::to_owned).or_else(|| subresource_name(sub));
    let name = format!("{}{}", subject(kind), capital(&sub.name));
    let connects = matches!(
        sub.name.as_str(),
        "exec" | "attach" | "portforward" | "proxy"
    );
    let mut out = Vec::new();
    for (verb, method, action, prefix) in [
        ("get", "get", "get", "read"),
        ("update", "put", "put", "replace"),
        ("patch", "patch", "patch", "patch"),
        ("create", "post", "post", "create"),
        ("delete", "delete", "delete", "delete"),
    ] {
        if !sub.verbs.iter().any(|v| v == verb) {
            continue;
        }
        let id = if connects {
            format!("connect{}{name}", capital(method))
        } else {
            format!("{prefix}{name}")
        };
        let (query, body) = match verb {
            _ if connects => (&[][..], None),
            "update" | "create" => (WRITE, schema.clone()),
            "patch" => (PATCHING, Some(PATCH.to_owned())),
            _ => (&[][..], None),
        };
        let answer = if connects || sub.name == "log" {
            None
        } else {
            schema.clone()
        };
        let gvk = (sub.group.as_str(), sub.version.as_str(), sub.kind.as_str());
        let action = if connects { "connect" } else { action };
        out.push(Op {
            method,
            action,
            id,
            gvk,
            query,
            body,
            answer,
            tag: tag(kind),
            custom: kind.custom.is_some(),
        });
    }
    out
}

fn emit_item(path: &str, ops: Vec<Op<'_>>, dialect: Dialect, emit: &mut dyn FnMut(&str, Value)) {
    if ops.is_empty() {
        return;
    }
    let mut item = Map::new();
    for op in ops {
        item.insert(op.method.to_owned(), op.write(dialect));
    }
    let in_path = ["name", "namespace"]
        .into_iter()
        .filter(|p| path.contains(&format!("{{{p}}}")));
    let mut parameters: Vec<Value> = in_path.map(|p| parameter(p, "path", dialect)).collect();
    parameters.push(parameter("pretty", "query", dialect));
    item.insert("parameters".to_owned(), Value::Array(parameters));
    emit(path, Value::Object(item));
}

fn parameter(name: &str, place: &str, dialect: Dialect) -> Value {
    let kind = match name {
        "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => {
            "boolean"
        }
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        _ => "string",
    };
    let mut out = json!({"name": name, "in": place});
    match dialect {
        Dialect::V2 => {
            out["type"] = kind.into();
            out["uniqueItems"] = true.into();
        }
        Dialect::V3 => out["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if place == "path" {
        out["required"] = true.into();
    }
    out
}

impl Op<'_> {
    fn write(&self, dialect: Dialect) -> Value {
        let (group, version, kind) = self.gvk;
        let mut parameters: Vec<Value> = self
            .query
            .iter()
            .map(|name| parameter(name, "query", dialect))
            .collect();
        let mut out = json!({"operationId": self.id, "tags": [self.tag]});
        let body_types = if self.method == "patch" && self.custom {
            CUSTOM_PATCH_TYPES
        } else if self.method == "patch" {
            PATCH_TYPES
        } else {
            MEDIA_TYPES
        };
        // Deletes may come without a body.
        let required = self.method != "delete";
        if let Some(body) = &self.body {
            match dialect {
                Dialect::V2 => {
                    out["consumes"] = json!(body_types);
                    parameters.insert(0, json!({"in": "body", "name": "body", "required": required, "schema": dialect.reference(body)}));
                }
                Dialect::V3 => {
                    let types: Map<String, Value> = body_types
                        .iter()
                        .map(|t| ((*t).to_owned(), json!({"schema": dialect.reference(body)})))
                        .collect();
                    out["requestBody"] = json!({"content": types, "required": required});
                }
            }
        }
        if dialect == Dialect::V2 {
            out["produces"] = json!(MEDIA_TYPES);
        }
        if !parameters.is_empty() {
            out["parameters"] = parameters.into();
        }
        out["responses"] = self.responses(dialect);
        out["x-kubernetes-action"] = self.action.into();
        out["x-kubernetes-group-version-kind"] =
            json!({"group": group, "kind": kind, "version": version});
        out
    }

    fn responses(&self, dialect: Dialect) -> Value {
        let schema = || {
            self.answer
                .as_ref()
                .map_or_else(|| json!({"type": "string"}), |name| dialect.reference(name))
        };
        let answer = |words: &str| match dialect {
            Dialect::V2 => json!({"description": words, "schema": schema()}),
            Dialect::V3 => {
                let types: Map<String, Value> = MEDIA_TYPES
                    .iter()
                    .map(|t| ((*t).to_owned(), json!({"schema": schema()})))
                    .collect();
                json!({"description": words, "content": types})
            }
        };
        let mut out = json!({"200": answer("OK"), "401": {"description": "Unauthorized"}});
        if matches!(self.method, "post" | "put" | "patch") && self.action != "connect" {
            out["201"] = answer("Created");
        }
        out
    }
}
