//! flowcontrol: FlowSchemas and PriorityLevelConfigurations.
//!
//! Two of each are mandatory: their specs are fixed, so that administrators are never queued and nothing is left over.

use api::{FieldError, meta, names};
use serde_json::{Value, json};

use crate::cells::{Cell, condition, or, text};
use crate::check::named;
use crate::simple::Simple;

/// Largest precedence, that of what is matched last.
const PRECEDENCE_MAX: i64 = 10_000;
/// Most queues of a level.
const QUEUES_MAX: i64 = 10_000_000;
/// Bits of the hash that chooses queues.
const HASH_BITS: f64 = 60.0;
const VERBS: [&str; 9] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

/// FlowSchemas.
pub(crate) static SCHEMAS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::TextOr(&["spec", "priorityLevelConfiguration", "name"], "<none>"),
        Cell::Int(&["spec", "matchingPrecedence"]),
        Cell::TextOr(&["spec", "distinguisherMethod", "type"], "<none>"),
        Cell::Age,
        Cell::With(|o, _| {
            let dangling = condition(o, "Dangling").map(|c| text(c, &["status"]));
            or(dangling.unwrap_or_default(), "?").into()
        }),
    ],
    generation: true,
    validate: validate_schema,
    ..Simple::BASE
};

const LIMITED: &[&str] = &["spec", "limited", "nominalConcurrencyShares"];
const EXEMPT: &[&str] = &["spec", "exempt", "nominalConcurrencyShares"];

/// PriorityLevelConfigurations.
pub(crate) static LEVELS: Simple = Simple {
    cells: &[
        Cell::Name,
        Cell::Text(&["spec", "type"]),
        Cell::With(|o, _| or(or(text(o, LIMITED), &text(o, EXEMPT)), "<none>").into()),
        Cell::TextOr(
            &["spec", "limited", "limitResponse", "queuing", "queues"],
            "<none>",
        ),
        Cell::TextOr(
            &["spec", "limited", "limitResponse", "queuing", "handSize"],
            "<none>",
        ),
        Cell::TextOr(
            &[
                "spec",
                "limited",
                "limitResponse",
                "queuing",
                "queueLengthLimit",
            ],
            "<none>",
        ),
        Cell::Age,
    ],
    generation: true,
    validate: validate_level,
    ..Simple::BASE
};

