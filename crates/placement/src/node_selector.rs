//! Node selectors: labels and the name of a node against terms.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};

/// Whether a pod may be on the node by its node selector and by what its affinity requires.
pub fn attracts<'a>(
    wanted: impl IntoIterator<Item = (&'a String, &'a String)>,
    affinity: Option<&NodeAffinity>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    wanted.into_iter().all(|(k, v)| labels.get(k) == Some(v))
        && required.is_none_or(|r| matches(r, name, labels))
}

/// As [`attracts`], by the specification of a pod.
pub fn suits(spec: &PodSpec, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let affinity = spec.affinity.as_ref();
    let affinity = affinity.and_then(|a| a.node_affinity.as_ref());
    attracts(spec.node_selector.iter().flatten(), affinity, name, labels)
}

/// Whether any term matches.
pub fn matches(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| term_matches(term, name, labels))
}

/// Whether all requirements of a term hold; a term without any matches nothing.
pub fn term_matches(
    term: &NodeSelectorTerm,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let field = |key: &str| (key == "metadata.name").then_some(name);
    expressions
        .iter()
        .all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| holds(r, field(&r.key)))
}

/// The requirements of the term that comes closest to matching which do not hold, as people read them.
pub fn unmet(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> String {
    let of_term = |term: &NodeSelectorTerm| {
        let expressions = term.match_expressions.iter().flatten();
        let labels = expressions.map(|r| (r, labels.get(&r.key).map(String::as_str)));
        let fields = term.match_fields.iter().flatten();
        let fields = fields.map(|r| (r, (r.key == "metadata.name").then_some(name)));
        labels
            .chain(fields)
            .filter(|(r, value)| !holds(r, *value))
            .map(|(r, value)| {
                let values = r.values.as_deref().unwrap_or_default().join(", ");
                let is = value.map_or("is absent".to_owned(), |v| format!("is {v:?}"));
                format!("{} {} [{values}], it {is}", r.key, r.operator)
            })
            .collect::<Vec<_>>()
    };
    let terms = selector.node_selector_terms.iter().map(of_term);
    let closest = terms.filter(|t| !t.is_empty()).min_by_key(Vec::len);
    closest.map_or("no term".to_owned(), |t| t.join("; "))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    let bound = number(values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|x| x != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(v, b)| v > b),
        "Lt" => number(value).zip(bound).is_some_and(|(v, b)| v < b),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms() {
        let labels = BTreeMap::from([
            ("zone".to_owned(), "a".to_owned()),
            ("n".into(), "5".into()),
        ]);
        for (json, expected) in [
            (r#"{}"#, false),
            (
                r#"{"matchExpressions":[{"key":"zone","operator":"In","values":["a","b"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"zone","operator":"NotIn","values":["a"]}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"q","operator":"NotIn","values":["a"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"q","operator":"Exists"}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"q","operator":"DoesNotExist"}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"n","operator":"Gt","values":["4"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"n","operator":"Lt","values":["4"]}]}"#,
                false,
            ),
            (
                r#"{"matchFields":[{"key":"metadata.name","operator":"In","values":["m"]}]}"#,
                true,
            ),
            (
                r#"{"matchFields":[{"key":"metadata.name","operator":"In","values":["m"]}],
                    "matchExpressions":[{"key":"q","operator":"Exists"}]}"#,
                false,
            ),
        ] {
            let term = serde_json::from_str(json).unwrap();
            assert_eq!(term_matches(&term, "m", &labels), expected, "{json}");
        }
    }
}
