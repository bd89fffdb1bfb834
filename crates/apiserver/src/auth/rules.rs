//! Policy rules: what a Role or ClusterRole grants, and whether a request falls under it.

use serde::{Deserialize, Serialize};

use super::Attributes;

/// One rule of a role, as in `rbac.authorization.k8s.io/v1` `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs granted; `*` is all.
    pub verbs: Vec<String>,
    /// API groups; `*` is all, the empty string is the core group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Object names; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths that are no resources; a final `*` matches any rest.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether the rule grants `request`.
    pub fn grants(&self, request: &Attributes) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if request.resource.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|url| url_matches(url, &request.path));
        }
        has(&self.api_groups, &request.group)
            && self.resource_matches(request)
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }

    fn resource_matches(&self, request: &Attributes) -> bool {
        let asked = request.resource_with_subresource();
        self.resources.iter().any(|resource| {
            resource == "*"
                || *resource == asked
                || (!request.subresource.is_empty()
                    && resource
                        .strip_prefix("*/")
                        .is_some_and(|sub| sub == request.subresource))
        })
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, group: &str, resources: &str, names: &[&str]) -> Rule {
        let words = |s: &str| s.split(' ').map(str::to_owned).collect();
        Rule {
            verbs: words(verbs),
            api_groups: vec![group.to_owned()],
            resources: words(resources),
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            non_resource_urls: Vec::new(),
        }
    }

    fn ask(verb: &str, group: &str, resource: &str, sub: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_grant_by_verb_group_resource_subresource_and_name() {
        let cases = [
            (
                rule("get list", "", "pods", &[]),
                ask("get", "", "pods", "", "a"),
                true,
            ),
            (
                rule("get", "", "pods", &[]),
                ask("list", "", "pods", "", ""),
                false,
            ),
            (
                rule("get", "", "pods", &[]),
                ask("get", "", "pods", "log", "a"),
                false,
            ),
            (
                rule("get", "", "pods/log", &[]),
                ask("get", "", "pods", "log", "a"),
                true,
            ),
            (
                rule("get", "", "*/log", &[]),
                ask("get", "", "pods", "log", "a"),
                true,
            ),
            (
                rule("get", "", "*/log", &[]),
                ask("get", "", "pods", "", "a"),
                false,
            ),
            (
                rule("*", "*", "*", &[]),
                ask("delete", "apps", "deployments", "scale", "a"),
                true,
            ),
            (
                rule("get", "apps", "pods", &[]),
                ask("get", "", "pods", "", "a"),
                false,
            ),
            (
                rule("get", "", "pods", &["a"]),
                ask("get", "", "pods", "", "a"),
                true,
            ),
            (
                rule("get", "", "pods", &["a"]),
                ask("get", "", "pods", "", "b"),
                false,
            ),
            (
                rule("list", "", "pods", &["a"]),
                ask("list", "", "pods", "", ""),
                false,
            ),
        ];
        for (rule, request, granted) in cases {
            assert_eq!(rule.grants(&request), granted, "{rule:?} {request:?}");
        }
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        let rule = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/apis/*".into()],
            ..Rule::default()
        };
        for (path, granted) in [
            ("/healthz", true),
            ("/healthz/etcd", false),
            ("/apis/apps", true),
            ("/apis", false),
        ] {
            let request = Attributes {
                verb: "get".into(),
                path: path.into(),
                ..Attributes::default()
            };
            assert_eq!(rule.grants(&request), granted, "{path}");
        }
    }
}
