//! Label selectors of typed objects, matched against borrowed labels.

use std::collections::BTreeMap;

use api::selector::SelectorError;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Which labels an object must carry: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(api::selector::LabelSelector);

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches objects that carry all of these labels.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let pairs = labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        Self(api::selector::LabelSelector::from_map(pairs))
    }

    /// The meaning of a selector as written in objects; an empty one matches everything.
    ///
    /// # Errors
    /// An operator other than In, NotIn, Exists and DoesNotExist.
    pub fn of(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let value = serde_json::to_value(selector).map_err(|e| SelectorError(e.to_string()))?;
        api::selector::LabelSelector::from_value(&value).map(Self)
    }

    /// Matches no object: what an absent selector means.
    pub fn nothing() -> Self {
        Self(api::selector::LabelSelector::nothing())
    }

    /// A label with its value that every matching object carries, if the selector names one:
    /// what an index may be keyed by.
    pub fn needs(&self) -> Option<(&str, &str)> {
        self.0.requirements().iter().find_map(|r| match r {
            api::selector::Requirement::In(key, values) if values.len() == 1 => {
                Some((key.as_str(), values.first()?.as_str()))
            }
            _ => None,
        })
    }

    /// Whether there is no requirement.
    pub fn is_everything(&self) -> bool {
        self.0.is_everything()
    }

    /// Whether labels, looked up by key, match.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.matches_with(label)
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
