//! The templates a DaemonSet or StatefulSet had, as ControllerRevisions.
//!
//! The revision of the present template always has the highest number: a template that comes
//! back moves to the end.

use std::collections::BTreeSet;

use client::{
    Cache, Client, Entry, Error, Key,
    cache::decode_all,
    write::{self, Revisioned as _},
};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{Api, Resource, api::PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    claim,
    deployment::hash,
    owners::{Kind, Owner, Owners},
};

/// Reads and writes the revisions of owners.
#[derive(Clone)]
pub struct History {
    /// Writes.
    pub client: Client,
    /// Shows what was written.
    pub revisions: Cache<ControllerRevision>,
}

/// The template of an owner, whose history is kept.
pub struct Present<'a> {
    /// The template.
    pub template: &'a PodTemplateSpec,
    /// How often the name of a revision was taken by one of another template.
    pub collisions: Option<i32>,
    /// The label of revisions that holds the hash of their template.
    pub hash_label: &'static str,
    /// The name of a revision, from its owner's and the hash.
    pub name: fn(&str, &str) -> String,
}

impl History {
    /// The revisions of `owner`, by number.
    pub async fn of<O: Owner>(&self, owner: &O) -> Result<Vec<ControllerRevision>, Error> {
        let (selector, revisions) = (owner.selector()?, &self.revisions);
        let owned = claim::own(&self.client, owner, &selector, revisions, |_| true).await?;
        let mut all: Vec<ControllerRevision> = decode_all(&owned);
        all.sort_by_cached_key(|r| {
            let meta = &r.metadata;
            let created = meta.creation_timestamp.as_ref().map(|t| t.0);
            (number(r), created, meta.name.clone())
        });
        Ok(all)
    }

    fn api(&self, namespace: &str) -> Api<ControllerRevision> {
        write::namespaced(&self.client, namespace)
    }

    /// Makes the revision of the present template the newest of `all`. A name that is taken is
    /// counted as a collision, and the next try has another.
    pub async fn record<O: Owner, K: Kind>(
        &self,
        owners: &Owners<O, K>,
        owner: &O,
        present: &Present<'_>,
        all: &[ControllerRevision],
    ) -> Result<ControllerRevision, Error> {
        let next = all.last().map_or(0, number) + 1;
        let api = self.api(owner.meta().namespace.as_deref().unwrap_or_default());
        if let Some(known) = find(all, present.template) {
            if number(known) == next - 1 {
                return Ok(known.clone());
            }
            let name = known.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({"metadata": {"uid": known.metadata.uid}, "revision": next});
            let Some(written) = write::patch(&api, name, &patch).await? else {
                return Err(Error::Other(format!("revision {name} vanished")));
            };
            self.revisions
                .caught_up(write::revision_of(&written))
                .await?;
            let mut current = known.clone();
            current.revision = Some(next);
            current.metadata.resource_version = written.resource_version().map(str::to_owned);
            return Ok(current);
        }
        let new = revision(owner, present, next);
        match api.create(&PostParams::default(), &new).await {
            Ok(made) => {
                self.revisions.caught_up(write::revision_of(&made)).await?;
                Ok(made)
            }
            Err(e) if client::is_exists(&e) => {
                owners.count_collision(owner, present.collisions).await?;
                let message = "the name of its revision is taken by another";
                Err(Error::Other(message.into()))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Deletes revisions.
    pub async fn delete(&self, doomed: &[&ControllerRevision]) -> Result<(), Error> {
        for revision in doomed {
            let key = Key::of(*revision);
            let uid = revision.metadata.uid.as_deref();
            write::delete(&self.api(&key.namespace), &key.name, uid).await?;
            let gone = |e: Option<&Entry>| e.is_none_or(|e| e.deleting || Some(&*e.uid) != uid);
            self.revisions.until(&key, gone).await?;
        }
        Ok(())
    }
}

/// The place of a revision in the history.
pub fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// A label of a revision; empty where it has none.
pub fn label<'a>(revision: &'a ControllerRevision, key: &str) -> &'a str {
    let all = revision.metadata.labels.as_ref();
    all.and_then(|l| l.get(key)).map_or("", String::as_str)
}

/// The template a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.0.pointer("/spec/template")?;
    PodTemplateSpec::deserialize(template).ok()
}

/// The newest revision of this template.
pub fn find<'a>(
    all: &'a [ControllerRevision],
    wanted: &PodTemplateSpec,
) -> Option<&'a ControllerRevision> {
    all.iter()
        .rev()
        .find(|r| template(r).is_some_and(|t| t == *wanted))
}

/// The oldest revisions beyond `limit`, leaving those whose names are `live`.
pub fn excess<'a>(
    all: &'a [ControllerRevision],
    live: &BTreeSet<&str>,
    limit: i32,
) -> Vec<&'a ControllerRevision> {
    let name = |r: &ControllerRevision| r.metadata.name.clone().unwrap_or_default();
    let idle: Vec<_> = all
        .iter()
        .filter(|r| !live.contains(name(r).as_str()))
        .collect();
    let keep = usize::try_from(limit).unwrap_or(0);
    let excess = idle.len().saturating_sub(keep);
    idle.into_iter().take(excess).collect()
}

/// The patch that brings a template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

fn revision<O: Resource<DynamicType = ()>>(
    owner: &O,
    present: &Present<'_>,
    number: i64,
) -> ControllerRevision {
    let template = present.template;
    let hash = hash::of_template(template, present.collisions.unwrap_or(0));
    let meta = owner.meta();
    let mut labels = template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    labels.insert(present.hash_label.to_owned(), hash.clone());
    let name = meta.name.as_deref().unwrap_or_default();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some((present.name)(name, &hash)),
            namespace: meta.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            owner_references: Some(vec![claim::owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: RawExtension(data(template)),
        revision: Some(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(image: &str, number: i64) -> ControllerRevision {
        let owner = k8s_openapi::api::apps::v1::DaemonSet {
            metadata: ObjectMeta {
                name: Some("d".into()),
                ..ObjectMeta::default()
            },
            ..Default::default()
        };
        let present = Present {
            template: &of_image(image),
            collisions: None,
            hash_label: "hash",
            name: hash::name,
        };
        revision(&owner, &present, number)
    }

    fn of_image(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    #[test]
    fn a_revision_holds_its_template() {
        let one = made("v1", 1);
        assert_eq!(template(&one), Some(of_image("v1")));
        assert_eq!(one.data.0["spec"]["template"]["$patch"], "replace");
        let name = format!("d-{}", label(&one, "hash"));
        assert_eq!(one.metadata.name, Some(name));
        assert_eq!(label(&one, "a"), "b");
    }

    #[test]
    fn finds_and_cleans_up() {
        let all = [made("v1", 1), made("v2", 2), made("v3", 3), made("v1", 4)];
        assert_eq!(find(&all, &of_image("v1")).map(number), Some(4));
        assert_eq!(find(&all, &of_image("v9")), None);
        let name = |i: usize| all[i].metadata.name.as_deref().unwrap();
        let live = BTreeSet::from([name(1)]);
        let numbers =
            |limit| -> Vec<i64> { excess(&all, &live, limit).into_iter().map(number).collect() };
        assert_eq!(numbers(1), [1, 3]);
        assert_eq!(numbers(0), [1, 3, 4]);
        assert_eq!(numbers(9), [0; 0]);
    }
}
