//! What a request asks for, read from its method, path and query alone.
//!
//! The rules are upstream's: they decide what is authorized, so they are pure and tested by tables.

use std::collections::BTreeMap;

use http::Method;

/// Query parameters in order of appearance, percent-decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the part of a URL after `?`.
    pub fn parse(raw: &str) -> Self {
        Self(
            raw.split('&')
                .filter(|p| !p.is_empty())
                .map(|p| {
                    let (k, v) = p.split_once('=').unwrap_or((p, ""));
                    (decode(k, true), decode(v, true))
                })
                .collect(),
        )
    }

    /// First value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// First value unless it is empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// A boolean as upstream's query decoding reads it: present but empty, `1` or `true` are true.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// A request as authorization and dispatch see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether an API resource is meant; otherwise only `path` and `verb` count.
    pub is_resource: bool,
    /// The path of the URL, not decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or the lower-case
    /// method of a non-resource request.
    pub verb: String,
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty if none is named.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// First path segment below the object, or empty.
    pub subresource: String,
    /// Name of the object, or empty.
    pub name: String,
    /// Path segments after the subresource.
    pub rest: Vec<String>,
    /// Whether the URL itself carries an object name (a field selector may have supplied `name`).
    pub name_in_path: bool,
}

/// Percent-decoding; `plus` also turns `+` into a space as in queries. Broken escapes stay as they are.
pub fn decode(s: &str, plus: bool) -> String {
    let bytes = s.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b'%' | b'+')) {
        return s.to_owned();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        match bytes[i] {
            b'%' if i + 2 < bytes.len() => match (hex(bytes[i + 1]), hex(bytes[i + 2])) {
                (Some(h), Some(l)) => {
                    out.push(h * 16 + l);
                    i += 3;
                    continue;
                }
                _ => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Subresources of a namespace that are written where a namespaced resource would stand.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self {
            path: path.to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(|s| decode(s, false))
            .collect();
        let rest = match segments.first().map(String::as_str) {
            Some("api") if segments.len() >= 3 => {
                info.version = segments[1].clone();
                &segments[2..]
            }
            Some("apis") if segments.len() >= 4 => {
                info.group = segments[1].clone();
                info.version = segments[2].clone();
                &segments[3..]
            }
            _ => return info,
        };
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        let legacy_watch = rest.len() > 1 && rest[0] == "watch";
        info.resource_parts(if legacy_watch { &rest[1..] } else { rest });
        info.collection_verb(query, legacy_watch);
        info
    }

    fn resource_parts(&mut self, parts: &[String]) {
        let parts = match parts {
            [ns, name, tail @ ..] if ns == "namespaces" => {
                self.namespace = name.clone();
                match tail.first() {
                    Some(r) if !NAMESPACE_SUBRESOURCES.contains(&r.as_str()) => tail,
                    _ => parts,
                }
            }
            _ => parts,
        };
        let mut parts = parts.iter();
        self.resource = parts.next().cloned().unwrap_or_default();
        if let Some(name) = parts.next() {
            self.name = name.clone();
            self.name_in_path = true;
        }
        self.subresource = parts.next().cloned().unwrap_or_default();
        self.rest = parts.cloned().collect();
    }

    fn collection_verb(&mut self, query: &Query, legacy_watch: bool) {
        if legacy_watch && self.verb == "get" {
            self.verb = "watch".to_owned();
        } else if !self.name_in_path && self.verb == "get" {
            self.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
        } else if !self.name_in_path && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        } else if self.name_in_path
            && self.subresource.is_empty()
            && self.verb == "get"
            && query.flag("watch")
        {
            self.verb = "watch".to_owned();
        }
        if !self.name_in_path
            && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            && let Some(name) = query.get("fieldSelector").and_then(name_of_selector)
        {
            self.name = name;
        }
    }

    /// Whether the answer streams for as long as the client likes: such requests have no time-out.
    pub fn long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(
                self.subresource.as_str(),
                "exec" | "attach" | "portforward" | "log" | "proxy"
            )
    }
}

/// The name that `metadata.name=x` asks for.
fn name_of_selector(selector: &str) -> Option<String> {
    let terms: BTreeMap<&str, &str> = selector
        .split(',')
        .filter(|t| !t.contains("!="))
        .filter_map(|t| t.split_once("==").or_else(|| t.split_once('=')))
        .collect();
    terms
        .get("metadata.name")
        .filter(|n| !n.is_empty() && !n.contains('/'))
        .map(|n| (*n).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn resources() {
        // method, uri, verb, group, version, namespace, resource, name, subresource
        #[rustfmt::skip]
        let cases = [
            ("GET", "/api/v1/pods", "list", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/pods?watch=true", "watch", "", "v1", "", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch", "", "v1", "a", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a/pods/p", "get", "", "v1", "a", "pods", "p", ""),
            ("HEAD", "/api/v1/namespaces/a/pods/p/log", "get", "", "v1", "a", "pods", "p", "log"),
            ("PUT", "/api/v1/namespaces/a/status", "update", "", "v1", "a", "namespaces", "a", "status"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", "", "v1", "a", "namespaces", "a", "finalize"),
            ("GET", "/api/v1/namespaces/a", "get", "", "v1", "a", "namespaces", "a", ""),
            ("GET", "/api/v1/namespaces", "list", "", "v1", "", "namespaces", "", ""),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection", "apps", "v1", "a", "deployments", "", ""),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch", "apps", "v1", "a", "deployments", "d", "scale"),
            ("GET", "/api/v1/nodes?fieldSelector=metadata.name%3Dn1", "list", "", "v1", "", "nodes", "n1", ""),
            ("POST", "/api/v1/namespaces/a/services/s:http/proxy/x/y", "create", "", "v1", "a", "services", "s:http", "proxy"),
        ];
        for (m, uri, verb, group, version, ns, resource, name, sub) in cases {
            let i = info(m, uri);
            assert!(i.is_resource, "{uri}");
            assert_eq!(
                (
                    i.verb.as_str(),
                    i.group.as_str(),
                    i.version.as_str(),
                    i.namespace.as_str()
                ),
                (verb, group, version, ns),
                "{uri}"
            );
            assert_eq!(
                (i.resource.as_str(), i.name.as_str(), i.subresource.as_str()),
                (resource, name, sub),
                "{uri}"
            );
        }
        assert_eq!(
            info("GET", "/api/v1/namespaces/a/services/s/proxy/x/y").rest,
            ["x", "y"]
        );
    }

    #[test]
    fn non_resources() {
        for uri in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/openapi/v3/api/v1",
        ] {
            let i = info("GET", uri);
            assert!(!i.is_resource, "{uri}");
            assert_eq!(i.verb, "get");
        }
    }

    #[test]
    fn queries() {
        let q = Query::parse("a=1&b&c=x%2Cy+z&a=2&d=false");
        assert_eq!(q.get("a"), Some("1"));
        assert_eq!(q.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert!(q.flag("b") && !q.flag("d") && !q.flag("e"));
        assert_eq!(q.get("c"), Some("x,y z"));
        assert_eq!(decode("%zz%4", false), "%zz%4");
    }
}