/// The spec that a mandatory FlowSchema has.
fn fixed_schema(name: &str) -> Option<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let rules = |subjects: Value| {
        json!([{"subjects": subjects,
        "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
    };
    match name {
        "exempt" => Some(
            json!({"priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1,
            "rules": rules(json!([group("system:masters")]))}),
        ),
        "catch-all" => Some(
            json!({"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": PRECEDENCE_MAX,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": rules(json!([group("system:unauthenticated"), group("system:authenticated")]))}),
        ),
        _ => None,
    }
}

fn must_equal(obj: &Value, fixed: Option<Value>) -> Option<FieldError> {
    let spec = obj.get("spec").cloned().unwrap_or_default();
    (fixed? != spec).then(|| {
        let why = format!("spec of '{}' must equal the fixed value", meta::name(obj));
        FieldError::invalid("spec", spec, why)
    })
}

fn validate_schema(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let mut errors = Vec::new();
    let precedence = meta::int_at(spec, &["matchingPrecedence"]).unwrap_or(0);
    let mut refuse = |why: String| {
        let at = "spec.matchingPrecedence";
        errors.push(FieldError::invalid(at, precedence, why));
    };
    if precedence <= 0 {
        refuse("must be a positive value".to_owned());
    }
    if precedence > PRECEDENCE_MAX {
        refuse(format!("must not be greater than {PRECEDENCE_MAX}"));
    }
    if precedence == 1 && meta::name(obj) != "exempt" {
        refuse("only the schema named 'exempt' may have matchingPrecedence 1".to_owned());
    }
    if let Some(method) = spec.get("distinguisherMethod") {
        let kind = meta::str_at(method, &["type"]);
        if !matches!(kind, "ByNamespace" | "ByUser") {
            let at = "spec.distinguisherMethod.type";
            errors.push(FieldError::not_supported(
                at,
                kind,
                &["ByNamespace", "ByUser"],
            ));
        }
    }
    let level = meta::str_at(spec, &["priorityLevelConfiguration", "name"]);
    let at = "spec.priorityLevelConfiguration.name";
    if level.is_empty() {
        errors.push(FieldError::required(at, "must reference a priority level"));
    } else {
        errors.extend(named(names::dns1123_subdomain(level), at, level));
    }
    for (i, rule) in meta::list_at(spec, &["rules"]).iter().enumerate() {
        errors.extend(policy_rules(rule, &format!("spec.rules[{i}]")));
    }
    errors.extend(must_equal(obj, fixed_schema(meta::name(obj))));
    errors
}

fn policy_rules(rule: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let list = |field: &str| meta::list_at(rule, &[field]);
    if list("subjects").is_empty() {
        let why = "subjects must contain at least one value";
        errors.push(FieldError::required(format!("{at}.subjects"), why));
    }
    for (i, each) in list("subjects").iter().enumerate() {
        errors.extend(subject(each, &format!("{at}.subjects[{i}]")));
    }
    if list("resourceRules").is_empty() && list("nonResourceRules").is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(FieldError::required(at, why));
    }
    for (i, each) in list("resourceRules").iter().enumerate() {
        errors.extend(resource_rule(each, &format!("{at}.resourceRules[{i}]")));
    }
    for (i, each) in list("nonResourceRules").iter().enumerate() {
        errors.extend(other_rule(each, &format!("{at}.nonResourceRules[{i}]")));
    }
    errors
}

/// Kinds of subjects, and the fields that describe them.
const SUBJECTS: [(&str, &str); 3] = [
    ("Group", "group"),
    ("ServiceAccount", "serviceAccount"),
    ("User", "user"),
];

fn subject(subject: &Value, at: &str) -> Vec<FieldError> {
    let kind = meta::str_at(subject, &["kind"]);
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        let kinds = SUBJECTS.map(|(k, _)| k);
        let at = format!("{at}.kind");
        return vec![FieldError::not_supported(at, kind, &kinds)];
    };
    let mut errors = Vec::new();
    let path = format!("{at}.{own}");
    match subject.get(*own) {
        None => {
            let why = format!("{own} is required when subject kind is '{kind}'");
            errors.push(FieldError::required(path, why));
        }
        Some(told) => {
            let name = meta::str_at(told, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            if kind == "ServiceAccount" {
                if !matches!(name, "" | "*") {
                    let why = names::dns1123_subdomain(name);
                    errors.extend(named(why, &format!("{path}.name"), name));
                }
                let namespace = meta::str_at(told, &["namespace"]);
                let at = format!("{path}.namespace");
                if namespace.is_empty() {
                    let why = "must specify namespace for service account";
                    errors.push(FieldError::required(at, why));
                } else {
                    errors.extend(named(names::dns1123_label(namespace), &at, namespace));
                }
            }
        }
    }
    for (other, field) in SUBJECTS.iter().filter(|(k, _)| *k != kind) {
        if subject.get(*field).is_some() {
            let why = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.push(FieldError::forbidden(format!("{at}.{field}"), why));
        }
    }
    errors
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    let all = meta::list_at(rule, &[field]).iter();
    all.filter_map(Value::as_str).collect()
}

/// A list that is not empty, and in which a star stands alone.
fn list_or_star(
    rule: &Value,
    (field, what): (&str, &str),
    missing: &str,
    at: &str,
) -> Option<FieldError> {
    let all = texts(rule, field);
    let path = format!("{at}.{field}");
    if all.is_empty() {
        return Some(FieldError::required(path, missing));
    }
    let crowded = all.contains(&"*") && all.len() > 1;
    crowded.then(|| {
        let why = format!("if '*' is present, must not specify other {what}");
        FieldError::invalid(path, json!(all), why)
    })
}

fn verbs(rule: &Value, at: &str) -> Option<FieldError> {
    let missing = "verbs must contain at least one value";
    let wrong = list_or_star(rule, ("verbs", "verbs"), missing, at);
    let all = texts(rule, "verbs");
    let known = all.contains(&"*") || all.iter().all(|v| VERBS.contains(v));
    wrong.or_else(|| {
        let at = format!("{at}.verbs");
        (!known).then(|| FieldError::not_supported(at, json!(all).to_string(), &VERBS))
    })
}

fn resource_rule(rule: &Value, at: &str) -> Vec<FieldError> {
    let groups = "resource rules must supply at least one api group";
    let resources = "resource rules must supply at least one resource";
    let mut errors: Vec<FieldError> = [
        verbs(rule, at),
        list_or_star(rule, ("apiGroups", "api groups"), groups, at),
        list_or_star(rule, ("resources", "resources"), resources, at),
    ]
    .into_iter()
    .flatten()
    .collect();
    let namespaces = texts(rule, "namespaces");
    if namespaces.is_empty() && meta::bool_at(rule, &["clusterScope"]) {
        return errors;
    }
    let missing = "resource rules that are not cluster scoped must supply at least one namespace";
    errors.extend(list_or_star(
        rule,
        ("namespaces", "namespaces"),
        missing,
        at,
    ));
    if !namespaces.contains(&"*") {
        for (i, namespace) in namespaces.iter().enumerate() {
            let path = format!("{at}.namespaces[{i}]");
            let why = names::dns1123_label(namespace).into_iter().map(|why| {
                format!("each member of this list must be '*' or a DNS-1123 label; {why}")
            });
            errors.extend(named(why.collect(), &path, namespace));
        }
    }
    errors
}

fn other_rule(rule: &Value, at: &str) -> Vec<FieldError> {
    let missing = "nonResourceURLs must contain at least one value";
    let what = ("nonResourceURLs", "non-resource URLs");
    let mut errors: Vec<FieldError> = [verbs(rule, at), list_or_star(rule, what, missing, at)]
        .into_iter()
        .flatten()
        .collect();
    let urls = texts(rule, "nonResourceURLs");
    if !urls.contains(&"*") {
        for (i, url) in urls.iter().enumerate() {
            if let Some(why) = odd_url(url) {
                let path = format!("{at}.nonResourceURLs[{i}]");
                errors.push(FieldError::invalid(path, *url, why));
            }
        }
    }
    errors
}

fn odd_url(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        u if !u.starts_with('/') => Some("must start with slash"),
        u if u.contains(' ') => Some("must not contain white-space"),
        u if u.contains("//") => Some("must not contain double slash"),
        u if stars > 1 || (stars == 1 && !u.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

fn validate_level(obj: &Value) -> Vec<FieldError> {
    let spec = obj.get("spec").unwrap_or(&Value::Null);
    let (name, kind) = (meta::name(obj), meta::str_at(spec, &["type"]));
    let mut errors = Vec::new();
    if (name == "exempt") != (kind == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.push(FieldError::invalid("spec.type", kind, why));
    }
    let (limited, exempt) = (spec.get("limited"), spec.get("exempt"));
    match kind {
        "Exempt" => {
            if limited.is_some() {
                let why = "must be nil if the type is not Limited";
                errors.push(FieldError::forbidden("spec.limited", why));
            }
            if let Some(exempt) = exempt {
                errors.extend(shares(exempt, "spec.exempt"));
            }
        }
        "Limited" => {
            match limited {
                None => {
                    let why = "must not be empty when type is Limited";
                    errors.push(FieldError::required("spec.limited", why));
                }
                Some(limited) => errors.extend(validate_limited(limited)),
            }
            if exempt.is_some() {
                let why = "must be nil if the type is Limited";
                errors.push(FieldError::forbidden("spec.exempt", why));
            }
        }
        other => errors.push(FieldError::not_supported(
            "spec.type",
            other,
            &["Exempt", "Limited"],
        )),
    }
    if name == "catch-all" {
        let fixed = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0,
            "limitResponse": {"type": "Reject"}}});
        errors.extend(must_equal(obj, Some(fixed)));
    }
    errors
}

fn shares(of: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(n) = meta::int_at(of, &["nominalConcurrencyShares"]).filter(|n| *n < 0) {
        let at = format!("{at}.nominalConcurrencyShares");
        errors.push(FieldError::invalid(at, n, "must be a non-negative integer"));
    }
    if let Some(n) = meta::int_at(of, &["lendablePercent"]).filter(|n| !(0..=100).contains(n)) {
        let why = "must be between 0 and 100, inclusive";
        let at = format!("{at}.lendablePercent");
        errors.push(FieldError::invalid(at, n, why));
    }
    errors
}

fn validate_limited(limited: &Value) -> Vec<FieldError> {
    let mut errors = shares(limited, "spec.limited");
    if let Some(n) = meta::int_at(limited, &["borrowingLimitPercent"]).filter(|n| *n < 0) {
        let why = "if specified, must be a non-negative integer";
        let at = "spec.limited.borrowingLimitPercent";
        errors.push(FieldError::invalid(at, n, why));
    }
    let queuing = meta::get(limited, &["limitResponse", "queuing"]);
    let at = "spec.limited.limitResponse.queuing";
    match meta::str_at(limited, &["limitResponse", "type"]) {
        "Reject" if queuing.is_some() => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(FieldError::forbidden(at, why));
        }
        "Reject" => {}
        "Queue" => match queuing {
            None => {
                let why = "must not be empty if limited.limitResponse.type is Limited";
                errors.push(FieldError::required(at, why));
            }
            Some(queuing) => errors.extend(validate_queuing(queuing, at)),
        },
        other => errors.push(FieldError::not_supported(
            "spec.limited.limitResponse.type",
            other,
            &["Queue", "Reject"],
        )),
    }
    errors
}

fn validate_queuing(queuing: &Value, at: &str) -> Vec<FieldError> {
    let number = |field: &str| meta::int_at(queuing, &[field]).unwrap_or(0);
    let (length, queues, hand) = (
        number("queueLengthLimit"),
        number("queues"),
        number("handSize"),
    );
    let mut errors = Vec::new();
    let mut refuse = |field: &str, n: i64, why: String| {
        errors.push(FieldError::invalid(format!("{at}.{field}"), n, why));
    };
    let positive = "must be positive".to_owned();
    if length <= 0 {
        refuse("queueLengthLimit", length, positive.clone());
    }
    if queues <= 0 {
        refuse("queues", queues, positive.clone());
    } else if queues > QUEUES_MAX {
        let why = format!("must not be greater than {QUEUES_MAX}");
        refuse("queues", queues, why);
    }
    #[expect(clippy::cast_precision_loss, reason = "both are small")]
    let bits = ((queues.max(1) as f64).log2() * hand as f64).ceil();
    if hand <= 0 {
        refuse("handSize", hand, positive);
    } else if hand > queues {
        let why = format!("should not be greater than queues ({queues})");
        refuse("handSize", hand, why);
    } else if bits > HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        refuse("handSize", hand, why);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::texts;

    #[test]
    fn schemas() {
        for name in ["exempt", "catch-all"] {
            let mut schema = json!({"metadata": {"name": name}, "spec": fixed_schema(name)});
            assert_eq!(texts(&validate_schema(&schema)), [""; 0]);
            schema["spec"]["matchingPrecedence"] = 2.into();
            let errors = texts(&validate_schema(&schema));
            assert!(
                errors[0].ends_with(&format!("spec of '{name}' must equal the fixed value")),
                "{errors:?}"
            );
        }
        let odd = json!({"metadata": {"name": "x"}, "spec": {"matchingPrecedence": 1, "distinguisherMethod": {"type": "ByMoon"},
            "priorityLevelConfiguration": {"name": ""}, "rules": [
                {"subjects": [{"kind": "User", "group": {"name": "g"}}, {"kind": "ServiceAccount", "serviceAccount": {"name": "*"}}, {"kind": "Robot"}],
                    "resourceRules": [{"verbs": ["*", "get"], "apiGroups": [], "resources": ["a", "*"], "namespaces": ["A"]}],
                    "nonResourceRules": [{"verbs": ["head"], "nonResourceURLs": ["/a*", "b", "/ok/*"]}]},
                {}]}});
        let label = names::dns1123_label("A").remove(0);
        assert_eq!(
            texts(&validate_schema(&odd)),
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.distinguisherMethod.type: Unsupported value: \"ByMoon\": supported values: \"ByNamespace\", \"ByUser\"",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].subjects[1].serviceAccount.namespace: Required value: must specify namespace for service account",
                "spec.rules[0].subjects[2].kind: Unsupported value: \"Robot\": supported values: \"Group\", \"ServiceAccount\", \"User\"",
                "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not specify other verbs",
                "spec.rules[0].resourceRules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "spec.rules[0].resourceRules[0].resources: Invalid value: [\"a\",\"*\"]: if '*' is present, must not specify other resources",
                &format!(
                    "spec.rules[0].resourceRules[0].namespaces[0]: Invalid value: \"A\": each member of this list must be '*' or a DNS-1123 label; {label}"
                ),
                &texts(&[FieldError::not_supported(
                    "spec.rules[0].nonResourceRules[0].verbs",
                    "[\"head\"]",
                    &VERBS
                )])[0],
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/a*\": wildcard can only do suffix matching",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[1]: Invalid value: \"b\": must start with slash",
                "spec.rules[1].subjects: Required value: subjects must contain at least one value",
                "spec.rules[1]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ]
        );
    }

    #[test]
    fn levels() {
        let of = |spec: Value| {
            texts(&validate_level(
                &json!({"metadata": {"name": "x"}, "spec": spec}),
            ))
        };
        let queue = |queues: i64, hand: i64| {
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 5}}}})
        };
        assert_eq!(of(queue(64, 8)), [""; 0]);
        let at = "spec.limited.limitResponse.queuing";
        assert_eq!(
            of(queue(0, 1)),
            [
                format!("{at}.queues: Invalid value: 0: must be positive"),
                format!("{at}.handSize: Invalid value: 1: should not be greater than queues (0)")
            ]
        );
        assert_eq!(
            of(queue(512, 8)),
            [format!(
                "{at}.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"
            )]
        );
        assert_eq!(
            of(json!({"type": "Exempt", "limited": {}})),
            [
                "spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'",
                "spec.limited: Forbidden: must be nil if the type is not Limited"
            ]
        );
        assert_eq!(
            of(
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": -1, "lendablePercent": 101,
                "borrowingLimitPercent": -1, "limitResponse": {"type": "Reject", "queuing": {}}}})
            ),
            [
                "spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
                "spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
                "spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer",
                "spec.limited.limitResponse.queuing: Forbidden: must be nil if limited.limitResponse.type is not Limited",
            ]
        );
    }
}
