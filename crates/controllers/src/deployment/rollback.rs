//! The rollback that an annotation of a Deployment asks for: its template becomes that of an
//! earlier ReplicaSet again, and the roll-out does the rest. Pure.

use client::EventType;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::model::{self, NOT_INHERITED, ROLLBACK_TO, Snapshot};

const NOT_FOUND: &str = "DeploymentRollbackRevisionNotFound";

/// What becomes of a Deployment that is to be rolled back.
#[derive(Debug, PartialEq)]
pub struct Rollback {
    /// The Deployment, which asks for it no more.
    pub deployment: Deployment,
    /// What to tell: type, reason and message.
    pub event: (EventType, &'static str, String),
}

/// The rollback that is asked for; `None`: there is none, or not now.
pub fn plan(s: &Snapshot) -> Option<Rollback> {
    let d = &s.deployment;
    let asked = model::number(&d.metadata, ROLLBACK_TO)?;
    if model::is_paused(d) || d.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut deployment = d.clone();
    let event = match find(s, asked) {
        Err(why) => (EventType::Warning, NOT_FOUND, why.to_owned()),
        Ok((number, set)) => return_to(&mut deployment, number, set),
    };
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.remove(ROLLBACK_TO);
    Some(Rollback { deployment, event })
}

/// The ReplicaSet of a revision; 0 is the one before the last.
fn find(s: &Snapshot, asked: i64) -> Result<(i64, &ReplicaSet), &'static str> {
    let revision = |set: &ReplicaSet| model::revision(&set.metadata);
    let wanted = if asked == 0 {
        let mut all: Vec<i64> = s.sets.iter().map(revision).collect();
        all.sort_unstable();
        let last = all.iter().rev().nth(1).copied().filter(|n| *n > 0);
        last.ok_or("Unable to find last revision.")?
    } else {
        asked
    };
    let found = s.sets.iter().find(|set| revision(set) == wanted);
    let found = found.ok_or("Unable to find the revision to rollback to.")?;
    Ok((wanted, found))
}

/// Takes over the template and the annotations that came with it.
fn return_to(
    d: &mut Deployment,
    number: i64,
    set: &ReplicaSet,
) -> (EventType, &'static str, String) {
    let name = d.metadata.name.clone().unwrap_or_default();
    let template = set.spec.template.clone().unwrap_or_default();
    if model::same(&d.spec.template, &template) {
        let message = format!(
            "The rollback revision contains the same template as current deployment {name:?}"
        );
        return (
            EventType::Warning,
            "DeploymentRollbackTemplateUnchanged",
            message,
        );
    }
    d.spec.template = model::without_hash(&template);
    let own = |key: &str| NOT_INHERITED.contains(&key);
    let annotations = d.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| own(key));
    let earlier = set.metadata.annotations.iter().flatten();
    annotations.extend(
        earlier
            .filter(|(key, _)| !own(key))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    let message = format!("Rolled back deployment {name:?} to revision {number}");
    (EventType::Normal, "DeploymentRollback", message)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// Of three revisions, the last of which is the present one.
    fn asking(for_revision: &str) -> Snapshot {
        let template = |image: &str, hash: Option<&str>| {
            let mut template = json!({"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": image}]}});
            if let Some(hash) = hash {
                template["metadata"]["labels"][model::HASH_LABEL] = hash.into();
            }
            template
        };
        let deployment = json!({
            "metadata": {"name": "d", "annotations": {(ROLLBACK_TO): for_revision,
                (model::REVISION): "3", "why": "3"}},
            "spec": {"selector": {}, "template": template("v3", None)}});
        let set = |n: i32| {
            json!({"metadata": {"name": format!("d-{n}"),
                    "annotations": {(model::REVISION): n.to_string(), "why": n.to_string()}},
                "spec": {"selector": {}, "template": template(&format!("v{n}"), Some("h"))}})
        };
        let sets = (1..4).map(|n| serde_json::from_value(set(n)).unwrap());
        let deployment = serde_json::from_value(deployment).unwrap();
        Snapshot::new(deployment, sets.collect(), BTreeMap::new())
    }

    #[test]
    fn the_template_and_annotations_of_a_revision_come_back() {
        for (asked, image, why, reason, message) in [
            (
                "1",
                "v1",
                "1",
                "DeploymentRollback",
                "Rolled back deployment \"d\" to revision 1",
            ),
            (
                "0",
                "v2",
                "2",
                "DeploymentRollback",
                "Rolled back deployment \"d\" to revision 2",
            ),
            (
                "3",
                "v3",
                "3",
                "DeploymentRollbackTemplateUnchanged",
                "The rollback revision contains the same template as current deployment \"d\"",
            ),
            (
                "9",
                "v3",
                "3",
                NOT_FOUND,
                "Unable to find the revision to rollback to.",
            ),
        ] {
            let Rollback { deployment, event } = plan(&asking(asked)).unwrap();
            assert_eq!((event.1, event.2.as_str()), (reason, message), "{asked}");
            let spec = deployment.spec.template.spec.unwrap();
            assert_eq!(spec.containers[0].image.as_deref(), Some(image));
            let meta = deployment.spec.template.metadata.unwrap();
            assert_eq!(meta.labels.unwrap().len(), 1, "no hash");
            let expected = [(model::REVISION, "3"), ("why", why)];
            let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
            assert_eq!(deployment.metadata.annotations, Some(expected.into()));
        }
    }

    #[test]
    fn nothing_happens_unasked_or_during_a_pause() {
        let mut paused = asking("1");
        paused.deployment.spec.paused = Some(true);
        assert_eq!(plan(&paused), None);
        assert_eq!(plan(&asking("x")), None);
        let mut first = asking("0");
        first.sets.truncate(1);
        let event = plan(&first).unwrap().event;
        assert_eq!(event.2, "Unable to find last revision.");
    }
}
