//! The status a definition should have: pure, from the definitions as they are.
//!
//! Names are given to who asks first within a group. A definition whose names are free is established at once.

use std::collections::BTreeSet;

use api::custom::{Node, condition_is_true};
use api::meta;
use jiff::Timestamp;
use kinds::{approval_of, set_condition, structural_problems};
use serde_json::{Map, Value, json};

const NAMES: [&str; 4] = ["plural", "singular", "kind", "listKind"];

/// The definition with the status it should have beside the others; `None` if it has it.
pub(super) fn status<'a>(
    definition: &Value,
    others: impl Iterator<Item = &'a Value> + Clone,
    now: Timestamp,
) -> Option<Value> {
    let mut out = definition.clone();
    names(&mut out, others, now);
    establish(&mut out, now);
    structure(&mut out, now);
    approval(&mut out, now);
    (out != *definition).then_some(out)
}

/// What a group's other definitions are called.
#[derive(Default)]
struct Taken {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

impl Taken {
    fn of<'a>(group: &str, others: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Self::default();
        for other in others.filter(|o| meta::str_at(o, &["spec", "group"]) == group) {
            let accepted = |field: &str| {
                let name = meta::str_at(other, &["status", "acceptedNames", field]);
                (!name.is_empty()).then(|| name.to_owned())
            };
            taken
                .resources
                .extend(["plural", "singular"].into_iter().filter_map(accepted));
            taken
                .kinds
                .extend(["kind", "listKind"].into_iter().filter_map(accepted));
            let short = meta::list_at(other, &["status", "acceptedNames", "shortNames"]);
            taken
                .resources
                .extend(short.iter().filter_map(|s| s.as_str().map(str::to_owned)));
        }
        taken
    }
}

fn in_use(name: &str) -> String {
    format!("{name:?} is already in use")
}

fn names<'a>(definition: &mut Value, others: impl Iterator<Item = &'a Value>, now: Timestamp) {
    let spec = definition.get("spec").cloned().unwrap_or_default();
    let asked = spec.get("names").cloned().unwrap_or_default();
    let mut accepted = meta::get(definition, &["status", "acceptedNames"])
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if Value::Object(accepted.clone()) == asked && has_condition(definition, "NamesAccepted") {
        return;
    }
    let taken = Taken::of(meta::str_at(&spec, &["group"]), others);
    let mut conflict = None;
    for field in NAMES {
        let (name, had) = (meta::str_at(&asked, &[field]), accepted.get(field));
        let used = if field.to_lowercase().ends_with("kind") {
            &taken.kinds
        } else {
            &taken.resources
        };
        if had.and_then(Value::as_str) != Some(name) && used.contains(name) {
            let mut reason = format!("{field}Conflict");
            reason[..1].make_ascii_uppercase();
            conflict = Some((reason, in_use(name)));
        } else {
            accepted.insert(field.to_owned(), name.into());
        }
    }
    if let Some(why) = short_names(&asked, &mut accepted, &taken) {
        conflict = Some(("ShortNamesConflict".to_owned(), why));
    }
    match asked.get("categories") {
        Some(categories) => accepted.insert("categories".to_owned(), categories.clone()),
        None => accepted.remove("categories"),
    };
    meta::set(definition, &["status", "acceptedNames"], accepted.into());
    let (holds, reason, message) = match &conflict {
        Some((reason, message)) => (false, reason.as_str(), message.as_str()),
        None => (true, "NoConflicts", "no conflicts found"),
    };
    set_condition(definition, "NamesAccepted", holds, (reason, message), now);
    if !holds && !condition_is_true(definition, "Established") {
        let why = ("NotAccepted", "not all names are accepted");
        set_condition(definition, "Established", false, why, now);
    }
}

fn short_names(asked: &Value, accepted: &mut Map<String, Value>, taken: &Taken) -> Option<String> {
    let wanted = meta::list_at(asked, &["shortNames"]);
    let had = accepted
        .get("shortNames")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let refused: Vec<String> = wanted
        .iter()
        .filter(|name| !had.contains(name))
        .filter_map(Value::as_str)
        .filter(|name| taken.resources.contains(*name))
        .map(in_use)
        .collect();
    match refused.as_slice() {
        [] if wanted.is_empty() => {
            accepted.remove("shortNames");
        }
        [] => {
            accepted.insert("shortNames".to_owned(), json!(wanted));
        }
        [one] => return Some(one.clone()),
        many => return Some(format!("[{}]", many.join(", "))),
    }
    None
}

