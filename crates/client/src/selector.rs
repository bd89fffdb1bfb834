//! Label selectors, compiled once and matched against borrowed labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

/// Which labels an object must carry: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

/// An operator that selectors do not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a valid label selector operator")]
pub struct InvalidOperator(pub String);

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches objects that carry all of these labels.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        Self(
            labels
                .iter()
                .map(|(k, v)| Requirement::In(k.clone(), vec![v.clone()]))
                .collect(),
        )
    }

    /// The meaning of a selector as written in objects; an empty one matches everything.
    ///
    /// # Errors
    /// [`InvalidOperator`] for an operator other than In, NotIn, Exists and DoesNotExist.
    pub fn of(selector: &LabelSelector) -> Result<Self, InvalidOperator> {
        let mut all = Self::of_labels(selector.match_labels.as_ref().unwrap_or(&BTreeMap::new()));
        for e in selector.match_expressions.iter().flatten() {
            let values = e.values.clone().unwrap_or_default();
            all.0.push(match e.operator.as_str() {
                "In" => Requirement::In(e.key.clone(), values),
                "NotIn" => Requirement::NotIn(e.key.clone(), values),
                "Exists" => Requirement::Exists(e.key.clone()),
                "DoesNotExist" => Requirement::DoesNotExist(e.key.clone()),
                other => return Err(InvalidOperator(other.to_owned())),
            });
        }
        Ok(all)
    }

    /// Whether there is no requirement.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, looked up by key, match.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|v| values.iter().any(|x| x == v))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|v| values.iter().all(|x| x != v))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
        })
    }

    /// Whether a map of labels matches.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn one(key: &str, operator: &str, values: &[&str]) -> Selector {
        Selector::of(&LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| v.to_string()).collect()),
            }]),
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn operators() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        for (selector, expected) in [
            (one("app", "In", &["db", "web"]), true),
            (one("app", "In", &["db"]), false),
            (one("tier", "In", &["db"]), false),
            (one("app", "NotIn", &["web"]), false),
            (one("tier", "NotIn", &["web"]), true),
            (one("app", "Exists", &[]), true),
            (one("tier", "Exists", &[]), false),
            (one("app", "DoesNotExist", &[]), false),
            (one("tier", "DoesNotExist", &[]), true),
            (Selector::everything(), true),
            (Selector::of_labels(&labels), true),
        ] {
            assert_eq!(selector.matches(Some(&labels)), expected, "{selector:?}");
        }
        assert!(!Selector::of_labels(&labels).matches(None));
    }
}