fn has_condition(definition: &Value, kind: &str) -> bool {
    meta::list_at(definition, &["status", "conditions"])
        .iter()
        .any(|c| meta::str_at(c, &["type"]) == kind)
}

fn establish(definition: &mut Value, now: Timestamp) {
    if condition_is_true(definition, "NamesAccepted")
        && !condition_is_true(definition, "Established")
    {
        let why = (
            "InitialNamesAccepted",
            "the initial names have been accepted",
        );
        set_condition(definition, "Established", true, why, now);
    }
}

/// Says of schemas from before schemas had to be structural what is wrong with them.
fn structure(definition: &mut Value, now: Timestamp) {
    const KIND: &str = "NonStructuralSchema";
    let mut problems = Vec::new();
    if meta::bool_at(definition, &["spec", "preserveUnknownFields"]) {
        problems.push("spec.preserveUnknownFields: Invalid value: true: must be false".to_owned());
    }
    for (index, version) in meta::list_at(definition, &["spec", "versions"])
        .iter()
        .enumerate()
    {
        let Some(schema) = meta::get(version, &["schema", "openAPIV3Schema"]) else {
            continue;
        };
        let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
        match Node::parse(schema) {
            Ok(node) => {
                let found = structural_problems(&node, &path);
                problems.extend(found.iter().map(ToString::to_string));
            }
            Err(why) => problems.push(format!(
                "failed to check validation schema for version {}: {why}",
                meta::str_at(version, &["name"])
            )),
        }
    }
    if problems.is_empty() {
        if has_condition(definition, KIND) {
            let mut conditions = meta::list_at(definition, &["status", "conditions"]).to_vec();
            conditions.retain(|c| meta::str_at(c, &["type"]) != KIND);
            meta::set(definition, &["status", "conditions"], conditions.into());
        }
        return;
    }
    let message = match problems.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    set_condition(definition, KIND, true, ("Violations", &message), now);
}

fn approval(definition: &mut Value, now: Timestamp) {
    if let Some((holds, reason, message)) = approval_of(definition) {
        let kind = "KubernetesAPIApprovalPolicyConformant";
        set_condition(definition, kind, holds, (reason, &message), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": format!("{plural}.example.com")},
            "spec": {"group": "example.com", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
                "listKind": format!("{kind}List"), "shortNames": short},
                "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object"}}}]},
            "status": {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]}})
    }

    fn condition(definition: &Value, kind: &str) -> (String, String, String) {
        let found = meta::list_at(definition, &["status", "conditions"])
            .iter()
            .find(|c| c["type"] == kind)
            .unwrap();
        let text = |field: &str| found[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn free_names_are_accepted_at_once() {
        let first = status(&definition("as", "A", &["x"]), std::iter::empty(), NOW).unwrap();
        assert_eq!(first["status"]["acceptedNames"], first["spec"]["names"]);
        assert_eq!(condition(&first, "NamesAccepted").1, "NoConflicts");
        assert_eq!(condition(&first, "Established").1, "InitialNamesAccepted");
        assert_eq!(status(&first, std::iter::empty(), NOW), None);
    }

    #[test]
    fn names_in_use_are_refused_until_they_are_free() {
        let first = status(&definition("as", "A", &["x"]), std::iter::empty(), NOW).unwrap();
        let second = definition("bs", "A", &["x", "y"]);
        let refused = status(&second, std::iter::once(&first), NOW).unwrap();
        let (holds, reason, message) = condition(&refused, "NamesAccepted");
        assert_eq!(
            (holds.as_str(), reason.as_str()),
            ("False", "ShortNamesConflict")
        );
        assert_eq!(message, "\"x\" is already in use");
        assert_eq!(condition(&refused, "Established").1, "NotAccepted");
        assert_eq!(refused["status"]["acceptedNames"]["plural"], "bs");
        assert_eq!(refused["status"]["acceptedNames"]["kind"], "");
        assert_eq!(status(&refused, std::iter::once(&first), NOW), None);
        let accepted = status(&refused, std::iter::empty(), NOW).unwrap();
        assert_eq!(condition(&accepted, "Established").0, "True");
    }

    #[test]
    fn old_schemas_are_told_about() {
        let mut old = definition("as", "A", &[]);
        old["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
            json!({"properties": {"spec": {}}});
        let told = status(&old, std::iter::empty(), NOW).unwrap();
        let (_, reason, message) = condition(&told, "NonStructuralSchema");
        assert_eq!(reason, "Violations");
        assert!(
            message.contains("must not be empty at the root"),
            "{message}"
        );
    }
}
